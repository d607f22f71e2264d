"""MPFCalibrator from end to end, with the public fakes; crashes and bad answers are in tests/faults."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from langchain_core.callbacks import AsyncCallbackHandler

from mpf_chains import Benchmark, Calibration, MPFCalibrator, Objective, Perspective, PerspectiveSet, Row
from mpf_chains.errors import DataWarning, MPFError
from mpf_chains.features import CallableFeature
from mpf_chains.runtime import Ledger
from mpf_chains.testing import ANSWERS, BiasedChatModel

PERSPECTIVES = PerspectiveSet([Perspective(name, f"TONE-{name}") for name in ("low", "mid", "high")])
PLANTED = {
    "TONE-low": [f"0.{n}" for n in range(10, 30, 3)],
    "TONE-mid": [f"0.{n}" for n in range(40, 60, 3)],
    "TONE-high": [f"0.{n}" for n in range(80, 99, 3)],
}


def mean_number(texts: Sequence[str]) -> list[float]:
    """The mean of the numbers in a text: an answer's own, and for a merge that of what was merged."""
    found = [[float(number) for number in re.findall(r"0\.\d+", text)] for text in texts]
    return [sum(numbers) / len(numbers) for numbers in found]


ALL = ("normal", "sampled", "aggregated")
NUMBER = CallableFeature(mean_number, name="number", version="1")


class Recorder(AsyncCallbackHandler):
    """Sees every model call and the calibrator's own run."""

    def __init__(self) -> None:
        self.roots: list[Any] = []
        self.calls: list[dict[str, Any]] = []

    async def on_chain_start(self, *args: Any, run_id: Any, parent_run_id: Any = None, **kwargs: Any) -> None:
        self.roots.append((run_id, parent_run_id))

    async def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
        self.calls.append({"messages": messages[0], **kwargs})


def model(**options: Any) -> BiasedChatModel:
    return BiasedChatModel(answers=PLANTED, default="0.95", **options)


def benchmark(entities: Sequence[str] = ("E",), questions: int = 24, held_out: int = 24) -> Benchmark:
    """A third of the targets is low and two thirds are middling; without perspectives the model scores 0.95."""
    return Benchmark(
        "planted",
        tuple(
            Row(
                f"{entity}/{split}/{index}",
                entity,
                f"How is {entity} as to {split} {index}?",
                target_score={"number": 0.2 if index % 3 == 0 else 0.5},
                split=split,  # type: ignore[arg-type]
            )
            for entity in entities
            for split, count in (("decomposition", questions), ("validation", held_out))
            for index in range(count)
        ),
    )


def calibrator(**options: Any) -> MPFCalibrator:
    settings = {
        "model": model(), "perspectives": PERSPECTIVES, "feature": NUMBER, "bins": 5, "resamples": 50,
        "validate": ALL, "progress": False,
    }  # fmt: skip
    return MPFCalibrator(**{**settings, **options})


def timeless(calibration: Calibration) -> Calibration:
    return replace(calibration, created="")


def test_the_plan_counts_the_calls_and_each_is_made_once() -> None:
    ledger, seen = Ledger(), Recorder()
    planned = calibrator(ledger=ledger, draws=2, n=4)
    rows = benchmark(["E", "F"], 24, 10)
    plan = planned.plan(rows)
    assert (plan.calibration, plan.validation, plan.done) == (2 * 24 * 3 * 2, 2 * 10 * (1 + 1 + 5), 0)
    assert plan.remaining == plan.calibration + plan.validation
    first = planned.invoke(rows, {"callbacks": [seen]})
    by_kind = Counter(row.kind for row in ledger.rows())
    assert len(seen.calls) == by_kind.total() == first.provenance["answers"]["distinct"]
    assert plan.calibration < by_kind.total() <= plan.remaining
    assert 0 < by_kind["merge"] <= 20
    after = planned.plan(rows)
    assert (after.calibration, after.done) == (plan.calibration, plan.calibration)
    assert after.remaining == after.validation == 2 * 10 * (1 + 5), "which of these were made depends on the weights"
    assert calibrator(ledger=ledger, draws=2, validate=["normal"]).plan(rows).remaining == 0
    again = planned.invoke(rows, {"callbacks": [seen]})
    assert len(seen.calls) == by_kind.total(), "nothing is asked twice"
    assert timeless(again) == timeless(first)


