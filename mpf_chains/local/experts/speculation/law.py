"""The laws of the next tokens as tensors, and the rule by which a draft from another law becomes a draw from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.nn.functional import one_hot

from mpf_chains.local.experts.combine import combine
from mpf_chains.local.sampling import Sampling, invert, nucleus, truncate


class Laws:
    """From a model's logits and the experts' contrasts to the laws that the next tokens of several rows are drawn by.

    The same function makes the target (of the base's logits) and the draft's law (of the small model's).

    Args:
        rows: How each row chooses. With ``filter`` "last" its `top_p` is of the combined law, after temperature and
            `top_k`; with "base_first" it is of the model's own law, before anything else.
        size: Tokens of the vocabulary.

    Attributes:
        greedy: Whether all rows take the most probable token always.
        needs_base: Whether some row filters by a model's own law.
    """

    def __init__(self, rows: Sequence[Sampling], size: int) -> None:
        self._size, self._rows = size, rows
        self.greedy = all(row.greedy for row in rows)
        self._temperatures = torch.tensor([row.temperature or 1.0 for row in rows])
        self._first = [i for i, row in enumerate(rows) if row.filter == "base_first" and row.top_p < 1]
        self.needs_base = bool(self._first)
        self._greedy = [i for i, row in enumerate(rows) if row.greedy]
        self._last = [
            i for i, row in enumerate(rows)
            if not row.greedy and (row.top_k is not None or (row.top_p < 1 and row.filter == "last"))
        ]  # fmt: skip

    def probabilities(self, logits: torch.Tensor, contrast: torch.Tensor) -> torch.Tensor:
        """The law of the next token: z + contrast, filtered; of a greedy row all mass is on one token.

        Args:
            logits: z, a model's, shape (rows, columns, at least ``size``).
            contrast: Σ α (z⁺ − z⁻), finite, same shape but perhaps another number of tokens behind ``size``.

        Returns:
            float32, shape (rows, columns, ``size``).

        Examples:
            >>> z, contrast = torch.tensor([[[0.3, 0.6, 0.1]]] * 2).log(), torch.tensor([[[1.0, 0.0, 0.0]]] * 2)
            >>> Laws([Sampling(), Sampling(temperature=0)], 3).probabilities(z, contrast)
            tensor([[[0.5381, 0.3959, 0.0660]],
            <BLANKLINE>
                    [[1.0000, 0.0000, 0.0000]]])
        """
        size = self._size
        base, contrast = logits[..., :size].float(), contrast[..., :size]
        scores = combine(base, contrast, size)
        if self.needs_base:
            some = base[self._first]
            shares = [self._rows[i].top_p for i in self._first for _ in range(some.shape[1])]
            inside = nucleus(some.flatten(0, 1), shares).reshape(some.shape)
            scores[self._first] = scores[self._first].masked_fill(~inside, float("-inf"))
        if self.greedy:
            law = torch.zeros_like(scores)
        else:
            scores = scores / self._temperatures.to(scores.device)[:, None, None]
            law = scores.softmax(-1)
        if self._last:
            law[self._last] = _kept(scores[self._last], [_after(self._rows[i]) for i in self._last])
        if self._greedy:
            law[self._greedy] = one_hot(scores[self._greedy].argmax(-1), size).to(law.dtype)
        return law

    def draw(self, law: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        """One token from each law.

        Args:
            law: From `probabilities`, or anything proportional to it, shape (rows, columns, size).
            uniforms: In [0, 1), shape (rows, columns).

        Returns:
            Token ids, shape (rows, columns).
        """
        if self.greedy:
            return law.argmax(-1)
        return invert(law.flatten(0, 1), uniforms.to(law.device).flatten()).reshape(uniforms.shape)

    def settle(
        self, target: torch.Tensor, draft: torch.Tensor | None, drafts: torch.Tensor, uniforms: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Accept drafts or replace them, so that what comes out is drawn from the target whatever drafted.

        A draft x from q stays with probability min(1, p(x) / q(x)); otherwise the token is drawn from
        max(p − q, 0), normalised. Source: Leviathan et al. 2023, arXiv 2211.17192, algorithm 1; Chen et al. 2023,
        arXiv 2302.01318. A draft that was not drawn but looked up has q(x) = 1; then drawing from p and comparing is
        the same rule.

        Args:
            target: p, shape (rows, columns, size).
            draft: q, which the drafts were drawn from, same shape. None: they were looked up.
            drafts: Token ids, shape (rows, columns).
            uniforms: In [0, 1), shape (rows, columns, 2), independent of each other and of what drew the drafts.

        Returns:
            Token ids, and whether each is its accepted draft; both of shape (rows, columns).
        """
        drafts, uniforms = drafts.to(target.device), uniforms.to(target.device)
        if draft is None or self.greedy:
            tokens = self.draw(target, uniforms[..., 1])
            return tokens, tokens == drafts
        draft = draft.to(target.device)
        chosen = drafts[..., None]
        accepted = uniforms[..., 0] * draft.gather(-1, chosen)[..., 0] < target.gather(-1, chosen)[..., 0]
        rest = (target - draft).clamp(min=0)
        rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, target)  # equal laws, apart from rounding
        return torch.where(accepted, drafts, self.draw(rest, uniforms[..., 1])), accepted


def _after(row: Sampling) -> Sampling:
    """What a row filters the combined law by."""
    return replace(row, top_p=1.0) if row.filter == "base_first" else row


def _kept(scores: torch.Tensor, rows: Sequence[Sampling]) -> torch.Tensor:
    """The law of what each row's top_k and top_p keep; scores have shape (rows, columns, size)."""
    flat = scores.flatten(0, 1)
    kept, ids = truncate(flat, [row for row in rows for _ in range(scores.shape[1])])
    return torch.zeros_like(flat).scatter_(-1, ids, kept / kept.sum(-1, keepdim=True)).reshape(scores.shape)
