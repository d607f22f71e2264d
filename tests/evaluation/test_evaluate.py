"""`evaluate`: every benchmark, both ways, resumed, routed, compared, written and read."""

import asyncio
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import RunnableLambda

from mpf_chains.benchmarks import Benchmark, Choice, ItemSet, Prompt, Row, read_benchmark
from mpf_chains.errors import (
    ArtifactError,
    BudgetExceeded,
    DataWarning,
    FeatureError,
    IncompleteEvaluation,
    InvalidInput,
    MPFError,
    NotSupportedError,
)
from mpf_chains.evaluation import Evaluation, Evaluator, Resampling, aevaluate, evaluate, metrics
from mpf_chains.evaluation.result import KNOWN_METRICS
from mpf_chains.evaluation.tasks.choices import chosen_option
from mpf_chains.evaluation.tasks.texts import CONTINUE
from mpf_chains.features import CallableFeature
from mpf_chains.fusion import ChatMPF, PerspectiveFusion, PerspectiveRouter
from mpf_chains.perspectives import Perspective
from mpf_chains.runtime import Budget, Ledger
from mpf_chains.testing import BiasedChatModel
from tests.contracts.tiny_benchmarks import TINY
from tests.evaluation.likelihood_models import Characters, MaskedCharacters, likelihood

QUICK = Resampling(resamples=20, permutations=20)
SCORED = ["stereoset", "crows_pairs", "bbq", "winobias", "winogender", "redditbias", "wikitext2", "holistic_bias"]
ASKED = ["bbq", "winobias", "winogender", "bold", "holistic_bias", "rows as JSON lines", "saged", "targets"]


class Echo(RunnableLambda[Any, Any]):
    """Answers each question with what a function makes of it, and counts."""

    def __init__(self, answer: Any = lambda text: f"Wonderful: {text[:20]}") -> None:
        self.asked: list[str] = []
        self.answer = answer
        super().__init__(self._reply)

    def _reply(self, messages: list[BaseMessage]) -> AIMessage:
        self.asked.append(messages[-1].text)
        return AIMessage(self.answer(messages[-1].text))


def quick(model: Any, items: Any, **settings: Any) -> Evaluation:
    named = {"model_id": "model"} | settings
    return evaluate(model, items, progress=False, resampling=QUICK, **named)


def tiny(name: str, folder: Path, count: int = 8) -> ItemSet[Any]:
    return read_benchmark(TINY[name].name, TINY[name].write(folder, count))


def rows(*entities: str, count: int = 6) -> ItemSet[Row]:
    def row(entity: str, n: int) -> Row:
        question, targets = f"How is {entity}, {n}?", {"sentiment": 0.5}
        return Row(f"{n}/{entity}", entity, question, target_score=targets, metadata={"question_id": n})

    return ItemSet("rows", tuple(row(entity, n) for entity in entities for n in range(count)))


@pytest.mark.parametrize(("name", "method"), [*((n, "likelihood") for n in SCORED), *((n, "generate") for n in ASKED)])
def test_every_benchmark_is_measured_kept_and_read_again(name: str, method: str, tmp_path: Path) -> None:
    model = Characters() if method == "likelihood" else Echo(lambda text: f"Good. {text[-12:]}")
    evaluation = quick(model, tiny(name, tmp_path), method=method)
    assert evaluation.measured
    for key, one in evaluation.measured.items():
        assert one.metric.name in KNOWN_METRICS, key
        assert one.low <= one.value <= one.high, key
    assert len({(record["id"], record.get("draw", 0)) for record in evaluation.records}) == len(evaluation.records)
    assert Evaluation.from_json(evaluation.to_json()) == evaluation
    after = evaluation.save(tmp_path / "evaluation.json")
    assert all(comparison.difference == 0 for comparison in Evaluation.load(after).compare(evaluation).values())
    assert evaluation.summary().count("\n") >= len(evaluation.measured)


def test_likelihoods_become_the_published_metrics(tmp_path: Path) -> None:
    items = tiny("crows_pairs", tmp_path)
    more, less = ([likelihood(one.candidates[k]).sum() for one in items] for k in (0, 1))
    measured = quick(Characters(), items)
    assert measured["crows_stereotype"].value == metrics.crows_stereotype(more, less).value
    assert measured["crows_likelihood_difference"].value == pytest.approx(np.abs(np.subtract(more, less)).mean())
    assert quick(MaskedCharacters(), items)["crows_pseudo_likelihood"].value in {0.0, 1.0}


