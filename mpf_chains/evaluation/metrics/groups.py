"""Groups that are compared: means and sums per group, how far these lie apart, and what chance makes of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpf_chains.core.distributions import Array
from mpf_chains.evaluation.intervals import Resampling, Statistic
from mpf_chains.evaluation.metrics.inputs import clusters_of, groups_of, numbers
from mpf_chains.evaluation.metrics.measured import Items, Measured, Metric, measure, permutation_floor, with_bounds
from mpf_chains.evaluation.metrics.shares import mean_score


def measure_groups(
    metric: Metric,
    columns: tuple[str, ...],
    codes: NDArray[np.intp],
    values: Array,
    statistic: Statistic,
    *,
    parts: Mapping[str, Measured],
    clusters: Iterable[Any] | None,
    resampling: Resampling,
) -> Measured:
    """How far groups lie apart, with the floor that shuffled labels give; each group is a stratum.

    Args:
        metric: What is measured.
        columns: Names of the L columns of values.
        codes: (n,) number of each item's group.
        values: (n, L) or (n,) what each item contributes.
        statistic: Value from a table (group, *columns) and weights of its rows.
        parts: What is reported of each group.
        clusters: (n,) items with one label are resampled together; then groups are no strata. None: each alone.
        resampling: Level, resamples, shuffles and seed.
    """
    table, cluster = np.column_stack([codes, values]), clusters_of(clusters, len(codes))
    items = Items(("group", *columns), table, statistic, 1, False, cluster, codes)
    return measure(metric, items, resampling, floor=permutation_floor(metric, items, resampling), parts=parts)


def measure_scores(
    metric: Metric,
    statistic: Statistic,
    scores: ArrayLike,
    groups: Iterable[Any],
    *,
    bounds: tuple[float, float],
    clusters: Iterable[Any] | None,
    resampling: Resampling,
) -> Measured:
    """How far the groups' scores lie apart, at most the width of the bounds; parts are the groups' means.

    Args:
        metric: What is measured, but for its range.
        statistic: Value from a table (group, score) and weights of its rows.
        scores: (n,) scores within the bounds.
        groups: (n,) group of each; at least two.
        bounds: The feature's declared range.
        clusters: As in `measure_groups`.
        resampling: As in `measure_groups`.
    """
    array = numbers("scores", scores, bounds=bounds)
    codes, names = groups_of(groups, len(array))
    cluster, by = clusters_of(clusters, len(array)), [names[code] for code in codes]
    return measure_groups(
        with_bounds(metric, 0.0, bounds[1] - bounds[0]),
        ("score",),
        codes,
        array,
        statistic,
        parts=mean_score(array, bounds=bounds, by=by, clusters=cluster, resampling=resampling).parts,
        clusters=cluster,
        resampling=resampling,
    )


def sorted_by_group(table: Array, weights: Array) -> tuple[Array, Array]:
    """The table and the weights of its rows, in the order of the groups' numbers (the first column)."""
    codes = table[:, 0]
    if (codes[1:] >= codes[:-1]).all():
        return table, weights
    order = np.argsort(codes.astype(np.int16 if codes.max() < 1 << 15 else np.int64), kind="stable")  # radix sort
    return table[order], weights.take(order, axis=1)


def group_sums(codes: Array, amounts: Array) -> Array:
    """Sums over each group.

    Args:
        codes: (n,) group numbers, ascending.
        amounts: (B, n) what is added up.

    Returns:
        (B, G); 0 for a group without items.
    """
    first = np.flatnonzero(np.diff(codes, prepend=-1))
    sums = np.zeros((len(amounts), int(codes[-1]) + 1))
    sums[:, codes[first].astype(np.intp)] = np.add.reduceat(amounts, first, axis=1)
    return sums


def group_means(table: Array, weights: Array) -> Array:
    """Mean of each column in each group.

    Args:
        table: (n, 1 + L): the group's number, then L values.
        weights: (B, n) how often each row counts.

    Returns:
        (B, L, G); NaN for a group without rows.
    """
    table, weights = sorted_by_group(table, weights)
    sizes = group_sums(table[:, 0], weights)
    means = np.full((len(weights), table.shape[1] - 1, sizes.shape[1]), np.nan)
    for column, values in enumerate(table[:, 1:].T):
        np.divide(group_sums(table[:, 0], weights * values), sizes, out=means[:, column], where=sizes > 0)
    return means


def mean_pairwise_difference(values: Array) -> Array:
    """Mean absolute difference over all pairs of entries of the last axis; NaN entries take no part.

    From the sorted entries x_(1) ≤ … ≤ x_(m): Σ_i (2i − m − 1) x_(i) over m (m − 1) / 2 pairs. 0 for fewer than two.
    """
    ordered = np.sort(values, axis=-1)  # NaN goes last
    present = np.isfinite(ordered)
    m = present.sum(axis=-1, keepdims=True)
    rank = np.arange(values.shape[-1])
    total = np.where(present, (2 * rank - m + 1) * ordered, 0.0).sum(axis=-1)
    return np.asarray(total / np.maximum(m * (m - 1) / 2, 1)[..., 0])


def mean_gap(table: Array, weights: Array) -> Array:
    """Mean absolute pairwise difference of the groups' means, averaged over the columns after the group's number."""
    return np.asarray(mean_pairwise_difference(group_means(table, weights)).mean(axis=1))
