"""How sure the numbers are: bootstrap intervals, the noise floor, and a test of being at the floor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from mpf_chains.core.distributions import Array, Grid, kl
from mpf_chains.core.objective import Mode, Objective, Scores, objectives_for
from mpf_chains.core.solver import solve
from mpf_chains.errors import InvalidInput


@dataclass(frozen=True)
class Bootstrap:
    """Intervals of fitted weights.

    Attributes:
        low: (K,) lower ends.
        high: (K,) upper ends.
        level: Their nominal coverage.
        draws: (N, K) refitted weights.
        gap: Largest certified gap among the refits.
    """

    low: Array
    high: Array
    level: float
    draws: Array
    gap: float


def bootstrap_weights(
    scores: object,
    target: object,
    bounds: Sequence[float] | Sequence[Sequence[float]] = (0.0, 1.0),
    *,
    objective: Objective | Sequence[Objective] = Objective(),
    mode: Mode = "sampled",
    bins: int = 20,
    smoothing: float = 0.5,
    resamples: int = 200,
    level: float = 0.9,
    seed: int = 0,
    groups: ArrayLike | None = None,
) -> Bootstrap:
    """Percentile intervals of the fitted weights, resampling questions (Efron & Tibshirani, 1993, ch. 13).

    All refits are solved together as one batch of convex programs.

    Args:
        scores: As in `fit_weights`.
        target: As in `fit_weights`.
        bounds: As in `fit_weights`.
        objective: As in `fit_weights`, β = 0.
        mode: As in `fit_weights`.
        bins: As in `fit_weights`.
        smoothing: As in `fit_weights`.
        resamples: Number of refits N, ≥ 20. Default 200.
        level: Nominal coverage in (0, 1). Default 0.9.
        seed: Seeds the resampling. Default 0.
        groups: (Q,) labels of questions to resample together (several draws of one question). Default: each alone.

    Returns:
        The intervals and the refits.

    Raises:
        InvalidInput: On bad shapes, or arguments outside what is allowed.
    """
    if resamples < 20 or not 0 < level < 1:
        raise InvalidInput(f"resamples must be ≥ 20 and level within (0, 1), not {resamples} and {level}.")
    data = Scores(scores, target, bounds, bins, smoothing)
    objectives = objectives_for(objective, data.features)
    if any(o.beta for o in objectives):
        raise InvalidInput("beta > 0 is not convex: intervals exist for beta = 0 only.")
    counts = _multiplicities(data, resamples, seed, groups)
    solution = solve(data.program(objectives, mode, counts), tolerance=1e-7, max_iterations=60)
    draws = np.empty_like(solution.weights)
    draws[:, data.perspective_order] = np.where(
        solution.weights < 1e-7, 0.0, solution.weights
    )  # interior point's zeros
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    return Bootstrap(low, high, level, draws, float(solution.gap.max()))


def bootstrap_many(
    problems: Sequence[tuple[object, object]], *, workers: int = 2, **options: object
) -> Iterator[Bootstrap]:
    """`bootstrap_weights` for many entities, in threads, in order.

    Args:
        problems: (scores, target) of each entity.
        workers: Threads. Default 2.
        options: As for `bootstrap_weights`.
    """
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(lambda pair: bootstrap_weights(*pair, **options), problems)  # type: ignore[arg-type]


def _multiplicities(data: Scores, resamples: int, seed: int, groups: ArrayLike | None) -> Array:
    """(N, Q) how often each question (canonical order) is in each resample; rows sum to Q."""
    questions = data.target.shape[1]
    rng = np.random.default_rng(seed)
    if groups is None:
        return rng.multinomial(questions, np.full(questions, 1 / questions), size=resamples).astype(np.float64)
    labels = np.asarray(groups)[data.question_order]
    names, member = np.unique(labels, return_inverse=True)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    counts = drawn[:, member].astype(np.float64)
    return np.asarray(counts * questions / counts.sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class Floor:
    """What the true distribution itself would score against the target, for want of more data.

    Attributes:
        mean: Mean KL (nats) between two samples of one distribution.
        high: Its 95 % point: below it a KL is not distinguishable from perfect.
    """

    mean: float
    high: float


def noise_floor(
    target: ArrayLike, grid: Grid = Grid(), *, size: int | None = None, seed: int = 0, runs: int = 400
) -> Floor:
    """KL that remains when the generated distribution *is* the target's, at this sample size and binning.

    Both samples are drawn from the target's empirical distribution; with Jeffreys smoothing two samples of one
    Beta(5, 3) at n = 40 and 20 bins give about 0.2 nats.

    Args:
        target: (n,) target scores.
        grid: Bins and range.
        size: Number of generated answers compared with the n targets. Default n.
        seed: Seeds the simulation. Default 0.
        runs: Simulated pairs. Default 400.
    """
    share = grid.one_hot(target).mean(axis=0)
    count = np.asarray(target).shape[0]
    rng = np.random.default_rng(seed)
    first = grid.smooth(rng.multinomial(count, share, size=runs).astype(np.float64))
    second = grid.smooth(rng.multinomial(size or count, share, size=runs).astype(np.float64))
    values = kl(first, second)
    return Floor(float(values.mean()), float(np.quantile(values, 0.95)))


def alignment_test(
    target: ArrayLike, generated: ArrayLike, grid: Grid = Grid(), *, seed: int = 0, runs: int = 999
) -> float:
    """p-value of "generated and target come from one distribution": a permutation test on KL(target ‖ generated).

    "Aligned" in reports means p > 0.05: not distinguishable from the floor on these questions.

    Args:
        target: (n,) target scores.
        generated: (m,) scores of generated answers.
        grid: Bins and range.
        seed: Seeds the permutations. Default 0.
        runs: Permutations. Default 999.

    Returns:
        A p-value in (0, 1].
    """
    x, y = grid.one_hot(target), grid.one_hot(generated)
    pooled, n = np.concatenate([x, y]), len(x)
    observed = kl(grid.smooth(x.sum(0)), grid.smooth(y.sum(0)))
    rng = np.random.default_rng(seed)
    order = np.argsort(rng.random((runs, len(pooled))), axis=1)
    first = (order < n).astype(np.float64) @ pooled
    values = kl(grid.smooth(first), grid.smooth(pooled.sum(0) - first))
    return float((1 + (values >= observed - 1e-12).sum()) / (runs + 1))


def bootstrap_statistics(
    target: ArrayLike,
    generated: ArrayLike,
    grid: Grid = Grid(),
    *,
    level: float = 0.9,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[float, float, float]]:
    """KL and calibration error of generated answers, with intervals, resampling questions.

    Args:
        target: (Q,) target scores.
        generated: (Q,) scores of the answers to the same questions.
        grid: Bins and range.
        level: Nominal coverage. Default 0.9.
        resamples: Default 1000.
        seed: Seeds the resampling. Default 0.

    Returns:
        (value, low, high) under each of "kl", "calibration" and "mean": KL in nats, the mean
        |generated − target| per question in units of the range, and the mean generated score. The intervals of KL are
        percentile intervals moved back by the bootstrap's bias: resampling adds to a KL what sampling had added before.
    """
    b, s = np.asarray(target, dtype=np.float64), np.asarray(generated, dtype=np.float64)
    if b.shape != s.shape or b.ndim != 1:
        raise InvalidInput(f"target {b.shape} and generated {s.shape} must be two vectors over the same questions.")
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(b.size, np.full(b.size, 1 / b.size), size=resamples).astype(np.float64)
    x, y = grid.one_hot(b), grid.one_hot(s)
    error = np.abs(s - b) / grid.width
    tails = [(1 - level) / 2, (1 + level) / 2]

    def interval(values: Array) -> tuple[float, float]:
        low, high = np.quantile(values, tails)
        return float(low), float(high)

    value = float(kl(grid.smooth(x.sum(0)), grid.smooth(y.sum(0))))
    resampled = kl(grid.smooth(counts @ x), grid.smooth(counts @ y))
    low, high = interval(resampled - resampled.mean() + value)
    return {
        "kl": (value, max(0.0, low), high),
        "calibration": (float(error.mean()), *interval(counts @ error / b.size)),
        "mean": (float(s.mean()), *interval(counts @ s / b.size)),
    }