def test_bbq_by_likelihood_counts_any_way_to_say_unknown(tmp_path: Path) -> None:
    class Unsure(Characters):
        def log_likelihoods(self, texts: Any) -> Iterator[tuple[int, Any]]:
            for index, (_, text) in enumerate(texts):
                yield index, np.array([-1.0 if text == " Not enough info" else -2.0])

    evaluation = quick(Unsure(), tiny("bbq", tmp_path))
    assert {record["chosen"] for record in evaluation.records} == {"unknown"}
    accuracy = evaluation["bbq_accuracy"]
    assert {name: part.value for name, part in accuracy.parts.items()} == {"ambiguous": 1.0, "disambiguated": 0.0}


def test_what_was_scored_or_answered_is_never_asked_again(tmp_path: Path) -> None:
    items, ledger = tiny("stereoset", tmp_path), tmp_path / "run.sqlite"
    with pytest.raises(ConnectionError):
        quick(Characters(fails_after=10), items, ledger=ledger)
    second = Characters()
    evaluator = Evaluator(second, ledger=ledger, model_id="model", progress=False, resampling=QUICK)
    plan = evaluator.plan(items)
    assert (plan.calls, plan.texts, plan.done) == (0, 48, 10)
    resumed = evaluator.invoke(items)
    assert len(second.scored) == plan.remaining == 38
    assert resumed.measured == quick(Characters(), items).measured

    asked = rows("Ö", "Ä")
    echo = Echo()
    assert Evaluator(echo, ledger=ledger, model_id="echo", progress=False).plan(asked).calls == 12
    first = quick(echo, asked, ledger=ledger, model_id="echo")
    assert quick(echo, asked, ledger=ledger, model_id="echo", features=["gender"]).bounds == {"gender": (0.0, 1.0)}
    assert len(echo.asked) == 12
    assert first.measured == quick(Echo(), asked).measured


@pytest.mark.parametrize("name", ASKED)
def test_a_ledger_without_texts_resumes_too(name: str, tmp_path: Path) -> None:
    items, echo = tiny(name, tmp_path), Echo(lambda text: "(a)")
    settings = {"ledger": tmp_path / "run.sqlite", "store_text": False, "method": "generate"}
    first = quick(echo, items, **settings)
    calls = len(echo.asked)
    assert quick(echo, items, **settings).measured == first.measured
    assert len(echo.asked) == calls
    assert b"(a)" not in (tmp_path / "run.sqlite").read_bytes()


def test_a_model_that_draws_perspectives_gets_the_entity_and_a_key_of_its_own() -> None:
    perspectives = [Perspective("praise", "Praise."), Perspective("blame", "Blame.")]
    weights = {"Ö": {"praise": 1.0, "blame": 0.0}, "Ä": {"praise": 0.0, "blame": 1.0}}
    model = RunnableLambda(lambda messages: AIMessage("great" if messages[0].text == "Praise." else "terrible"))
    for chat in (
        PerspectiveRouter(model=model, perspectives=perspectives, weights=weights),
        RunnableLambda(lambda text: text) | PerspectiveRouter(model=model, perspectives=perspectives, weights=weights),
    ):
        groups = quick(chat, rows("Ö", "Ä"))["sentiment/mean_score"].parts
        assert groups["Ö"].value > 0.5 > groups["Ä"].value
    mixed = {"praise": 0.5, "blame": 0.5}
    router = PerspectiveRouter(model=model, perspectives=perspectives, weights=mixed)
    one, two = (quick(router, rows("Ö", count=40)) for _ in range(2))
    assert one.records == two.records
    assert len({record["scores"]["sentiment"] for record in one.records}) == 2


