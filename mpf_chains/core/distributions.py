"""Score distributions on one shared grid, and distances between them.

Every histogram of a feature uses the same bins over the feature's *declared* range, so bin i means the same scores in
every histogram, and additive smoothing keeps every probability positive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpf_chains.errors import InvalidInput

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Grid:
    """Equal bins over a declared range.

    Args:
        low: Smallest possible score.
        high: Largest possible score, greater than ``low``; scores equal to it fall into the last bin.
        bins: Number of bins, at least 2. Default 20.
        smoothing: Pseudo-count added to every bin, > 0. Default 0.5 (Jeffreys).

    Raises:
        InvalidInput: If an argument is outside what is allowed.

    Examples:
        >>> Grid(0, 1, bins=4).density([0.1, 0.9, 1.0]).round(2).tolist()
        [0.3, 0.1, 0.1, 0.5]
    """

    low: float = 0.0
    high: float = 1.0
    bins: int = 20
    smoothing: float = 0.5

    def __post_init__(self) -> None:
        if not (np.isfinite(self.low) and np.isfinite(self.high) and self.low < self.high):
            raise InvalidInput(f"bounds ({self.low}, {self.high}) must be finite with low < high.")
        if self.bins < 2:
            raise InvalidInput(f"bins must be at least 2, not {self.bins}.")
        if not (np.isfinite(self.smoothing) and self.smoothing > 0):
            raise InvalidInput(f"smoothing must be positive, not {self.smoothing}: without it KL can be infinite.")

    @property
    def width(self) -> float:
        """Width of the whole range."""
        return self.high - self.low

    def index(self, scores: ArrayLike) -> NDArray[np.intp]:
        """Bin number of each score, same shape.

        Raises:
            InvalidInput: If a score is not finite or outside the range; nothing is clipped.
        """
        values = np.asarray(scores, dtype=np.float64)
        bad = ~((values >= self.low) & (values <= self.high))
        if bad.any():
            where = tuple(int(i) for i in np.argwhere(bad)[0])
            raise InvalidInput(
                f"score {values[where]} at index {where} is not a number within the declared range "
                f"[{self.low}, {self.high}].",
                hint="Declare the feature's true range with `bounds`, or mend the scorer.",
            )
        return np.minimum(((values - self.low) * (self.bins / self.width)).astype(np.intp), self.bins - 1)

    def one_hot(self, scores: ArrayLike) -> Array:
        """Bin membership of each score: shape (..., bins), zeros and ones."""
        return np.asarray(self.index(scores)[..., None] == np.arange(self.bins), dtype=np.float64)

    def smooth(self, counts: Array) -> Array:
        """Probabilities from counts (..., bins), by additive smoothing; each row sums to 1."""
        padded = counts + self.smoothing
        return np.asarray(padded / padded.sum(axis=-1, keepdims=True))

    def density(self, scores: ArrayLike) -> Array:
        """Smoothed bin probabilities of scores (..., n): shape (..., bins)."""
        return self.smooth(np.asarray(self.one_hot(scores).sum(axis=-2)))


def kl(p: ArrayLike, q: ArrayLike) -> Any:
    """Kullback-Leibler divergence KL(p ‖ q) in nats, over the last axis. 0 is perfect; not symmetric.

    Args:
        p: Probabilities (..., bins), the target.
        q: Probabilities (..., bins), positive wherever ``p`` is.

    Examples:
        >>> float(kl([0.5, 0.5], [0.5, 0.5]))
        0.0
    """
    p, q = np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p > 0, p * np.log(p / q), 0.0).sum(axis=-1)


def js(p: ArrayLike, q: ArrayLike) -> Any:
    """Jensen-Shannon divergence in nats, in [0, ln 2], over the last axis (Lin, 1991)."""
    p, q = np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64)
    middle = (p + q) / 2
    return (kl(p, middle) + kl(q, middle)) / 2


def total_variation(p: ArrayLike, q: ArrayLike) -> Any:
    """Total variation distance, in [0, 1], over the last axis: half the L1 distance."""
    return np.abs(np.asarray(p, dtype=np.float64) - np.asarray(q, dtype=np.float64)).sum(axis=-1) / 2


def wasserstein(x: ArrayLike, y: ArrayLike) -> float:
    """Wasserstein-1 distance between two samples, in units of the score: ∫ |F − G|.

    Args:
        x: Sample (n,).
        y: Sample (m,).
    """
    difference, steps = _cdf_difference(x, y)
    return float(np.abs(difference) @ steps)


def energy_distance(x: ArrayLike, y: ArrayLike) -> float:
    """Energy distance between two samples (Székely & Rizzo, 2013), needing no bins: √(2 ∫ (F − G)²).

    Its square is twice the Cramér distance.

    Args:
        x: Sample (n,).
        y: Sample (m,).
    """
    difference, steps = _cdf_difference(x, y)
    return float(np.sqrt(2 * (difference**2 @ steps)))


def _cdf_difference(x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    """F − G on the intervals between the pooled points, and the intervals' lengths."""
    x, y = np.sort(np.asarray(x, dtype=np.float64)), np.sort(np.asarray(y, dtype=np.float64))
    if x.ndim != 1 or y.ndim != 1 or not x.size or not y.size:
        raise InvalidInput(f"two non-empty one-dimensional samples are needed, not shapes {x.shape} and {y.shape}.")
    points = np.sort(np.concatenate([x, y]))
    f = np.searchsorted(x, points[:-1], side="right") / x.size
    g = np.searchsorted(y, points[:-1], side="right") / y.size
    return f - g, np.diff(points)
