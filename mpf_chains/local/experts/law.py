"""The law of the next token as tensors, and the rule by which a draft from another law becomes a draw from it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mpf_chains.errors import InvalidInput
from mpf_chains.local.experts.combine import Filter, check_filter, combine, nucleus


@dataclass(frozen=True)
class Law:
    """From a model's logits and the experts' contrast to the scores that the next token is drawn by.

    The same function makes the target (of the base's logits) and the draft's law (of the small model's).

    Args:
        size: Tokens of the vocabulary.
        temperature: Divides the scores; 0: always the most probable token. Default 1.
        top_k: Keep the so many most probable tokens. None (default): all.
        top_p: In (0, 1]: keep the smallest set of the most probable tokens that reaches this share. Default 1.
        filter: "last" (default): `top_p` is of the combined law, after temperature and `top_k`. "base_first": of the
            model's own law, before anything else; see `mpf_chains.local.experts.combine`.

    Raises:
        InvalidInput: If a value is outside its range.
    """

    size: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    filter: Filter = "last"

    def __post_init__(self) -> None:
        check_filter(self.filter, self.top_p if self.filter == "base_first" else 1.0)
        if not 0 < self.top_p <= 1:
            raise InvalidInput(f"`top_p` is {self.top_p}; it must lie in (0, 1].")
        if not 0 <= self.temperature < float("inf"):
            raise InvalidInput(f"`temperature` is {self.temperature}; it must be 0 (greedy) or a positive number.")
        if self.top_k is not None and self.top_k < 1:
            raise InvalidInput(f"`top_k` is {self.top_k}; it must be at least 1, or None to keep all tokens.")

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature == 0

    def scores(self, logits: torch.Tensor, contrast: torch.Tensor) -> torch.Tensor:
        """Log-weights of the next token; −inf where it cannot be.

        Args:
            logits: A model's, shape (rows, columns, at least ``size``).
            contrast: Σ α (z⁺ − z⁻), same shape but perhaps another number of tokens behind ``size``.

        Returns:
            float32, shape (rows, columns, ``size``).

        Raises:
            GenerationError: If the contrast is not finite.

        Examples:
            >>> Law(3, temperature=0.5).scores(torch.tensor([[[1.0, 0.0, -torch.inf]]]), torch.ones(1, 1, 3))
            tensor([[[4., 2., -inf]]])
        """
        shape = (*logits.shape[:-1], self.size)
        logits = logits[..., : self.size].float().reshape(-1, self.size)
        moved = combine(logits, contrast[..., : self.size].reshape(-1, self.size), self.size)
        if self.filter == "base_first":
            moved = moved.masked_fill(~nucleus(logits, self.top_p), float("-inf"))
        if not self.greedy:
            moved = moved / self.temperature
            if self.top_k is not None and self.top_k < self.size:
                moved = moved.masked_fill(moved < moved.topk(self.top_k).values[:, -1:], float("-inf"))
            if self.filter == "last" and self.top_p < 1:
                moved = moved.masked_fill(~nucleus(moved, self.top_p), float("-inf"))
        return moved.reshape(shape)

    def draw(self, scores: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        """One token for each score row.

        Args:
            scores: From `scores`, shape (..., size).
            uniforms: In [0, 1), shape (...). Not used when greedy.

        Returns:
            Token ids, shape (...).
        """
        return scores.argmax(-1) if self.greedy else invert(scores.softmax(-1), uniforms)

    def settle(
        self, target: torch.Tensor, draft: torch.Tensor | None, drafts: torch.Tensor, uniforms: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Accept drafts or replace them, so that what comes out is drawn from the target whatever drafted.

        A draft x from q stays with probability min(1, p(x) / q(x)); otherwise the token is drawn from
        max(p − q, 0), normalised. Source: Leviathan et al. 2023, arXiv 2211.17192, algorithm 1; Chen et al. 2023,
        arXiv 2302.01318. A draft that was not drawn but looked up has q(x) = 1; then drawing from p and comparing is
        the same rule.

        Args:
            target: Scores of p, shape (rows, columns, size).
            draft: Scores of q, which the drafts were drawn from. None: they were looked up.
            drafts: Token ids, shape (rows, columns).
            uniforms: In [0, 1), shape (rows, columns, 2), independent of each other and of what drew the drafts.

        Returns:
            Token ids, and whether each is its accepted draft; both of shape (rows, columns).
        """
        drafts, uniforms = drafts.to(target.device), uniforms.to(target.device)
        if draft is None or self.greedy:
            tokens = self.draw(target, uniforms[..., 1])
            return tokens, tokens == drafts
        p, q = target.softmax(-1), draft.to(target.device).softmax(-1)
        chosen = drafts[..., None]
        accepted = uniforms[..., 0] * q.gather(-1, chosen)[..., 0] < p.gather(-1, chosen)[..., 0]
        rest = (p - q).clamp(min=0)
        rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, p)  # equal laws, apart from rounding
        return torch.where(accepted, drafts, invert(rest, uniforms[..., 1])), accepted


def invert(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """First index whose cumulative share exceeds a uniform number; never one of weight 0.

    Args:
        weights: At least 0, not all 0, shape (..., size).
        uniforms: In [0, 1), shape (...).

    Examples:
        >>> invert(torch.tensor([[0.0, 1.0, 3.0]]).expand(3, 3), torch.tensor([0.0, 0.24, 0.26])).tolist()
        [1, 1, 2]
    """
    mass = weights.double().cumsum(-1)
    total = mass[..., -1:]
    target = uniforms.to(mass.device)[..., None].double() * total
    target = torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))  # a product may round up
    return torch.searchsorted(mass, target.contiguous(), right=True)[..., 0]
