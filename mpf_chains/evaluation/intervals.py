"""How sure a measured value is: exact intervals of shares, and one bootstrap for everything else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

from mpf_chains.core.distributions import Array
from mpf_chains.errors import InvalidInput

Statistic = Callable[[Array, Array], Array]
"""(n, d) table of what each item contributes, (B, n) how often each item counts → (B,) values."""

_CELLS = 1 << 19  # numbers in one block of resamples: 4 MB, so that blocks stay in the cache


@dataclass(frozen=True)
class Resampling:
    """How intervals, floors and p-values are simulated.

    Args:
        level: Nominal coverage of intervals, in (0, 1). Default 0.9, as everywhere in mpf_chains.
        resamples: Bootstrap resamples, at least 20. Default 1000.
        permutations: Shuffles behind a noise floor, at least 0; 0 leaves the floor out. Default 200.
        seed: Seeds all of it. Default 0.

    Raises:
        InvalidInput: If an argument is outside what is allowed.
    """

    level: float = 0.9
    resamples: int = 1000
    permutations: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise InvalidInput(f"level must be within (0, 1), not {self.level}.", hint="0.9 means 90 %.")
        if self.resamples < 20 or self.permutations < 0:
            raise InvalidInput(
                f"resamples must be at least 20 and permutations at least 0, not {self.resamples} and "
                f"{self.permutations}."
            )

    @property
    def tail(self) -> float:
        """What each side leaves out: (1 − level) / 2."""
        return (1 - self.level) / 2


DEFAULT = Resampling()
"""90 % intervals from 1000 resamples."""


def share_interval(
    successes: int, n: int, level: float = 0.9, method: Literal["exact", "wilson"] = "exact"
) -> tuple[float, float]:
    """Interval of a binomial share.

    Args:
        successes: How many, 0 to n.
        n: Out of how many, at least 1.
        level: Nominal coverage in (0, 1). Default 0.9.
        method: "exact" (default) covers at least `level` whatever the truth (Clopper & Pearson, 1934); "wilson" (1927,
            without continuity correction) is narrower and covers `level` on average.

    Returns:
        (low, high) within [0, 1], around successes / n.

    Raises:
        InvalidInput: If an argument is outside what is allowed.

    Examples:
        >>> [round(end, 3) for end in share_interval(8, 10)]
        [0.493, 0.963]
    """
    if not 0 <= successes <= n or n < 1:
        raise InvalidInput(f"{successes} successes of {n} is no share: there must be 0 to n of at least 1.")
    tail = Resampling(level).tail
    if method == "exact":
        low = float(special.betaincinv(successes, n - successes + 1, tail)) if successes else 0.0
        high = float(special.betaincinv(successes + 1, n - successes, 1 - tail)) if successes < n else 1.0
        return low, high
    if method != "wilson":
        raise InvalidInput(f'method must be "exact" or "wilson", not {method!r}.')
    z, share = float(special.ndtri(1 - tail)), successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (0.0 if successes == 0 else float(middle - half)), (1.0 if successes == n else float(middle + half))


@dataclass(frozen=True, eq=False)
class Draws:
    """Values of a statistic on resamples, and what was resampled.

    Attributes:
        values: (B,) values; resamples on which the statistic has no value are left out.
        units: Number of units that were resampled.
        strata: Number of strata they were resampled within.
        smallest: Units in the smallest stratum.
    """

    values: Array
    units: int
    strata: int
    smallest: int

    def interval(self, value: float, low: float, high: float, level: float) -> tuple[float, float]:
        """Percentile interval, with room for bias, and widened for few units.

        Resampling adds to a distance or a gap about what sampling had added before, the bias (Efron & Tibshirani, 1993,
        section 10.2). So the draws are moved until their mean is the value, and the end towards which the value itself
        may be biased is moved out by as much; for a mean both are nothing. The draws are widened by
        √(C / (C − S)) · t / z for C units in S strata (Hesterberg, 2015, "expanded percentile interval").

        Where all units agree, the draws do not vary; then u, the largest share of other units that would go unseen with
        probability (1 − level) / 2, moves each end by u of the way to the end of the range, as in the exact interval of
        a share of 0 or 1. A stratum of one unit says nothing about its spread: the interval is the whole range.

        Args:
            value: The value on the data themselves.
            low: Lower end of the statistic's range; may be infinite.
            high: Upper end of its range; may be infinite.
            level: Nominal coverage.

        Returns:
            (low, high) within the range, around the value.
        """
        tail = (1 - level) / 2
        if self.smallest < 2 or not self.values.size:
            return low, high
        if np.ptp(self.values) <= 1e-12 * max(1.0, abs(value)):
            unseen = -np.expm1(np.log(tail) / self.smallest)
            down = unseen * (value - low) if np.isfinite(low) and np.isfinite(high) else 0.0
            up = unseen * (high - value) if np.isfinite(low) and np.isfinite(high) else 0.0
            return float(value - down), float(value + up)
        centre = self.values.mean()
        lower, upper = value + np.quantile(self._deviations(tail), [tail, 1 - tail])
        lower, upper = lower - max(centre - value, 0.0), upper + max(value - centre, 0.0)
        return float(np.clip(lower, low, value)), float(np.clip(upper, value, high))

    def p_of_zero(self, value: float, level: float) -> float | None:
        """Probability, either way, of a value so far from zero were it zero in truth: where `interval` touches zero.

        Args:
            value: The value on the data themselves.
            level: Nominal coverage of the interval that it goes with.

        Returns:
            The p-value, at least 2 / (1 + B); None where the draws do not vary or there are too few units to tell.
        """
        if value == 0:
            return 1.0
        if self.smallest < 2 or not self.values.size or np.ptp(self.values) <= 1e-12 * max(1.0, abs(value)):
            return None
        towards = np.sign(value)
        bias = max(0.0, float(towards * (self.values.mean() - value)))
        reached = (-towards * self._deviations((1 - level) / 2) >= abs(value) - bias).sum()
        return float(min(1.0, 2 * (1 + reached) / (1 + self.values.size)))

    def _deviations(self, tail: float) -> Array:
        """Draws around their mean, widened."""
        freedom = self.units - self.strata
        widening = np.sqrt(self.units / freedom) * special.stdtrit(freedom, 1 - tail) / special.ndtri(1 - tail)
        return np.asarray(widening * (self.values - self.values.mean()))


def bootstrap(
    table: Array,
    statistic: Statistic,
    resampling: Resampling = DEFAULT,
    *,
    clusters: NDArray[np.intp] | None = None,
    strata: NDArray[np.intp] | None = None,
) -> Draws:
    """Values of a statistic when the units are drawn anew, with replacement (Efron & Tibshirani, 1993, ch. 6 and 8).

    The order of the rows does not matter: they are sorted by content first.

    Args:
        table: (n, d) what each item contributes.
        statistic: See `Statistic`; may give NaN where a resample has no value.
        resampling: Number of resamples and seed.
        clusters: (n,) items with one number are drawn together. Default: each item is its own unit.
        strata: (n,) units are drawn within these, so that none vanishes; not used with clusters. Default one.

    Returns:
        The draws.
    """
    stratum = np.zeros(len(table), dtype=np.intp) if strata is None or clusters is not None else strata
    order = np.lexsort((*table.T[::-1], stratum))
    table, stratum = table[order], stratum[order]
    member = np.arange(len(table)) if clusters is None else _by_first_appearance(clusters[order])
    units = int(member.max()) + 1
    size = np.bincount(stratum if clusters is None else np.zeros(units, dtype=np.intp))
    size = size[size > 0]
    first, width = np.repeat(np.cumsum(size) - size, size), np.repeat(size, size)
    rng = np.random.default_rng(resampling.seed)
    values = []
    for start in range(0, resampling.resamples, rows := max(1, _CELLS // len(table))):
        runs = min(rows, resampling.resamples - start)
        chosen = first + (rng.random((runs, units)) * width).astype(np.intp) + units * np.arange(runs)[:, None]
        counts = np.bincount(chosen.ravel(), minlength=runs * units).reshape(runs, units)
        each = counts.astype(np.float64)
        values.append(statistic(table, each if clusters is None else each.take(member, axis=1)))
    drawn = np.concatenate(values)
    return Draws(drawn[np.isfinite(drawn)], units, len(size), int(size.min()))


def swapped_differences(
    first: Array, second: Array, statistic: Statistic, clusters: NDArray[np.intp] | None, runs: int, seed: int
) -> Array:
    """Differences of a statistic when two systems' results change places at random, unit by unit.

    Args:
        first: (n, d) table of the first system.
        second: (n, d) table of the second system on the same items.
        statistic: See `Statistic`.
        clusters: (n,) items with one number are swapped together, or none.
        runs: Random swaps.
        seed: Seeds the swaps.

    Returns:
        (runs,) second − first under the hypothesis that the systems are interchangeable.
    """
    order = np.lexsort((*first.T[::-1], *second.T[::-1]))
    both = np.concatenate([first[order], second[order]])
    member = np.arange(len(first)) if clusters is None else _by_first_appearance(clusters[order])
    rng = np.random.default_rng((seed, 1))
    differences = []
    for start in range(0, runs, rows := max(1, _CELLS // len(both))):
        swap = rng.random((min(rows, runs - start), int(member.max()) + 1))[:, member] < 0.5
        one, other = np.hstack([~swap, swap]).astype(np.float64), np.hstack([swap, ~swap]).astype(np.float64)
        differences.append(statistic(both, other) - statistic(both, one))
    return np.concatenate(differences)


def _by_first_appearance(numbers: NDArray[np.intp]) -> NDArray[np.intp]:
    _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]
