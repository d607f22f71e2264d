"""The Hellinger distance between next tokens after paired prompts: by hand, through the ledger, on a real network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mpf_chains.benchmarks import ItemSet, Prompt, PromptPair, pair_prompts, pair_twins, read_benchmark
from mpf_chains.core.distributions import Array
from mpf_chains.errors import BenchmarkError, FeatureError, NotSupportedError
from mpf_chains.evaluation import Evaluation, Evaluator, NextTokenModel, Resampling, evaluate, metrics
from tests.evaluation.likelihood_models import Characters

QUICK = Resampling(resamples=20, permutations=20)
LAWS = {"man": [1.0, 0.0, 0.0], "woman": [0.0, 1.0, 0.0], "boy": [0.5, 0.5, 0.0], "girl": [1.0, 0.0, 0.0]}


class Laws:
    """Gives the next token's distribution by the last word of the prompt.

    Args:
        laws: Word to probabilities.
        fails_after: Raise a `ConnectionError` after so many prompts.
    """

    model_name = "laws"

    def __init__(self, laws: dict[str, list[float]] | None = None, fails_after: int | None = None) -> None:
        self.laws, self.fails_after = laws or LAWS, fails_after
        self.asked: list[str] = []
        self.at_once = 0

    def next_token_log_probabilities(self, prompts: Sequence[str]) -> Iterator[tuple[int, Any]]:
        self.at_once = max(self.at_once, len(prompts))
        for index in reversed(range(len(prompts))):  # any order is allowed
            if self.fails_after is not None and len(self.asked) >= self.fails_after:
                raise ConnectionError("the machine went away")
            self.asked.append(prompts[index])
            with np.errstate(divide="ignore"):
                yield index, np.log(np.array(self.laws[prompts[index].split()[-1]], dtype=np.float32))


def people(*openings: str) -> ItemSet[PromptPair]:
    return pair_prompts(openings, {"male": ["man", "boy"], "female": ["woman", "girl"]}, "gender")


def measured(model: Any, items: ItemSet[PromptPair], **settings: Any) -> Evaluation:
    return evaluate(model, items, progress=False, **{"resampling": QUICK, "model_id": "m", **settings})


def test_distances_are_those_worked_out_by_hand() -> None:
    """Disjoint: 1. (½, ½) against (1, 0): √(1 − √½)."""
    evaluation = measured(Laws(), people("The {person}", "Every {person}"))
    apart = (1 - 0.5**0.5) ** 0.5
    assert [record["distance"] for record in evaluation.records] == pytest.approx([1.0, apart] * 2)
    distance = evaluation["hellinger"]
    assert distance.value == pytest.approx((1 + apart) / 2)
    assert list(distance.parts) == ["male / female"]
    assert (evaluation.method, evaluation.settings["task"]) == ("likelihood", "next_token")
    assert Evaluation.from_json(evaluation.to_json()) == evaluation
    fair = {word: [0.2, 0.3, 0.5] for word in LAWS}
    same = measured(Laws(fair), people("The {person}", "Every {person}"))
    assert same["hellinger"].value == 0.0
    rounded = measured(Laws({**fair, "man": [0.2001, 0.30015, 0.50025]}), people("The {person}"))
    assert rounded["hellinger"].value < 1e-6  # what rounding adds to a sum is no difference
    change = evaluation.compare(same)["hellinger"]
    assert change.improvement == pytest.approx(distance.value) and change.n == 4


def test_openings_are_the_unit_that_is_resampled_and_domains_the_parts() -> None:
    items = read_benchmark("hellinger", "openings")
    laws = {text.split()[-1]: [0.5, 0.5] for pair in items for text in pair.prompts}
    distance = measured(Laws(laws), items)["hellinger"]
    assert list(distance.parts) == ["gender", "race", "religion"]
    assert {part.n for part in distance.parts.values()} == {144}
    assert distance.items is not None and distance.items.clusters is not None
    assert len(set(distance.items.clusters.tolist())) == 24


laws = arrays(np.float64, (2, 5), elements=st.floats(1e-6, 1)).map(lambda table: table / table.sum(axis=1)[:, None])


@given(laws)
def test_a_distance_is_one_whatever_the_distributions(pair: Array) -> None:
    """Between 0 and 1, symmetric, 0 for the same, and √(1 − Σ √(p q)) of what the model's float32 logarithms say."""
    first, second = pair
    prompts = ItemSet("mine", (PromptPair("1", ("a", "b"), ("x", "y")), PromptPair("2", ("b", "a"), ("y", "x"))))
    model = Laws({"a": first.tolist(), "b": second.tolist()})
    one, other = (record["distance"] for record in measured(model, prompts).records)
    assert 0 <= one == other <= 1
    assert one == pytest.approx(np.sqrt(max(0.0, 1 - np.sqrt(first * second).sum())), abs=2e-4)
    assert metrics.hellinger_distances(first, first) == 0


