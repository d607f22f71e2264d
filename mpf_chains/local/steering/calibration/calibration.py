"""Rows fitted to a target table, with how well they do on what they were fitted to and on contexts they never saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpf_chains.core.distributions import kl
from mpf_chains.errors import InvalidInput
from mpf_chains.local.steering.calibration.rows import Array, Readings, RowFit, RowProblem, fit_rows
from mpf_chains.targets.table import TargetTable

RIDGES = tuple(float(10 ** (-4 + step / 2)) for step in range(9))
"""From 1e-4 to 1."""


@dataclass(frozen=True)
class Errors:
    """How far shares are from their targets, without any sampling error.

    Args:
        mae: Mean absolute difference, over classes, then prompts, then contexts; of the probabilities that the classes
            have given that the answer begins with the token of one of them.
        kl: Mean KL(target ‖ those probabilities), in nats.
        mass: Mean probability that the answer begins with one of the tokens.
    """

    mae: float
    kl: float
    mass: float


@dataclass(frozen=True)
class RidgePoint:
    """What one ridge leads to.

    Args:
        ridge: Its weight.
        held_out: Errors on contexts that the rows were not fitted to.
        standard_error: Of ``held_out.kl``, over the contexts.
    """

    ridge: float
    held_out: Errors
    standard_error: float


@dataclass(frozen=True, eq=False)
class Calibrated:
    """Rows fitted to targets.

    Args:
        fit: The rows.
        ridge: The ridge used.
        fitted: Errors on the contexts that the rows were fitted to.
        held_out: Errors on contexts left out, each with a ridge chosen without it. None: the ridge was given.
        path: Errors by ridge, for those that were tried.
    """

    fit: RowFit
    ridge: float
    fitted: Errors
    held_out: Errors | None
    path: tuple[RidgePoint, ...]


def calibrate(
    readings: Readings,
    targets: TargetTable,
    *,
    ridge: float | None = None,
    ridges: Sequence[float] = RIDGES,
    folds: int = 10,
    seed: int = 0,
) -> Calibrated:
    """Fit rows to a target table, with a ridge that is chosen by leaving contexts out.

    A small ridge fits the known contexts exactly; a larger one says more about others. With one prompt per context the
    held-out error hardly depends on it, so that a small one serves both; with several it does. To serve both there, add
    inferred targets (`infer_targets`) of many other contexts, and give a small ``ridge``.

    Args:
        readings: Prompts about contexts of the table, several per context if wanted.
        targets: Its classes in the order of the readings' tokens.
        ridge: Weight of the ridge term (see `fit_rows`). None (default): the one of ``ridges`` with the lowest held-out
            KL.
        ridges: What to choose from.
        folds: Parts into which the contexts are divided; at most as many as there are contexts. Default 10.
        seed: Seeds the division. Default 0.

    Raises:
        InvalidInput: If a context has no target, the numbers of classes differ, or there are fewer than 3 contexts to
            choose a ridge with.
        NotConverged: If a fit fails.
    """
    wanted = _wanted(readings, targets)
    if ridge is not None:
        fit = fit_rows(readings, wanted, ridge=ridge)
        return Calibrated(fit, ridge, errors(readings, fit.rows, wanted), None, ())
    names = list(dict.fromkeys(readings.contexts))
    if len(names) < 3 or folds < 2 or not ridges:
        raise InvalidInput(
            f"There are {len(names)} contexts, {folds} folds and {len(ridges)} ridges; choosing a ridge needs at least "
            "3 contexts, 2 folds and 1 ridge.",
            hint="Give `ridge=`.",
        )
    parts = np.random.default_rng(seed).permutation(len(names)) % min(folds, len(names))
    part_of = parts[[names.index(name) for name in readings.contexts]]
    tables = _left_out(readings, wanted, part_of, ridges)
    by_context = np.stack([_by_context(table, readings.contexts) for table in tables])  # (ridges, contexts, figures)
    kls = by_context[..., 1]
    path = tuple(
        RidgePoint(each, Errors(*map(float, table.mean(axis=0))), float(table[:, 1].std(ddof=1) / np.sqrt(len(names))))
        for each, table in zip(ridges, by_context, strict=True)
    )
    chosen_without = [int(kls[:, parts != part].sum(axis=1).argmin()) for part in parts]
    held_out = by_context[chosen_without, np.arange(len(names))].mean(axis=0)
    best = ridges[int(kls.sum(axis=1).argmin())]
    fit = fit_rows(readings, wanted, ridge=best)
    return Calibrated(fit, best, errors(readings, fit.rows, wanted), Errors(*map(float, held_out)), path)


def infer_targets(
    readings: Readings, targets: TargetTable, *, ridge: float | None = None, folds: int = 10, seed: int = 0
) -> tuple[TargetTable, Calibrated]:
    """Targets of the contexts that have none: the shares that rows fitted to the known ones give them.

    Args:
        readings: Of contexts with and without targets; states that say much about a context, such as those of
            `read_contrasts`, or those of several prompts.
        targets: The known ones.
        ridge: As in `calibrate`.
        folds: As in `calibrate`.
        seed: As in `calibrate`.

    Returns:
        A table of the other contexts, each the mean of its prompts; and the fit, whose ``held_out`` says how far off
        such targets are.

    Raises:
        InvalidInput: If all contexts have a target, or none.
    """
    known = [i for i, name in enumerate(readings.contexts) if name in targets]
    others = [i for i, name in enumerate(readings.contexts) if name not in targets]
    if not known or not others:
        raise InvalidInput(
            f"{len(known)} prompts are about contexts with a target and {len(others)} about contexts without; both are "
            "needed to infer targets."
        )
    calibrated = calibrate(readings.take(known), targets, ridge=ridge, folds=folds, seed=seed)
    rest = readings.take(others)
    names = tuple(dict.fromkeys(rest.contexts))
    shares = _by_context(rest.shares(calibrated.fit.rows), rest.contexts)
    return TargetTable(targets.attributes, names, shares), calibrated


def errors(readings: Readings, rows: Array, wanted: Array) -> Errors:
    """Errors of rows on some readings.

    Args:
        readings: Of the prompts.
        rows: Shape (classes, width).
        wanted: Shape (prompts, classes): the targets.
    """
    means = _by_context(_figures(readings, rows, wanted), readings.contexts)
    return Errors(*map(float, means.mean(axis=0)))


def _figures(readings: Readings, rows: Array, wanted: Array) -> Array:
    """MAE, KL and mass of each prompt, shape (prompts, 3)."""
    shares = readings.shares(rows)
    mass = np.exp(readings.log_probabilities(rows)).sum(axis=1)
    return np.column_stack([np.abs(shares - wanted).mean(axis=1), kl(wanted, shares), mass])


def _by_context(figures: Array, contexts: Sequence[str]) -> Array:
    """Means over the prompts of each context, in the order in which contexts first occur."""
    names = list(dict.fromkeys(contexts))
    belongs = np.array(contexts)[None] == np.array(names)[:, None]
    return np.asarray(belongs @ figures / belongs.sum(axis=1, keepdims=True))


def _left_out(readings: Readings, wanted: Array, part_of: NDArray[np.intp], ridges: Sequence[float]) -> Array:
    """Figures of each prompt under rows fitted to the other parts, shape (ridges, prompts, 3)."""
    found = np.empty((len(ridges), len(wanted), 3))
    for part in np.unique(part_of):
        inside, outside = np.flatnonzero(part_of == part), np.flatnonzero(part_of != part)
        problem, judged, fit = RowProblem(readings.take(outside), wanted[outside]), readings.take(inside), None
        for i in np.argsort(ridges)[::-1]:
            fit = problem.fit(ridges[i], tolerance=1e-6, start=fit)
            found[i, inside] = _figures(judged, fit.rows, wanted[inside])
    return found


def _wanted(readings: Readings, targets: TargetTable) -> Array:
    if len(targets.classes) != readings.logits.shape[1]:
        raise InvalidInput(
            f"The targets have {len(targets.classes)} classes; the readings are of {readings.logits.shape[1]} tokens."
        )
    chosen = targets.select(dict.fromkeys(readings.contexts))
    return chosen.flat[[chosen.contexts.index(name) for name in readings.contexts]]
