"""SAGED's disparity metrics (Guan et al., 2025), with the faults of the public code put right.

What differs from holistic-ai/SAGED-Bias, `saged/_diagnoser.py`, and why:

- Its impact ratio is the smallest over the largest of any statistic: undefined where the largest is 0, and meaningless
  where means may be negative. Here it is a ratio of selection rates, and two rates of 0 are equal: 1.
- Its max z is the largest z, so that a group far *below* the others goes unseen: here the largest |z|. With two groups
  every z is 1, so at least three are needed; with equal groups it gives NaN, here 0.
- Its selection rate compares with a mean or median into which missing scores go as NaN, and errors are passed over:
  here a missing score is an error. Its threshold is estimated from the data but taken as known: here it is estimated
  anew in every resample.
- Its permutation test reorders the rows of one group, which changes no mean, so p is 1: here labels are shuffled
  between groups, and the outcome is the floor.
- Its Dixon Q test subtracts a number from itself for 4 to 7 groups and looks at low outliers only for more: left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from mpf_chains.core.distributions import Array
from mpf_chains.errors import InvalidInput
from mpf_chains.evaluation.intervals import DEFAULT, Resampling
from mpf_chains.evaluation.metrics.groups import group_means, group_sums, measure_groups, sorted_by_group
from mpf_chains.evaluation.metrics.inputs import clusters_of, groups_of, numbers, subset
from mpf_chains.evaluation.metrics.measured import Items, Measured, Metric, Rows, mean, measure_by, with_bounds
from mpf_chains.evaluation.metrics.shares import mean_score

Threshold = float | Literal["mean", "median"]
Selected = Literal["at_least", "at_most"]

_SOURCE = "Guan et al., SAGED, COLING 2025, section on disparity metrics"
SELECTION_RATE = Metric("selection_rate", "Selection rate", None, 0, 1, "share", "", _SOURCE)
IMPACT_RATIO = Metric(
    "impact_ratio", "Impact ratio", 1, 0, 1, "ratio", "higher",
    f"{_SOURCE}; four-fifths rule: 29 CFR 1607.4(D)",
)  # fmt: skip
MAX_Z = Metric("max_z", "Max z", 0, 0, np.inf, "standard deviations", "lower", _SOURCE)


def selection_rate(
    scores: ArrayLike,
    *,
    threshold: Threshold = "mean",
    selected: Selected = "at_least",
    by: Iterable[Any] | None = None,
    clusters: Iterable[Any] | None = None,
    resampling: Resampling = DEFAULT,
) -> Measured:
    """Share of answers whose score reaches a threshold.

    No ideal of its own: it should be equal between groups (`impact_ratio`). Range 0 to 1, unit share.
    Source: Guan et al., "SAGED", COLING 2025 (arXiv 2409.11149), disparity metrics.

    Args:
        scores: (n,) scores.
        threshold: The score to reach, or "mean" (default) or "median" of all n scores, whichever part is looked at.
        selected: "at_least" (default) the threshold, or "at_most".
        by: (n,) groups. Default none.
        clusters: (n,) answers with one label are resampled together. Default each alone.
        resampling: Level, resamples and seed.

    Returns:
        The rate, with one part per group. The interval of the whole takes into account that a mean or median is an
        estimate; those of the parts take it as given.

    Raises:
        InvalidInput: If arrays do not fit together, or an argument or a score is not allowed.

    Examples:
        >>> selection_rate([0.1, 0.6, 0.8], threshold=0.5, by=["a", "a", "b"]).parts["a"].value
        0.5
    """
    array = numbers("scores", scores)
    cut = _cut(array, np.ones((1, len(array))), _checked(threshold, selected))
    chosen = _chosen(array, cut, selected)[0].astype(np.float64)
    cluster = clusters_of(clusters, len(array))

    def build(rows: Rows) -> Items:
        if threshold in {"mean", "median"} and len(rows) == len(array):
            rate = partial(_rate, threshold=threshold, selected=selected)
            return Items(("score",), array[rows][:, None], rate, clusters=cluster)
        return Items(("selected",), chosen[rows][:, None], mean, binary=True, clusters=subset(cluster, rows))

    return measure_by(SELECTION_RATE, build, len(array), by, resampling)


def impact_ratio(
    scores: ArrayLike,
    groups: Iterable[Any],
    *,
    threshold: Threshold = "mean",
    selected: Selected = "at_least",
    clusters: Iterable[Any] | None = None,
    resampling: Resampling = DEFAULT,
) -> Measured:
    """Selection rate of the group selected least over that of the group selected most.

    Ideal 1, range 0 to 1, unit ratio, higher is better.
    Source: Guan et al., "SAGED", COLING 2025 (arXiv 2409.11149): min_g rate_g / max_g rate_g; below 0.8 it breaks the
    four-fifths rule (29 CFR 1607.4(D)). 1 where no group is selected at all. Chance alone keeps it below 1: the floor
    says by how much.

    Args:
        scores: (n,) scores; for outcomes that are 0 or 1, a threshold of 1.
        groups: (n,) group of each; at least two.
        threshold: As in `selection_rate`.
        selected: As in `selection_rate`.
        clusters: As in `selection_rate`; where there are none, answers are resampled within their group.
        resampling: Level, resamples, shuffles and seed.

    Returns:
        The ratio, with its floor and as parts each group's rate.

    Raises:
        InvalidInput: If arrays do not fit together, there is one group only, or an argument or a score is not allowed.

    Examples:
        >>> impact_ratio([1, 1, 1, 0], ["a", "a", "b", "b"], threshold=1).value
        0.5
    """
    array = numbers("scores", scores)
    codes, names = groups_of(groups, len(array))
    cluster, by = clusters_of(clusters, len(array)), [names[code] for code in codes]
    options: dict[str, Any] = {"threshold": threshold, "selected": selected}
    parts = selection_rate(array, by=by, clusters=cluster, resampling=resampling, **options).parts
    return measure_groups(
        IMPACT_RATIO, ("score",), codes, array, partial(_impact, **options), parts=parts, clusters=cluster,
        resampling=resampling,
    )  # fmt: skip


def max_z(
    scores: ArrayLike,
    groups: Iterable[Any],
    *,
    clusters: Iterable[Any] | None = None,
    resampling: Resampling = DEFAULT,
) -> Measured:
    """How far the most exceptional group's mean lies from the mean of the groups' means: is bias concentrated in one?

    Ideal 0, range 0 to inf, unit standard deviations, lower is better (with k groups it ends at √(k − 1)).
    Source: Guan et al., "SAGED", COLING 2025 (arXiv 2409.11149): z_g = (m_g − mean of m) / sd of m, with the standard
    deviation over the k groups (divisor k), and the largest |z_g|. 0 where all means are equal.
    Unless they are, it is at least 1 whatever the size of the differences: read it beside its floor and a gap.

    Args:
        scores: (n,) scores, or outcomes that are 0 or 1.
        groups: (n,) group of each; at least three, since with two every |z| is 1.
        clusters: (n,) answers with one label are resampled together. Default: each alone, resampled within its group.
        resampling: Level, resamples, shuffles and seed.

    Returns:
        The largest |z|, with its floor and as parts each group's mean.

    Raises:
        InvalidInput: If arrays do not fit together, there are fewer than three groups, or a score is not finite.

    Examples:
        >>> round(max_z([0, 0, 0, 1], ["a", "b", "c", "d"]).value, 3)
        1.732
    """
    array = numbers("scores", scores)
    codes, names = groups_of(groups, len(array), least=3)
    cluster, by = clusters_of(clusters, len(array)), [names[code] for code in codes]
    parts = mean_score(array, bounds=(-np.inf, np.inf), by=by, clusters=cluster, resampling=resampling).parts
    metric = with_bounds(MAX_Z, 0.0, float(np.sqrt(len(names) - 1)))
    return measure_groups(
        metric, ("score",), codes, array, _largest_z, parts=parts, clusters=cluster, resampling=resampling
    )


def _checked(threshold: Threshold, selected: Selected) -> Threshold:
    if selected not in {"at_least", "at_most"}:
        raise InvalidInput(f'selected must be "at_least" or "at_most", not {selected!r}.')
    if isinstance(threshold, str):
        if threshold not in {"mean", "median"}:
            raise InvalidInput(f'threshold must be a number, "mean" or "median", not {threshold!r}.')
    elif not np.isfinite(threshold):
        raise InvalidInput(f"threshold must be finite, not {threshold}.")
    return threshold


def _cut(scores: Array, weights: Array, threshold: Threshold) -> Array:
    """(B, 1) the score to reach in each resample."""
    if threshold == "mean":
        # rounding must not push equal scores below their own mean
        return np.asarray(np.clip(weights @ scores / weights.sum(axis=1), scores.min(), scores.max())[:, None])
    if threshold == "median":
        order = np.argsort(scores, kind="stable")
        below = weights.take(order, axis=1).cumsum(axis=1)
        half = below[:, -1:] / 2
        ends = [scores[order][np.argmax(reached, axis=1)] for reached in (below >= half, below > half)]
        return np.asarray((ends[0] + ends[1])[:, None] / 2)
    return np.full((len(weights), 1), float(threshold))


def _chosen(scores: Array, cut: Array, selected: Selected) -> Array:
    """(B, n) whether the threshold is reached."""
    slack = 1e-12 * np.maximum(1.0, np.abs(cut))
    return np.asarray(scores >= cut - slack if selected == "at_least" else scores <= cut + slack)


def _rate(table: Array, weights: Array, *, threshold: Threshold, selected: Selected) -> Array:
    scores = table[:, -1]
    chosen = _chosen(scores, _cut(scores, weights, threshold), selected)
    return np.asarray((weights * chosen).sum(axis=1) / weights.sum(axis=1))


def _impact(table: Array, weights: Array, *, threshold: Threshold, selected: Selected) -> Array:
    cut = _cut(table[:, 1], weights, threshold)
    table, weights = sorted_by_group(table, weights)
    codes, scores = table.T
    sizes = group_sums(codes, weights)
    rates = np.full(sizes.shape, np.nan)
    np.divide(group_sums(codes, weights * _chosen(scores, cut, selected)), sizes, out=rates, where=sizes > 0)
    most = np.nanmax(rates, axis=1)
    return np.where(most > 0, np.nanmin(rates, axis=1) / np.where(most > 0, most, 1.0), 1.0)


def _largest_z(table: Array, weights: Array) -> Array:
    means = group_means(table, weights)[:, 0]
    away = np.abs(means - np.nanmean(means, axis=1, keepdims=True))
    spread = np.sqrt(np.nanmean(away**2, axis=1))
    equal = spread <= 1e-12 * np.maximum(1.0, np.nanmax(np.abs(means), axis=1))
    largest = np.nanmax(away, axis=1) / np.where(equal, 1.0, spread)
    return np.where(equal, 0.0, np.minimum(largest, np.sqrt(means.shape[1] - 1)))  # rounding must not pass the bound
