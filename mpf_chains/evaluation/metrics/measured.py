"""What a metric is, and what a measurement with it gives: one description and one record for all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mpf_chains.core.distributions import Array
from mpf_chains.errors import NotSupportedError
from mpf_chains.evaluation.intervals import DEFAULT, Resampling, Statistic, bootstrap, share_interval
from mpf_chains.evaluation.metrics.inputs import clusters_of, split, subset

Rows = NDArray[np.intp]


@dataclass(frozen=True)
class Metric:
    """What a number means.

    Attributes:
        name: Its key, also the name of the function that measures it.
        title: Its name in reports.
        ideal: Value of an unbiased (or perfect) system; none where only the comparison between groups says something.
        low: Smallest possible value; may be infinite.
        high: Largest possible value; may be infinite.
        unit: Unit of the value.
        better: Which way is better: "lower", "higher", "closer" (to the ideal), or "" where there is no ideal.
        source: Where it is defined.
    """

    name: str
    title: str
    ideal: float | None
    low: float
    high: float
    unit: str
    better: Literal["lower", "higher", "closer", ""]
    source: str

    def distance(self, value: Any) -> Any:
        """How far a value, or each of an array, is from the ideal.

        Raises:
            NotSupportedError: If the metric has no ideal value.
        """
        if self.ideal is None:
            raise NotSupportedError(
                f"{self.name} has no ideal value to be near to.", hint="Compare its values instead."
            )
        return np.abs(value - self.ideal)


@dataclass(frozen=True)
class NoiseFloor:
    """What a system with the ideal value would score at this size, for want of more data.

    Attributes:
        mean: Its mean score.
        limit: Its 95 % point towards the worse side: a value that is no worse is not distinguishable from ideal.
        quota: Where draws from known shares are measured: what `QuotaSampler` scores, whose draws are not independent.
    """

    mean: float
    limit: float
    quota: float | None = None


@dataclass(frozen=True, eq=False)
class Items:
    """What each item contributes to a value: kept for paired tests and for looking at single items.

    Attributes:
        columns: Names of the d columns.
        table: (n, d) contributions, in the order in which the items were given.
        statistic: Value from a table and weights of its rows.
        given: How many leading columns describe the item, not the system's answer to it. Default 0.
        binary: Whether the last column is 0 or 1 per item and the value their plain share. Default no.
        clusters: (n,) items with one number are resampled and swapped together. Default each alone.
        strata: (n,) items are resampled within these. Default one.
    """

    columns: tuple[str, ...]
    table: Array
    statistic: Statistic
    given: int = 0
    binary: bool = False
    clusters: NDArray[np.intp] | None = None
    strata: NDArray[np.intp] | None = None

    def value(self) -> float:
        """The statistic on the items, each counted once; their order does not matter."""
        ordered = self.table[np.lexsort(self.table.T[::-1])]
        return float(self.statistic(ordered, np.ones((1, len(ordered))))[0])


@dataclass(frozen=True)
class Measured:
    """A value with its interval.

    Attributes:
        metric: What was measured.
        value: The value; always a finite number.
        low: Lower end of the interval; infinite only where nothing is known and the range is.
        high: Upper end of the interval; likewise.
        level: Nominal coverage of the interval.
        n: Number of items.
        method: How the interval was made: "exact" or "bootstrap".
        floor: What an ideal system would score at this size. None where there is no such floor or it was not asked for.
        parts: The same by part (bias type, group, entity). Empty where no breakdown was asked for.
        items: What each item contributes.
    """

    metric: Metric
    value: float
    low: float
    high: float
    level: float
    n: int
    method: Literal["exact", "bootstrap"]
    floor: NoiseFloor | None = None
    parts: Mapping[str, Measured] = field(default_factory=dict)
    items: Items | None = field(default=None, repr=False, compare=False)

    @property
    def beyond_floor(self) -> bool | None:
        """Whether the value is worse than the floor's limit; None where there is no floor."""
        if self.floor is None:
            return None
        return bool(self.metric.distance(self.value) > self.metric.distance(self.floor.limit) + 1e-12)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the items; infinite ends of an interval become None.

        Returns:
            Keys metric, value, low, high, level, n, method, and where there are any floor and parts.
        """
        plain: dict[str, Any] = {
            "metric": self.metric.name,
            "value": self.value,
            "low": self.low if math.isfinite(self.low) else None,
            "high": self.high if math.isfinite(self.high) else None,
            "level": self.level,
            "n": self.n,
            "method": self.method,
        }
        if self.floor is not None:
            quota = {} if self.floor.quota is None else {"quota": self.floor.quota}
            plain["floor"] = {"mean": self.floor.mean, "limit": self.floor.limit, **quota}
        if self.parts:
            plain["parts"] = {label: part.as_dict() for label, part in self.parts.items()}
        return plain


def mean(table: Array, weights: Array) -> Array:
    """Mean of the last column."""
    return np.asarray(weights @ table[:, -1] / weights.sum(axis=1))


def measure(
    metric: Metric,
    items: Items,
    resampling: Resampling = DEFAULT,
    *,
    floor: NoiseFloor | None = None,
    parts: Mapping[str, Measured] | None = None,
) -> Measured:
    """A value with its interval: exact for the share of independent items, else from the bootstrap.

    Where there is a floor and the value is no worse than its limit, the ideal is not ruled out, so the interval reaches
    to it (a one-sided test at 5 % turned into an interval, as befits a level of 0.9): resampling alone would seldom
    reach the end of the range of a gap or a distance.

    Args:
        metric: What is measured.
        items: Contributions, at least one.
        resampling: Level, resamples and seed.
        floor: See `Measured`.
        parts: See `Measured`.
    """
    value, n = items.value(), len(items.table)
    method: Literal["exact", "bootstrap"] = "exact" if items.binary and items.clusters is None else "bootstrap"
    if method == "exact":
        ends = share_interval(int(items.table[:, -1].sum()), n, resampling.level)
        low, high = (metric.low + end * (metric.high - metric.low) for end in ends)
    else:
        draws = bootstrap(items.table, items.statistic, resampling, clusters=items.clusters, strata=items.strata)
        low, high = draws.interval(value, metric.low, metric.high, resampling.level)
    measured = Measured(metric, value, low, high, resampling.level, n, method, floor, dict(parts or {}), items)
    if metric.ideal is None or measured.beyond_floor is not False:
        return measured
    return replace(measured, low=min(low, float(metric.ideal)), high=max(high, float(metric.ideal)))


def measure_by(
    metric: Metric, build: Callable[[Rows], Items], n: int, by: Iterable[Any] | None, resampling: Resampling = DEFAULT
) -> Measured:
    """The value over all items, with its parts.

    Args:
        metric: What is measured.
        build: Row numbers → contributions of these rows.
        n: Number of rows.
        by: (n,) labels to break it down by, or None.
        resampling: Level, resamples and seed.
    """
    parts = {label: measure(metric, build(rows), resampling) for label, rows in split(by, n).items()}
    return measure(metric, build(np.arange(n)), resampling, parts=parts)


def measure_table(
    metric: Metric,
    columns: tuple[str, ...],
    table: Array,
    statistic: Statistic = mean,
    *,
    by: Iterable[Any] | None = None,
    clusters: Iterable[Any] | None = None,
    resampling: Resampling = DEFAULT,
    binary: bool = False,
) -> Measured:
    """The value over all rows of a table, with its parts.

    Args:
        metric: What is measured.
        columns: Names of the d columns.
        table: (n, d) what each item contributes.
        statistic: See `Items`. Default: the mean of the last column.
        by: (n,) labels to break it down by. Default none.
        clusters: (n,) items with one label are resampled together. Default each alone.
        resampling: Level, resamples and seed.
        binary: Whether the value is the plain share of the last column; its interval is exact where that column is
            0 or 1 throughout. Default no.
    """
    cluster = clusters_of(clusters, len(table))

    def build(rows: Rows) -> Items:
        part = table[rows]
        plain = binary and bool(np.isin(part[:, -1], (0.0, 1.0)).all())
        return Items(columns, part, statistic, binary=plain, clusters=subset(cluster, rows))

    return measure_by(metric, build, len(table), by, resampling)


def permutation_floor(metric: Metric, items: Items, resampling: Resampling, *, labels: int = 0) -> NoiseFloor | None:
    """Floor of a difference between groups: its values when the groups' labels are shuffled (Fisher, 1935).

    Labels are shuffled over all items; where items share a cluster, within clusters that span several groups
    (counterfactual versions of one prompt), and whole clusters where each lies in one group.

    Args:
        metric: What is measured.
        items: Contributions.
        resampling: Number of shuffles and seed.
        labels: Column of the table with the group's number. Default 0.

    Returns:
        The floor; None if no shuffles are asked for, or if they change nothing (one answer for each version of a
        prompt): then chance cannot be told from bias.
    """
    if not resampling.permutations:
        return None
    rng = np.random.default_rng((resampling.seed, 2))
    others = np.delete(items.table, labels, axis=1)
    order = np.lexsort((items.table[:, labels], *others.T[::-1]))  # by value first: statistics that sort are quick
    table = items.table[order]
    clusters = None if items.clusters is None else items.clusters[order]
    ones, values = np.ones((1, len(table))), []
    for _ in range(resampling.permutations):
        shuffled = table.copy()
        shuffled[:, labels] = _shuffled(table[:, labels], clusters, rng)
        values.append(float(items.statistic(shuffled, ones)[0]))
    return shuffled_floor(metric, np.array(values))


def shuffled_floor(metric: Metric, values: Array) -> NoiseFloor | None:
    """Floor from the values under shuffled labels; None where shuffling changes nothing but the value is not ideal."""
    powerless = np.ptp(values) <= 1e-12 and metric.distance(values[0]) > 1e-12
    return None if powerless else floor_of(metric, values)


def floor_of(metric: Metric, values: Array) -> NoiseFloor:
    """Mean and 95 % point, towards the worse side, of an ideal system's values.

    Args:
        metric: What is measured; its ideal is an end of its range.
        values: (R,) values of an ideal system.
    """
    far = float(np.quantile(metric.distance(values), 0.95))
    ideal = float(metric.ideal or 0.0)
    return NoiseFloor(float(values.mean()), ideal - far if metric.better == "higher" else ideal + far)


def _shuffled(labels: Array, clusters: NDArray[np.intp] | None, rng: np.random.Generator) -> Array:
    if clusters is None:
        return rng.permutation(labels)
    _, first, member = np.unique(clusters, return_index=True, return_inverse=True)
    if (labels == labels[first][member]).all():
        return rng.permutation(labels[first])[member]
    shuffled = np.empty_like(labels)
    shuffled[np.argsort(member, kind="stable")] = labels[np.lexsort((rng.random(len(labels)), member))]
    return shuffled


def with_bounds(metric: Metric, low: float, high: float) -> Metric:
    """The same metric for scores with other bounds."""
    return replace(metric, low=low, high=high)
