"""Tokens and cost before they are spent: never less than what a run then takes, and exact where that can be known."""

from collections.abc import Sequence
from typing import Any

import pytest
from langchain_core.messages import BaseMessage

from mpf_chains import Benchmark, MPFCalibrator
from mpf_chains.runtime import Ledger, Price
from mpf_chains.runtime.tokens import Estimate
from mpf_chains.testing import BiasedChatModel

SOME = Benchmark.builtin("university", ["ETH Zurich"]).select(per_entity=12)


class Counting(BiasedChatModel):
    """Counts prompts as its usage does: in words."""

    max_tokens: int | None = 12

    def get_num_tokens_from_messages(self, messages: Sequence[BaseMessage], tools: Any = None) -> int:
        return sum(len(message.text.split()) for message in messages)


class CountingTexts(BiasedChatModel):
    def get_token_ids(self, text: str) -> list[int]:
        return list(range(len(text.split())))


def estimated(model: Any, ledger: Any = None, **options: Any) -> Estimate:
    calibrator = MPFCalibrator(model=model, ledger=ledger, n=3, progress=False, **options)
    plan = calibrator.plan(SOME)
    estimate = plan.estimate(model)
    assert estimate.calls == plan.remaining
    return estimate


@pytest.mark.filterwarnings("ignore::mpf_chains.errors.MPFWarning")  # twelve questions are few
@pytest.mark.parametrize("systems", [["normal"], ["normal", "sampled"], ["normal", "sampled", "aggregated"]])
def test_a_run_takes_no_more_than_was_estimated(systems: list[Any]) -> None:
    model, ledger = Counting(), Ledger()
    estimate = estimated(model, ledger, validate=systems)
    made = MPFCalibrator(model=model, ledger=ledger, n=3, validate=systems, progress=False).invoke(SOME)
    used = made.provenance["usage"]
    assert estimate.input_tokens is not None
    assert estimate.output_tokens is not None
    assert used["input_tokens"] <= estimate.input_tokens
    assert used["output_tokens"] <= estimate.output_tokens == estimate.calls * 12
    assert estimate.counted == ("aggregated" not in systems), "how drafts are split into tokens is not known before"
    if systems == ["normal"]:
        assert used["input_tokens"] == estimate.input_tokens
        assert estimated(model, ledger, validate=systems) == Estimate()


def test_what_is_not_known_is_not_guessed() -> None:
    free = Counting(max_tokens=None)
    without_limit = estimated(free, validate=["normal", "sampled"])
    assert without_limit.output_tokens is None
    assert without_limit.input_tokens is not None
    assert without_limit.cost(Price(1, 1)) is None
    assert estimated(free, validate=["aggregated"]).input_tokens is None, "merges hold answers of any length"
    limited = free.bind(max_tokens=5)
    assert estimated(limited, validate=["aggregated"]).output_tokens == 5 * (60 + 12 * 4)


def test_the_models_own_tokenizer_counts_where_there_is_one() -> None:
    whole, texts, none = (estimated(model, validate=[]) for model in (Counting(), CountingTexts(), BiasedChatModel()))
    assert whole.counted
    assert not texts.counted
    assert not none.counted
    assert whole.input_tokens is not None
    assert texts.input_tokens == whole.input_tokens + 2 * 4 * whole.calls, "4 for each of two messages"
    written = sum(
        sum(-(-len(text.encode()) // 4) + 4 for text in (row.question, perspective.instruction))
        for row in SOME.rows
        if row.split == "decomposition"
        for perspective in MPFCalibrator(model=BiasedChatModel()).perspectives
    )
    assert none.input_tokens == written


def test_estimates_add_up_and_have_a_price() -> None:
    one, two = Estimate(1, 10, 20), Estimate(2, 30, None, counted=False)
    assert one + two == Estimate(3, 40, None, counted=False)
    assert one.cost(Price(input=1e6, output=2e6)) == 50
