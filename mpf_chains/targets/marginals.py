"""Joint targets from marginal ones: iterative proportional scaling, with what makes it fail found beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.optimize import linprog

from mpf_chains.errors import InvalidInput, NotConverged
from mpf_chains.targets.table import Array, TargetTable, joint_classes

_SWEEPS = 10_000


@dataclass(frozen=True)
class JointFit:
    """A joint table and how well it fits.

    Args:
        table: The joint targets.
        error: Largest difference between a marginal share of the table and the one that was asked for. The table is
            the seed times one factor per marginal share, and among all such products and their limits the one with the
            right marginals is the nearest table (Csiszár 1975, theorem 3.1), so this error is all that is left.
        divergence: KL(table ‖ seed) of each context, in nats, the seed's shares summing to 1.
        sweeps: How often all marginals were scaled to.
    """

    table: TargetTable
    error: float
    divergence: Mapping[str, float]
    sweeps: int


def fit_joint(
    marginals: Sequence[TargetTable], seed: TargetTable | None = None, *, tolerance: float = 1e-12
) -> JointFit:
    """The joint table with these marginals that is nearest to a seed: arg min KL(table ‖ seed).

    Without a seed the attributes are independent of each other; a seed brings their association (its odds ratios), for
    example that of the whole population, into contexts of which only marginals are known.

    Source: Deming & Stephan 1940 (the scaling); Csiszár 1975, "I-divergence geometry of probability distributions and
    minimization problems" (what it converges to); Freund, Roundy & Todd 1985 (the linear program for the support).

    Args:
        marginals: Tables of the same contexts over one or several attributes each; attributes may occur in several of
            them.
        seed: A table over all attributes together, whatever their order, of the same contexts or of a single one,
            which is then used for all. A zero in it stays zero. None (default): uniform.
        tolerance: Largest ``error``. Default 1e-12.

    Raises:
        InvalidInput: If attributes, classes or contexts do not fit together, or no table has these marginals, because
            two of them contradict each other or the seed has a zero where mass is needed.
        NotConverged: If the tolerance is not reached.

    Examples:
        >>> gender = TargetTable.of({"nurse": {"f": 0.9, "m": 0.1}}, {"gender": ("f", "m")})
        >>> age = TargetTable.of({"nurse": {"young": 0.3, "old": 0.7}}, {"age": ("young", "old")})
        >>> round(fit_joint([gender, age]).table["nurse"]["f, young"], 6)
        0.27
    """
    if not marginals:
        raise InvalidInput("There are no marginals to fit.")
    attributes = _attributes(marginals)
    contexts = marginals[0].contexts
    for table in marginals:
        if set(table.contexts) != set(contexts):
            differ = sorted(set(table.contexts) ^ set(contexts))
            raise InvalidInput(
                f"The marginals are not of the same contexts: {', '.join(map(repr, differ[:5]))} are in some only.",
                hint="Use `.select(contexts)`.",
            )
    start = _seed(seed, attributes, contexts)
    targets = [(_axes(table, attributes), _aligned(table, attributes, contexts)) for table in marginals]
    if seed is not None or sum(len(table.attributes) for table in marginals) > len(attributes):
        _check_overlaps(marginals, contexts)
        support = [_support(start[i] > 0, targets, i, context) for i, context in enumerate(contexts)]
        start = np.where(np.stack(support), start, 0.0)
    fitted, error, sweeps = _scale(start, targets, tolerance)
    if error > tolerance:
        raise NotConverged(
            f"The marginals of the joint table are off by {error:.1e} after {sweeps} sweeps; the tolerance is "
            f"{tolerance:.1e}.",
            hint="Give a seed with less extreme shares, or a larger `tolerance`.",
        )
    table = TargetTable(attributes, contexts, fitted)
    prior = _seed(seed, attributes, contexts)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(table.joint > 0, table.joint * np.log(table.joint / prior), 0.0)
    divergence = terms.reshape(len(contexts), -1).sum(axis=1)
    return JointFit(table, error, dict(zip(contexts, np.maximum(divergence, 0.0).tolist(), strict=True)), sweeps)


Targets = Sequence[tuple[tuple[int, ...], Array]]
"""Axes of the joint array that are summed over, and the marginal with these axes of length 1."""


def _attributes(marginals: Sequence[TargetTable]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for table in marginals:
        for name, classes in table.attributes.items():
            if found.setdefault(name, tuple(classes)) != tuple(classes):
                raise InvalidInput(
                    f"Two marginals have different classes of {name!r}: {', '.join(found[name])} and "
                    f"{', '.join(classes)}.",
                    hint="Give them the same classes in the same order.",
                )
    return found


def _seed(seed: TargetTable | None, attributes: Mapping[str, tuple[str, ...]], contexts: Sequence[str]) -> Array:
    sizes = [len(classes) for classes in attributes.values()]
    if seed is None:
        return np.full((len(contexts), *sizes), 1 / np.prod(sizes))
    if dict(seed.attributes) != dict(attributes):
        raise InvalidInput(
            f"The seed is a table of {seed.attribute}; the marginals are of {' × '.join(attributes)}.",
            hint="It needs the same attributes with the same classes.",
        )
    whole = seed.select(contexts) if len(seed) > 1 else seed
    order = [1 + tuple(seed.attributes).index(name) for name in attributes]
    return np.broadcast_to(whole.joint.transpose(0, *order), (len(contexts), *sizes))


def _axes(table: TargetTable, attributes: Mapping[str, tuple[str, ...]]) -> tuple[int, ...]:
    return tuple(axis for axis, name in enumerate(attributes, 1) if name not in table.attributes)


def _aligned(table: TargetTable, attributes: Mapping[str, tuple[str, ...]], contexts: Sequence[str]) -> Array:
    """The marginal with its axes in the joint table's order, and axes of length 1 for the attributes it lacks."""
    own = tuple(table.attributes)
    order = [1 + own.index(name) for name in attributes if name in own]
    shape = [len(classes) if name in own else 1 for name, classes in attributes.items()]
    return np.asarray(table.select(contexts).joint.transpose(0, *order).reshape(len(contexts), *shape))