def test_a_chat_model_that_draws_is_told_from_a_plain_one() -> None:
    weights = {"Ö": {"praise": 1.0, "blame": 0.0}, "Ä": {"praise": 0.0, "blame": 1.0}}
    perspectives = [Perspective("praise", "You are an optimist."), Perspective("blame", "You are a harsh critic.")]
    chat = ChatMPF(model=BiasedChatModel(), perspectives=perspectives, weights=weights)
    for model in (chat, chat.bind(stop=["x"]), chat.with_retry()):
        groups = quick(model, rows("Ö", "Ä"))["sentiment/mean_score"].parts
        assert groups["Ö"].value > groups["Ä"].value


@pytest.mark.parametrize("shape", ["chat", "bound", "fusion", "chain"])
def test_a_budget_counts_every_request_of_a_fused_answer(shape: str, tmp_path: Path) -> None:
    asked: list[Any] = []

    class Counted(BiasedChatModel):
        def _reply(self, messages: Any) -> str:
            asked.append(messages)
            return super()._reply(messages)

    model, weights = Counted().bind(max_tokens=10), {"praise": 0.5, "blame": 0.5}
    perspectives = [Perspective("praise", "You are an optimist."), Perspective("blame", "You are a harsh critic.")]
    chat = ChatMPF(model=model, perspectives=perspectives, weights=weights, mode="aggregated", n=3)
    fused = {
        "chat": chat, "bound": chat.bind(stop=["x"]), "chain": RunnableLambda(lambda messages: messages) | chat,
        "fusion": PerspectiveFusion(model=model, perspectives=perspectives, weights=weights, n=3),
    }[shape]  # fmt: skip
    items, settings = rows("Ö", count=8), {"ledger": tmp_path / "run.sqlite", "model_id": "m", "progress": False}
    plan = Evaluator(fused, **settings).plan(items)
    estimate = plan.estimate(fused)
    assert plan.calls == 8 < estimate.calls
    assert estimate.output_tokens == 10 * estimate.calls
    with pytest.raises(BudgetExceeded):
        Evaluator(fused, budget=Budget(calls=15), resampling=QUICK, **settings).invoke(items)
    assert len(asked) <= 15
    Evaluator(fused, resampling=QUICK, **settings).invoke(items)
    assert len(asked) == estimate.calls


def test_a_scorer_without_a_name_is_warned_about() -> None:
    class Nameless(Characters):
        def __init__(self) -> None:
            super().__init__()
            del self.model_name

    with pytest.warns(DataWarning, match="cannot be read"):
        Evaluator(Nameless(), progress=False)


def test_bold_regard_is_judged_with_names_masked_and_groups_of_a_domain_compared(tmp_path: Path) -> None:
    judged: list[str] = []
    seen: list[str] = []

    def toxic(texts: Sequence[str]) -> list[float]:
        seen.extend(texts)
        return [0.7] * len(texts)

    def positive(texts: Sequence[str]) -> list[float]:
        judged.extend(texts)
        return [1.0] * len(texts)

    items = ItemSet(
        "bold",
        tuple(
            Prompt(f"{group}/{n}", group, f"Ann Lee {n} was", domain="gender", tags={"name": "Ann Lee"})
            for group in ("actors", "actresses")
            for n in range(5)
        ),
    )
    regard = CallableFeature(positive, "regard", (-1, 1), version="1")
    toxicity = CallableFeature(toxic, "toxicity", version="1")
    evaluation = quick(Echo(lambda text: "praised as Lee always is."), items, features=[regard, toxicity])
    assert set(judged) == {f"XYZ {n} was praised as XYZ always is." for n in range(5)}
    assert set(seen) == {f"Ann Lee {n} was praised as Lee always is." for n in range(5)}
    assert evaluation["regard/regard_gap"].value == evaluation["toxicity/toxicity_gap"].value == 0.0
    parts = {label: part.value for label, part in evaluation["regard/regard_gap"].parts.items()}
    labels = [f"{group}: {label}" for group in ("actors", "actresses") for label in ("negative", "neutral", "positive")]
    assert parts == {label: float(label.endswith("positive")) for label in labels}
    unsure = CallableFeature(lambda texts: [0.3 for _ in texts], "regard", (-1, 1), version="2")
    with pytest.raises(FeatureError, match=r"'regard' gave 0\.3"):
        quick(Echo(), items, features=[unsure])


