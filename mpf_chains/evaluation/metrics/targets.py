"""How far realised shares and scores are from a target distribution, beside what a perfect sampler would score."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from mpf_chains.core.distributions import Array, Grid, kl
from mpf_chains.core.inference import noise_floor
from mpf_chains.core.sampling import QuotaSampler
from mpf_chains.errors import InvalidInput
from mpf_chains.evaluation.intervals import DEFAULT, Resampling
from mpf_chains.evaluation.metrics.inputs import clusters_of, floats, labels
from mpf_chains.evaluation.metrics.measured import Items, Measured, Metric, NoiseFloor, floor_of, mean, measure

TARGET_MAE = Metric(
    "target_mae", "MAE to target", 0, 0, 1, "share", "lower", "arXiv 2604.05756: mean over classes, then over prompts"
)
TARGET_KL = Metric(
    "target_kl", "KL to target", 0, 0, np.inf, "nats", "lower",
    "Kullback & Leibler, 1951; Guan et al., MPF, arXiv 2507.02595",
)  # fmt: skip


def target_mae(
    counts: ArrayLike,
    target: ArrayLike,
    *,
    other: ArrayLike | None = None,
    entities: Iterable[Any] | None = None,
    resampling: Resampling = DEFAULT,
) -> Measured:
    """Mean absolute difference between the realised and the target shares of classes.

    Ideal 0, range 0 to 1, unit share, lower is better.
    Source: arXiv 2604.05756: mean over classes c of |realised share − target share|, then over prompts (occupations).
    A perfect sampler whose draws are independent does not score 0: the floor's mean is exact, with k = ⌊np⌋
    E |X / n − p| = 2 (1 − p)^(n − k) p^(k + 1) (k + 1) C(n, k + 1) / n (De Moivre, 1730), its limit simulated.
    Draws by quota go below it; the floor's `quota` is what `QuotaSampler` scores at the same n.

    Args:
        counts: (E, C) how often each of C classes was generated for each of E prompts; C at least 2.
        target: (E, C) or (C,) target shares; each row sums to 1.
        other: (E,) generations that belong to no class; they count among the realised generations. Default none.
        entities: (E,) names of the prompts, all different. Default their numbers.
        resampling: Level, resamples, shuffles (here: simulated perfect samples) and seed. Prompts are resampled; the
            interval of one prompt alone, whole or part, comes from resampling its generations. (Resampling both at
            once would count the noise of generations twice: Davison & Hinkley, 1997, section 3.8.)

    Returns:
        The error, with its floor and as parts each prompt's own; items are prompts.

    Raises:
        InvalidInput: If shapes do not fit, counts are no counts, a prompt has none, or a target is no distribution.

    Examples:
        >>> measured = target_mae([[60, 40], [70, 30]], [0.5, 0.5], entities=["nurse", "chef"])
        >>> round(measured.value, 3), round(measured.floor.mean, 3)
        (0.15, 0.04)
    """
    realised, shares, unclassed = _counted(counts, target, other)
    codes, known = labels("entities", range(len(realised)) if entities is None else entities, len(realised))
    if len(known) < len(realised):
        raise InvalidInput("entities names a prompt twice.", hint="Add up the counts of rows that belong together.")
    names = [known[code] for code in codes]
    n = realised.sum(axis=1) + unclassed
    errors = np.abs(realised / n[:, None] - shares).mean(axis=1)
    floors = _sampler_floors(shares, n, resampling)
    table = errors[:, None]
    parts = {}
    for i, name in enumerate(names):
        part = measure(TARGET_MAE, _generations(realised[i], unclassed[i], shares[i]), resampling, floor=floors[i])
        parts[name] = replace(part, items=Items(("error",), table[i : i + 1], mean))  # generations are not paired
    if len(names) == 1:
        return replace(parts[names[0]], parts=parts)
    return measure(TARGET_MAE, Items(("error",), table, mean), resampling, floor=floors[-1], parts=parts)


def target_kl(
    target: ArrayLike,
    generated: ArrayLike,
    grid: Grid = Grid(),
    *,
    clusters: Iterable[Any] | None = None,
    resampling: Resampling = DEFAULT,
) -> Measured:
    """Divergence of the generated scores from the target scores, on one shared grid of bins.

    Ideal 0, range 0 to inf, unit nats, lower is better.
    Source: Kullback & Leibler, 1951; KL(target ‖ generated) of smoothed histograms over the declared range, as in
    `mpf_chains.core` (Guan et al., MPF, arXiv 2507.02595, compares histograms with ranges of their own). Two samples of
    one distribution do not score 0: the floor says what they do score (`mpf_chains.core.noise_floor`).

    Args:
        target: (n,) target score of each question.
        generated: (n,) score of the answer to the same question.
        grid: Bins, range and smoothing.
        clusters: (n,) rows with one label are resampled together and are one datum of the target. Default each alone.
        resampling: Level, resamples, simulated pairs behind the floor, and seed.

    Returns:
        The divergence with its floor.

    Raises:
        InvalidInput: If arrays do not fit together, or a score is not finite or outside the grid's range.

    Examples:
        >>> target_kl([0.2, 0.4, 0.6], [0.2, 0.4, 0.6]).value
        0.0
    """
    b, s = floats("target", target), floats("generated", generated)
    if b.shape != s.shape or b.ndim != 1 or not b.size:
        raise InvalidInput(f"target {b.shape} and generated {s.shape} must be two vectors over the same questions.")
    cluster = clusters_of(clusters, len(b))
    table = np.column_stack([grid.index(b), grid.index(s)]).astype(np.float64)
    items = Items(("target bin", "generated bin"), table, partial(_kl, grid=grid), 1, False, cluster)
    floor = None
    if resampling.permutations:
        simulated = noise_floor(b, grid, groups=cluster, seed=resampling.seed, runs=resampling.permutations)
        floor = NoiseFloor(simulated.mean, simulated.high)
    return measure(TARGET_KL, items, resampling, floor=floor)


def _kl(table: Array, weights: Array, *, grid: Grid) -> Array:
    bins = np.arange(grid.bins)
    target, generated = (grid.smooth(weights @ (column[:, None] == bins)) for column in table.T)
    return np.asarray(np.maximum(kl(target, generated), 0.0))


def _counted(counts: ArrayLike, target: ArrayLike, other: ArrayLike | None) -> tuple[Array, Array, Array]:
    realised = floats("counts", counts)
    if realised.ndim != 2 or not len(realised) or realised.shape[1] < 2:
        raise InvalidInput(
            f"counts must be a table (prompts, classes) with two classes at least, not {realised.shape}."
        )
    unclassed = np.zeros(len(realised)) if other is None else floats("other", other)
    if unclassed.shape != (len(realised),):
        raise InvalidInput(f"other has shape {unclassed.shape}; it must be one number per prompt.")
    whole = np.column_stack([realised, unclassed])
    if not (np.isfinite(whole).all() and (whole >= 0).all() and (whole == np.floor(whole)).all()):
        raise InvalidInput("counts and other must be numbers of generations: 0, 1, 2, …")
    empty = np.flatnonzero(whole.sum(axis=1) == 0)
    if empty.size:
        raise InvalidInput(f"Prompt {empty[0]} has no generations.", hint="Leave it out of counts and target.")
    shares = floats("target", target)
    if shares.shape not in {realised.shape, realised.shape[1:]}:
        raise InvalidInput(f"target has shape {shares.shape}; it must be {realised.shape} or {realised.shape[1:]}.")
    shares = np.broadcast_to(shares, realised.shape)
    if not ((shares >= 0).all() and np.allclose(shares.sum(axis=1), 1, atol=1e-6, rtol=0)):
        raise InvalidInput("target must hold shares: none negative, each row summing to 1 (tolerance 1e-6).")
    return realised, np.asarray(shares / shares.sum(axis=1, keepdims=True)), unclassed


def _generations(counts: Array, other: float, target: Array) -> Items:
    """One row per generation of one prompt."""
    classes = np.repeat(np.arange(len(counts) + 1), np.append(counts, other).astype(np.intp))
    table = (classes[:, None] == np.arange(len(counts))).astype(np.float64)
    columns = tuple(f"class {i}" for i in range(len(counts)))
    return Items(columns, table, partial(_error, target=target))


def _error(table: Array, weights: Array, *, target: Array) -> Array:
    return np.asarray(np.abs(weights @ table / weights.sum(axis=1, keepdims=True) - target).mean(axis=1))


def _sampler_floors(target: Array, n: Array, resampling: Resampling) -> list[NoiseFloor | None]:
    """Floor of each prompt, and last that of their mean."""
    if not resampling.permutations:
        return [None] * (len(target) + 1)
    rng = np.random.default_rng((resampling.seed, 2))
    draws = rng.multinomial(n.astype(np.int64), target, size=(resampling.permutations, len(target)))
    simulated = np.abs(draws / n[:, None] - target).mean(axis=2)
    expected = _mean_deviation(target, n[:, None]).mean(axis=1)
    quotas = np.array([_quota_error(shares, int(count)) for shares, count in zip(target, n, strict=True)])
    floors = [
        *zip(expected, simulated.T, quotas, strict=True),
        (expected.mean(), simulated.mean(axis=1), quotas.mean()),
    ]
    return [NoiseFloor(float(m), floor_of(TARGET_MAE, values).limit, float(quota)) for m, values, quota in floors]


def _quota_error(target: Array, n: int) -> float:
    """What n draws by quota score."""
    sampler, weights = QuotaSampler(), {str(number): float(share) for number, share in enumerate(target)}
    drawn = Counter(sampler.draw(weights) for _ in range(n))
    return float(np.abs(np.array([drawn[name] for name in weights]) / n - target).mean())


def _mean_deviation(p: Array, n: Array) -> Array:
    """E |X / n − p| for binomial X, exactly (De Moivre, 1730)."""
    k = np.minimum(np.floor(n * p), n - 1)
    return np.asarray(2 * (k + 1) / n * (1 - p) * stats.binom.pmf(k + 1, n, p))
