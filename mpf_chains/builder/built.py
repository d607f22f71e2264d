"""What a build comes to: the plan before it, and the benchmark with everything that was left out after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.runnables import Runnable

from mpf_chains.benchmarks import Benchmark
from mpf_chains.runtime.tokens import Estimate, Request, TokenCounter


@dataclass(frozen=True)
class BuildPlan:
    """How many calls a build makes, counted before any is made; retries after errors aside.

    Attributes:
        sentences: Sentences that questions are written for; at most so many where the model has still to choose the
            keywords.
        least: Calls that are still to be made for certain.
        remaining: Most calls that can still be needed: each question is asked for again until it can be used, up to
            `tries` times.
        done: Calls of this build whose answers are in the ledger already.
        requests: What can still be asked, for `estimate`.
    """

    sentences: int
    least: int
    remaining: int
    done: int
    requests: Sequence[Request] = field(default=(), repr=False, compare=False)

    @property
    def calls(self) -> int:
        """Most calls of the whole build: `done` + `remaining`."""
        return self.done + self.remaining

    def estimate(self, model: Runnable[Any, Any]) -> Estimate:
        """Most tokens that the remaining calls take, and with a `Price` what they cost, before any is made.

        Args:
            model: The model that is to write; it counts, and its `max_tokens` limits the answers. What structured
                output adds to a prompt (the schema) is not counted.

        Returns:
            The estimate, for `remaining` calls.
        """
        return TokenCounter(model).estimate(self.requests)


@dataclass(frozen=True)
class Dropped:
    """A question that was to be written and is missing.

    Args:
        source: Name of the text.
        sentence: The sentence.
        keyword: The keyword it was selected for.
        reason: Why there is no question.
        answer: The model's last answer; empty if there was none.
    """

    source: str
    sentence: str
    keyword: str
    reason: str
    answer: str = ""


@dataclass(frozen=True)
class Built:
    """A benchmark and the record of how it came about.

    Args:
        benchmark: The benchmark.
        keywords: Keywords that gave sentences, in the order they were used in.
        dropped: Sentences with fewer questions than wanted, each with the reason.
        left_out: Sentences of the corpus that were not considered, counted by reason. Sentences without any of the
            keywords, or beyond `per_keyword`, are not counted.
        notes: What else is worth knowing, in words.
        usage: Tokens of all calls of this build, those from the ledger included.
    """

    benchmark: Benchmark
    keywords: tuple[str, ...]
    dropped: tuple[Dropped, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    usage: Mapping[str, int] = field(default_factory=dict)
