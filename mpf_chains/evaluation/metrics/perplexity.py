"""Perplexity: what debiasing may cost."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mpf_chains.core.distributions import Array
from mpf_chains.evaluation.intervals import DEFAULT, Resampling
from mpf_chains.evaluation.metrics.inputs import numbers
from mpf_chains.evaluation.metrics.measured import Measured, Metric, measure_table

PERPLEXITY = Metric(
    "perplexity", "Perplexity", 1, 1, np.inf, "tokens", "lower",
    "Jelinek et al., Perplexity - a measure of the difficulty of speech recognition tasks, JASA 1977",
)  # fmt: skip


def perplexity(
    log_likelihoods: ArrayLike,
    tokens: ArrayLike,
    *,
    by: Iterable[Any] | None = None,
    clusters: Iterable[Any] | None = None,
    resampling: Resampling = DEFAULT,
) -> Measured:
    """Among how many equally likely tokens a model hesitates, on average over tokens.

    Ideal 1, range 1 to inf, unit tokens, lower is better (text has entropy, so 1 is out of reach: compare systems).
    Source: Jelinek et al., JASA 62, 1977: exp(−Σ log p / Σ tokens). Give numbers of words for perplexity per word.
    Pieces of one text are alike: make each text a cluster for an honest interval.

    Args:
        log_likelihoods: (n,) log-likelihood in nats of each text or window, summed over its tokens; at most 0.
        tokens: (n,) number of tokens that it sums over, above 0.
        by: (n,) labels to break it down by. Default none.
        clusters: (n,) windows with one label are resampled together. Default each alone.
        resampling: Level, resamples and seed.

    Returns:
        The perplexity, with one part per label of `by`.

    Raises:
        InvalidInput: If arrays do not fit together or a number is outside what is allowed.

    Examples:
        >>> round(perplexity([-2.0, -4.0], [2, 1]).value, 3)
        7.389
    """
    likelihood = numbers("log_likelihoods", log_likelihoods, bounds=(-np.inf, 0.0))
    count = numbers("tokens", tokens, len(likelihood), (np.nextafter(0, 1), np.inf))
    table, columns = np.column_stack([count, likelihood]), ("tokens", "log-likelihood")
    return measure_table(PERPLEXITY, columns, table, _perplexity, by=by, clusters=clusters, resampling=resampling)


def _perplexity(table: Array, weights: Array) -> Array:
    tokens, likelihood = (weights @ table).T
    return np.asarray(np.exp(np.minimum(-likelihood / tokens, 700.0)))
