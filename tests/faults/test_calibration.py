"""FAULTS.md 1 to 20, 40 and 42, seen by someone who calls MPFCalibrator."""

import asyncio
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from calibrate import CONCURRENCY, PERSPECTIVES, Planted, benchmark, calibrator, stated
from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache
from langchain_core.messages import AIMessage

from mpf_chains.artifact import Calibration
from mpf_chains.benchmarks import Benchmark
from mpf_chains.core import IIDSampler, fit
from mpf_chains.errors import (
    BudgetExceeded,
    DataWarning,
    FeatureError,
    IdentifiabilityWarning,
    IncompleteCalibration,
    LedgerError,
    NotConverged,
    NotSupportedError,
)
from mpf_chains.features import CallableFeature
from mpf_chains.perspectives import Perspective, PerspectiveSet
from mpf_chains.runtime import Budget, Ledger, RetryPolicy

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
AT_ONCE = RetryPolicy(attempts=20, first_wait=0, longest_wait=0)
ONE_TRY = RetryPolicy(attempts=1)


class Status(Exception):
    def __init__(self, status_code: int) -> None:
        super().__init__(f"status {status_code}")
        self.status_code = status_code


def script(folder: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(HERE / "calibrate.py"), str(folder), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT, timeout=120)


def content(calibration: Calibration | Path, folder: Path) -> str:
    """The artefact's file without its time."""
    if isinstance(calibration, Calibration):
        calibration.save(folder / "content.json")
        calibration = folder / "content.json"
    text, times = re.subn(r'"created": "[^"]+"', "", calibration.read_text())
    assert times == 1
    return text


def test_1_killed_again_and_again_nothing_finished_is_asked_twice(tmp_path: Path) -> None:
    dice = random.Random(1)
    kills = [dice.randint(5, 25), dice.randint(5, 25), dice.randint(5, 25), 10]
    done = script(tmp_path, "kill", *kills)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    requests = (tmp_path / "requests").read_text().splitlines()
    assert len(report["done"][-1]) > len(report["done"][0]) > 0
    for finished, length in zip(report["done"], report["lengths"], strict=True):
        assert not set(finished) & set(requests[length:])
    model = Planted()
    uninterrupted = calibrator(model).invoke(benchmark())
    assert len(model.asked) == len(set(requests))
    assert len(requests) <= len(model.asked) + CONCURRENCY * len(kills)
    assert content(tmp_path / "artefact", tmp_path) == content(uninterrupted, tmp_path)


def test_2_killed_before_the_rename_the_old_artefact_is_whole(tmp_path: Path) -> None:
    old = calibrator(Planted()).invoke(benchmark())
    old.save(tmp_path / "artefact")
    before = (tmp_path / "artefact").read_bytes()
    assert script(tmp_path, "rename").returncode == -9
    assert (tmp_path / "artefact").read_bytes() == before
    assert Calibration.load(tmp_path / "artefact") == old
    (leftover,) = [path for path in tmp_path.iterdir() if path.name != "artefact"]
    assert leftover.name.endswith(".tmp")
    assert Calibration.load(leftover).fits["E"]["questions"] == 6, "the new one was written in full before it"


def test_3_random_failures_change_nothing(tmp_path: Path) -> None:
    dice = random.Random(3)

    async def before(prompt: str) -> None:
        if dice.random() < 0.3:
            raise dice.choice([Status(429), Status(500), TimeoutError(), ConnectionResetError()])

    shaky, steady = Planted(before=before), Planted()
    results = [calibrator(model, retry=AT_ONCE).invoke(benchmark()) for model in (shaky, steady)]
    assert len(shaky.asked) > 1.2 * len(steady.asked)
    assert content(results[0], tmp_path) == content(results[1], tmp_path)


def failing_at(*parts: str) -> Any:
    async def before(prompt: str) -> None:
        if all(part in prompt for part in parts):
            raise Status(500)

    return before


