"""How a base model's logits and its experts' become one distribution: pure functions of tensors."""

from __future__ import annotations

import torch


def combine(base: torch.Tensor, contrast: torch.Tensor, size: int) -> torch.Tensor:
    """z̃ = z + Σ α (z⁺ − z⁻). What the base rules out (−inf) stays ruled out.

    Source: arXiv 2412.01711; DExperts, arXiv 2105.03023, equation 1.

    Args:
        base: z, shape (..., columns).
        contrast: What is added, finite, shape (..., at least ``size``).
        size: Tokens of the vocabulary. Columns behind it are padding; they become −inf.

    Returns:
        As ``base``.

    Examples:
        >>> combine(torch.tensor([1.0, -torch.inf, 2.0]), torch.tensor([0.5, 3.0]), 2).tolist()
        [1.5, -inf, -inf]
    """
    contrast = contrast[..., :size].to(base.device)
    moved = torch.full_like(base, float("-inf"))
    moved[..., :size] = (base[..., :size].float() + contrast).to(base.dtype)
    return moved


def keep_normalised(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Rows that came as log-probabilities leave as such.

    Beam search hands processors log-probabilities and adds up what comes back, so a row's sum must stay what it was.
    Rows whose exponentials sum to more than 1 are logits, and are returned as they are; a row of logits that is taken
    for log-probabilities is shifted by a constant, which changes no distribution.

    Args:
        before: Scores before processing, shape (rows, columns).
        after: Scores after it.
    """
    total = before.float().logsumexp(-1, keepdim=True)
    shift = total - after.float().logsumexp(-1, keepdim=True)
    return torch.where((total < 1e-3) & shift.isfinite(), after + shift.to(after.dtype), after)