def test_comparison_is_paired_and_leaves_out_what_either_misses() -> None:
    items = rows("Ö", "Ä", "Ü", count=20)
    before = quick(Echo(lambda text: "Great and excellent."), items)
    with pytest.warns(DataWarning, match="1 of 60 answers are not usable"):
        after = quick(Echo(lambda text: "" if "Ö, 3?" in text else "It is a place."), items)
    assert (before.missing, after.missing) == (0, 1)
    assert "not usable" in after.notes[0]
    found = before.compare(after)
    assert found["sentiment/target_error"].n == 59
    assert found["sentiment/target_error"].difference < 0
    assert found["sentiment/target_error"].p < 0.01
    with pytest.raises(InvalidInput, match="different items"):
        before.compare(quick(Echo(), rows("Ö")))
    other = CallableFeature(lambda texts: [0.5 for _ in texts], "sentiment")
    for way in ({"features": ["gender"]}, {"features": [other]}, {"draws": 2}):
        with pytest.raises(InvalidInput, match="measured in different ways"):
            before.compare(quick(Echo(), items, **way))


def test_too_many_missing_answers_are_refused_and_kept(tmp_path: Path) -> None:
    with pytest.raises(IncompleteEvaluation, match=r"4 of 12.*max_missing"):
        quick(Echo(lambda text: "" if "Ö, " in text and text[-2] in "0123" else "Good."), rows("Ö", "Ä"))


def test_limit_spreads_and_keeps_twins_together(tmp_path: Path) -> None:
    pronouns = quick(Characters(), tiny("winobias", tmp_path, 20), limit=10)
    families = [record["family"] for record in pronouns.records]
    assert len(families) == 10
    assert all(families.count(family) == 2 for family in families)
    assert pronouns["winobias_gap"].n == 5
    with pytest.raises(InvalidInput, match="limit=1 is too low"):
        quick(Characters(), tiny("winobias", tmp_path, 20), limit=1)


def test_likelihoods_of_two_models_are_kept_apart(tmp_path: Path) -> None:
    items, ledger = tiny("crows_pairs", tmp_path), tmp_path / "run.sqlite"
    for name in ("one", "other"):
        model = Characters()
        quick(model, items, ledger=ledger, model_id=name)
        assert len(model.scored) == 16


def test_winogender_compares_sentences_with_and_against_the_statistics() -> None:
    """A model that takes every pronoun of the occupation's sex for the occupation's."""

    def sentence(occupation: str, share: float, right: int, sex: str) -> Choice:
        name, labels = f"{occupation}{right}", ("occupation", "participant")
        tags = {"pronoun": "x", "percent_female": share}
        return Choice(
            name + sex, occupation, labels, labels, f"{sex} {share}", "", right, condition=sex, family=name, tags=tags
        )

    sentences = [
        sentence(*of, right, sex)
        for of in (("nurse", 90.0), ("miner", 5.0))
        for right in (0, 1)
        for sex in ("male", "female", "neutral")
    ]

    class Stereotyped(Characters):
        def log_likelihoods(self, texts: Any) -> Iterator[tuple[int, Any]]:
            for index, (context, text) in enumerate(texts):
                sex, share = context.split()[:2]
                expected = (sex == "female") == (float(share) >= 50)
                yield index, np.array([-1.0 if ("occupation" in text) == expected else -2.0])

    measured = quick(Stereotyped(), ItemSet("winogender", tuple(sentences)))
    assert measured["winobias_gap"].value == 1.0
    assert measured["winobias_gap"].n == 4


def test_an_answer_to_bbq_that_cannot_be_read_is_unknown_and_wrong(tmp_path: Path) -> None:
    evaluation = quick(Echo(lambda question: "What a question."), tiny("bbq", tmp_path, 40))
    assert evaluation["bbq_accuracy"].value == 0.0
    assert evaluation["bbq_bias_disambiguated"].value == 0.0  # nobody is known to be named
    assert "40 of 40 answers name no option" in evaluation.notes[0]


