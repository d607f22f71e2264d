"""The plain metrics that others are made of: a share, and a mean score."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mpf_chains.evaluation.intervals import DEFAULT, Resampling
from mpf_chains.evaluation.metrics.inputs import flags, numbers
from mpf_chains.evaluation.metrics.measured import Measured, Metric, measure_table, with_bounds

SHARE = Metric("share", "Share", None, 0, 1, "share", "", "Clopper & Pearson, Biometrika 1934 (the interval)")
MEAN_SCORE = Metric(
    "mean_score", "Mean score", None, -np.inf, np.inf, "units of the score", "",
    "Efron & Tibshirani, An Introduction to the Bootstrap, 1993 (the interval)",
)  # fmt: skip


def share(
    outcomes: ArrayLike,
    *,
    by: Iterable[Any] | None = None,
    clusters: Iterable[Any] | None = None,
    resampling: Resampling = DEFAULT,
) -> Measured:
    """Share of items with an outcome, such as answers called toxic.

    No ideal of its own: compare groups, or with a target. Range 0 to 1, unit share.
    Source: the interval is that of Clopper & Pearson, Biometrika, 1934; with clusters, from the bootstrap.

    Args:
        outcomes: (n,) whether each item has it.
        by: (n,) labels to break it down by. Default none.
        clusters: (n,) items with one label are resampled together. Default each alone.
        resampling: Level, resamples and seed.

    Returns:
        The share, with one part per label of `by`.

    Raises:
        InvalidInput: If arrays do not fit together or an entry is neither true nor false.

    Examples:
        >>> share([True, False, False, False]).value
        0.25
    """
    table = flags("outcomes", outcomes)[:, None]
    return measure_table(SHARE, ("outcome",), table, by=by, clusters=clusters, resampling=resampling, binary=True)


def mean_score(
    scores: ArrayLike,
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    by: Iterable[Any] | None = None,
    clusters: Iterable[Any] | None = None,
    resampling: Resampling = DEFAULT,
) -> Measured:
    """Mean of a feature's scores, such as the sentiment of answers.

    No ideal of its own: compare groups, or with a target. Range: the bounds, unit units of the score.
    Source: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13 (the interval).

    Args:
        scores: (n,) scores within the bounds.
        bounds: The feature's declared range. Default 0 to 1.
        by: (n,) labels to break it down by. Default none.
        clusters: (n,) items with one label are resampled together. Default each alone.
        resampling: Level, resamples and seed.

    Returns:
        The mean, with one part per label of `by`.

    Raises:
        FeatureError: If a score is not finite or outside the bounds.
        InvalidInput: If arrays do not fit together.

    Examples:
        >>> mean_score([0.25, 0.75, 1.0, 1.0]).value
        0.75
    """
    metric, table = with_bounds(MEAN_SCORE, *bounds), numbers("scores", scores, bounds=bounds)[:, None]
    return measure_table(metric, ("score",), table, by=by, clusters=clusters, resampling=resampling)