def test_5_a_cell_that_fails_for_good_is_left_out_with_a_warning(tmp_path: Path) -> None:
    model, ledger = Planted(before=failing_at("Be low", "decomposition 4?")), tmp_path / "run.sqlite"
    with pytest.warns(DataWarning, match=r"1 of 36 cells have no usable answer .*'failed': 1.*decomposition4/low/0"):
        calibration = calibrator(model, ledger, draws=1, retry=ONE_TRY).invoke(benchmark())
    without = [row for row in benchmark().rows if row.id != "decomposition4"]
    assert calibration.weights == calibrator(Planted(), draws=1).invoke(Benchmark("less", tuple(without))).weights
    assert calibration.fits["E"]["questions"] == 11
    assert "decomposition4/low/0" in calibration.diagnostics["notes"][0]
    with Ledger(ledger) as book:
        assert [row.completion.text for row in book.rows() if row.completion.status == "failed"] == [None]
        assert all(re.fullmatch(r"=\S+ [0-9a-f]{16}", row.completion.text or "=0 " + 16 * "0") for row in book.rows())
    model = Planted()
    again = calibrator(model, ledger, draws=1, validate=()).invoke(benchmark())
    assert len(model.asked) == 1, "the failed one is asked again"
    assert again.fits["E"]["questions"] == 12


def test_5_too_many_missing_cells_stop_the_calibration() -> None:
    model = Planted(before=failing_at("Be low", "decomposition 1"))  # 1, 10 and 11
    with pytest.raises(IncompleteCalibration, match=r"3 of 36 cells .*At most 5% may be missing \(max_missing\)"):
        calibrator(model, draws=1, retry=ONE_TRY).invoke(benchmark())


def test_5_a_draw_that_fails_in_validation_does_not_hide_the_other() -> None:
    model = Planted(before=failing_at("Be low", "validation"))
    fused: dict[str, Any] = {"retry": ONE_TRY, "validate": ["aggregated"], "n": 2}
    with pytest.warns(DataWarning, match=r"Held-out questions without a usable answer: \d+ of 20 by 'aggregated'"):
        found = calibrator(model, max_missing=0.5, **fused).invoke(benchmark(12, 20))
    drawn = [
        {IIDSampler().draw(found.weights["E"], key=f"validation{row}", index=i, entity="E") for i in range(2)}
        for row in range(20)
    ]
    assert 0 < drawn.count({"low"}) < sum("low" in names for names in drawn)
    assert found.validation["features"]["stated"]["E"]["systems"]["aggregated"]["missing"] == drawn.count({"low"})
    notes = found.diagnostics["notes"]
    assert sum(note.startswith("1 of 2 draws for the fused answer to row 'validation") for note in notes) == sum(
        names > {"low"} for names in drawn
    )
    assert not any("The merge" in note for note in notes), "no merge failed"
    with pytest.raises(IncompleteCalibration, match=r"of 20 by 'aggregated'.*At most 5% per system.*validate=\(\)"):
        calibrator(model, **fused).invoke(benchmark(12, 20))


@pytest.fixture
def global_cache() -> Iterator[None]:
    set_llm_cache(InMemoryCache())
    yield
    set_llm_cache(None)


@pytest.mark.usefixtures("global_cache")
def test_7_draws_stay_separate_calls_under_a_global_cache() -> None:
    model = Planted()
    calibrator(model, draws=3, bind_seed=False, validate=()).invoke(benchmark())
    assert set(Counter(model.asked).values()) == {3}


def test_8_two_processes_calibrate_into_one_ledger(tmp_path: Path) -> None:
    done = script(tmp_path, "pair")
    assert done.returncode == 0, done.stderr
    assert set(Counter((tmp_path / "requests").read_text().splitlines()).values()) == {1}
    assert content(tmp_path / "first", tmp_path) == content(tmp_path / "second", tmp_path)


def test_9_a_budget_stops_the_run_and_a_higher_one_goes_on(tmp_path: Path) -> None:
    whole, part, rest, ledger = Planted(), Planted(), Planted(), tmp_path / "run.sqlite"
    expected = calibrator(whole).invoke(benchmark())
    with pytest.raises(BudgetExceeded):
        calibrator(part, ledger, budget=Budget(calls=30)).invoke(benchmark())
    assert len(part.asked) == 30
    resumed = calibrator(rest, ledger, budget=Budget(calls=1000)).invoke(benchmark())
    assert sorted(part.asked + rest.asked) == sorted(whole.asked)
    assert content(resumed, tmp_path) == content(expected, tmp_path)