def test_openings_are_to_be_continued_and_each_draw_has_its_key() -> None:
    echo, items = Echo(), ItemSet("bold", (Prompt("1", "actors", "Ann was", domain="gender"),))
    quick(echo, items)
    assert echo.asked == [CONTINUE + "Ann was"]
    perspectives = [Perspective("praise", "Praise."), Perspective("blame", "Blame.")]
    model = RunnableLambda(lambda messages: AIMessage("great" if messages[0].text == "Praise." else "terrible"))
    router = PerspectiveRouter(model=model, perspectives=perspectives, weights={"praise": 0.5, "blame": 0.5})
    drawn = quick(router, items, draws=20)
    assert len({record["scores"]["sentiment"] for record in drawn.records}) == 2


@pytest.mark.parametrize("name", ["bbq", "bold", "rows"])
def test_items_of_one_question_are_resampled_together(name: str, tmp_path: Path) -> None:
    items = rows("Ö", "Ä") if name == "rows" else tiny(name, tmp_path)
    evaluation = quick(Echo(lambda text: "(a) Good."), items, method="generate", draws=2)
    for key, one in evaluation.measured.items():
        if one.items is not None and one.items.statistic is not None and "counterfactual_individual" not in key:
            assert one.items.clusters is not None, key
            assert len(set(one.items.clusters.tolist())) < one.n, key


def test_limit_takes_every_kind_of_item_and_more_of_the_same(tmp_path: Path) -> None:
    items = tiny("bbq", tmp_path, 200)  # conditions and polarities take turns
    for limit in (10, 16, 20, 40):
        few = quick(Characters(), items, limit=limit)
        assert len(few.records) == limit
        assert {record["condition"] for record in few.records} == {"ambiguous", "disambiguated"}
    more = quick(Characters(), items, limit=80)
    assert {record["id"] for record in few.records} < {record["id"] for record in more.records}


def test_all_draws_of_twins_count(tmp_path: Path) -> None:
    answers = iter([*["(a)"] * 40, *["(b)"] * 1000])
    evaluation = quick(Echo(lambda text: next(answers)), tiny("winobias", tmp_path, 5), draws=3, max_concurrency=1)
    assert evaluation["winobias_gap"].n == 30
    assert evaluation["correct/share"].n == 60


def test_a_benchmark_is_judged_on_its_held_out_rows() -> None:
    benchmark = Benchmark.builtin("university", ["ETH Zurich"]).select(per_entity=5)
    settings = {"metrics": ["target_kl"], "split": None}
    assert quick(Echo(), benchmark, **settings).benchmark["items"] == 5
    assert {record["id"] for record in quick(Echo(), benchmark).records} == {
        row.id for row in benchmark.rows if row.split == "validation"
    }
    assert len(quick(Echo(), benchmark, split="decomposition").records) == 5


def test_draws_are_kept_apart_and_metrics_can_be_chosen(tmp_path: Path) -> None:
    echo = Echo()
    evaluation = quick(echo, rows("Ö", count=3), draws=4, metrics=["mean_score"])
    assert len(echo.asked) == len(evaluation.records) == 12
    assert list(evaluation.measured) == ["sentiment/mean_score"]
    with pytest.raises(InvalidInput, match="no metric 'mean_scores'"):
        quick(echo, rows("Ö"), metrics=["mean_scores"])
    with pytest.raises(NotSupportedError, match=r"'bbq_accuracy' is not measured.*mean_score, target_error"):
        quick(echo, rows("Ö"), metrics=["bbq_accuracy"])


def test_draws_that_would_all_be_one_answer_are_refused() -> None:
    free, items = FakeListChatModel(responses=["Good.", "Bad."]), rows("Ö")
    for model in (free.bind(temperature=0), BiasedChatModel(seed=3), free.bind(seed=3)):
        with pytest.raises(InvalidInput, match="all draws are one answer"):
            quick(model, items, draws=2)
        assert len(quick(model, items).records) == 6
    for model, seed in ((free, None), (BiasedChatModel(seed=3), 1)):
        assert len(quick(model, items, draws=2, seed=seed).records) == 12


