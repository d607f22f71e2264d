"""Which strength of expert pairs to take: the least bias within a budget of fluency."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpf_chains.core.distributions import Array
from mpf_chains.errors import InvalidInput
from mpf_chains.local.experts.strength.curve import RESAMPLES, TAILS, AlphaCurve, Estimate, Wins, estimate
from mpf_chains.local.sampling import as_number


@dataclass(frozen=True)
class ChosenAlpha:
    """A strength for each pair, and what it was chosen for.

    Args:
        alphas: Strength by name, to be handed to `ExpertPair`, a processor or a request. The interval is of the whole
            choice, made anew in each resample: a wide one says that the data hardly decide.
        bias: Mean over the axes of |SS − 50| at that strength, in percentage points. It is the smallest of a grid on
            these very items, so it flatters: measure it again on others, or see ``elsewhere``.
        before: The same without correction.
        elsewhere: The same at strengths that were each chosen without the associations (or terms, where the curve
            resamples those) that it is measured on: cross-validation (Stone 1974) with ten parts, or as many as there
            are. It does not flatter. NaN if there is one only.
        cost: Perplexity at that strength / perplexity without correction − 1.
        budget: What it was allowed to be.
        metrics: Everything that was measured at that strength.
    """

    alphas: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    bias: Estimate
    before: Estimate
    elsewhere: Estimate
    cost: Estimate
    budget: float
    metrics: Mapping[str, Estimate]


def choose_alpha(
    curve: AlphaCurve,
    budget: float = 0.10,
    *,
    axes: Sequence[str] | None = None,
    pairs: Sequence[str] | None = None,
    sure: bool = False,
) -> ChosenAlpha:
    """The strength with the least bias whose perplexity stays within a budget; of equals the weakest.

    Args:
        curve: Measured with texts and associations.
        budget: How much the perplexity may rise, as a share of what it is without correction, at least 0. Default 0.10.
        axes: Axes whose |SS − 50| is averaged. None (default): all that the associations have.
        pairs: Pairs that may be used; the others stay at 0. None (default): all, jointly. For one axis by itself
            give ``axes=["gender"], pairs=["gender"]``.
        sure: Whether the upper end of the cost's interval must be within the budget, too, and not the measured cost
            only. Default False.

    Raises:
        InvalidInput: If the budget is negative, or an axis, a pair, or what a choice needs was not measured.

    Examples:
        >>> none = np.empty((3, 0))
        >>> scores = np.array([[[2.0, 1, 0]] * 4, [[2.0, 1, 0]] * 2 + [[1.0, 2, 0]] * 2, [[1.0, 2, 0]] * 4])
        >>> losses = np.log([[10.0], [10.5], [13.0]])
        >>> points, axes, terms = np.array([[0.0], [0.5], [1.0]]), ("gender",) * 4, ("nurse",) * 4
        >>> curve = AlphaCurve(("pair",), points, scores, axes, terms, losses, losses * 0, np.ones(1), none)
        >>> chosen = choose_alpha(curve)
        >>> chosen.alphas, chosen.before.value, chosen.bias.value, round(chosen.cost.value, 2)
        ({'pair': 0.5}, 50.0, 0.0, 0.05)
    """
    if not as_number(budget) >= 0:
        raise InvalidInput(f"`budget` is {budget!r}; it must be a number from 0 (0.1 allows a perplexity 10 % higher).")
    if not curve.axes or not len(curve.tokens):
        raise InvalidInput(
            "A choice weighs bias against perplexity, and the curve lacks one of them.",
            hint="Give `alpha_curve` both `associations` and `texts`.",
        )
    known = list(dict.fromkeys(curve.axes))
    wanted = known if axes is None else list(axes)
    usable = curve.pairs if pairs is None else tuple(pairs)
    for name, one, there in [("axis", axis, known) for axis in wanted] + [("pair", p, curve.pairs) for p in usable]:
        if one not in there:
            raise InvalidInput(f"The curve has no {name} {one!r}; there are: {', '.join(map(repr, there))}.")
    if not wanted:
        raise InvalidInput("`axes` is empty; name at least one, or leave it out.")
    names = [f"ss/{axis}" if len(known) > 1 else "ss" for axis in wanted]
    bias = np.mean([np.abs(curve.draws(name) - 50) for name in names], axis=0)
    perplexity = curve.draws("perplexity")
    cost = perplexity / perplexity[:, [curve.zero]] - 1
    if sure and len(curve.tokens) < 2:
        raise InvalidInput(
            "The cost of one text has no interval to be sure of.", hint="Give `alpha_curve` more `texts`."
        )
    margin = np.quantile(cost[1:], TAILS[1], axis=0) - cost[0] if sure else 0.0
    idle = [i for i, name in enumerate(curve.pairs) if name not in usable]
    allowed = (_known(cost) + margin <= budget + 1e-12) & (curve.points[:, idle] == 0).all(axis=1)
    allowed[:, curve.zero] = True
    order = np.argsort(np.abs(curve.points).sum(axis=1), kind="stable")  # the weakest first

    def least(costs: Array) -> NDArray[np.intp]:
        picked: NDArray[np.intp] = order[costs[..., order].round(9).argmin(axis=-1)]
        return picked

    picks = least(np.where(allowed, _known(bias), np.inf))
    best = int(picks[0])
    low, high = np.quantile(curve.points[picks[1:]], TAILS, axis=0)
    some = [each for each in curve.by_axis if each.axis in wanted]
    elsewhere = _elsewhere(some, lambda biases: int(least(np.where(allowed[0], biases, np.inf))), curve.seed)
    return ChosenAlpha(
        alphas=dict(zip(curve.pairs, curve.points[best].tolist(), strict=True)),
        intervals=dict(zip(curve.pairs, zip(low.tolist(), high.tolist(), strict=True), strict=True)),
        bias=estimate(bias[:, best]),
        before=estimate(bias[:, curve.zero]),
        elsewhere=estimate(elsewhere),
        cost=estimate(cost[:, best]),
        budget=budget,
        metrics={name: curve.estimates(name)[best] for name in curve.metrics},
    )


def _known(draws: Array) -> Array:
    """The measured numbers in place of resamples that one unit does not give."""
    return np.where(np.isnan(draws), draws[0], draws)


def _elsewhere(axes: Sequence[Wins], choose: Callable[[Array], int], seed: int) -> Array:
    """Mean |SS − 50| at points that are chosen without the units they are used for, shape (1 + 1000,).

    Args:
        axes: Associations of each axis.
        choose: Gives a point from the biases at all points.
        seed: Seeds the parts.
    """
    units = [int(each.unit.max()) + 1 for each in axes]
    parts = min(10, *units)
    if parts < 2:
        return np.full(1 + RESAMPLES, np.nan)
    rng = np.random.default_rng([seed, 3])
    part_of = [(rng.permutation(count) % parts)[each.unit] for count, each in zip(units, axes, strict=True)]
    left = [np.empty(len(each.unit)) for each in axes]
    for part in range(parts):
        shares = [
            np.average(each.stereotyped[:, of != part], axis=1, weights=each.weights[of != part])
            for each, of in zip(axes, part_of, strict=True)
        ]
        point = choose(np.mean([np.abs(100 * share - 50) for share in shares], axis=0))
        for each, of, wins in zip(axes, part_of, left, strict=True):
            wins[of == part] = each.stereotyped[point, of == part]
    scores = [100 * each.shares @ wins / each.shares.sum(axis=1) for each, wins in zip(axes, left, strict=True)]
    biases: Array = np.mean([np.abs(score - 50) for score in scores], axis=0)
    return biases
