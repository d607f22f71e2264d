"""How sure the numbers are: bootstrap intervals, the noise floor, and a test of being at the floor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

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
        groups: As in `fit_weights`; columns with one label are resampled together.

    Returns:
        The intervals and the refits.

    Raises:
        InvalidInput: On bad shapes, or arguments outside what is allowed.
    """
    if resamples < 20 or not 0 < level < 1:
        raise InvalidInput(f"resamples must be ≥ 20 and level within (0, 1), not {resamples} and {level}.")
    data = Scores(scores, target, bounds, bins, smoothing, groups)
    objectives = objectives_for(objective, data.features)
    if any(o.beta for o in objectives):
        raise InvalidInput("beta > 0 is not convex: intervals exist for beta = 0 only.")
    counts = _resampled(data.questions, resamples, seed)
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


def _resampled(questions: int, resamples: int, seed: int) -> Array:
    """(N, G) how often each question is in each resample; rows sum to G."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(questions, np.full(questions, 1 / questions), size=resamples).astype(np.float64)


def _members(groups: ArrayLike | None, columns: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Group number of each column, and the sizes of the groups."""
    labels = np.arange(columns) if groups is None else np.asarray(groups)
    _, member, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    return member, sizes


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
    target: ArrayLike,
    grid: Grid = Grid(),
    *,
    size: int | None = None,
    groups: ArrayLike | None = None,
    seed: int = 0,
    runs: int = 400,
) -> Floor:
    """KL that remains when the generated distribution *is* the target's, at this sample size and binning.

    Both samples are drawn from a distribution that could have given the target: one drawn anew for each pair from the
    Dirichlet posterior with a pseudo-count of 0.2 per bin, which over samples of 1 to 100 from flat, peaked and skewed
    distributions comes closest to the truth. Two samples of one Beta(5, 3) at n = 40 and 20 bins with Jeffreys
    smoothing score about 0.23 nats.

    Args:
        target: (n,) target scores.
        grid: Bins and range.
        size: Number of generated answers. Default n.
        groups: (n,) labels; targets with one label are one datum (the same text about several entities). Default:
            each target is its own.
        seed: Seeds the simulation. Default 0.
        runs: Simulated pairs. Default 400.
    """
    columns = np.asarray(target).shape[0]
    member, sizes = _members(groups, columns)
    share = np.bincount(member, minlength=len(sizes))  # each datum once, whatever its repetitions
    counts = (grid.one_hot(target) / share[member][:, None]).sum(axis=0)
    rng = np.random.default_rng(seed)
    truths = rng.dirichlet(counts + 0.2, size=runs)
    first = rng.multinomial(len(sizes), truths) * (columns / len(sizes))
    second = rng.multinomial(size or columns, truths)
    values = kl(grid.smooth(first.astype(np.float64)), grid.smooth(second.astype(np.float64)))
    return Floor(float(values.mean()), float(np.quantile(values, 0.95)))


def alignment_test(
    target: ArrayLike, generated: ArrayLike, *, groups: ArrayLike | None = None, seed: int = 0, runs: int = 1999
) -> float:
    """p-value of "generated and target come from one distribution": a randomisation test on the energy distance.

    Under that hypothesis target and answer of a question may change places, so they are swapped at random, question by
    question (all rows of one question together). The energy distance needs no bins and sees a shift that the KL of
    sparse histograms loses in its noise. "Aligned" in reports means p > 0.05: not distinguishable from the target on
    these questions.

    Args:
        target: (n,) target scores.
        generated: (n,) scores of the answers to the same questions.
        groups: (n,) labels of questions; rows with one label are swapped together. Default: each row alone.
        seed: Seeds the swaps. Default 0.
        runs: Random swaps. Default 1999.

    Returns:
        A p-value in (0, 1].

    Raises:
        InvalidInput: If the two are not of one length.
    """
    x, y = np.asarray(target, dtype=np.float64), np.asarray(generated, dtype=np.float64)
    _check_paired(x, y)
    member, sizes = _members(groups, len(x))
    points = np.unique(np.concatenate([x, y]))
    per_row = (x[:, None] <= points[:-1]).astype(np.float64) - (y[:, None] <= points[:-1])
    per_question = np.zeros((len(sizes), points.size - 1))
    np.add.at(per_question, member, per_row)  # what each question adds to F − G on the intervals between the points
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (runs, len(sizes)))
    signs = np.concatenate([np.ones((1, len(sizes))), signs])
    distances = (signs @ per_question) ** 2 @ np.diff(points)
    return float((distances >= distances[0] * (1 - 1e-9)).mean())


def _check_paired(x: Array, y: Array) -> None:
    if x.shape != y.shape or x.ndim != 1:
        raise InvalidInput(f"target {x.shape} and generated {y.shape} must be two vectors over the same questions.")


def bootstrap_statistics(
    target: ArrayLike,
    generated: ArrayLike,
    grid: Grid = Grid(),
    *,
    groups: ArrayLike | None = None,
    level: float = 0.9,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[float, float, float]]:
    """KL and calibration error of generated answers, with intervals, resampling questions.

    Args:
        target: (Q,) target scores.
        generated: (Q,) scores of the answers to the same questions.
        grid: Bins and range.
        groups: (Q,) labels; rows with one label are resampled together. Default: each row alone.
        level: Nominal coverage. Default 0.9.
        resamples: Default 1000.
        seed: Seeds the resampling. Default 0.

    Returns:
        (value, low, high) under each of "kl", "calibration" and "mean": KL in nats, the mean
        |generated − target| per question in units of the range, and the mean generated score. The intervals of KL are
        percentile intervals moved back by the bootstrap's bias: resampling adds to a KL what sampling had added before.
    """
    b, s = np.asarray(target, dtype=np.float64), np.asarray(generated, dtype=np.float64)
    _check_paired(b, s)
    x, y = grid.one_hot(b), grid.one_hot(s)
    member, sizes = _members(groups, b.size)
    counts = _resampled(len(sizes), resamples, seed)[:, member]
    rows = counts.sum(axis=1)
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
        "calibration": (float(error.mean()), *interval(counts @ error / rows)),
        "mean": (float(s.mean()), *interval(counts @ s / rows)),
    }