def test_what_cannot_be_put_to_a_model_is_said(tmp_path: Path) -> None:
    stereoset, questions = tiny("stereoset", tmp_path), rows("Ö")
    with pytest.raises(NotSupportedError, match=r"compares likelihoods.*ChatTransformers"):
        quick(Echo(), stereoset)
    with pytest.raises(NotSupportedError, match="method='generate'"):
        quick(Characters(), stereoset, method="generate")
    with pytest.raises(NotSupportedError, match="method='likelihood'"):
        quick(Characters(), questions, method="likelihood")
    with pytest.raises(InvalidInput, match="scored once"):
        quick(Characters(), stereoset, features=["sentiment"])
    with pytest.raises(InvalidInput, match="have nothing to judge"):
        quick(Echo(), tiny("bbq", tmp_path), features=["sentiment"])
    for wrong in ({"draws": 0}, {"limit": 0}, {"max_missing": 1.0}, {"method": "guess"}, {"features": ["gender"] * 2}):
        with pytest.raises(InvalidInput):
            quick(Echo(), questions, **wrong)


def test_a_likelihood_that_is_none_is_refused(tmp_path: Path) -> None:
    for wrong in ([], [np.nan], [-np.inf], [0.5]):

        class Wrong(Characters):
            def log_likelihoods(self, texts: Any) -> Iterator[tuple[int, Any]]:
                yield 0, np.array(wrong)  # noqa: B023

        with pytest.raises(MPFError, match="log-probabilities"):
            quick(Wrong(), tiny("crows_pairs", tmp_path))

    class Forgetful(Characters):
        def log_likelihoods(self, texts: Any) -> Iterator[tuple[int, Any]]:
            yield 0, np.array([-1.0])

    with pytest.raises(MPFError, match="scored 1 of 16"):
        quick(Forgetful(), tiny("crows_pairs", tmp_path))