def _check_overlaps(marginals: Sequence[TargetTable], contexts: Sequence[str]) -> None:
    for one, other in combinations(marginals, 2):
        shared = {name: tuple(classes) for name, classes in one.attributes.items() if name in other.attributes}
        if shared:
            parts = [_aligned(table.marginal(*shared), shared, contexts) for table in (one, other)]
            left, right = (part.reshape(len(contexts), -1) for part in parts)
            for i, j in np.argwhere(np.abs(left - right) > 1e-9).tolist():
                raise InvalidInput(
                    f"Two marginals contradict each other: in context {contexts[i]!r} the share of "
                    f"{joint_classes(shared)[j]!r} is {left[i, j]:.6g} by that of {one.attribute} and "
                    f"{right[i, j]:.6g} by that of {other.attribute}."
                )


def _support(allowed: Array, targets: Targets, i: int, context: str) -> Array:
    """Where the tables with the marginals of a context can have mass: all of them are zero elsewhere.

    A linear program finds the largest support: maximise Σ s over A q = τ b, s ≤ q, 0 ≤ s ≤ 1, q ≥ 0, τ ≥ 0. It has
    a solution with τ > 0 only if there is such a table. On that support scaling converges geometrically.
    """
    cells = np.flatnonzero(allowed)
    n = len(cells)
    blocks = []
    for _, target in targets:
        place = np.arange(target[i].size).reshape(target[i].shape)
        belongs = np.broadcast_to(place, allowed.shape).ravel()[cells]
        blocks.append((np.arange(target[i].size)[:, None] == belongs).astype(np.float64))
    a, b = np.vstack(blocks), np.concatenate([target[i].ravel() for _, target in targets])
    equal = np.hstack([a, np.zeros((len(b), n)), -b[:, None]])
    below = np.hstack([-np.eye(n), np.eye(n), np.zeros((n, 1))])
    bounds = [(0, None)] * n + [(0, 1)] * n + [(0, None)]
    cost = np.concatenate([np.zeros(n), -np.ones(n), [0.0]])
    found = linprog(cost, A_ub=below, b_ub=np.zeros(n), A_eq=equal, b_eq=np.zeros(len(b)), bounds=bounds)
    if not found.success or found.x[-1] <= 0:
        zeros = allowed.size - n
        raise InvalidInput(
            f"No joint table of context {context!r} has these marginals"
            + (f": the seed has {zeros} zeros, and mass is needed where they are." if zeros else "."),
            hint="Replace zeros of the seed that only mean that nothing was counted by small shares." if zeros else "",
        )
    inside = np.zeros(allowed.size, dtype=bool)
    inside[cells] = found.x[n : 2 * n] > 0.5
    return inside.reshape(allowed.shape)


def _scale(start: Array, targets: Targets, tolerance: float) -> tuple[Array, float, int]:
    """Scale to one marginal after the other until all are right; all contexts at once."""
    table = np.array(start)
    error, sweeps = np.inf, 0
    while error > tolerance and sweeps < _SWEEPS:
        sweeps += 1
        for axes, target in targets:
            sums = table.sum(axis=axes, keepdims=True)
            with np.errstate(divide="ignore", invalid="ignore"):
                table = table * np.where(sums > 0, target / sums, 0.0)
        error = max(float(np.abs(table.sum(axis=axes, keepdims=True) - target).max()) for axes, target in targets)
    return table, error, sweeps
