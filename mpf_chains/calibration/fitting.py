"""Fitting every entity and the pool, with intervals, noise floors and diagnoses."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpf_chains.benchmarks import Row
from mpf_chains.core import (
    Fit,
    Grid,
    Mode,
    Objective,
    bootstrap_weights,
    fit_weights,
    missing_perspective,
    noise_floor,
    pareto_front,
)
from mpf_chains.core.fit import Solver
from mpf_chains.errors import MPFWarning

Problem = tuple[NDArray[np.float64], NDArray[np.float64], list[str]]
"""Scores (F, K, Q), targets (F, Q) and a label per column: columns with one label repeat one question."""
POOLED = "(pooled)"


def question_of(row: Row) -> str:
    """The question that a row asks, whichever entity it is about: rows that share it share their target's noise."""
    return str(row.metadata.get("question_id", row.id))


@dataclass
class Fitted:
    """What was fitted: the fields of a `Calibration` that come from fitting."""

    weights: dict[str, dict[str, float]] = field(default_factory=dict)
    pooled: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    pooled_intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    fits: dict[str, dict[str, Any]] = field(default_factory=dict)
    diagnostics: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Fitter:
    """How weights are fitted; see `MPFCalibrator` for the arguments."""

    grids: tuple[Grid, ...]
    objective: Objective | Sequence[Objective]
    mode: Mode
    solver: Solver
    max_support: int | None
    level: float
    resamples: int
    seed: int
    strict: bool

    def settings(self) -> dict[str, Any]:
        """Everything that decides the weights, as JSON."""
        objectives = [self.objective] if isinstance(self.objective, Objective) else list(self.objective)
        return {
            "mode": self.mode,
            "objectives": [asdict(objective) for objective in objectives],
            "solver": self.solver,
            "max_support": self.max_support,
            "bins": self.grids[0].bins,
            "smoothing": self.grids[0].smoothing,
            "resamples": self.resamples,
            "seed": self.seed,
        }

    def check(self) -> None:
        """Refuse now, on a problem of one question, what fitting would refuse once the answers are paid for."""
        middle = np.array([(grid.low + grid.high) / 2 for grid in self.grids])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MPFWarning)
            self._one("", (middle[:, None, None], middle[:, None], [""]), [""])

    def fit(self, problems: Mapping[str, Problem], names: Sequence[str]) -> Fitted:
        """Fit each entity and all together.

        Args:
            problems: Entity → its problem.
            names: The perspectives, in the order of the scores.
        """
        fitted = Fitted()
        together: Problem = (
            np.concatenate([p[0] for p in problems.values()], axis=2),
            np.concatenate([p[1] for p in problems.values()], axis=1),
            [label for p in problems.values() for label in p[2]],
        )
        for entity, problem in [*problems.items(), (POOLED, together)]:
            fit, spans, record, diagnosis = self._one(entity, problem, names)
            row = dict(zip(names, fit.weights.tolist(), strict=True))
            if problem is together:
                fitted.pooled, fitted.pooled_intervals = row, spans
                fitted.diagnostics["pooled_fit"] = record
            else:
                fitted.weights[entity], fitted.intervals[entity], fitted.fits[entity] = row, spans, record
            fitted.diagnostics.setdefault("by_entity", {})[entity] = diagnosis
        return fitted

    def _options(self) -> dict[str, Any]:
        return {
            "bounds": [(grid.low, grid.high) for grid in self.grids],
            "objective": self.objective,
            "mode": self.mode,
            "bins": self.grids[0].bins,
            "smoothing": self.grids[0].smoothing,
        }

    def _one(
        self, entity: str, problem: Problem, names: Sequence[str]
    ) -> tuple[Fit, dict[str, tuple[float, float]], dict[str, Any], dict[str, Any]]:
        scores, target, labels = problem
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", MPFWarning)
            fit = fit_weights(
                scores, target, **self._options(), solver=self.solver, max_support=self.max_support, seed=self.seed,
                strict=self.strict, groups=labels,
            )  # fmt: skip
        notes = [f"{entity}: {warning.message}" for warning in caught]
        for warning, note in zip(caught, notes, strict=True):
            warnings.warn(note, warning.category, stacklevel=2)
        spans = {}
        if self.solver == "convex" and self.max_support is None:
            boot = bootstrap_weights(
                scores,
                target,
                **self._options(),
                resamples=self.resamples,
                level=self.level,
                seed=self.seed,
                groups=labels,
            )
            low, high = boot.low.round(6), boot.high.round(6)  # refits leave 1e-8 where the fit has exactly 0
            spans = {name: (float(low[k]), float(high[k])) for k, name in enumerate(names)}
        floors = [
            noise_floor(t, grid, groups=labels, seed=self.seed) for t, grid in zip(target, self.grids, strict=True)
        ]
        record = {
            "objective": fit.objective,
            "gap": None if np.isnan(fit.gap) else fit.gap,
            "kl": _listed(fit.kl),
            "calibration": _listed(fit.calibration),
            "status": fit.status,
            "identifiable": fit.identifiable,
            "uncovered": fit.uncovered,
            "questions": len(set(labels)),
            "floor": [asdict(floor) for floor in floors],
            "warnings": notes,
        }
        return fit, spans, record, self._diagnosis(problem, fit)

    def _diagnosis(self, problem: Problem, fit: Fit) -> dict[str, Any]:
        scores, target, labels = problem
        diagnosis: dict[str, Any] = {
            "means": scores.mean(axis=2).tolist(),
            "target_means": target.mean(axis=1).tolist(),
        }
        missing = [missing_perspective(scores[f], target[f], fit.weights, grid) for f, grid in enumerate(self.grids)]
        diagnosis["missing"] = [{"score_range": list(m.score_range), "ratio": m.ratio} for m in missing]
        if self.solver == "convex" and self.max_support is None:
            front = pareto_front(scores, target, **self._options(), groups=labels)
            diagnosis["pareto"] = [
                {"kl_share": share, "kl": _listed(f.kl), "calibration": _listed(f.calibration)} for share, f in front
            ]
        return diagnosis


def _listed(value: float | tuple[float, ...]) -> list[float]:
    return [value] if isinstance(value, float) else list(value)