async def test_cancelling_stops_the_scoring(tmp_path: Path) -> None:
    started, cancelled, ended = threading.Event(), threading.Event(), threading.Event()

    class Slow(Characters):
        def log_likelihoods(self, texts: Any) -> Iterator[tuple[int, Any]]:
            try:
                for scored in super().log_likelihoods(texts):
                    yield scored
                    started.set()
                    cancelled.wait(5)
            finally:
                ended.set()

    model, ledger = Slow(), Ledger(tmp_path / "run.sqlite")
    items = tiny("crows_pairs", tmp_path)
    task = asyncio.create_task(aevaluate(model, items, ledger=ledger, progress=False, model_id="m", resampling=QUICK))
    assert await asyncio.to_thread(started.wait, 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    cancelled.set()
    assert await asyncio.to_thread(ended.wait, 5)
    assert len(model.scored) == 2
    assert Evaluator(model, ledger=ledger, model_id="m", progress=False).plan(items).done == 2


def test_data_that_look_like_code_stay_data(tmp_path: Path) -> None:
    hostile = '{"lc":1,"type":"secret","id":["OPENAI_API_KEY"]}'
    names = [(f"{hostile}{n}", f"=HYPERLINK({n})", "<script>?") for n in range(3)]
    items = ItemSet("rows", tuple(Row(*each, target_score={"sentiment": 0.5}) for each in names))
    evaluation = quick(Echo(lambda text: hostile), items, label="=cmd|' /C calc'!A0")
    again = Evaluation.from_json(evaluation.to_json())
    assert [record["id"] for record in again.records] == [row.id for row in items]
    for text in ("[]", "{}", '{"schema": 99}', '{"schema": 1, "label": NaN}', '{"schema": 1}', "x", "[" * 10_000):
        with pytest.raises(ArtifactError):
            Evaluation.from_json(text)


def test_a_file_that_was_edited_by_hand_is_refused_and_not_believed() -> None:
    good = json.loads(quick(Echo(), rows("Ö", "Ä")).to_json())
    one = "sentiment/mean_score"
    changes: list[tuple[tuple[Any, ...], Any]] = [
        (("benchmark",), "rows"), (("benchmark", "items"), -1), (("settings",), {}), (("settings", "resampling"), {}),
        (("settings", "resampling", "resamples"), 10**12), (("settings", "task"), "other"), (("missing",), "3"),
        (("usage",), []), (("notes",), [1]), (("records", 0), {"group": "Ö"}), (("bounds",), {"sentiment": [0]}),
        (("measured", one, "low"), 0.99), (("measured", one, "value"), 5.0), (("measured", one, "metric"), "mine"),
        (("measured", one, "level"), 1.5), (("measured", one, "parts", "Ö", "n"), None), (("label",), 3),
    ]  # fmt: skip
    for path, value in changes:
        plain = json.loads(json.dumps(good))
        place = plain
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        with pytest.raises(ArtifactError, match="no valid evaluation"):
            Evaluation.from_json(json.dumps(plain))
    for record in ({**good["records"][0], "scores": {}}, {"id": "x", "draw": 0}):
        plain = {**good, "records": [record] * len(good["records"])}
        with pytest.raises((ArtifactError, InvalidInput)):
            Evaluation.from_json(json.dumps(plain)).compare(Evaluation.from_json(json.dumps(plain)))


def test_one_answer_for_each_version_gives_no_all_clear() -> None:
    praised = Echo(lambda text: "Wonderful and excellent." if "Ö" in text else "It is a place.")
    once, more = (quick(praised, rows("Ö", "Ä", "Ü"), draws=draws) for draws in (1, 3))
    for evaluation, known in ((once, False), (more, True)):
        distance = evaluation["sentiment/counterfactual_individual"]
        assert (distance.floor is not None) == known
        assert distance.low > 0
        assert any("Take several draws" in note for note in evaluation.notes) != known
    assert more["sentiment/counterfactual_individual"].beyond_floor


def test_what_is_no_model_or_benchmark_is_refused() -> None:
    for model, items in ((None, rows("Ö")), ("gpt", rows("Ö")), (Echo(), "rows.jsonl"), (Echo(), None)):
        with pytest.raises(InvalidInput, match=r"cannot be measured|is no benchmark"):
            evaluate(model, items, model_id="m", progress=False)


def test_frames_and_figures_show_every_metric(tmp_path: Path) -> None:
    pytest.importorskip("pandas", reason="needs the extra `frames`")
    pytest.importorskip("matplotlib", reason="needs the extra `plots`")
    evaluation = quick(Characters(), tiny("stereoset", tmp_path), label="before")
    frame = evaluation.frame()
    assert set(frame["metric"]) == set(evaluation.measured)
    assert frame.query("part == ''")["value"].tolist() == [one.value for one in evaluation.measured.values()]
    assert len(evaluation.frame("items")) == 16
    with pytest.raises(InvalidInput, match="items"):
        evaluation.frame("rows")
    figure = evaluation.plot(evaluation, path=tmp_path / "figure.svg")
    assert [axes.get_title(loc="left").split(" ")[0] for axes in figure.axes] == list(evaluation.measured)
    assert "before" in (tmp_path / "figure.svg").read_text() or (tmp_path / "figure.svg").stat().st_size > 1000


@pytest.mark.parametrize(
    ("answer", "option"),
    [
        ("b", 1), ("B.", 1), ("(b)", 1), ("The answer is (b).", 1), ("Answer: b) The grandson", 1), ("**(a)**", 0),
        ("The grandson", 1), ("the grandson.", 1), ("I think it was the grandfather", 0), ("(a) or (b)", None),
        ("The grandfather, not the grandson", None), ("A difficult question", None), ("", None), ("grandsons", None),
        ("c", 2), ("It cannot be determined", 2), ("Unknown", 2), ("Not enough information.", 2), ("I would say B.", 1),
        ("It can’t be determined who of them, the grandfather or the grandson, forgot.", 2), ("Grandfather", 0),
        ("It is not possible to tell.", 2), ("A", 0), ("A grandfather or A grandson", None), ("C'est la vie", None),
    ],
)  # fmt: skip
def test_options_are_read_from_answers(answer: str, option: int | None) -> None:
    assert chosen_option(answer, ["The grandfather", "The grandson", "Cannot be determined"]) == option


@given(st.text(), st.lists(st.text(min_size=1), min_size=2, max_size=5))
def test_reading_an_option_never_fails(answer: str, candidates: list[str]) -> None:
    chosen = chosen_option(answer, candidates)
    assert chosen is None or 0 <= chosen < len(candidates)


def test_the_measured_values_are_json() -> None:
    plain = json.loads(quick(Echo(), rows("Ö", "Ä", "Ü")).to_json())
    assert plain["benchmark"]["kind"] == "rows"
    assert plain["measured"]["sentiment/max_z"]["ideal"] == 0
    assert ItemSet("mine", (Choice("1", "g", ("a", "b"), ("stereotype", "anti-stereotype")),)).digest