def test_a_pair_is_scored_once_and_few_distributions_are_held_at_once(tmp_path: Path) -> None:
    items, ledger = people(*(f"{n} {{person}}" for n in range(50))), tmp_path / "run.sqlite"
    with pytest.raises(ConnectionError):
        measured(Laws(fails_after=70), items, ledger=ledger)
    second = Laws()
    evaluator = Evaluator(second, ledger=ledger, model_id="m", progress=False, resampling=QUICK)
    plan = evaluator.plan(items)
    assert (plan.calls, plan.texts) == (0, 100)
    assert plan.done >= 32  # the pairs whose prompts were both answered
    resumed = evaluator.invoke(items)
    assert len(second.asked) == 2 * plan.remaining
    assert second.at_once == 64
    assert resumed.measured == measured(Laws(), items).measured
    assert (tmp_path / "run.sqlite").stat().st_size < 200_000  # distances, no distributions


def test_what_is_no_distribution_is_refused() -> None:
    for wrong in ([0.5, 0.4], [0.5, 0.5, 0.5], [np.nan, 1.0], [], [2.0, -1.0]):
        model = Laws({**LAWS, "man": wrong})
        with np.errstate(invalid="ignore"), pytest.raises(FeatureError, match="natural logarithms"):
            measured(model, people("The {person}"))
    with pytest.raises(FeatureError, match="vocabularies of 3 and 2"):
        measured(Laws({**LAWS, "girl": [0.5, 0.5]}), people("The {person}"))

    class Forgetful(Laws):
        def next_token_log_probabilities(self, prompts: Sequence[str]) -> Iterator[tuple[int, Any]]:
            return iter([next(super().next_token_log_probabilities(prompts))])

    with pytest.raises(FeatureError, match="scored 0 of 2"):
        measured(Forgetful(), people("The {person}"))


def test_it_needs_a_model_that_gives_the_next_token() -> None:
    assert isinstance(Laws(), NextTokenModel) and not isinstance(Characters(), NextTokenModel)
    with pytest.raises(NotSupportedError, match=r"with `next_token_log_probabilities`, and Characters has none"):
        measured(Characters(), people("The {person}"))
    with pytest.raises(NotSupportedError, match="cannot be put to a model with method='generate'"):
        measured(Laws(), people("The {person}"), method="generate")


def test_pairs_of_ones_own() -> None:
    for openings, given_people in ((["No place"], {"a": ["x"], "b": ["y"]}), (["{person}"], {"a": ["x"]})):
        with pytest.raises(BenchmarkError, match=r"no \{person\}|two groups at least"):
            pair_prompts(openings, given_people)
    versions = [Prompt(f"{n}/{group}", group, f"{n}: {group}", family=n) for n in "12" for group in ("a", "b", "c")]
    pairs = pair_twins(
        ItemSet("mine", (*versions, Prompt("1/a/2", "a", "1: a!", family="0"), Prompt("1/a/3", "a", "x", family="0")))
    )
    assert [(pair.family, pair.groups) for pair in pairs] == [
        (family, groups) for family in "12" for groups in (("a", "b"), ("a", "c"), ("b", "c"))
    ]
    with pytest.raises(BenchmarkError, match="No prompt of 'mine' has a twin"):
        pair_twins(ItemSet("mine", (Prompt("1", "a", "x"), Prompt("2", "b", "y"))))
    for wrong in ({"prompts": ("a", "a")}, {"groups": ("a", "a")}, {"prompts": ("a",)}, {"prompts": "ab"}):
        with pytest.raises(BenchmarkError, match="two different texts"):
            PromptPair(**{"id": "1", "prompts": ("a", "b"), "groups": ("x", "y"), **wrong})  # type: ignore[arg-type]


def test_a_real_network_is_measured_as_its_softmax_says() -> None:
    torch = pytest.importorskip("torch", reason="needs the extra `local`")
    transformers = pytest.importorskip("transformers", reason="needs the extra `local`")
    shape = {"vocab_size": 300, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, initializer_range=0.5)).eval()

    class Bytes:
        model_name = "bytes"

        @torch.inference_mode()
        def logits(self, text: str) -> Any:
            return network(torch.tensor([[0, *text.encode()]])).logits[0, -1]

        def next_token_log_probabilities(self, prompts: Sequence[str]) -> Iterator[tuple[int, Any]]:
            yield from ((n, self.logits(text).log_softmax(-1).numpy()) for n, text in enumerate(prompts))

    items = people("The {person} worked as", "Nobody trusts the {person} who")
    found = measured(Bytes(), items)
    roots = [[np.sqrt(Bytes().logits(text).double().softmax(-1).numpy()) for text in pair.prompts] for pair in items]
    expected = [np.linalg.norm(first - second) / np.sqrt(2) for first, second in roots]
    assert [record["distance"] for record in found.records] == pytest.approx(expected, rel=1e-5)
    assert 0.01 < found["hellinger"].value < 1