@pytest.mark.parametrize("mode", ["sampled", "aggregated"])
def test_weights_move_held_out_answers_to_the_target(mode: str, tmp_path: Any) -> None:
    ledger = Ledger()
    found = calibrator(mode=mode, ledger=ledger, sampler="quota", n=6).invoke(benchmark())
    report = found.validation["features"]["number"]["E"]
    target, systems = report["target_mean"], report["systems"]
    assert target == pytest.approx(0.4)
    assert set(systems["normal"]["scores"]) == {0.95}
    for system in ("sampled", "aggregated"):
        assert abs(systems[system]["mean"]["value"] - target) < 0.12
        assert systems[system]["mean"]["low"] < systems[system]["mean"]["value"] < systems[system]["mean"]["high"]
        assert systems[system]["kl"]["value"] < systems["normal"]["kl"]["value"] / 2
    assert sum(found.validation["draws"]["sampled"].values()) == 24
    assert sum(found.validation["draws"]["aggregated"].values()) == 24 * 6
    merged = [row.completion.text for row in ledger.rows("merge")]
    assert merged
    assert {round(score, 9) for score in mean_number(merged)} <= {round(s, 9) for s in systems["aggregated"]["scores"]}
    for weights, intervals in ((found.weights["E"], found.intervals["E"]), (found.pooled, found.pooled_intervals)):
        assert sum(weights.values()) == pytest.approx(1, abs=1e-9)
        assert all(intervals[name][0] <= weight <= intervals[name][1] for name, weight in weights.items())
    assert found.fits["E"]["status"] == "optimal"
    found.save(tmp_path / "a.mpf.json")
    assert Calibration.load(tmp_path / "a.mpf.json") == found


def test_validation_generates_with_the_systems_that_are_named_only() -> None:
    seen = Recorder()
    found = calibrator(validate=["normal"]).invoke(benchmark(), {"callbacks": [seen]})
    validating = [call for call in seen.calls if "validation" in call["messages"][-1].text]
    assert len(validating) == 24
    assert {len(call["messages"]) for call in validating} == {1}, "normal means no instruction"
    assert list(found.validation["features"]["number"]["E"]["systems"]) == ["normal"]
    assert calibrator(validate=()).invoke(benchmark()).validation == {}


@pytest.mark.parametrize("mode", ["sampled", "aggregated"])
def test_by_default_the_system_that_the_weights_are_for_is_judged(mode: str) -> None:
    found = calibrator(mode=mode, validate=None).invoke(benchmark())
    assert list(found.validation["features"]["number"]["E"]["systems"]) == ["normal", mode]


def test_perspectives_may_be_a_list() -> None:
    found = calibrator(perspectives=list(PERSPECTIVES), validate=()).invoke(benchmark())
    assert found.perspectives == PERSPECTIVES
    assert found.weights == calibrator(validate=()).invoke(benchmark()).weights


def test_at_temperature_0_repeated_draws_are_one_call() -> None:
    seen, ledger = Recorder(), Ledger()
    cold = calibrator(model=model(temperature=0), ledger=ledger, draws=3, n=4, bind_seed=True)
    rows = benchmark(held_out=8)
    assert cold.plan(rows).calibration == 24 * 3
    found = cold.invoke(rows, {"callbacks": [seen]})
    asked = Counter(tuple(message.text for message in call["messages"]) for call in seen.calls)
    assert max(asked.values()) == 1
    assert sum(found.validation["draws"]["aggregated"].values()) == 8 * 4, "drawn perspectives count as often as drawn"
    once = calibrator(model=model(temperature=0), draws=1, n=4, bind_seed=True).invoke(rows)
    assert timeless(found) == timeless(once)

    warm = PerspectiveSet([*PERSPECTIVES[:2], Perspective("high", "TONE-high", {"temperature": 1.0})])
    mixed = calibrator(model=model(temperature=0), perspectives=warm, draws=3)
    assert mixed.plan(rows).calibration == 24 * (1 + 1 + 3), "a perspective's own temperature goes first"


