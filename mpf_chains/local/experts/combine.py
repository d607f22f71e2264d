"""How a base model's logits and its experts' become one distribution: pure functions of tensors."""

from __future__ import annotations

from typing import Literal

import torch

from mpf_chains.errors import GenerationError, InvalidInput

Filter = Literal["last", "base_first"]
_FIRST_CANDIDATES = 512  # a nucleus is nearly always inside these; if it is not, all tokens are sorted


def combine(base: torch.Tensor, contrast: torch.Tensor, size: int) -> torch.Tensor:
    """z̃ = z + Σ α (z⁺ − z⁻). What the base rules out (−inf) stays ruled out.

    Source: arXiv 2412.01711; DExperts, arXiv 2105.03023, equation 1.

    Args:
        base: z, shape (..., columns).
        contrast: What is added, shape (..., at least ``size``).
        size: Tokens of the vocabulary. Columns behind it are padding; they become −inf.

    Returns:
        As ``base``.

    Raises:
        GenerationError: If the contrast is not finite.

    Examples:
        >>> combine(torch.tensor([1.0, -torch.inf, 2.0]), torch.tensor([0.5, 3.0]), 2).tolist()
        [1.5, -inf, -inf]
    """
    contrast = contrast[..., :size].to(base.device)
    if not contrast.isfinite().all():
        raise GenerationError("The experts' logits, times alpha, are not all finite.", hint="Lower alpha.")
    moved = torch.full_like(base, float("-inf"))
    moved[..., :size] = (base[..., :size].float() + contrast).to(base.dtype)
    return moved


def nucleus(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """Which tokens are in the smallest set of the most probable ones whose probability reaches ``top_p``.

    Source: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", equation 2.

    Args:
        logits: Shape (rows, vocabulary).
        top_p: In (0, 1]. 1 keeps all that are possible.

    Returns:
        Booleans, same shape; at least one True in each row.

    Examples:
        >>> nucleus(torch.tensor([[0.5, 0.1, 0.15, 0.25]]).log(), 0.6).tolist()
        [[True, False, False, True]]
    """
    if top_p >= 1:
        return logits > float("-inf")
    logits = logits.float()
    total = logits.logsumexp(-1, keepdim=True)
    size = min(_FIRST_CANDIDATES, logits.shape[-1])
    while True:
        values, ids = logits.topk(size)  # far cheaper than sorting the vocabulary
        probabilities = (values - total).exp()
        mass = probabilities.cumsum(-1)
        if size == logits.shape[-1] or bool((mass[:, -1] >= top_p).all()):
            return torch.zeros_like(logits, dtype=torch.bool).scatter(1, ids, mass - probabilities < top_p)
        size = logits.shape[-1]


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


def check_filter(kind: str, top_p: float) -> None:
    """Whether the filter and its share are among those that exist.

    Raises:
        InvalidInput: If not.
    """
    if kind not in {"last", "base_first"}:
        raise InvalidInput(f"`filter` is {kind!r}; it must be 'last' or 'base_first'.")
    if not 0 < top_p <= 1:
        raise InvalidInput(f"`top_p` is {top_p}; it must lie in (0, 1].")
    if kind == "last" and top_p != 1:
        raise InvalidInput(
            f"`top_p` is {top_p} and `filter` is 'last': the sampler filters then.",
            hint="Pass `top_p` to `model.generate`, or set `filter='base_first'`.",
        )