async def test_12_cancelling_keeps_what_is_finished(tmp_path: Path) -> None:
    waiting = asyncio.Event()

    async def before(prompt: str) -> None:
        if "decomposition 7?" in prompt:
            waiting.set()
            await asyncio.Event().wait()

    ledger, model = Ledger(), Planted(before=before)
    task = asyncio.create_task(calibrator(model, ledger, max_concurrency=2).ainvoke(benchmark()))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    finished = len(model.asked) - 2
    assert finished <= len(ledger) <= finished + 1
    rest, whole = calibrator(Planted(), ledger), calibrator(Planted())
    assert rest.plan(benchmark()).done == len(ledger)
    resumed, expected = await asyncio.gather(rest.ainvoke(benchmark()), whole.ainvoke(benchmark()))
    assert content(resumed, tmp_path) == content(expected, tmp_path)


def test_5_a_merge_that_fails_leaves_it_to_a_drawn_answer() -> None:
    model = Planted(before=failing_at("=0."))
    found = calibrator(model, retry=ONE_TRY, validate=["aggregated"]).invoke(benchmark())
    assert len(found.diagnostics["notes"]) > 0
    assert all(
        re.fullmatch(r"The merge for row 'validation\d' gave no answer; a drawn answer stood in.", note)
        for note in found.diagnostics["notes"]
    )


def test_5_only_what_was_asked_for_counts_towards_what_may_be_missing() -> None:
    async def before(prompt: str) -> None:
        if re.search(r"decomposition \d\?", prompt) and "0?" not in prompt:
            raise Status(500)

    alone = calibrator(Planted(before=before), perspectives=PERSPECTIVES[:1], draws=1, validate=(), retry=ONE_TRY)
    with pytest.raises(IncompleteCalibration, match="9 of 100 cells"):
        alone.invoke(benchmark(100))


def test_13_what_changes_answers_changes_the_keys(tmp_path: Path) -> None:
    ledger, rows = Ledger(), benchmark()
    first = calibrator(Planted(temperature=0.7), ledger).invoke(rows)

    def done(model: Any = None, **options: Any) -> int:
        return calibrator(model or Planted(temperature=0.7), ledger, **options).plan(rows).done

    reworded = PerspectiveSet([*PERSPECTIVES[1:], Perspective("low", "Be very low.")])
    assert done() == 72
    assert done(Planted(temperature=0.5)) == done(model_id="another") == done(seed=1) == 0
    assert done(perspectives=reworded) == 48
    assert done(position="after") == 72, "there is no system message that it could follow"
    raised = Benchmark("planted", tuple(replace(row, target_score={"stated": 0.9}) for row in rows.rows))
    silent = Planted(temperature=0.7)
    second = calibrator(silent, ledger, validate=()).invoke(raised)
    assert silent.asked == [], "another target is no reason to ask again"
    assert second.weights["E"]["high"] > first.weights["E"]["high"] + 0.3
    assert second.provenance["benchmark"]["digest"] != first.provenance["benchmark"]["digest"]
    halved = CallableFeature(lambda texts: [score / 2 for score in stated(texts)], name="stated", version="2")
    third = calibrator(silent, ledger, feature=halved, validate=()).invoke(rows)
    assert silent.asked == [], "another scorer rescores the texts that are there"
    assert max(third.diagnostics["by_entity"]["E"]["means"][0]) < 0.5


def test_14_each_kind_of_answer_has_a_defined_outcome() -> None:
    replies = {
        "decomposition 1?": AIMessage(" \n"),
        "decomposition 2?": AIMessage("I cannot.", response_metadata={"finish_reason": "content_filter"}),
        "decomposition 3?": AIMessage("=0.2 cut", response_metadata={"finish_reason": "length"}),
        "decomposition 4?": AIMessage([{"type": "text", "text": "=0.2"}, {"type": "text", "text": " blocks"}]),
    }

    async def before(prompt: str) -> AIMessage | None:
        return next((reply for part, reply in replies.items() if part in prompt and "Be low" in prompt), None)

    with pytest.warns(DataWarning, match="2 of 36 cells"):
        calibration = calibrator(Planted(before=before), draws=1, validate=(), max_missing=0.1).invoke(benchmark())
    assert calibration.provenance["answers"]["by_status"] == {"empty": 1, "length": 1, "ok": 33, "refusal": 1}
    assert calibration.fits["E"]["questions"] == 10