async def test_sync_and_async_give_the_same_in_and_out_of_a_running_loop() -> None:
    rows = benchmark(held_out=6)
    awaited = await calibrator().ainvoke(rows)
    blocking = calibrator().invoke(rows)  # inside the loop of this test
    assert timeless(awaited) == timeless(blocking)
    (batched,) = await calibrator(max_concurrency=1).abatch([rows])
    assert timeless(batched) == timeless(awaited)


def test_callbacks_tags_and_metadata_reach_each_call_once() -> None:
    seen, ledger = Recorder(), Ledger()
    calibrator(ledger=ledger).invoke(
        benchmark(held_out=4),
        {"callbacks": [seen], "tags": ["mine"], "metadata": {"who": "me"}, "run_name": "calibration"},
    )
    ((root, above),) = seen.roots
    assert above is None
    assert len(seen.calls) == len({call["run_id"] for call in seen.calls}) == len(ledger)
    for call in seen.calls:
        assert call["parent_run_id"] == root
        assert call["tags"].count("mine") == 1
        assert call["metadata"]["who"] == "me"


def test_two_features_are_fitted_together() -> None:
    rows = tuple(replace(row, target_text="a b c d e f") for row in benchmark().rows)
    length = CallableFeature(lambda texts: [len(text.split()) for text in texts], "words", (0, 10), version="1")
    with pytest.warns(DataWarning, match="no perspective reaches"):  # answers are one word long
        found = calibrator(feature=[NUMBER, length]).invoke(Benchmark("two", rows))
    assert found.features == ("number", "words")
    assert len(found.fits["E"]["kl"]) == len(found.fits["E"]["calibration"]) == 2
    assert found.validation["features"]["words"]["E"]["target_mean"] == 6
    assert found.validation["features"]["number"]["E"]["target_mean"] == pytest.approx(0.4), "a given score goes first"
    assert set(found.provenance["features"]) == {"number", "words"}
    alone = calibrator().invoke(benchmark())
    assert found.weights["E"] == pytest.approx(alone.weights["E"], abs=1e-6), "words do not tell perspectives apart"


def test_draws_of_one_question_are_resampled_together() -> None:
    one, two = (calibrator(draws=draws, validate=()) for draws in (1, 2))
    rows = benchmark()
    assert two.plan(rows).calibration == 2 * one.plan(rows).calibration
    first, second = one.invoke(rows), two.invoke(rows)  # the fake answers both draws alike
    assert second.weights["E"] == pytest.approx(first.weights["E"], abs=1e-6)
    widths = [sum(high - low for low, high in found.intervals["E"].values()) for found in (first, second)]
    assert widths[1] / widths[0] == pytest.approx(1, abs=0.2), "as if there were no more questions; else 0.7"
    assert second.fits["E"]["questions"] == 24


def test_targets_of_a_role_play_are_generated() -> None:
    rows = Benchmark.builtin("university-hr", ["ETH Zurich"]).select(per_entity=12)
    recruiter = {"head of human resources": ["We love to recruit there; superb.", "We are happy with them."]}
    ledger, seen = Ledger(), Recorder()
    played = calibrator(
        model=BiasedChatModel(answers={**recruiter, **ANSWERS}),
        perspectives=None, feature="sentiment", ledger=ledger, validate=["normal"],
    )  # fmt: skip
    assert played.plan(rows).calibration == 12 * 5 + 24
    found = played.invoke(rows, {"callbacks": [seen]})
    targets = [row.completion.text for row in ledger.rows("target")]
    assert len(targets) == 24
    assert set(targets) <= set(recruiter["head of human resources"])
    assert found.validation["features"]["sentiment"]["ETH Zurich"]["target_mean"] > 0.7
    assert found.weights["ETH Zurich"]["optimist"] > 0.5

    given = tuple(replace(row, target_score={"sentiment": 0.5}) for row in rows.rows)
    both = calibrator(
        model=played.model, perspectives=None, ledger=ledger, validate=["normal"],
        feature=["sentiment", CallableFeature(lambda texts: [0.5] * len(texts), "flat", version="1")],
    ).invoke(replace(rows, rows=given))  # fmt: skip
    assert both.validation["features"]["sentiment"]["ETH Zurich"]["target_mean"] == 0.5, "given beats role-played"


