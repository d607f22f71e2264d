"""How a benchmark is put to a model: what is asked or scored, what is kept of each item, what is measured on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from mpf_chains.benchmarks import ItemSet, Row
from mpf_chains.evaluation.intervals import Resampling
from mpf_chains.evaluation.metrics import Measured
from mpf_chains.features import Feature

Method = Literal["likelihood", "generate"]
Record: TypeAlias = Mapping[str, Any]
"""What is kept of one item: plain data from which every metric can be computed again."""
Bounds: TypeAlias = Mapping[str, tuple[float, float]]
"""Declared range of each feature, by its name."""
Measure: TypeAlias = Callable[[Resampling], Measured]
Pair: TypeAlias = tuple[str, str]


class Scored(NamedTuple):
    """Log-likelihood of a text.

    Attributes:
        total: Sum over its tokens, nats.
        tokens: Their number.
    """

    total: float
    tokens: int

    @property
    def mean(self) -> float:
        """Log-likelihood per token, nats."""
        return self.total / self.tokens


@dataclass
class Measures:
    """Metrics by key, computed when called; and why some that might be expected are not there."""

    by_key: dict[str, Measure] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, other: Measures, prefix: str = "") -> None:
        """Take over another's metrics, with a prefix before their keys."""
        self.by_key.update({f"{prefix}{key}": measure for key, measure in other.by_key.items()})
        self.notes += [f"{prefix.rstrip('/')}: {note}" if prefix else note for note in other.notes]


class LikelihoodTask(Protocol):
    """A benchmark scored by how likely texts, or next tokens, are."""

    @property
    def metrics(self) -> Sequence[str]:
        """Names of the metrics that it can have."""
        ...

    def texts(self, item: Any) -> Sequence[Pair]:
        """What is scored: (context, continuation) pairs, pairs of texts, or pairs of prompts."""
        ...

    def record(self, item: Any, scored: Sequence[Any]) -> Record:
        """What is kept of an item, from the scores of its texts (`Scored`, or distances)."""
        ...

    def measures(self, records: Sequence[Record], bounds: Bounds) -> Measures:
        """The metrics of these records."""
        ...


class GenerationTask(Protocol):
    """A benchmark on which a model's answers are judged."""

    @property
    def metrics(self) -> Sequence[str]:
        """Names of the metrics that it can have."""
        ...

    @property
    def scored(self) -> bool:
        """Whether features score answers; no where answers are read in the benchmark's own way."""
        ...

    def row(self, item: Any) -> Row:
        """The item as a question, with what scorers compare answers with as its target text."""
        ...

    def features(self, given: Sequence[Feature], items: ItemSet[Any]) -> list[Feature]:
        """What scores the answers to these items: features that were given, or the benchmark's default."""
        ...

    def record(self, item: Any, scores: Mapping[str, float], targets: Mapping[str, float]) -> Record:
        """What is kept of one answer, from its scores and target scores by feature."""
        ...

    def measures(self, records: Sequence[Record], bounds: Bounds) -> Measures:
        """The metrics of these records."""
        ...


def measured(metric: Callable[..., Measured], *values: Any, **named: Any) -> Measure:
    """A metric with its arguments, waiting for how to resample."""
    return lambda resampling: metric(*values, **named, resampling=resampling)


def column(records: Iterable[Record], name: str) -> list[Any]:
    """One value of each record."""
    return [record[name] for record in records]


def in_parts(records: Sequence[Record], name: str, measures: Callable[[Sequence[Record]], Measures]) -> Measures:
    """The metrics of each part of a benchmark by itself; keys have its name in front where there are several.

    Args:
        records: All records.
        name: What tells the parts apart, such as "condition" or "domain".
        measures: The metrics of one part.
    """
    parts = list(dict.fromkeys(column(records, name)))
    if len(parts) == 1:
        return measures(records)
    found = Measures()
    for part in parts:
        found.add(measures([record for record in records if record[name] == part]), f"{part}/")
    return found


def with_parts(measured: Measured, parts: Mapping[str, Measured]) -> Measured:
    """The same measurement, broken down."""
    return replace(measured, parts=dict(parts))
