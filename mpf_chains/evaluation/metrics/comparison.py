"""Two systems on the same items: the difference, its interval, and whether it could be chance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy import stats

from mpf_chains.core.distributions import Array
from mpf_chains.errors import InvalidInput
from mpf_chains.evaluation.intervals import DEFAULT, Draws, Resampling, Statistic, bootstrap, swapped_differences
from mpf_chains.evaluation.metrics.measured import Items, Measured, Metric, mean

Test = Literal["mcnemar", "randomisation", "bootstrap"]


@dataclass(frozen=True)
class Comparison:
    """How a second system differs from a first on the same items.

    Attributes:
        metric: What was measured.
        on: "value", or "distance" where distances from the ideal were compared.
        first: The first system's value (or distance).
        second: The second system's.
        difference: second − first.
        low: Lower end of its interval.
        high: Upper end of its interval.
        level: Nominal coverage of the interval.
        p: Probability of a difference at least as large, either way, were the systems interchangeable.
        n: Number of items.
        test: "mcnemar" (exact), "randomisation" or "bootstrap".
    """

    metric: Metric
    on: Literal["value", "distance"]
    first: float
    second: float
    difference: float
    low: float
    high: float
    level: float
    p: float
    n: int
    test: Test

    @property
    def improvement(self) -> float | None:
        """How much nearer to the ideal the second system is; negative if farther, None without an ideal."""
        if self.on == "distance":
            return -self.difference
        if self.metric.ideal is None:
            return None
        return float(self.metric.distance(self.first) - self.metric.distance(self.second))

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**vars(self), "metric": self.metric.name, "improvement": self.improvement}


def compare(
    first: Measured,
    second: Measured,
    *,
    on: Literal["value", "distance"] = "value",
    runs: int = 1999,
    resampling: Resampling = DEFAULT,
) -> Comparison:
    """Compare two systems measured with one metric on the same items, in the same order.

    The interval is a bootstrap of the difference in which both systems are seen on the same resampled items. The
    p-value is that of McNemar's exact test (1947) for outcomes that are 0 or 1 per independent item; for means of
    anything else of a randomisation test, in which the two systems' results on an item (or cluster) change places
    (Noreen, 1989). For values that are no means (KL, gaps, bias scores, distances from an ideal in the middle) that
    test would answer another question, whether the systems are the same: two that miss the target on opposite sides by
    as much are not. There p comes from the bootstrap, and agrees with the interval.

    Args:
        first: The first system, such as the model before.
        second: The second system, such as the model after.
        on: "value" (default), or "distance": compare how far the values are from the ideal. For scores with the ideal
            in the middle, 45 and 55 differ in value but not in distance.
        runs: Random swaps of the randomisation test, at least 99. Default 1999.
        resampling: Level, resamples and seed.

    Returns:
        The comparison.

    Raises:
        InvalidInput: If metrics or items differ, or the items were not kept.
        NotSupportedError: If distances are asked for where there is no ideal.

    Examples:
        >>> from mpf_chains.evaluation.metrics import bbq_accuracy
        >>> compare(bbq_accuracy([0, 0, 0, 0, 0, 1]), bbq_accuracy([1, 1, 1, 1, 1, 1])).p
        0.0625
    """
    one, other = _same_items(first, second)
    if runs < 99:
        raise InvalidInput(f"runs must be at least 99, not {runs}.")
    if on not in {"value", "distance"}:
        raise InvalidInput(f'on must be "value" or "distance", not {on!r}.')
    metric = first.metric
    transform: Callable[[Any], Any] = metric.distance if on == "distance" else np.asarray

    def compared(table: Array, weights: Array) -> Array:
        return np.asarray(transform(one.statistic(table, weights)))

    values = transform(np.array([first.value, second.value]))
    difference = float(values[1] - values[0])
    draws, most = _differences(one, other, compared, metric, on, resampling)
    low, high = draws.interval(difference, -most, most, resampling.level)
    test: Test = "randomisation"
    bootstrapped = None if _is_mean(one, metric, on) else draws.p_of_zero(difference, resampling.level)
    if on == "value" and one.binary and other.binary and one.clusters is None:
        p, test = _mcnemar(one.table[:, -1], other.table[:, -1]), "mcnemar"
    elif bootstrapped is not None:
        p, test = bootstrapped, "bootstrap"
    else:
        swapped = swapped_differences(one.table, other.table, compared, one.clusters, runs, resampling.seed)
        far = np.abs(swapped) >= abs(difference) * (1 - 1e-9) - 1e-12
        p = float((1 + far.sum()) / (1 + runs))
    return Comparison(
        metric, on, float(values[0]), float(values[1]), difference, low, high, resampling.level, p, first.n, test
    )


def _same_items(first: Measured, second: Measured) -> tuple[Items, Items]:
    if first.metric != second.metric:
        raise InvalidInput(f"{first.metric.name} and {second.metric.name} are different metrics or have other ranges.")
    one, other = first.items, second.items
    if one is None or other is None:
        raise InvalidInput(
            "Items were not kept with these measurements.", hint="Measure again from the items' results."
        )
    if one.columns != other.columns:
        raise InvalidInput(
            f"The systems' results have different columns: {', '.join(one.columns)} and {', '.join(other.columns)}.",
            hint="For regard, name all labels that the classifier can give: `among`.",
        )
    if one.table.shape != other.table.shape:
        raise InvalidInput(f"The systems were measured on different items: {first.n} and {second.n}.")
    if not np.array_equal(one.table[:, : one.given], other.table[:, : one.given]):
        row = int(np.flatnonzero((one.table[:, : one.given] != other.table[:, : one.given]).any(axis=1))[0])
        raise InvalidInput(
            f"Item {row} is not the same for both systems: its {' and '.join(one.columns[: one.given])} differ.",
            hint="Give both systems' results in the same order.",
        )
    if (one.clusters is None) != (other.clusters is None) or not np.array_equal(
        one.clusters if one.clusters is not None else [], other.clusters if other.clusters is not None else []
    ):
        raise InvalidInput("The clusters of the items are not the same for both systems.")
    alike = replace(other, statistic=one.statistic)
    if alike.value() != second.value:
        raise InvalidInput(
            f"{first.metric.name} was measured with different options, such as a threshold or a grid.",
            hint="Measure both systems with the same ones.",
        )
    return one, alike


def _is_mean(items: Items, metric: Metric, on: str) -> bool:
    """Whether what is compared is a mean over items; so is its distance from an ideal at an end of the range."""
    return items.statistic is mean and (on == "value" or metric.ideal in {metric.low, metric.high})


def _differences(
    one: Items, other: Items, compared: Statistic, metric: Metric, on: str, resampling: Resampling
) -> tuple[Draws, float]:
    """Differences on resampled items, and the largest that there can be."""
    width = one.table.shape[1]

    def gap(both: Array, weights: Array) -> Array:
        return compared(both[:, width:], weights) - compared(both[:, :width], weights)

    table = np.hstack([one.table, other.table])
    draws = bootstrap(table, gap, resampling, clusters=one.clusters, strata=one.strata)
    most = metric.high - metric.low
    if on == "distance":
        most = max(metric.distance(metric.low), metric.distance(metric.high))
    return draws, most


def _mcnemar(first: Array, second: Array) -> float:
    only_first, only_second = int((first > second).sum()), int((second > first).sum())
    discordant = only_first + only_second
    return float(stats.binomtest(min(only_first, only_second), discordant).pvalue) if discordant else 1.0