@pytest.mark.parametrize("bind", [True, False])
def test_a_seed_is_bound_to_each_draw_if_wanted(bind: bool) -> None:
    seen = Recorder()
    seeded = calibrator(draws=3, seed=7, bind_seed=bind, validate=())
    seeded.invoke(benchmark(), {"callbacks": [seen]})
    own = 0  # the fake's own parameter of that name
    seeds = Counter(call["invocation_params"].get("seed", own) for call in seen.calls)
    assert list(seeds.values()) == ([72] * 3 if bind else [216])
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_an_entity_without_questions_to_fit_on_is_named_and_left_out() -> None:
    rows = [row for row in benchmark(["E", "F"]).rows if row.entity == "E" or row.split == "validation"]
    with pytest.warns(DataWarning, match="24 of 48 held-out questions are left out"):
        found = calibrator(validate=["normal"]).invoke(Benchmark("part", tuple(rows)))
    assert list(found.weights) == ["E"]
    assert found.diagnostics["notes"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "validation"}, "no rows in the 'decomposition' split"),
        ({"target_score": {"other": 0.5}}, r"no target for feature 'number': .*it has \['other'\]"),
        (
            {"target_score": {"number": 1.5}},
            r"target_score 1\.5 for feature 'number'; it must lie within \[0\.0, 1\.0\]",
        ),
    ],
)
def test_a_benchmark_that_cannot_be_calibrated_on_costs_nothing(change: dict[str, Any], message: str) -> None:
    rows = tuple(replace(row, **change) for row in benchmark().rows)
    ledger = Ledger()
    for use in (calibrator(ledger=ledger).plan, calibrator(ledger=ledger).invoke):
        with pytest.raises(MPFError, match=message):
            use(Benchmark("odd", rows))
    assert len(ledger) == 0


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "fused"}, {"solver": "newton"}, {"sampler": "sobol"}, {"position": "middle"}, {"validate": ["best"]},
        {"draws": 0}, {"n": 0}, {"bins": 1}, {"smoothing": 0.0}, {"max_support": 0}, {"max_missing": 1.0},
        {"level": 1.0}, {"resamples": 5}, {"max_concurrency": 0}, {"feature": []}, {"feature": "mood"},
        {"perspectives": []}, {"objective": []},
        {"feature": [NUMBER, NUMBER]}, {"objective": Objective(beta=1.0)}, {"objective": [Objective(), Objective()]},
    ],
    ids=str,
)  # fmt: skip
def test_options_are_checked_before_anything_is_asked(options: dict[str, Any]) -> None:
    with pytest.raises(MPFError) as caught:
        calibrator(**options)
    assert len(str(caught.value)) > 20


def test_call_arguments_are_refused() -> None:
    with pytest.raises(MPFError, match="takes no call arguments; got temperature"):
        calibrator().invoke(benchmark(), temperature=0)


def test_a_benchmark_without_held_out_rows_says_that_nothing_was_validated():
    fit_only = Benchmark.builtin("university", ["X University"]).select(split="decomposition", per_entity=30)
    calibrator = MPFCalibrator(model=BiasedChatModel(), progress=False)
    with pytest.warns(DataWarning, match="Nothing was validated"):
        calibration = calibrator.invoke(fit_only)
    assert calibration.validation == {} and "Nothing was validated" in calibration.diagnostics["notes"][0]
