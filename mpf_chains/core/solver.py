"""A batched interior-point method for `Program`, with a certificate of optimality.

Primal-dual path following: the absolute values are split into two non-negative parts, every Newton step is reduced to
the K weights, and N programs of one shape advance together (finished ones drop out). The certificate is the duality
gap: for any y with |y| ≤ weight, convexity gives

    f(w) − f* ≤ Σ weight|r| − y·r + g·w − min_k g_k,     r = matrix·w − offset,   g = ∇smooth(w) + matrixᵀ y,

which is the Frank-Wolfe gap where there are no absolute values. It is computed from w and y alone and so holds
whatever path led there. The gap can be driven to the rounding error, deterministically: no seed, no restarts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpf_chains.core.distributions import Array
from mpf_chains.core.objective import Program

_CAUTIOUS = 25  # iterations; nearly all programs are solved in fewer


@dataclass(frozen=True)
class Solution:
    """Weights (N, K), duals of the residuals (N, M), objective values (N,), certified gaps (N,), iterations used."""

    weights: Array
    dual: Array
    objective: Array
    gap: Array
    iterations: int


def solve(program: Program, tolerance: float = 1e-10, max_iterations: int = 100) -> Solution:
    """Minimise N convex programs over the simplex.

    Args:
        program: The programs.
        tolerance: Stop a program once its certified gap is at most this. Default 1e-10.
        max_iterations: Stop all after this many Newton steps. Default 100.

    Returns:
        For each program the weights with the smallest certified gap seen, non-negative and summing to 1.
    """
    lanes, size = program.linear.shape
    if size == 1:
        ones = np.ones((lanes, 1))
        return Solution(ones, np.zeros_like(program.weight), program.value(ones), np.zeros(lanes), 0)
    best, gaps = np.full((lanes, size), 1 / size), np.full(lanes, np.inf)
    dual = np.zeros_like(program.weight)
    alive = np.arange(lanes)
    state = _State.start(program)
    iteration = 0
    for iteration in range(max_iterations):
        gap = state.gap()
        better = gap < gaps[alive]
        best[alive[better]], gaps[alive[better]], dual[alive[better]] = state.w[better], gap[better], state.y[better]
        open_ = ~((gap <= tolerance) | state.stuck)
        if not open_.any():
            break
        if not open_.all():
            keep = np.flatnonzero(open_)
            alive, state = alive[keep], state.lanes(keep)
        with np.errstate(all="ignore"):  # a step that is not finite is not taken: the program is stuck
            state.step(cautious=iteration >= _CAUTIOUS)
    best = best / best.sum(axis=1, keepdims=True)
    return Solution(best, dual, program.value(best), gaps, iteration)


def solve_by_columns(program: Program, tolerance: float = 1e-10, batch: int = 64) -> Solution:
    """Minimise one program over the simplex of many weights by column generation, with the same certificate.

    A rough solution picks the columns (perspectives) that matter; they are solved to the tolerance on their own; the
    gap over *all* columns then certifies the result or names the columns to add.

    Args:
        program: One program (N = 1).
        tolerance: Certified gap to reach. Default 1e-10.
        batch: Most columns added per round. Default 64.
    """
    rough = solve(program, tolerance=1e-6, max_iterations=40)
    keep = np.sort(np.argsort(-rough.weights[0], kind="stable")[: max(batch, int((rough.weights[0] > 1e-5).sum()))])
    best = rough
    for _ in range(50):
        part = solve(program.columns(keep), tolerance)
        weights = np.zeros_like(rough.weights)
        weights[:, keep] = part.weights
        gap, gradient = program.gap(weights, part.dual)
        if gap[0] < best.gap[0]:
            best = Solution(weights, part.dual, part.objective, gap, part.iterations)
        missing = np.flatnonzero(gradient[0] < gradient[0, keep].min() - tolerance / 10)
        if gap[0] <= tolerance or not missing.size:
            break
        worst = missing[np.argsort(gradient[0, missing], kind="stable")[:batch]]
        keep = np.union1d(keep, worst)
    return best


def _solved(matrix: Array, rhs: Array) -> Array:
    """Solutions (N, K) of N systems; those that are singular to rounding are made regular."""
    try:
        return np.asarray(np.linalg.solve(matrix, rhs[..., None])[..., 0])
    except np.linalg.LinAlgError:
        ridge = 1e-12 * np.abs(matrix).max(axis=(-1, -2), keepdims=True) + 1e-300
        return np.asarray(np.linalg.solve(matrix + ridge * np.eye(matrix.shape[-1]), rhs[..., None])[..., 0])


class _State:
    """Iterates of the programs still open.

    w, s: (N, K) weights and their reduced costs; plus, minus: (N, M) the two parts of the residual; up, down: (N, M)
    their reduced costs weight ∓ y (kept apart: the difference would cancel); nu: (N, 1) the dual of Σw = 1.
    """

    def __init__(
        self, program: Program, w: Array, s: Array, plus: Array, minus: Array, up: Array, down: Array, nu: Array
    ) -> None:
        self.program, self.w, self.s, self.nu = program, w, s, nu
        self.plus, self.minus, self.up, self.down = plus, minus, up, down
        self.stuck = np.zeros(len(w), dtype=bool)
        self._products: Array | None = None
        self._refresh()

    @classmethod
    def start(cls, program: Program) -> _State:
        lanes, size = program.linear.shape
        w = np.full((lanes, size), 1 / size)
        gradient = program.smooth_gradient(w)
        low = gradient.min(axis=1, keepdims=True)
        spread = np.maximum(gradient.mean(axis=1, keepdims=True) - low, 1e-3)
        residual = w @ program.matrix.T - program.offset
        margin = np.abs(residual).mean(axis=1, keepdims=True) + 1e-3 if residual.shape[1] else 0.0
        plus, minus = np.maximum(residual, 0) + margin, np.maximum(-residual, 0) + margin
        nu = low - spread
        return cls(program, w, gradient - nu, plus, minus, program.weight, program.weight, nu)

    def lanes(self, keep: NDArray[np.intp]) -> _State:
        parts = (x[keep] for x in (self.w, self.s, self.plus, self.minus, self.up, self.down, self.nu))
        state = _State(self.program.lanes(keep), *parts)
        state._products = self._products
        return state

    def _refresh(self) -> None:
        """What the gap and the step both need, at the current point."""
        program = self.program
        self.mixture = (program.density @ self.w[..., None])[..., 0]
        self.ratio = program.mass / self.mixture
        self.gradient = program.linear - (self.ratio[..., None, :] @ program.density)[..., 0, :]
        if program.alpha:
            self.gradient = self.gradient + 2 * program.alpha * (self.w - program.centre)
        self.residual = self.w @ program.matrix.T - program.offset
        self.y = (self.down - self.up) / 2
        if self.residual.shape[1]:
            self.gradient = self.gradient + self.y @ program.matrix

    def gap(self) -> Array:
        """Certified distance to the optimum (N,), never negative."""
        gap = (self.gradient * self.w).sum(-1) - self.gradient.min(axis=-1)
        if self.residual.shape[1]:
            gap = gap + (self.program.weight * np.abs(self.residual) - self.y * self.residual).sum(-1)
        return np.asarray(np.maximum(gap, 0.0))

    def _newton(self, elastic: Array) -> Callable[[Array], tuple[Array, Array]]:
        """Factorise the reduced Newton system once; the result maps a right-hand side to (dw, dnu).

        The system is diagonal plus rank R + M, so with more weights than rows it is solved in the rows (Woodbury).
        """
        program, size = self.program, self.w.shape[1]
        w, diagonal = self.w, self.w * self.s + 2 * program.alpha * self.w**2  # scaled by w on both sides
        curvature = self.ratio / self.mixture
        rows = curvature.shape[1] + elastic.shape[1]
        if size <= 2 * rows or (elastic.shape[1] and size <= 300):  # with large elastic terms only this is accurate
            hessian = (program.density * curvature[..., None]).swapaxes(-1, -2) @ program.density
            if elastic.shape[1]:
                hessian = hessian + self._absolute_hessian(elastic)
            hessian = hessian * w[:, :, None] * w[:, None, :]
            places = np.arange(size)
            hessian[:, places, places] = (
                hessian[:, places, places] * (1 + 1e-14) + diagonal
            )  # regular for twins as well

            def apply(x: Array) -> Array:
                return w * _solved(hessian, w * x)
        else:
            scaled = program.density * np.sqrt(curvature)[..., None]
            if elastic.shape[1]:
                scaled = np.concatenate([scaled, program.matrix * np.sqrt(elastic)[..., None]], axis=1)
            scaled = scaled * w[:, None, :]
            thin = scaled / diagonal[:, None, :]
            inner = np.eye(rows) + thin @ scaled.swapaxes(-1, -2)

            def apply(x: Array) -> Array:
                x = w * x
                correction = thin.swapaxes(-1, -2) @ _solved(inner, (thin @ x[..., None])[..., 0])[..., None]
                return np.asarray(w * (x / diagonal - correction[..., 0]))

        towards_sum = apply(np.ones_like(self.w))
        total, missing = towards_sum.sum(-1, keepdims=True), 1 - self.w.sum(-1, keepdims=True)

        def solve_for(rhs: Array) -> tuple[Array, Array]:
            dw = apply(rhs)
            dnu = (missing - dw.sum(-1, keepdims=True)) / total
            return dw + dnu * towards_sum, dnu

        return solve_for

    def _absolute_hessian(self, elastic: Array) -> Array:
        """matrixᵀ diag(elastic) matrix, (N, K, K); for many small programs as one product with row outer products."""
        matrix, (lanes, size) = self.program.matrix, self.w.shape
        if lanes == 1 or size > 32:
            return np.asarray((matrix * elastic[..., None]).swapaxes(-1, -2) @ matrix)
        if self._products is None:
            self._products = (matrix[:, :, None] * matrix[:, None, :]).reshape(len(matrix), -1)
        return np.asarray((elastic @ self._products).reshape(lanes, size, size))

    def step(self, *, cautious: bool = False) -> None:
        """One predictor-corrector Newton step (Mehrotra, 1992); a cautious one goes half way, which breaks cycles."""
        program = self.program
        absolute = bool(self.residual.shape[1])
        up, down = self.up, self.down
        mu = (self.w * self.s).sum(-1, keepdims=True)
        pairs = self.w.shape[1]
        elastic: Array = np.zeros_like(self.plus)
        if absolute:
            mu = mu + (self.plus * up + self.minus * down).sum(-1, keepdims=True)
            pairs += 2 * self.plus.shape[1]
            elastic = 1 / (self.plus / up + self.minus / down)
        mu = mu / pairs
        solve_newton = self._newton(elastic)

        def direction(target: Array, cross: tuple[Array, Array, Array] | None) -> tuple[Array, ...]:
            """Newton direction towards complementarity products equal to ``target``, less second-order terms."""
            tw, tp, tm = target, target, target
            if cross is not None:
                tw, tp, tm = target - cross[0], target - cross[1], target - cross[2]
            rhs = tw / self.w - self.gradient + self.nu
            if absolute:
                pull = tp / up - tm / down - self.plus + self.minus
                rhs = rhs + (pull * elastic) @ program.matrix
            dw, dnu = solve_newton(rhs)
            ds = tw / self.w - self.s - self.s / self.w * dw
            if not absolute:
                return dw, ds, dnu, self.plus, self.minus, self.plus
            dy = (dw @ program.matrix.T - pull) * elastic
            return dw, ds, dnu, (tp + self.plus * dy) / up - self.plus, (tm - self.minus * dy) / down - self.minus, dy

        def longest(dw: Array, ds: Array, dp: Array, dm: Array, dy: Array) -> Array:
            """Largest step in (0, 1] that keeps everything positive, (N, 1)."""
            shrink = np.maximum((-dw / self.w).max(-1), (-ds / self.s).max(-1))
            if absolute:
                for part, change in ((self.plus, dp), (self.minus, dm), (up, -dy), (down, dy)):
                    shrink = np.maximum(shrink, (-change / part).max(-1))
            return np.asarray(1 / np.maximum(shrink, 1.0))[:, None]

        dw, ds, dnu, dp, dm, dy = direction(np.zeros_like(mu), None)
        t = longest(dw, ds, dp, dm, dy)
        after = ((self.w + t * dw) * (self.s + t * ds)).sum(-1, keepdims=True)
        cross = (dw * ds, dy, dy)
        if absolute:
            after = after + ((self.plus + t * dp) * (up - t * dy) + (self.minus + t * dm) * (down + t * dy)).sum(
                -1, keepdims=True
            )
            cross = (dw * ds, -dp * dy, dm * dy)
        centre = np.clip(after / pairs / mu, 0.0, 1.0) ** 3
        dw, ds, dnu, dp, dm, dy = direction(centre * mu, cross)
        t = np.minimum(1.0, (0.5 if cautious else 0.995) * longest(dw, ds, dp, dm, dy))
        moved = np.isfinite(dw).all(-1) & np.isfinite(ds).all(-1) & (t[:, 0] > 1e-10)
        self.stuck |= ~moved
        t = np.where(moved[:, None], t, 0.0)
        dw, ds, dnu = (np.where(moved[:, None], x, 0.0) for x in (dw, ds, dnu))
        self.w, self.s, self.nu = self.w + t * dw, self.s + t * ds, self.nu + t * dnu
        if absolute:
            dp, dm, dy = (np.where(moved[:, None], x, 0.0) for x in (dp, dm, dy))
            self.plus, self.minus = self.plus + t * dp, self.minus + t * dm
            self.up, self.down = self.up - t * dy, self.down + t * dy
        self._refresh()