def test_15_a_score_that_is_no_number_names_scorer_and_question(tmp_path: Path) -> None:
    asked_for = [True]

    def moody(texts: list[str]) -> list[float]:
        return [float("nan") if asked_for[0] and index == 4 else 0.5 for index in range(len(texts))]

    feature, ledger = CallableFeature(moody, name="stated", version="1"), tmp_path / "run.sqlite"
    with pytest.raises(FeatureError, match=r"'stated' scored .*'Question decomposition 2\?'.* as nan"):
        calibrator(Planted(), ledger, feature=feature).invoke(benchmark())
    assert calibrator(Planted(), ledger, feature=feature).plan(benchmark()).done == 72, "what was paid for is kept"


def test_15_scoring_goes_on_where_it_stopped_and_is_paid_once() -> None:
    scored: list[str] = []
    limit = 80

    def paid(texts: list[str]) -> list[float]:
        if len(scored) + len(texts) > limit:
            raise ConnectionError("The judge is down.")
        scored.extend(texts)
        return stated(texts)

    feature, ledger = CallableFeature(paid, name="stated", version="1"), Ledger()
    rows = [
        replace(row, target_score={}, target_text=f"={0.1 + index / 40} by hand")
        for index, row in enumerate(benchmark(30).rows)
    ]
    with pytest.raises(ConnectionError):
        calibrator(Planted(), ledger, feature=feature).invoke(Benchmark("texts", tuple(rows)))
    assert len(scored) == 64, "two chunks of 32"
    limit = 1000
    first = calibrator(Planted(), ledger, feature=feature).invoke(Benchmark("texts", tuple(rows)))
    assert max(Counter(scored).values()) == 1, "answers and targets"
    assert {row.target_text for row in rows} < set(scored)
    before = len(scored)
    again = calibrator(Planted(), ledger, feature=feature).invoke(Benchmark("texts", tuple(rows)))
    assert len(scored) == before
    assert again.weights == first.weights
    reworded = [replace(row, target_text=f"{row.target_text}!") for row in rows[:1]]
    calibrator(Planted(), ledger, feature=feature, validate=()).invoke(Benchmark("texts", (*reworded, *rows[1:])))
    assert scored[before:].count(f"{rows[0].target_text}!") == 1, "another target is scored"


def test_15_without_texts_a_scorer_that_fails_names_the_answer_that_is_lost(tmp_path: Path) -> None:
    def down(texts: list[str]) -> list[float]:
        raise ConnectionError("The judge is down.")

    with Ledger(tmp_path / "run.sqlite", store_text=False) as ledger:
        feature = CallableFeature(down, name="stated", version="1")
        broken = calibrator(Planted(), ledger, feature=feature, validate=())
        with pytest.raises(
            FeatureError,
            match=r"answer to E / decomposition\d+ / \w+ / draw \d could not be scored.*keeps no texts, so it is lost.*"
            "ConnectionError: The judge is down.*this answer is asked for again",
        ):
            broken.invoke(benchmark())
        assert len(ledger) == 0


def test_16_constant_scores_give_a_defined_result(tmp_path: Path) -> None:
    async def before(prompt: str) -> AIMessage:
        return AIMessage("=0.5")

    rows = tuple(replace(row, target_score={"stated": 0.5}) for row in benchmark().rows)
    with pytest.warns(IdentifiabilityWarning, match=r"^(E|\(pooled\)): The weights are not identifiable"):
        calibration = calibrator(Planted(before=before)).invoke(Benchmark("constant", rows))
    assert calibration.weights["E"] == pytest.approx(dict.fromkeys(PERSPECTIVES.names, 1 / 3))
    assert calibration.fits["E"]["calibration"] == [0.0]
    calibration.save(tmp_path / "a.json")  # refuses NaN


def test_16_perspectives_that_say_the_same_are_asked_once_and_reported() -> None:
    twins = PerspectiveSet([*PERSPECTIVES, Perspective("low again", "Be low.")])
    twice = calibrator(Planted(), perspectives=twins, validate=())
    assert twice.plan(benchmark()).calibration == 72
    with pytest.warns(IdentifiabilityWarning, match=r"^(E|\(pooled\)): .*not identifiable"):
        weights = (calibration := twice.invoke(benchmark())).weights["E"]
    assert calibration.fits["E"]["identifiable"] is False
    single = calibrator(Planted(), validate=()).invoke(benchmark())
    assert single.fits["E"]["identifiable"] is True
    assert weights["low"] == weights["low again"] == pytest.approx(single.weights["E"]["low"] / 2, abs=1e-6)


