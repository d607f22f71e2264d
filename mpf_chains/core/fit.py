"""`fit_weights`: from scores to certified weights."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize

from mpf_chains.core.distributions import Array
from mpf_chains.core.inference import noise_floor
from mpf_chains.core.newton import solve_smooth
from mpf_chains.core.objective import Mode, Objective, Program, Scores, objectives_for
from mpf_chains.core.solver import solve, solve_by_columns
from mpf_chains.errors import ConvergenceWarning, DataWarning, IdentifiabilityWarning, InvalidInput, NotConverged

Solver = Literal["convex", "slsqp"]
TOLERANCE = 1e-10
CERTIFIED = 1e-8
EXACT_SUPPORT = 12
DENSE = 300


@dataclass(frozen=True)
class Fit:
    """Fitted weights and how good they are.

    Attributes:
        weights: (K,) in the order of ``scores``; non-negative, summing to 1.
        objective: Value of the whole objective at the weights.
        gap: Certified upper bound on its distance to the optimum (of the convex terms, under any ``max_support``); NaN
            for ``solver="slsqp"``, which certifies nothing.
        kl: KL(target ‖ mixture) in nats, (F,) for F features else a float.
        calibration: Mean per-question error in units of the declared range, likewise.
        status: "optimal" (gap ≤ 1e-8), "inexact" (above), "best found" (``slsqp``, or a heuristic support).
        identifiable: False where other weights explain the data equally well.
        uncovered: Share of the target that lies in bins no perspective reaches, in [0, 1]; the largest over features.
        iterations: Newton steps, or SLSQP iterations over all starts.
    """

    weights: Array
    objective: float
    gap: float
    kl: float | tuple[float, ...]
    calibration: float | tuple[float, ...]
    status: str
    identifiable: bool
    uncovered: float
    iterations: int


def fit_weights(
    scores: object,
    target: object,
    bounds: Sequence[float] | Sequence[Sequence[float]] = (0.0, 1.0),
    *,
    objective: Objective | Sequence[Objective] = Objective(),
    mode: Mode = "sampled",
    bins: int = 20,
    smoothing: float = 0.5,
    max_support: int | None = None,
    solver: Solver = "convex",
    strict: bool = False,
    seed: int = 0,
    groups: ArrayLike | None = None,
) -> Fit:
    """Fit the weights whose mixture of perspectives reproduces a target (MPF, arXiv 2507.02595).

    Args:
        scores: (K, Q), or (F, K, Q) for F features: score of perspective k on question q.
        target: (Q,) or (F, Q).
        bounds: Declared range (low, high), or one per feature. Default (0, 1).
        objective: Strengths of the terms; one for all features or one each. Default λ_kl 0.2, λ_cal 0.8.
        mode: "sampled" (one perspective answers; default) or "aggregated" (answers are fused).
        bins: Bins per feature, ≥ 2. Default 20.
        smoothing: Pseudo-count per bin, > 0. Default 0.5 (Jeffreys).
        max_support: At most so many weights above 0. Exact up to 12 perspectives, a certified heuristic beyond
            (its ``gap`` is to the optimum without the limit). Default no limit.
        solver: "convex" (certified; the same weights for any order or seed) or "slsqp" (the paper's own: 10 random
            starts, numeric gradient, any β). Default "convex".
        strict: Raise instead of warning when the optimum was not certified. Default False.
        seed: Seeds the starts of "slsqp"; has no other effect. Default 0.
        groups: (Q,) labels; columns with one label are repetitions of one question and count as one together.
            Default: each column is a question of its own.

    Returns:
        The fit.

    Raises:
        InvalidInput: On bad shapes, scores out of range, or β > 0 with the convex solver.
        NotConverged: If ``strict`` and the gap stays above 1e-8.

    Warns:
        ConvergenceWarning: If the gap stays above 1e-8.
        IdentifiabilityWarning: If several weights explain the data equally well.
        DataWarning: If the target lies mostly where no perspective does, or there is one question only.

    Examples:
        >>> fit = fit_weights([[0.1, 0.2, 0.1], [0.9, 0.8, 0.9]], [0.1, 0.8, 0.9], bins=2)
        >>> fit.weights.round(2).tolist(), fit.gap <= 1e-8, fit.status
        ([0.1, 0.9], True, 'optimal')
    """
    data = Scores(scores, target, bounds, bins, smoothing, groups)
    objectives = objectives_for(objective, data.features)
    beta = sum(o.beta for o in objectives)
    if solver not in {"convex", "slsqp"} or mode not in {"sampled", "aggregated"}:
        raise InvalidInput(f"solver {solver!r} or mode {mode!r} is unknown: convex|slsqp and sampled|aggregated.")
    if beta and solver == "convex":
        raise InvalidInput(
            f"beta = {beta} makes the problem non-convex (it selects one perspective instead of fusing several).",
            hint="Use beta=0, or max_support=m for few perspectives, or solver='slsqp' to reproduce the paper.",
        )
    program = data.program(objectives, mode)
    size = program.size
    if max_support is not None and not max_support >= 1:
        raise InvalidInput(f"max_support must be at least 1, not {max_support}.")
    if max_support is not None and solver == "slsqp":
        raise InvalidInput("max_support needs solver='convex': SLSQP has no way to keep to it.")
    if solver == "slsqp":
        w, steps = _slsqp(program, beta, seed)
        gap, status = float("nan"), "best found"
    else:
        w, gap, steps = solve_one(program)
        w = _share_between_twins(data, w) if max_support is None else w
        status = "optimal" if gap <= CERTIFIED else "inexact"
    if max_support is not None and np.count_nonzero(w) > max_support:
        relaxed = float(program.value(w[None])[0])
        w, gap, steps, exact = _limited(program, max_support, w)
        if not exact:
            gap, status = float(program.value(w[None])[0]) - relaxed + gap, "best found"
        else:
            status = "optimal" if gap <= CERTIFIED else "inexact"
    identifiable = _identifiable(program, w)
    uncovered = _uncovered(data)
    _warn(data, gap, status, identifiable, uncovered, strict)
    kls, errors = measure(data, w, mode)
    weights = np.empty(size)
    weights[data.perspective_order] = w
    weights.flags.writeable = False
    value = float(program.value(w[None])[0]) + beta * _concentration(w)
    single = data.features == 1
    return Fit(
        weights=weights,
        objective=value,
        gap=gap,
        kl=kls[0] if single else kls,
        calibration=errors[0] if single else errors,
        status=status,
        identifiable=identifiable,
        uncovered=uncovered,
        iterations=steps,
    )


def solve_one(program: Program) -> tuple[Array, float, int]:
    """Weights (K,), certified gap and steps of one program, by the cheapest solver that certifies."""
    best = (np.full(program.size, 1 / program.size), np.inf, 0)
    if not len(program.matrix):
        best = solve_smooth(program, TOLERANCE)
        if best[1] <= TOLERANCE:
            return best
    solution = (solve if program.size <= DENSE else solve_by_columns)(program, TOLERANCE)
    if solution.gap[0] < best[1]:
        w = np.where(solution.weights[0] < 1e-9, 0.0, solution.weights[0])  # interior points are never exactly 0
        w /= w.sum()
        gap = float(program.gap(w[None], solution.dual)[0][0])
        if gap > max(TOLERANCE * 10, solution.gap[0]):
            w, gap = solution.weights[0], float(solution.gap[0])
        best = (w, gap, solution.iterations)
    return best


def _share_between_twins(data: Scores, w: Array) -> Array:
    """Equal weights for perspectives with the same scores, which are neighbours in canonical order."""
    same = (data.scores[:, 1:] == data.scores[:, :-1]).all(axis=(0, 2))
    group = np.concatenate([[0], np.cumsum(~same)])
    return np.asarray((np.bincount(group, w) / np.bincount(group))[group])


def measure(data: Scores, w: Array, mode: Mode) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """KL (nats) and calibration error (units of the range) of weights (K,) in canonical order, one per feature."""
    kls, errors = [], []
    unit = Objective(kl=1.0, calibration=1.0)
    for f in range(data.features):
        only = [replace(unit, kl=float(f == g), calibration=float(f != g)) for g in range(data.features)]
        density, mass, constant = data._histograms(only, data.column_weights[None])
        kls.append(float(constant[0] - mass[0] @ np.log(density[0] @ w)))
        fused = np.abs(w @ data.scores[f] - data.target[f]) / data.width[f]
        error = w @ data.errors[f] if mode == "sampled" else fused
        errors.append(float(error @ data.column_weights / data.questions))
    return tuple(kls), tuple(errors)


def _concentration(w: Array) -> float:
    """Share of weights above 1e-3, plus 1 − max w: the β term of the paper's public code."""
    return float((w > 1e-3).mean() + 1 - w.max())


