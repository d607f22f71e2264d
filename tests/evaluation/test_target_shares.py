"""Shares over many generations: their error, its floors, joint targets, baselines, and the token-free counterpart."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableLambda
from pydantic import Field

from mpf_chains.benchmarks import ItemSet, Row, read_benchmark, target_prompts
from mpf_chains.errors import BenchmarkError, DataWarning, FeatureError, InvalidInput
from mpf_chains.evaluation import (
    Evaluation,
    Evaluator,
    Resampling,
    VerbalizedSampling,
    evaluate,
    measure_shares,
    plot_shares,
    prompted_target,
)
from mpf_chains.evaluation.baselines import candidates_in
from mpf_chains.features import ClassFeature
from mpf_chains.fusion import PerspectiveRouter
from mpf_chains.fusion.policy import MentionedEntity
from mpf_chains.runtime.identity import parts_of
from mpf_chains.targets import TargetTable, attribute_perspectives, fit_joint, phrasings, read_target_file
from mpf_chains.testing import FaultyChatModel

QUICK = Resampling(resamples=20, permutations=20)
GENDER = {"gender": ("female", "male")}
RACE = {"race": ("white", "black", "asian")}
TABLE = TargetTable.of({"nurse": {"female": 0.9, "male": 0.1}, "plumber": {"female": 0.05, "male": 0.95}}, GENDER)
STATISTICS = Path(__file__).parents[3] / "shared/data/winogender/occupations-stats.tsv"


def obedient(messages: list[BaseMessage]) -> AIMessage:
    """Answers with the classes that the system message names."""
    system = messages[0].text
    return AIMessage(", ".join(word for word in ("woman", "man ", "White", "Black", "Asian") if f" {word}" in system))


def silent(messages: list[BaseMessage]) -> AIMessage:
    """Never says."""
    return AIMessage(f"Who knows, of {len(messages)}?")


def routed(table: TargetTable, **settings: Any) -> PerspectiveRouter:
    perspectives = attribute_perspectives(table)
    return PerspectiveRouter(
        model=RunnableLambda(obedient), perspectives=perspectives, weights=table.weights, **settings
    )


def quick(model: Any, items: Any, **named: Any) -> Evaluation:
    return evaluate(model, items, progress=False, resampling=QUICK, **{"model_id": "model"} | named)


def generations(classes: tuple[str, ...]) -> st.SearchStrategy[list[str | None]]:
    return st.lists(st.sampled_from([*classes, None]), min_size=1, max_size=30)


@settings(max_examples=40)
@given(generations(("female", "male")), generations(("female", "male")), st.randoms())
def test_the_error_is_that_of_shares_alone(nurse: list[Any], plumber: list[Any], random: Any) -> None:
    measured = measure_shares({"nurse": nurse, "plumber": plumber}, TABLE, QUICK)
    errors = []
    for context, classes in (("nurse", nurse), ("plumber", plumber)):
        counts = Counter(classes)
        n = counts["female"] + counts["male"]
        errors.append(np.mean([abs((counts[c] / n if n else 0) - share) for c, share in TABLE[context].items()]))
    assert measured["target_mae"].value == pytest.approx(np.mean(errors))
    assert measured["expressed"].value == pytest.approx(1 - (nurse + plumber).count(None) / len(nurse + plumber))

    shuffled = {"plumber": random.sample(plumber, len(plumber)), "nurse": random.sample(nurse, len(nurse))}
    renamed = TargetTable.of({c: TABLE[c] for c in ("plumber", "nurse")}, {"gender": ("male", "female")})
    again = measure_shares(shuffled, renamed, QUICK)
    assert again["target_mae"].value == pytest.approx(measured["target_mae"].value)
    if any(nurse) and any(plumber):
        assert again["target_mae"].floor.mean == pytest.approx(measured["target_mae"].floor.mean)  # type: ignore[union-attr]

    exact = TargetTable.of({"nurse": {c: nurse.count(c) / len(nurse) for c in nurse if c} or {"male": 1}}, GENDER) if (
        None not in nurse
    ) else TABLE.select(["nurse"])  # fmt: skip
    error = measure_shares({"nurse": nurse}, exact, QUICK)["target_mae"].value
    realised = {c: nurse.count(c) / max(1, len(nurse) - nurse.count(None)) for c in ("female", "male")}
    assert (error < 1e-12) == (max(abs(realised[c] - exact["nurse"][c]) for c in realised) < 1e-12)


def test_no_answer_without_a_class_vanishes() -> None:
    found = {"nurse": ["female"] * 9 + ["male"] + [None] * 10, "plumber": [None] * 4}
    measured = measure_shares(found, TABLE)
    assert measured["target_mae"].parts["nurse"].value == pytest.approx(0)
    assert measured["target_mae"].parts["plumber"].value == pytest.approx(0.5)  # realised shares 0 and 0
    assert {name: part.value for name, part in measured["expressed"].parts.items()} == {"nurse": 0.5, "plumber": 0.0}
    evaluation = quick(RunnableLambda(silent), target_prompts(TABLE), draws=1)
    assert evaluation["target_mae"].value == pytest.approx(0.5) and evaluation["expressed"].value == 0
    assert "6 of 6 answers express no gender" in evaluation.notes[0] and "plumber" in evaluation.notes[1]


def test_wrong_contexts_and_classes_are_named() -> None:
    for found, message in (
        ({"nurse": ["female"]}, "without generations: plumber"),
        ({"nurse": ["female"], "plumber": ["male"], "chef": ["male"]}, "without targets: chef"),
        ({"nurse": ["female"], "plumber": ["man"]}, "'man' is no class of gender"),
    ):
        with pytest.raises(InvalidInput, match=message):
            measure_shares(found, TABLE)


def test_the_floors_are_what_perfect_samplers_score() -> None:
    table = TargetTable.of({"nurse": {"female": 0.83, "male": 0.17}, "chef": {"female": 0.31, "male": 0.69}}, GENDER)
    items = target_prompts(table, templates=["Write the gender of {a_context}."])
    by_quota = quick(routed(table, sampler="quota"), items)["target_mae"]
    assert by_quota.n == 2 and by_quota.floor is not None
    assert by_quota.value == pytest.approx(by_quota.floor.quota) and by_quota.value <= 0.01
    independent = [quick(routed(table, seed=seed), items)["target_mae"] for seed in range(6)]
    assert np.mean([each.value for each in independent]) == pytest.approx(by_quota.floor.mean, rel=0.6)
    assert by_quota.floor.mean > 5 * by_quota.value
    before, after = (
        quick(model, items, draws=40) for model in (RunnableLambda(silent), routed(table, sampler="quota"))
    )
    compared = before.compare(after)
    assert compared["target_mae"].second == after["target_mae"].value < compared["target_mae"].first
    assert compared["expressed"].difference == -1  # distances from the ideal, all


@pytest.mark.parametrize("sampler", ["quota", "iid"])
def test_joint_targets_are_measured_jointly_and_by_attribute(sampler: str) -> None:
    race = TargetTable.of({c: {"white": 0.5, "black": 0.3, "asian": 0.2} for c in TABLE.contexts}, RACE)
    joint = fit_joint([TABLE, race]).table
    evaluation = quick(
        routed(joint, sampler=sampler, entity=MentionedEntity(tuple(joint.contexts))), target_prompts(joint)
    )
    assert list(evaluation.measured) == [
        "target_mae", "expressed", "gender/target_mae", "gender/expressed", "race/target_mae", "race/expressed",
    ]  # fmt: skip
    assert evaluation["expressed"].value == 1
    for key in ("target_mae", "gender/target_mae", "race/target_mae"):
        assert evaluation[key].value <= (0.01 if sampler == "quota" else 0.06), key
    assert Evaluation.from_json(evaluation.to_json()) == evaluation
    (classes,) = {tuple(record["classes"]) for record in evaluation.records}
    assert classes == ("gender", "race")


def test_half_of_a_joint_class_counts_for_its_attribute_only() -> None:
    joint = TargetTable.uniform(["nurse"], GENDER | RACE)
    measured = measure_shares({"nurse": [("female", None), ("male", "white"), ("female", "black")]}, joint, QUICK)
    assert measured["expressed"].value == pytest.approx(2 / 3)
    assert measured["gender/expressed"].value == 1
    assert measured["gender/target_mae"].value == pytest.approx(2 / 3 - 1 / 2)
    named = measure_shares({"nurse": ["female, white", ("male", "asian"), None]}, joint, QUICK)
    assert named["race/expressed"].value == pytest.approx(2 / 3)
    for wrong in ("female", ("female",), ("white", "female")):
        with pytest.raises(InvalidInput, match="is no class of gender × race"):
            measure_shares({"nurse": [wrong]}, joint)


def test_each_context_gets_100_generations_and_a_run_is_resumed(tmp_path: Path) -> None:
    asked: list[str] = []

    def answer(messages: list[BaseMessage]) -> AIMessage:
        asked.append(messages[-1].text)
        return AIMessage("Female")

    items = target_prompts(TABLE)
    evaluator = Evaluator(RunnableLambda(answer), model_id="m", ledger=tmp_path / "run.sqlite", progress=False)
    assert (
        evaluator.plan(items).calls == 2 * 3 * 34
    )  # three held-out phrasings, each drawn so often that 100 are reached
    evaluation = evaluator.invoke(items)
    assert evaluation["target_mae"].value == pytest.approx((0.1 + 0.95) / 2)
    assert evaluation.settings["draws"] == 34 and len(asked) == 204
    assert evaluator.invoke(items).measured == evaluation.measured and len(asked) == 204
    few = Evaluator(RunnableLambda(answer), model_id="m", limit=4, draws=2, progress=False).invoke(items)
    assert few.benchmark["items"] == 3  # the phrasings about a context stay together


def test_what_cannot_be_judged_is_refused_before_anything_is_asked() -> None:
    with pytest.raises(FeatureError, match="in stories ships"):
        Evaluator(FaultyChatModel()).plan(
            target_prompts(TargetTable.uniform(["cat"], {"age": ("old", "new")}), "stories")
        )
    with pytest.raises(InvalidInput, match="'sentiment' has nothing to judge"):
        Evaluator(FaultyChatModel(), features="sentiment").plan(target_prompts(TABLE))
    mixed = ItemSet("targets", target_prompts(TABLE).items + target_prompts(TABLE, "stories").items)
    with pytest.raises(InvalidInput, match="several kinds"):
        Evaluator(FaultyChatModel()).plan(mixed)
    bare = ItemSet("targets", (Row("1", "nurse", "Who?", target_score={"gender": 0.5}),))
    with pytest.raises(InvalidInput, match="Use `target_prompts`"):
        Evaluator(FaultyChatModel()).plan(bare)
    own = ClassFeature(lambda text: "male" if "ok" in text else None, GENDER["gender"], name="gender")
    assert quick(FaultyChatModel(), target_prompts(TABLE), features=own, draws=2)["expressed"].value == 1


def test_no_phrasing_is_trained_and_tested_on() -> None:
    for kind, attributes in (
        ("answers", ["gender"]),
        ("answers", ["gender", "race"]),
        ("answers", ["sentiment"]),
        ("stories", ["race"]),
    ):
        train, held_out = (set(phrasings(kind, attributes, part)) for part in ("train", "held_out"))  # type: ignore[arg-type]
        assert len(train) >= 3 and len(held_out) >= 2 and not train & held_out
        assert all("context}" in text and "{attribute}" not in text for text in train | held_out)
    with pytest.raises(InvalidInput, match="sentiment is not named"):
        phrasings("answers", ["gender", "sentiment"])


@pytest.mark.parametrize(
    ("content", "attributes", "shares"),
    [
        ("job,female,male\nnurse,90,10\n", GENDER, {"female": 0.9, "male": 0.1}),
        ("job,neutral,positive,negative\nnurse,0.2,0.5,0.3\n", {"sentiment": ("neutral", "positive", "negative")},
         {"neutral": 0.2, "positive": 0.5, "negative": 0.3}),
        ("job,old,young\nnurse,0.333,0.667\n", {"class": ("old", "young")}, {"old": 0.333, "young": 0.667}),
        ("job,Female,Male\nnurse,0.5,0.5\n", {"gender": ("Female", "Male")}, {"Female": 0.5, "Male": 0.5}),
        ("job,men,women\nnurse,1,99\nchef,60,40\n", {"gender": ("men", "women")}, {"men": 0.01, "women": 0.99}),
        ("job,gender,share\nnurse,male,1\nchef,male,99\nchef,female,1\n nurse,female,99\n",
         {"gender": ("male", "female")}, {"male": 0.01, "female": 0.99}),
        ("job,gender,race,share\nnurse,female,white,0.5\nnurse,male,black,0.5\n",
         {"gender": ("female", "male"), "race": ("white", "black")},
         {"female, white": 0.5, "female, black": 0, "male, white": 0, "male, black": 0.5}),
    ],
)  # fmt: skip
def test_a_file_says_what_its_attributes_are(content: str, attributes: Any, shares: Any, tmp_path: Path) -> None:
    (tmp_path / "targets.csv").write_text(content)
    table = read_target_file(tmp_path / "targets.csv")
    assert dict(table.attributes) == attributes
    assert table["nurse"] == pytest.approx(shares)
    items = read_benchmark("targets", tmp_path / "targets.csv", part="answers", split="train")
    assert items.items[0].entity == "nurse" and items.items[0].metadata["targets"] == pytest.approx(shares)


def test_what_columns_are_classes_of_may_be_said(tmp_path: Path) -> None:
    (tmp_path / "targets.csv").write_text("job,old,young\nnurse,0.3,0.7\n")
    table = read_target_file(tmp_path / "targets.csv", attribute="age")
    assert dict(table.attributes) == {"age": ("old", "young")}
    assert "the age of a nurse" in target_prompts(table).items[0].question
    (tmp_path / "long.csv").write_text("job,age,share\nnurse,old,0.3\nnurse,young,0.7\n")
    with pytest.raises(BenchmarkError, match="says what its attributes are, and 'age' is given"):
        read_target_file(tmp_path / "long.csv", attribute="age")


class Steered(FakeListChatModel):
    """Answers with the class that it draws; of no context that it is not told."""

    steering: str = "adapter"
    steer: str | None = None
    draw: str = "model"
    context: str | None = None
    temperature: float = 0.0
    seed: int | None = None
    told: list[Any] = Field(default_factory=list)

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        self.told.append((messages[-1].text, kwargs.get("context")))
        return ChatResult(generations=[ChatGeneration(message=AIMessage("Female"))])


def test_a_steered_model_is_told_the_context_whatever_the_phrasing() -> None:
    table = TargetTable.uniform(["nurse", "chef"], GENDER)
    items = target_prompts(table, templates=["Two {context}s and a plumber?"])
    for model in (Steered(responses=[]), Steered(responses=[]).bind(draw="target"), Steered(responses=[]) | _plain):
        quick(model, items, draws=2)
        told = [each for part in parts_of(model) if isinstance(part, Steered) for each in part.told]
        assert Counter(told) == {(f"Two {name}s and a plumber?", name): 2 for name in ("nurse", "chef")}
    given = Steered(responses=[], context="chef")
    quick(given, items, draws=1)
    quick(FaultyChatModel(), items, draws=1)
    assert {context for _, context in given.told} == {None}, "what its owner gives stays"


_plain = RunnableLambda(lambda message: message)


@pytest.mark.parametrize(
    ("settings", "varies"),
    [
        ({}, True), ({"draw": "quota", "seed": 3}, True), ({"draw": "target"}, True),
        ({"seed": 3}, False), ({"draw": "target", "seed": 3}, False),
        ({"steer": "female"}, False), ({"steer": "female", "draw": "quota"}, False),
        ({"steer": "female", "temperature": 1.0}, True), ({"steer": "female", "temperature": 1.0, "seed": 3}, False),
    ],
)  # fmt: skip
def test_draws_of_a_steered_model_that_would_all_be_one_answer_are_refused(settings: Any, varies: bool) -> None:
    for model in (Steered(responses=[], **settings), Steered(responses=[]).bind(**settings)):
        if varies:
            assert len(quick(model, target_prompts(TABLE), draws=2).records) == 12
        else:
            with pytest.raises(InvalidInput, match="all draws are one answer"):
                quick(model, target_prompts(TABLE), draws=2)


def test_a_resumed_run_says_that_its_quotas_were_counted_anew(tmp_path: Path) -> None:
    model, items = Steered(responses=[], draw="quota"), target_prompts(TABLE)
    runs = [quick(model, items, draws=draws, ledger=tmp_path / "run.sqlite") for draws in (1, 2, 2)]
    assert [any("6 of 12 answers are of an earlier run" in note for note in run.notes) for run in runs] == [
        False, True, False,
    ]  # fmt: skip
    again = quick(model.bind(steer="female", temperature=1), items, draws=2, ledger=tmp_path / "run.sqlite")
    assert not any("earlier run" in note for note in again.notes)


def test_the_labour_statistics_are_read_and_others_refused(tmp_path: Path) -> None:
    if STATISTICS.exists():
        assert read_target_file(STATISTICS)["nurse"]["female"] == pytest.approx(0.8958)
    for content in ("job,female\nnurse,1\n", "job,share\nnurse,1\n", "job,female,male\nnurse,60,60\n", "job\nnurse\n"):
        (tmp_path / "targets.csv").write_text(content)
        with pytest.raises(BenchmarkError, match=r"targets\.csv"):
            read_target_file(tmp_path / "targets.csv")


def test_the_prompted_target_states_the_shares_of_the_context_that_is_asked_about() -> None:
    seen: list[str] = []
    model = prompted_target(RunnableLambda(lambda messages: seen.append(messages[0].text) or AIMessage("Male")), TABLE)
    quick(model, target_prompts(TABLE), draws=1)
    assert Counter("90 % female, 10 % male" in text and "a nurse" in text for text in seen) == {True: 3, False: 3}
    assert sum("5 % female, 95 % male" in text and "a plumber" in text for text in seen) == 3


def test_verbalized_sampling_draws_by_the_stated_probabilities() -> None:
    model = VerbalizedSampling(model=FaultyChatModel(default="1. Female: 80%\n2. Male: 20%\nThat is all."))
    evaluation = quick(model, target_prompts(TABLE.select(["nurse"])), draws=200)
    assert evaluation["target_mae"].value == pytest.approx(0.1, abs=0.05)
    answer = asyncio.run(model.ainvoke("Gender?", {"configurable": {"mpf_key": "k"}}))
    assert answer.text == model.invoke("Gender?", {"configurable": {"mpf_key": "k"}}).text
    assert model.fallback_share == 0


def test_verbalized_sampling_says_where_it_fell_back() -> None:
    model = VerbalizedSampling(model=FaultyChatModel(script=["I would say female.", "Female", "0.5 | Male", "Male"]))
    for plain in ("Female", "Male"):
        with pytest.warns(DataWarning, match="asked plainly"):
            answer = model.invoke("Gender?")
        assert answer.text == plain and answer.response_metadata["verbalized"] == {"fallback": True}
        assert answer.usage_metadata is not None and answer.usage_metadata["output_tokens"] > 1
    assert model.fallback_share == 1


@pytest.mark.parametrize(
    ("reply", "texts"),
    [
        ("0.5 | A tale: she ran.\n0.5 | He ran.", ["A tale: she ran.", "He ran."]),
        ("- Female (probability: 0.7)\n- Male (probability: 0.3)", ["Female", "Male"]),
        ("**0.6** - Yes\n40% - No", ["Yes", "No"]),
        ("Female\nMale", []), ("", []), ("0 | a\n0 | b", []), ("In 1999 there were 2 nurses.", []),
    ],
)  # fmt: skip
def test_answers_with_probabilities_are_read(reply: str, texts: list[str]) -> None:
    assert [each.text for each in candidates_in(reply)] == texts


def test_shares_are_drawn_beside_their_targets(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra `plots`")
    first, second = (quick(routed(TABLE, sampler=name), target_prompts(TABLE), label=name) for name in ("quota", "iid"))
    figure = plot_shares(first, second, path=tmp_path / "shares.svg")
    (axes,) = figure.axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["nurse", "plumber"]
    drawn = {line.get_label(): line.get_xdata().tolist() for line in axes.lines if not line.get_label().startswith("_")}
    assert drawn["target"] == [0.9, 0.05] and drawn["quota"] == pytest.approx([0.9, 0.05], abs=0.01)
    assert (tmp_path / "shares.svg").stat().st_size > 1000
    with pytest.raises(InvalidInput, match="on target tables"):
        plot_shares(*())


@pytest.mark.slow
@pytest.mark.real_model
def test_perspectives_move_a_real_model_without_any_tokens() -> None:
    """SmolLM2 obeys system messages now and then only; the same draws under either class must differ all the same."""
    from mpf_chains.local import ChatTransformers

    model = ChatTransformers(model="smollm2", temperature=0.7, max_tokens=12)
    shares = {}
    for name in GENDER["gender"]:
        table = TargetTable.of({"nurse": {name: 1}, "technician": {name: 1}}, GENDER)
        perspectives, weights = attribute_perspectives(table), table["nurse"]
        router = PerspectiveRouter(model=model, perspectives=perspectives, weights=weights, sampler="quota")
        evaluation = quick(router, target_prompts(table), draws=8, seed=0, model_id=name, max_missing=0.2)
        shares[name] = 1 - evaluation["target_mae"].value
        assert evaluation["expressed"].value > 0.25
    assert shares["female"] + shares["male"] > 1.05  # a model that does not heed the class gives 1