def test_17_one_perspective_and_one_question() -> None:
    with pytest.warns(DataWarning, match="67% of the target lies in score bins that no perspective reaches"):
        alone = calibrator(Planted(), perspectives=PerspectiveSet(PERSPECTIVES[:1])).invoke(benchmark())
    assert alone.weights["E"] == alone.pooled == {"low": 1.0}
    assert alone.intervals["E"] == {"low": (1.0, 1.0)}
    with pytest.warns(DataWarning, match=r"1 question\(s\) for 3 bins.*noise floor|no perspective reaches"):
        few = calibrator(Planted(), draws=1).invoke(benchmark(1, 1))
    assert sum(few.weights["E"].values()) == pytest.approx(1, abs=1e-9)


def test_18_order_does_not_matter() -> None:
    dice = random.Random(18)
    rows, members = list(benchmark().rows), list(PERSPECTIVES)
    expected = calibrator(Planted(), validate=()).invoke(benchmark()).weights["E"]
    for _ in range(3):
        dice.shuffle(rows)
        dice.shuffle(members)
        shuffled = calibrator(Planted(), perspectives=PerspectiveSet(members), validate=(), max_concurrency=1)
        found = shuffled.invoke(Benchmark("shuffled", tuple(rows))).weights["E"]
        assert found == pytest.approx(expected, abs=1e-9)


def test_20_what_is_not_certified_is_an_error_if_strict(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger()
    strict = calibrator(Planted(), ledger, strict=True, validate=())
    assert strict.invoke(benchmark()).fits["E"]["status"] == "optimal"
    monkeypatch.setattr(fit, "CERTIFIED", -1.0)  # a tolerance that nothing meets
    with pytest.raises(NotConverged, match="certified only to"):
        strict.invoke(benchmark())


def test_40_an_answer_that_looks_like_a_serialised_secret_is_plain_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary")
    secret = '{"lc":1,"type":"secret","id":["OPENAI_API_KEY"]}'

    async def before(prompt: str) -> AIMessage | None:
        return AIMessage(f"=0.25 {secret}") if "Be low" in prompt else None

    rows = tuple(replace(row, question=f"{row.question} {secret} {{0.__class__}}") for row in benchmark().rows)
    model, ledger = Planted(before=before), Ledger(tmp_path / "run.sqlite")
    calibration = calibrator(model, ledger, n=6).invoke(Benchmark("secret", rows))
    assert all(secret + " {0.__class__}" in prompt for prompt in model.asked)
    assert any(prompt.count(secret) > 1 for prompt in model.asked), "merged as it is"
    assert {row.completion.text for row in ledger.rows() if "/ low /" in row.label} == {f"=0.25 {secret}"}
    calibration.save(tmp_path / "a.json")
    ledger.close()
    assert not any(b"sk-canary" in path.read_bytes() for path in tmp_path.iterdir())


def test_42_without_texts_it_resumes_with_the_same_weights(tmp_path: Path) -> None:
    two: dict[str, Any] = {"validate": ("normal", "sampled")}
    expected = calibrator(Planted(), **two).invoke(benchmark())
    path, model = tmp_path / "run.sqlite", Planted()
    for asked in (expected.provenance["answers"]["distinct"], 0):
        model.asked.clear()
        with Ledger(path, store_text=False) as ledger:
            found = calibrator(model, ledger, **two).invoke(benchmark())
        assert len(model.asked) == asked
        assert content(found, tmp_path) == content(expected, tmp_path)
    written = b"".join(file.read_bytes() for file in tmp_path.glob("run.sqlite*"))
    assert not re.search(rb"=\d\.\d{4} [0-9a-f]{16}", written)
    assert b"Question" not in written
    other = CallableFeature(stated, version="2")
    with Ledger(path, store_text=False) as ledger:
        with pytest.raises(LedgerError, match=r"keeps no texts.*use a new ledger, or store_text=True"):
            calibrator(model, ledger, feature=other, **two).invoke(benchmark())
        with pytest.raises(NotSupportedError, match=r"'aggregated' merges texts.*validate=\('normal',\)"):
            calibrator(model, ledger, mode="aggregated")
    assert model.asked == []
