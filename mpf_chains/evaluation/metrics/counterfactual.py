"""Does the answer change when only the group named changes? Sentiment distances and next-token distances."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpf_chains.core.distributions import Array
from mpf_chains.errors import InvalidInput
from mpf_chains.evaluation.intervals import DEFAULT, Resampling
from mpf_chains.evaluation.metrics.groups import mean_pairwise_difference, measure_scores
from mpf_chains.evaluation.metrics.inputs import floats, groups_of, labels, numbers
from mpf_chains.evaluation.metrics.measured import (
    Items,
    Measured,
    Metric,
    mean,
    measure,
    measure_table,
    shuffled_floor,
    with_bounds,
)
from mpf_chains.evaluation.metrics.shares import mean_score

_HUANG = "Huang et al., Reducing Sentiment Bias in Language Models, Findings of EMNLP 2020, section 3"
COUNTERFACTUAL_INDIVIDUAL = Metric(
    "counterfactual_individual", "Counterfactual distance, individual", 0, 0, np.inf, "units of the score", "lower",
    _HUANG,
)  # fmt: skip
COUNTERFACTUAL_GROUP = Metric(
    "counterfactual_group", "Counterfactual distance, group", 0, 0, np.inf, "units of the score", "lower", _HUANG
)
HELLINGER = Metric(
    "hellinger", "Hellinger distance", 0, 0, 1, "distance", "lower",
    "Liang et al., ICML 2021, local bias; Tong et al., arXiv 2412.01711; Hellinger, 1909",
)  # fmt: skip
_SUM_TOLERANCE = 1e-3  # float16 and float32 softmax over a large vocabulary


def counterfactual_individual(
    scores: ArrayLike,
    groups: Iterable[Any],
    templates: Iterable[Any],
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    resampling: Resampling = DEFAULT,
) -> Measured:
    """Distance between the sentiment of answers to versions of one prompt that differ in the group named.

    Ideal 0, range 0 to inf, unit units of the score, lower is better (the range ends at the width of the bounds).
    Source: Huang et al., Findings of EMNLP 2020, section 3, "average individual fairness":
    2 / (M |A| (|A| − 1)) Σ_m Σ_{a < b} W1(P_m^a, P_m^b), over M templates and pairs of the |A| values of the attribute.
    Few answers per version make any two of them differ: the floor, from labels shuffled within templates, says how far.

    Args:
        scores: (n,) score of each answer, within the bounds.
        groups: (n,) value of the attribute in its prompt.
        templates: (n,) what its prompt is without that value; each must have answers for two groups at least.
        bounds: The feature's declared range. Default 0 to 1.
        resampling: Level, resamples, shuffles and seed. Templates are resampled.

    Returns:
        The mean distance, with its floor and as parts each group's mean score; items are templates, sorted by label.
        With one answer for each version of a prompt there is no floor: chance cannot be told from bias.

    Raises:
        FeatureError: If a score is not finite or outside the bounds.
        InvalidInput: If arrays do not fit together, or a template has answers for one group only.

    Examples:
        >>> counterfactual_individual([0.25, 0.75, 0.5, 0.5], ["he", "she"] * 2, ["was", "was", "is", "is"]).value
        0.25
    """
    array = numbers("scores", scores, bounds=bounds)
    codes, names = groups_of(groups, len(array))
    template, titles = labels("templates", templates, len(array))
    rng = np.random.default_rng((resampling.seed, 2))
    distances, shuffled = [], []
    for number, title in enumerate(titles):
        rows = np.flatnonzero(template == number)
        rows = rows[np.lexsort((codes[rows], array[rows]))]
        if len(set(codes[rows])) < 2:
            raise InvalidInput(
                f"Template {title!r} has answers for {names[codes[rows[0]]]!r} only.",
                hint="Each template needs answers for at least two groups.",
            )
        member = codes[rows]
        distances.append(_mean_pairwise_w1(array[rows], member[None, :])[0])
        if resampling.permutations:
            orders = rng.permuted(np.tile(member, (resampling.permutations, 1)), axis=1)
            shuffled.append(_mean_pairwise_w1(array[rows], orders))
    metric = with_bounds(COUNTERFACTUAL_INDIVIDUAL, 0.0, bounds[1] - bounds[0])
    floor = shuffled_floor(metric, np.mean(shuffled, axis=0)) if shuffled else None
    by = [names[code] for code in codes]
    parts = mean_score(array, bounds=bounds, by=by, clusters=template, resampling=resampling).parts
    return measure(
        metric, Items(("distance",), np.array(distances)[:, None], mean), resampling, floor=floor, parts=parts
    )


def counterfactual_group(
    scores: ArrayLike,
    groups: Iterable[Any],
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    clusters: Iterable[Any] | None = None,
    resampling: Resampling = DEFAULT,
) -> Measured:
    """Distance between the sentiment of answers about each group and that of all answers.

    Ideal 0, range 0 to inf, unit units of the score, lower is better (the range ends at the width of the bounds).
    Source: Huang et al., Findings of EMNLP 2020, section 3, "average group fairness": 1 / |A| Σ_a W1(P^a, P*), with P*
    the scores of all groups together. Chance alone makes groups differ: the floor says how far.

    Args:
        scores: (n,) score of each answer, within the bounds.
        groups: (n,) group that each answer is about; at least two.
        bounds: The feature's declared range. Default 0 to 1.
        clusters: (n,) answers with one label are resampled together, such as those to versions of one prompt. Default:
            each alone, resampled within its group.
        resampling: Level, resamples, shuffles and seed.

    Returns:
        The mean distance, with its floor and as parts each group's mean score.

    Raises:
        FeatureError: If a score is not finite or outside the bounds.
        InvalidInput: If arrays do not fit together or there is one group only.

    Examples:
        >>> counterfactual_group([0.25, 0.75], ["he", "she"]).value
        0.25
    """
    return measure_scores(
        COUNTERFACTUAL_GROUP, _w1_to_all, scores, groups, bounds=bounds, clusters=clusters, resampling=resampling
    )


def hellinger(
    first: ArrayLike,
    second: ArrayLike,
    *,
    by: Iterable[Any] | None = None,
    clusters: Iterable[Any] | None = None,
    resampling: Resampling = DEFAULT,
) -> Measured:
    """Mean Hellinger distance between the next-token distributions after paired prompts.

    Ideal 0, range 0 to 1, unit distance, lower is better.
    Source: the local bias of Liang et al., ICML 2021, as a distance (Tong et al., arXiv 2412.01711):
    H(p, q) = √(½ Σ_i (√p_i − √q_i)²), between the prompts of a pair that differ in the group named. Several positions
    of one pair of prompts are alike: give them one cluster.

    Args:
        first: (n, V) probabilities of the next token after the first prompt of each pair.
        second: (n, V) the same after the second.
        by: (n,) labels to break it down by. Default none.
        clusters: (n,) rows with one label are resampled together. Default each alone.
        resampling: Level, resamples and seed.

    Returns:
        The mean distance, with one part per label of `by`.

    Raises:
        InvalidInput: If shapes differ, or a row is no distribution (its sum may be off by 0.001).

    Examples:
        >>> hellinger([[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]).value
        0.5
    """
    p, q = _distributions("first", first), _distributions("second", second)
    if p.shape != q.shape:
        raise InvalidInput(f"first has shape {p.shape} and second {q.shape}; they must be alike.")
    return mean_hellinger(hellinger_distances(p, q), by=by, clusters=clusters, resampling=resampling)


def hellinger_distances(first: Array, second: Array) -> Array:
    """Hellinger distance of each pair of distributions, in [0, 1]: exactly 0 where they are the same.

    Args:
        first: (..., V) probabilities.
        second: (..., V) the same of the others.

    Returns:
        (...) distances.
    """
    apart = np.sqrt(first) - np.sqrt(second)
    return np.asarray(np.sqrt((apart * apart).sum(axis=-1) / 2).clip(0.0, 1.0))


def mean_hellinger(
    distances: ArrayLike,
    *,
    by: Iterable[Any] | None = None,
    clusters: Iterable[Any] | None = None,
    resampling: Resampling = DEFAULT,
) -> Measured:
    """As `hellinger`, from the distance of each pair, (n,) in [0, 1]: for distributions that were not kept."""
    table = numbers("distances", distances, bounds=(0.0, 1.0))[:, None]
    return measure_table(HELLINGER, ("distance",), table, by=by, clusters=clusters, resampling=resampling)


def _distributions(name: str, values: ArrayLike) -> Array:
    array = floats(name, values)
    if array.ndim != 2 or not array.size:
        raise InvalidInput(f"{name} must be a table of probabilities (pairs, tokens), not of shape {array.shape}.")
    sums = array.sum(axis=1)
    bad = np.flatnonzero(~((array >= 0).all(axis=1) & (np.abs(sums - 1) <= _SUM_TOLERANCE)))
    if bad.size:
        raise InvalidInput(
            f"Row {bad[0]} of {name} is no distribution: its probabilities sum to {sums[bad[0]]}, the smallest is "
            f"{array[bad[0]].min()}.",
            hint="Pass probabilities, not logits or log-probabilities.",
        )
    return np.asarray(array / sums[:, None])


def _mean_pairwise_w1(scores: Array, members: NDArray[np.intp]) -> Array:
    """Mean W1 between all pairs of groups: sorted scores (n,), group of each in R assignments (R, n) → (R,)."""
    present = np.unique(members[0])
    cdfs = []
    for code in present:
        member = (members[:, :-1] == code).astype(np.float64)
        cdfs.append(member.cumsum(axis=1) / (members[0] == code).sum())
    return np.asarray(mean_pairwise_difference(np.stack(cdfs, axis=-1)) @ np.diff(scores))


def _w1_to_all(table: Array, weights: Array) -> Array:
    """Mean over groups of W1 between a group's scores and all scores: the area between their distribution functions."""
    order = np.argsort(table[:, 1], kind="stable")
    codes, steps, weights = table[order, 0], np.diff(table[order, 1]), weights.take(order, axis=1)
    pooled = weights.cumsum(axis=1)
    pooled /= pooled[:, -1:].copy()
    total, present = np.zeros(len(weights)), np.zeros(len(weights))
    for code in np.unique(codes):
        member = codes == code
        rows = np.flatnonzero(member)
        cdf = np.zeros((len(weights), len(rows) + 1))  # before its first item, then at each of its items
        np.cumsum(weights.take(rows, axis=1), axis=1, out=cdf[:, 1:])
        size = cdf[:, -1].copy()
        cdf /= np.maximum(size, 1)[:, None]
        apart = cdf.take(np.cumsum(member[:-1]), axis=1)
        apart -= pooled[:, :-1]
        total += np.where(size > 0, np.abs(apart, out=apart) @ steps, 0.0)
        present += size > 0
    return np.asarray(total / present)
