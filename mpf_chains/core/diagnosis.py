"""What a fit cannot reach: the trade-off between its terms, and the perspective that is missing."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from mpf_chains.core.distributions import Array, Grid
from mpf_chains.core.fit import Fit, fit_weights
from mpf_chains.core.objective import Objective
from mpf_chains.errors import MPFWarning


def pareto_front(
    scores: object, target: object, *, shares: Sequence[float] = tuple(np.linspace(0, 1, 21)), **options: object
) -> list[tuple[float, Fit]]:
    """The fits from all calibration to all KL: the two conflict, so one λ hides what the others could have had.

    Args:
        scores: As in `fit_weights`.
        target: As in `fit_weights`.
        shares: λ_kl of each fit, in [0, 1]; λ_cal is the rest. Default 0, 0.05, …, 1.
        options: Passed on to `fit_weights`; an ``objective`` gives α.

    Returns:
        (λ_kl, fit) for each share, in order: along it KL does not rise and calibration does not fall (up to 1e-8).
    """
    base = options.pop("objective", Objective())
    bases = [base] if isinstance(base, Objective) else list(base)  # type: ignore[call-overload]
    front = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MPFWarning)  # the fit itself has warned already
        for share in shares:
            objectives = [replace(o, kl=float(share), calibration=1 - float(share)) for o in bases]
            objective = objectives[0] if isinstance(base, Objective) else objectives
            front.append((float(share), fit_weights(scores, target, objective=objective, **options)))  # type: ignore[arg-type]
    return front


@dataclass(frozen=True)
class MissingPerspective:
    """Where the target has mass that the mixture does not reach.

    Attributes:
        score_range: (low, high) of the bin with the largest ratio of target to mixture.
        ratio: That ratio p/m: a perspective answering only there would lower KL at this rate (per weight) plus one.
        ratios: (bins,) the ratio in every bin.
    """

    score_range: tuple[float, float]
    ratio: float
    ratios: Array

    def gain(self, density: ArrayLike) -> float:
        """Rate at which KL falls per weight given to a new perspective: Σ_i (p_i / m_i) q_i − 1; it helps iff positive.

        Args:
            density: (bins,) bin probabilities q of the new perspective, from `Grid.density`.
        """
        return float(self.ratios @ np.asarray(density, dtype=np.float64) - 1)


def missing_perspective(
    scores: ArrayLike, target: ArrayLike, weights: ArrayLike, grid: Grid = Grid()
) -> MissingPerspective:
    """Which score range lacks a perspective, from the directional derivative of KL at the fitted mixture.

    Args:
        scores: (K, Q) scores of the perspectives.
        target: (Q,) target scores.
        weights: (K,) fitted weights.
        grid: Bins and range.

    Returns:
        The range where a new perspective helps most, and the means to judge candidates.
    """
    mixture = np.asarray(weights, dtype=np.float64) @ grid.density(scores)
    ratios = grid.density(target) / mixture
    worst = int(np.argmax(ratios))
    edges = np.linspace(grid.low, grid.high, grid.bins + 1)
    return MissingPerspective((float(edges[worst]), float(edges[worst + 1])), float(ratios[worst]), ratios)
