"""How each benchmark is put to a model: scored by likelihood, or asked and judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mpf_chains.benchmarks import Choice, ItemSet, Passage, Prompt, PromptPair
from mpf_chains.evaluation.tasks import choices, shares, texts
from mpf_chains.evaluation.tasks.task import (
    Bounds,
    GenerationTask,
    LikelihoodTask,
    Measures,
    Method,
    Record,
    Scored,
)

ScoredKind = Literal["likelihood", "masked", "next_token"]
TaskKind = ScoredKind | Literal["generate"]

LIKELIHOOD: Mapping[str, LikelihoodTask] = {
    "stereoset": choices.Sentences("stereoset"),
    "crows_pairs": choices.Sentences("crows_pairs"),
    "redditbias": choices.Sentences("redditbias"),
    "bbq": choices.ScoredQuestions(),
    "winobias": choices.ScoredPronouns("winobias"),
    "winogender": choices.ScoredPronouns("winogender"),
    "holistic_bias": texts.Sentences(),
    "wikitext2": texts.Passages(),
}
"""By the name of the benchmark: what a model that gives likelihoods is scored on."""
MASKED: Mapping[str, LikelihoodTask] = {"crows_pairs": choices.MaskedSentences()}
"""The same for masked models."""
NEXT_TOKEN: Mapping[str, LikelihoodTask] = {"hellinger": texts.PairedPrompts()}
"""What a model that gives distributions of the next token is scored on."""
SCORED: Mapping[ScoredKind, Mapping[str, LikelihoodTask]] = {
    "likelihood": LIKELIHOOD, "masked": MASKED, "next_token": NEXT_TOKEN,
}  # fmt: skip
"""Ways to score a benchmark without asking."""
GENERATION: Mapping[str, GenerationTask] = {
    "bbq": choices.AskedQuestions(),
    "winobias": choices.AskedPronouns("winobias"),
    "winogender": choices.AskedPronouns("winogender"),
    "bold": texts.Prompts(continued=True),
    "holistic_bias": texts.Prompts(continued=False),
    "rows": texts.Questions(),
    "targets": shares.TargetShares(),
}
"""What any model can be asked."""


def kind_of(items: ItemSet[Any]) -> str:
    """The benchmark's name where it is a known one; else what its items are most like.

    Examples:
        >>> kind_of(ItemSet("mine", (Prompt("1", "nurses", "The nurse said"),)))
        'bold'
    """
    first = items.items[0]
    if isinstance(first, PromptPair):
        return "hellinger"
    if items.name in LIKELIHOOD or items.name in GENERATION:
        return items.name
    if isinstance(first, Choice):
        return "crows_pairs" if first.correct is None else "bbq"
    return "wikitext2" if isinstance(first, Passage) else "bold" if isinstance(first, Prompt) else "rows"


def measures_of(kind: str, task: TaskKind, records: Sequence[Record], bounds: Bounds) -> Measures:
    """The metrics of records of a benchmark.

    Args:
        kind: See `kind_of`.
        task: How the benchmark was put to the model.
        records: At least one.
        bounds: Declared range of each feature.
    """
    tasks: Mapping[str, LikelihoodTask | GenerationTask] = GENERATION if task == "generate" else SCORED[task]
    return tasks[kind].measures(records, bounds)


__all__ = [
    "GENERATION",
    "LIKELIHOOD",
    "MASKED",
    "NEXT_TOKEN",
    "SCORED",
    "Bounds",
    "GenerationTask",
    "LikelihoodTask",
    "Measures",
    "Method",
    "Record",
    "Scored",
    "ScoredKind",
    "TaskKind",
    "kind_of",
    "measures_of",
]
