"""Statistics of groups that are compared: means per group, and how far these lie apart."""

from __future__ import annotations

import numpy as np

from mpf_chains.core.distributions import Array


def group_means(table: Array, weights: Array) -> Array:
    """Mean of each column in each group.

    Args:
        table: (n, 1 + L): the group's number, then L values.
        weights: (B, n) how often each row counts.

    Returns:
        (B, L, G); NaN for a group without rows.
    """
    codes, values = table[:, 0].astype(np.intp), table[:, 1:]
    member = codes[:, None] == np.arange(codes.max() + 1)
    sizes = weights @ member
    means = np.full((len(weights), values.shape[1], member.shape[1]), np.nan)
    for column, value in enumerate(values.T):
        np.divide(weights @ (member * value[:, None]), sizes, out=means[:, column], where=sizes > 0)
    return means


def mean_pairwise_difference(values: Array) -> Array:
    """Mean absolute difference over all pairs of entries of the last axis; NaN entries take no part.

    From the sorted entries x_(1) ≤ … ≤ x_(m): Σ_i (2i − m − 1) x_(i) over m (m − 1) / 2 pairs. 0 for fewer than two.
    """
    ordered = np.sort(values, axis=-1)  # NaN goes last
    present = np.isfinite(ordered)
    m = present.sum(axis=-1, keepdims=True)
    rank = np.arange(values.shape[-1])
    total = np.where(present, (2 * rank - m + 1) * ordered, 0.0).sum(axis=-1)
    return np.asarray(total / np.maximum(m * (m - 1) / 2, 1)[..., 0])


def mean_gap(table: Array, weights: Array) -> Array:
    """Mean absolute pairwise difference of the groups' means, averaged over the columns after the group's number."""
    return np.asarray(mean_pairwise_difference(group_means(table, weights)).mean(axis=1))
