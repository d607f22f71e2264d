"""The loss that weights minimise, and the convex program behind it.

For perspectives k, questions q, scores s[k, q], target scores b[q] and bin probabilities p (target) and P[k]
(perspectives), the objective of Multi-Perspective Fusion (arXiv 2507.02595) is

    kl · KL(p ‖ Σ_k w_k P_k) + calibration · mean_q e_q(w) + alpha · ‖w − 1/K‖² + beta · concentration(w)

over the simplex. A *sampled* answer comes from one perspective, so e_q = Σ_k w_k |s_kq − b_q|; an *aggregated* answer
fuses them, so e_q = |Σ_k w_k s_kq − b_q|. Errors are in units of the feature's declared range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpf_chains.core.distributions import Array, Grid
from mpf_chains.errors import InvalidInput

Mode = Literal["sampled", "aggregated"]


@dataclass(frozen=True)
class Objective:
    """Strengths of the four terms, each ≥ 0 and not all of the first two 0.

    Args:
        kl: λ of the KL divergence KL(target ‖ mixture), nats. Default 0.2 (the paper's).
        calibration: λ of the mean per-question error, in units of the declared range. Default 0.8 (the paper's).
        alpha: Pull to uniform, α·‖w − 1/K‖². Default 0.
        beta: Concentration, β·(share of weights above 1e-3 + 1 − max w). Not convex: it selects one perspective
            rather than fusing several, and needs ``solver="slsqp"``. Default 0.

    Raises:
        InvalidInput: If a strength is negative or not finite, or both ``kl`` and ``calibration`` are 0.
    """

    kl: float = 0.2
    calibration: float = 0.8
    alpha: float = 0.0
    beta: float = 0.0

    def __post_init__(self) -> None:
        for name in ("kl", "calibration", "alpha", "beta"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value >= 0):
                raise InvalidInput(f"{name} must be a finite number ≥ 0, not {value}.")
        if self.kl == 0 and self.calibration == 0:
            raise InvalidInput("kl and calibration are both 0: there is nothing to fit the weights to.")


@dataclass(frozen=True)
class Program:
    """N convex programs of one shape over the simplex of K weights, ready to solve.

    Program n minimises

        constant + linear·w − Σ_r mass_r log(density_r·w) + Σ_m weight_m |matrix_m·w − offset_m| + alpha·‖w − centre‖².

    Attributes:
        density: (N, R, K), or (1, R, K) shared: probability of bin r under perspective k; features are stacked as rows.
        mass: (N, R): the target's probability of bin r times that feature's λ_kl.
        linear: (N, K): cost of perspective k (the sampled mode's calibration term).
        matrix: (M, K), shared: perspectives' scores, one row a question (aggregated mode; M = 0 in sampled mode).
        offset: (M,): target scores.
        weight: (N, M): λ_cal times each question's weight.
        constant: (N,): what makes the value the objective itself.
        alpha: Pull to uniform.
        centre: What alpha pulls each weight to: 1/K of the full set of perspectives.
    """

    density: Array
    mass: Array
    linear: Array
    matrix: Array
    offset: Array
    weight: Array
    constant: Array
    alpha: float
    centre: float

    @property
    def size(self) -> int:
        """Number of perspectives K."""
        return int(self.linear.shape[1])

    def value(self, w: Array) -> Array:
        """Objective at weights (N, K): shape (N,)."""
        mixture = (self.density @ w[..., None])[..., 0]
        residual = w @ self.matrix.T - self.offset
        return np.asarray(
            self.constant
            + (self.linear * w).sum(-1)
            - (self.mass * np.log(mixture)).sum(-1)
            + (self.weight * np.abs(residual)).sum(-1)
            + self.alpha * ((w - self.centre) ** 2).sum(-1)
        )

    def smooth_gradient(self, w: Array) -> Array:
        """Gradient (N, K) of all but the absolute values."""
        mixture = (self.density @ w[..., None])[..., 0]
        return np.asarray(
            self.linear
            - ((self.mass / mixture)[..., None, :] @ self.density)[..., 0, :]
            + 2 * self.alpha * (w - self.centre)
        )

    def gap(self, w: Array, y: Array) -> tuple[Array, Array]:
        """Certified upper bound (N,) on the distance of weights (N, K) to the optimum, and the gradient behind it.

        Args:
            w: Weights.
            y: (N, M), any numbers within ±weight: the tighter, the better they are as a dual of the residuals.
        """
        residual = w @ self.matrix.T - self.offset
        gradient = self.smooth_gradient(w) + y @ self.matrix
        slack = (self.weight * np.abs(residual) - y * residual).sum(-1)
        return np.maximum((gradient * w).sum(-1) - gradient.min(-1) + slack, 0.0), gradient

    def lanes(self, keep: NDArray[np.intp]) -> Program:
        """The programs with these numbers."""
        return replace(
            self,
            density=self.density if self.density.shape[0] == 1 else self.density[keep],
            mass=self.mass[keep],
            linear=self.linear[keep],
            weight=self.weight[keep],
            constant=self.constant[keep],
        )

    def columns(self, keep: NDArray[np.intp]) -> Program:
        """The same programs with all other weights fixed at 0."""
        return replace(
            self,
            density=self.density[:, :, keep],
            linear=self.linear[:, keep],
            matrix=self.matrix[:, keep],
            constant=self.constant + self.alpha * (self.size - len(keep)) * self.centre**2,
        )


class Scores:
    """Validated scores of perspectives and target for one entity, from which programs are made.

    Args:
        scores: (K, Q), or (F, K, Q) for F features: score of perspective k on question q.
        target: (Q,) or (F, Q).
        bounds: Declared range, or one per feature. Default (0, 1).
        bins: Bins per feature. Default 20.
        smoothing: Pseudo-count per bin. Default 0.5.
        groups: (Q,) labels; columns with one label are repetitions of one question (several draws, or one question
            about several entities with one target) and count as one together. Default: each column is a question.

    Raises:
        InvalidInput: On shapes that do not match, no perspective, no question, or a score that is not finite or is
            outside its range.
    """

    def __init__(
        self,
        scores: object,
        target: object,
        bounds: Sequence[float] | Sequence[Sequence[float]] = (0.0, 1.0),
        bins: int = 20,
        smoothing: float = 0.5,
        groups: ArrayLike | None = None,
    ) -> None:
        s, b = np.asarray(scores, dtype=np.float64), np.asarray(target, dtype=np.float64)
        s, b = (s[None] if s.ndim == 2 else s), (b[None] if b.ndim == 1 else b)
        if s.ndim != 3 or b.ndim != 2 or s.shape[0] != b.shape[0] or s.shape[2] != b.shape[1]:
            raise InvalidInput(
                f"scores {s.shape} and target {b.shape} do not fit together (features first): they must be (K, Q) and "
                "(Q,), or (F, K, Q) and (F, Q)."
            )
        if 0 in s.shape:
            raise InvalidInput(f"scores have shape {s.shape}: at least one perspective and one question are needed.")
        ranges = np.broadcast_to(np.asarray(bounds, dtype=np.float64), (s.shape[0], 2))
        self.grids = [Grid(float(low), float(high), bins, smoothing) for low, high in ranges]
        self.perspective_order, self.question_order = _canonical_order(s, b)
        self.scores = s[:, self.perspective_order][:, :, self.question_order]
        self.target = b[:, self.question_order]
        self.perspective_bins = np.stack([g.one_hot(x) for g, x in zip(self.grids, self.scores, strict=True)])
        self.target_bins = np.stack([g.one_hot(x) for g, x in zip(self.grids, self.target, strict=True)])
        width = np.array([g.width for g in self.grids])
        self.errors = np.abs(self.scores - self.target[:, None]) / width[:, None, None]
        self.width = width
        columns = np.arange(b.shape[1]) if groups is None else np.asarray(groups)
        if columns.shape != (b.shape[1],):
            raise InvalidInput(f"groups have shape {columns.shape}; one label per question, {b.shape[1:]}, is needed.")
        _, self.groups, sizes = np.unique(columns[self.question_order], return_inverse=True, return_counts=True)
        self.questions = len(sizes)
        self.column_weights = 1 / sizes[self.groups]

    @property
    def features(self) -> int:
        """Number of features F."""
        return int(self.scores.shape[0])

    def program(
        self, objectives: Sequence[Objective], mode: Mode = "sampled", question_weights: Array | None = None
    ) -> Program:
        """The convex programs for these objectives (β is left out).

        Args:
            objectives: One per feature; the total objective is their sum.
            mode: "sampled" or "aggregated".
            question_weights: (N, G), how often each question (label of `groups`, sorted) counts: bootstrap
                multiplicities, each row summing to G. Default: once each, N = 1.
        """
        questions = self.questions
        repeats = np.ones((1, questions)) if question_weights is None else question_weights
        weights = repeats[:, self.groups] * self.column_weights
        density, mass, constant = self._histograms(objectives, weights)
        calibration = np.array([objective.calibration for objective in objectives])
        lanes, size = weights.shape[0], self.scores.shape[1]
        linear, matrix = np.zeros((lanes, size)), np.zeros((0, size))
        offset, weight = np.zeros(0), np.zeros((lanes, 0))
        if mode == "sampled":
            linear = weights @ np.tensordot(calibration, self.errors, 1).T / questions
        elif calibration.any():
            matrix = np.concatenate(list(self.scores.transpose(0, 2, 1) / self.width[:, None, None]))
            offset = np.concatenate(list(self.target / self.width[:, None]))
            counts = np.maximum(weights, 1e-9)  # a question resampled zero times keeps its dual strictly inside
            weight = (calibration[None, :, None] * counts[:, None, :] / questions).reshape(lanes, -1)
            weight = np.maximum(weight, 1e-12)
        alpha = float(sum(objective.alpha for objective in objectives))
        return Program(density, mass, linear, matrix, offset, weight, constant, alpha, 1 / size)

    def _histograms(self, objectives: Sequence[Objective], weights: Array) -> tuple[Array, Array, Array]:
        """Density (N, R, K), mass (N, R) and constant (N,) of the KL terms that are switched on."""
        lanes, size = weights.shape[0], self.scores.shape[1]
        densities, masses, constant = [np.zeros((lanes, 0, size))], [np.zeros((lanes, 0))], np.zeros(lanes)
        for f, objective in enumerate(objectives):
            if objective.kl:
                p = self.grids[f].smooth(weights @ self.target_bins[f])
                counts = np.tensordot(weights, self.perspective_bins[f], (1, 1))
                densities.append(self.grids[f].smooth(counts).transpose(0, 2, 1))
                masses.append(objective.kl * p)
                constant = constant + objective.kl * (p * np.log(p)).sum(-1)
        return np.concatenate(densities, axis=1), np.concatenate(masses, axis=1), constant


def objectives_for(objective: Objective | Sequence[Objective], features: int) -> list[Objective]:
    """One objective per feature: a single one serves them all, its α and β counted once.

    Raises:
        InvalidInput: If a sequence has another length than there are features.
    """
    if isinstance(objective, Objective):
        return [objective] + [replace(objective, alpha=0.0, beta=0.0)] * (features - 1)
    if len(objective) != features:
        raise InvalidInput(f"{len(objective)} objectives were given for {features} features; give one, or one each.")
    return list(objective)


def _canonical_order(scores: Array, target: Array) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Orders of perspectives and questions that depend on the values alone.

    Solving in canonical order makes the weights independent, to the last bit, of the order the caller used. Rows are
    ranked by their sorted values; where that leaves ties, rows and columns are ranked by each other's ranks until
    nothing changes (colour refinement), after which ties are all but certain to be interchangeable.
    """
    errors = np.abs(scores - target[:, None])
    rank = _ranks(np.concatenate([*np.sort(scores, axis=2), *np.sort(errors, axis=2)], axis=1))
    while True:
        order = np.argsort(rank, kind="stable")
        columns = np.concatenate([target, scores[:, order].reshape(-1, scores.shape[2])]).T
        if rank.max() + 1 == len(rank):
            return order, np.lexsort(columns.T[::-1])
        column_rank = _ranks(
            np.concatenate([target.T, *(_sorted_by(rank, f) for f in scores.transpose(0, 2, 1))], axis=1)
        )
        rows = [_sorted_by(column_rank, f) for f in scores]
        refined = _ranks(np.concatenate([rank[:, None].astype(np.float64), *rows], axis=1))
        if refined.max() == rank.max():
            return order, np.lexsort(columns.T[::-1])
        rank = refined


def _ranks(rows: Array) -> NDArray[np.intp]:
    """Rank of each row among the distinct rows, in lexicographic order."""
    return np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)


def _sorted_by(rank: NDArray[np.intp], rows: Array) -> Array:
    """Each row's (rank of the column, value) pairs, sorted: it does not depend on the order of the columns."""
    ranks = np.broadcast_to(rank, rows.shape)
    order = np.lexsort((rows, ranks), axis=1)
    return np.concatenate([np.take_along_axis(ranks, order, 1), np.take_along_axis(rows, order, 1)], axis=1)
