"""A base model and its experts side by side: for each next token all of them give their logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from mpf_chains.local.decoding import Alone, Row, padded
from mpf_chains.local.experts.combine import combine
from mpf_chains.local.experts.ensemble import ExpertEnsemble, check_columns

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Lockstep:
    """The logits of the law z̃ = z + Σₐ αₐ (z⁺ₐ − z⁻ₐ), for `mpf_chains.local.decoding.decode`.

    Source: arXiv 2412.01711; DExperts, arXiv 2105.03023, equation 1. Experts read what was written when their logits
    are asked for, and each position once. Pairs on the base model itself are rows of one pass together with it.

    Args:
        model: The base model.
        ensemble: Pairs of which at least one moves something; made with ``untuned=True`` if all are on the base, unless
            ``alone`` is given.
        rows: Their prompts are read.
        alphas: Strengths, shape (rows, pairs).
        size: Tokens of the vocabulary.
        pad: Any valid token id.
        alone: Reads the rows for the base model. None (default): the base model as it is, or the ensemble if all are on
            it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        ensemble: ExpertEnsemble,
        rows: Sequence[Row],
        alphas: torch.Tensor,
        size: int,
        pad: int = 0,
        alone: Alone | None = None,
    ) -> None:
        self._ensemble, self._rows, self._alphas, self._size = ensemble, list(rows), alphas, size
        self._ids, mask = padded([row.prompt for row in rows], pad)
        self._mask = None if bool(mask.all()) else mask
        self._reader = ensemble.reader()
        with torch.inference_mode():
            self._alone = alone or (None if ensemble.untuned else Alone(model, rows, pad))

    @cached_property
    def _states(self) -> list[torch.Tensor]:
        return self._reader.read(self._ids, self._mask)

    @cached_property
    def base(self) -> torch.Tensor:  # noqa: D102 - described by the protocol
        if self._alone is None:
            base = self._ensemble.logits(self._states, torch.zeros_like(self._alphas), untuned=1)[:, 0]
        else:
            base = self._alone.base
            check_columns(self._size, base)
        return base[:, : self._size]

    @cached_property
    def logits(self) -> torch.Tensor:  # noqa: D102
        if self._alone is None:
            return self._finite(self._ensemble.logits(self._states, self._alphas, untuned=1))
        contrast = self._finite(self._ensemble.logits(self._states, self._alphas))
        return combine(self.base, contrast, self._size)

    def contrasts(self) -> Mapping[str, torch.Tensor]:  # noqa: D102
        found = self._ensemble.contributions(self._states)[:, :, 0, : self._size]
        return {pair.name: found[:, i] for i, pair in enumerate(self._ensemble.pairs)}

    def keep(self, order: Sequence[int]) -> None:  # noqa: D102
        index = torch.tensor(order)
        self._rows = [self._rows[i] for i in order]
        self._ids, self._alphas = self._ids[index], self._alphas[index]
        self._mask = None if self._mask is None else self._mask[index]
        if self._alone is not None:
            self._alone.keep(order)

    def step(self, tokens: torch.Tensor) -> None:  # noqa: D102
        for known in ("_states", "base", "logits"):
            self.__dict__.pop(known, None)
        self._ids = torch.cat([self._ids, tokens.cpu()[:, None]], dim=1)
        if self._mask is not None:
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        if self._alone is not None:
            self._alone.step(tokens)

    def _finite(self, logits: torch.Tensor) -> torch.Tensor:
        """Those of the vocabulary, shape (rows, size); rows that are not finite end, each by itself."""
        rows = self._rows
        logits = logits[..., : self._size]
        return self._ensemble.finite(logits, self._states, lambda i, error: rows[i].fail(error))[:, 0]