def _slsqp(program: Program, beta: float, seed: int, starts: int = 10) -> tuple[Array, int]:
    """The paper's solver: SLSQP with numeric gradients from random starts; the best one found."""
    rng = np.random.default_rng(seed)

    def loss(w: Array) -> float:
        return float(program.value(np.maximum(w, 0)[None])[0]) + beta * _concentration(w)

    best, value, steps = np.full(program.size, 1 / program.size), np.inf, 0
    constraint = {"type": "eq", "fun": lambda w: w.sum() - 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # SLSQP steps outside the bounds by rounding
        for _ in range(starts):
            start = rng.dirichlet(np.ones(program.size))
            bounds = [(0, 1)] * program.size
            result = minimize(
                loss, start, method="SLSQP", bounds=bounds, constraints=[constraint], options={"maxiter": 500}
            )
            w = np.clip(result.x, 0, 1)
            w, steps = w / w.sum(), steps + int(result.nit)
            if loss(w) < value:
                best, value = w, loss(w)
    return best, steps


def _limited(program: Program, limit: int, relaxed: Array) -> tuple[Array, float, int, bool]:
    """Best weights with at most ``limit`` above 0: (weights, gap, steps, whether that is exact)."""
    size = program.size
    if size <= EXACT_SUPPORT:
        candidates = [np.array(c, dtype=np.intp) for c in itertools.combinations(range(size), limit)]
        results = [solve_one(program.columns(c)) for c in candidates]
        values = [program.columns(c).value(r[0][None])[0] for c, r in zip(candidates, results, strict=True)]
        chosen = int(np.argmin(values))
        w = np.zeros(size)
        w[candidates[chosen]] = results[chosen][0]
        return w, max(r[1] for r in results), sum(r[2] for r in results), True
    return *_greedy_support(program, limit, relaxed), False


def _greedy_support(program: Program, limit: int, relaxed: Array) -> tuple[Array, float, int]:
    """Drop the smallest weight and refit until ``limit`` are left, then swap while that helps."""
    keep = np.flatnonzero(relaxed)
    steps = 0
    while len(keep) > limit:
        part, _, n = solve_one(program.columns(keep))
        steps += n
        keep = np.delete(keep, int(np.argmin(part)))

    def cost(columns: NDArray[np.intp]) -> tuple[float, Array, float]:
        sub = program.columns(columns)
        part, gap, _ = solve_one(sub)
        return float(sub.value(part[None])[0]), part, gap

    value, part, gap = cost(keep)
    improved = True
    while improved:
        improved = False
        outside = np.setdiff1d(np.flatnonzero(relaxed), keep)
        for i, new in itertools.product(range(len(keep)), outside):
            trial = np.sort(np.concatenate([np.delete(keep, i), [new]]))
            other = cost(trial)
            if other[0] < value - 1e-12:
                keep, (value, part, gap), improved = trial, other, True
                break
    w = np.zeros(program.size)
    w[keep] = part
    return w, gap, steps


def _identifiable(program: Program, w: Array) -> bool:
    """Whether no other weights reach the same optimum: no direction among those in use leaves every term unchanged."""
    if program.alpha or program.size == 1:
        return True
    gradient = program.smooth_gradient(w[None])[0]
    free = (
        np.flatnonzero((w > 1e-9) | (gradient - gradient.min() < 1e-9))
        if not len(program.matrix)
        else np.flatnonzero(w > 1e-9)
    )
    if not len(program.matrix) and len(free) == 1:
        return True
    rows = [program.density[0][:, free], np.ones((1, len(free))), program.linear[:, free], program.matrix[:, free]]
    stacked = np.concatenate([np.asarray(r) for r in rows])
    return bool(np.linalg.matrix_rank(stacked, tol=1e-9) == len(free))


def _uncovered(data: Scores) -> float:
    """Largest share of a target in bins that no perspective reaches."""
    reached = data.perspective_bins.sum(axis=(1, 2)) > 0
    return float((data.target_bins.mean(axis=1) * ~reached).sum(axis=-1).max())


def _warn(data: Scores, gap: float, status: str, identifiable: bool, uncovered: float, strict: bool) -> None:
    if status == "inexact":
        message = f"The optimum is certified only to {gap:.1e} (wanted {CERTIFIED:.0e})."
        if strict:
            raise NotConverged(message, hint="Look for near-identical perspectives or extreme scores.")
        warnings.warn(message, ConvergenceWarning, stacklevel=3)
    if not identifiable:
        warnings.warn(
            "The weights are not identifiable: some perspectives score alike (or there are too few questions), so "
            "other weights fit equally well. Drop or change one of them, or set alpha > 0.",
            IdentifiabilityWarning,
            stacklevel=3,
        )
    if uncovered > 0.5:
        warnings.warn(
            f"{uncovered:.0%} of the target lies in score bins that no perspective reaches: one is missing there.",
            DataWarning,
            stacklevel=3,
        )
    questions, grid = data.questions, data.grids[0]
    if questions < grid.bins:
        floor = noise_floor(data.target[0], grid, groups=data.groups)
        warnings.warn(
            f"{questions} question(s) for {grid.bins} bins: distances are mostly noise. A perfect fit would still "
            f"score KL ≈ {floor.mean:.2f} (its noise floor).",
            DataWarning,
            stacklevel=3,
        )
