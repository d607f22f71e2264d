"""An active-set Newton method for one smooth `Program`: a few microseconds per step, exact zeros in the weights.

Each step minimises the second-order model over the simplex by block pivoting (Portugal, Júdice & Vicente, 1994) and
searches along the way there: sequential quadratic programming for mixture weights (Kim et al., 2020, mixsqp). It is
tried first because one fit is dominated by call overhead; the interior-point method in `solver` stands behind it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dposv

from mpf_chains.core.distributions import Array
from mpf_chains.core.objective import Program


def solve_smooth(program: Program, tolerance: float, max_iterations: int = 60) -> tuple[Array, float, int]:
    """Minimise one program without absolute values over the simplex.

    Args:
        program: One program (N = 1, M = 0).
        tolerance: Certified gap to reach.
        max_iterations: Most Newton steps.

    Returns:
        Weights (K,), their certified gap (the Frank-Wolfe gap), and the steps taken. The gap may exceed the tolerance.
    """
    density, mass, linear = program.density[0], program.mass[0], program.linear[0]
    alpha, centre, size = program.alpha, program.centre, program.size
    if not (mass.any() or alpha):
        ties = linear <= linear.min()
        return ties / ties.sum(), 0.0, 0
    width = min(size, max(32, 2 * len(mass)))
    w = np.full(size, 1 / size)
    if size > width and not alpha:
        start = np.argpartition(linear - (mass / (density @ w)) @ density, width)[:width]
        w = np.zeros(size)
        w[start] = 1 / width
    mixture = density @ w
    best, best_gap = w, np.inf
    step = 0
    for step in range(max_iterations):  # noqa: B007
        ratio = mass / mixture
        gradient = linear - ratio @ density
        if alpha:
            gradient += 2 * alpha * (w - centre)
        gap = max(float(gradient @ w - gradient.min()), 0.0)
        if gap < best_gap:
            best, best_gap = w, gap
        if gap <= tolerance:
            break
        columns = _columns(w, gradient, width, everything=bool(alpha))
        part = density if columns is None else density[:, columns]
        curvature = part.T @ (part * (ratio / mixture)[:, None])
        curvature.flat[:: len(curvature) + 1] += 2 * alpha + 1e-9 * curvature.trace()
        inward = gradient - gradient @ w
        if columns is None:
            change = _quadratic(curvature, inward, w)
        else:
            change = _quadratic(curvature, inward[columns], w[columns])
            if change is not None:
                full = -w
                full[columns] = change
                change = full
        if change is None:
            break
        moved = _search(program, w, change, mixture, float(inward @ change))
        if moved is None:
            break
        w, mixture = moved
    return best, best_gap, step


def _columns(w: Array, gradient: Array, width: int, *, everything: bool) -> NDArray[np.intp] | None:
    """The columns a step may use: those in use and the most promising others; None for all."""
    if w.size <= width or everything:
        return None
    return np.union1d(np.argpartition(gradient, width // 2)[: width // 2], np.flatnonzero(w))


def _quadratic(hessian: Array, slope: Array, here: Array) -> Array | None:
    """The change d minimising slope·d + d·hessian·d/2 with here + d in the simplex, by block pivoting.

    A feasible change if pivoting does not settle; None if there is none.
    """
    free, change = here > 0, None
    for _ in range(12):
        while True:
            rhs = np.ones((2, np.count_nonzero(free)))
            rhs[1] = -slope[free]
            whole = rhs.shape[1] == here.size
            if whole:
                block, leaving = hessian, 0.0
            else:
                block, gone = hessian[free][:, free], np.where(free, 0.0, here)
                leaving = gone.sum()
                rhs[1] += (hessian @ gone)[free]
            _, solved, info = dposv(block, rhs.T)
            if info != 0:
                return change
            ones, d = solved.T
            level = (leaving - d.sum()) / ones.sum()
            d += level * ones
            if whole:
                positive = here + d > 0
                if positive.all():
                    return np.asarray(d)
            else:
                positive = here[free] + d > 0
                if positive.all():
                    break
            free[free] = positive
        change = -here
        change[free] = d
        reduced = hessian @ change + slope - level
        reduced[free] = 0.0
        entering = np.flatnonzero(reduced < -1e-13)
        if not entering.size:
            break
        if entering.size > 3:
            entering = entering[np.argsort(reduced[entering], kind="stable")[:3]]
        free[entering] = True
    return change


def _search(program: Program, w: Array, change: Array, mixture: Array, slope: float) -> tuple[Array, Array] | None:
    """Backtrack along the change until the objective falls enough; None if it does not fall."""
    if slope >= 0:
        return None
    mass, linear = program.mass[0], program.linear[0]
    drift = program.density[0] @ change
    per_length = float((linear - linear @ w) @ change)
    t = 1.0
    for _ in range(40):
        relative = t * drift / mixture
        if (relative > -1).all():
            rise = t * per_length - float(mass @ np.log1p(relative))
            if program.alpha:
                rise += program.alpha * t * float(change @ (2 * (w - program.centre) + t * change))
            if rise <= 0.1 * t * slope or (t == 1.0 and abs(slope) < 1e-10):
                moved = np.maximum(w + t * change, 0.0)
                moved /= moved.sum()
                return moved, program.density[0] @ moved
        t /= 2
    return None
