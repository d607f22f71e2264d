"""Sequences that several models read together, each position once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mpf_chains.local.experts.models.cache import BufferedLayer, DynamicLayer, buffered, crop, select
from mpf_chains.local.experts.models.variants import Variants

_PADDING = -1
Tokens = NDArray[np.int64]


class Reader:
    """Reads growing sequences and remembers what it has read.

    What comes back depends on the tokens asked for alone: states of what was read before are used only where the
    tokens (and the padding before them) are the same, whichever row they stood in. So beams may move between rows,
    rows may come and go, the end of a sequence may be taken back, and equal rows are read once.

    Args:
        members: Models that read the same sequences.

    Attributes:
        positions: Columns that each model has read so far, over all calls. A prompt of 9 tokens and 4 more, one by
            one, are 13, however many rows there are.
    """

    def __init__(self, members: Sequence[Variants]) -> None:
        self.members = tuple(members)
        self.positions = 0
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._known: Tokens = np.empty((0, 0), dtype=np.int64)
        self._caches: list[Any] = [member.new_cache() for member in self.members]

    @property
    def known(self) -> int:
        """Columns that are remembered."""
        return int(self._known.shape[1])

    @property
    def croppable(self) -> bool:
        """Whether the end of a sequence can be taken back without reading it again: no windows, no recurrence."""
        plain = (DynamicLayer, BufferedLayer)
        return all(type(layer) in plain for cache in self._caches for layer in cache.layers)

    def read(self, ids: torch.Tensor, mask: torch.Tensor | None = None, keep: int = 1) -> list[torch.Tensor]:
        """States after the last columns of these sequences.

        Args:
            ids: Whole sequences, padded on the left, shape (rows, columns).
            mask: 1 for text, 0 for padding, same shape. None (default): no padding. Where `croppable`, padding may
                lie inside a sequence too: a draft that was rejected while other rows' drafts were not.
            keep: Last columns to return states of; at least 1. Default 1.

        Returns:
            For each member its states, shape (variants, rows, keep, size); see `Variants.logits`.

        Raises:
            InvalidInput: If a sequence is longer than a model's context.
        """
        self.check_length(ids.shape[1] if mask is None else int(mask.sum(1).max()))
        tokens = (ids if mask is None else torch.where(mask.bool(), ids, _PADDING)).cpu().numpy()
        index: dict[bytes, int] = {}
        inverse: list[int] = []
        firsts: list[int] = []
        for i, row in enumerate(tokens):
            inverse.append(index.setdefault(row.tobytes(), len(index)))
            if inverse[-1] == len(firsts):
                firsts.append(i)
        distinct = tokens[firsts]
        self._go_to(distinct, keep)
        start = self.known
        padding = torch.from_numpy(distinct == _PADDING)
        visible = (~padding).long() if padding.any() else None
        new = torch.from_numpy(np.where(distinct == _PADDING, 0, distinct)[:, start:])
        states = []
        for member, cache in zip(self.members, self._caches, strict=True):
            device = member.model.device
            here = None if visible is None else visible.to(device)
            states.append(member.read(new.to(device), here, cache, keep))
        self._caches = [buffered(cache) for cache in self._caches]
        self._known = distinct
        self.positions += distinct.shape[1] - start
        if len(index) == len(inverse):
            return states
        return [each[:, torch.tensor(inverse, device=each.device)] for each in states]

    def check_length(self, length: int) -> None:
        """Whether all members can read that many positions.

        Raises:
            InvalidInput: If one cannot.
        """
        for member in self.members:
            member.check_length(length)

    def _go_to(self, rows: Tokens, keep: int) -> None:
        """Make the caches hold, for each of these rows, some of its first columns, and leave ``keep`` unread."""
        known, most = self._known, rows.shape[1] - keep
        if 0 < self.known <= most:
            place = {row.tobytes(): i for i, row in enumerate(known)}
            parents = [place.get(row.tobytes(), -1) for row in np.ascontiguousarray(rows[:, : self.known])]
            if -1 not in parents:
                if parents != list(range(len(known))):
                    for member, cache in zip(self.members, self._caches, strict=True):
                        select(cache, parents, groups=len(member), rows=len(known))
                return
        parents, shared = _continued(known, rows, most)
        if shared <= 0 or not all(crop(cache, self.known - shared) for cache in self._caches):
            self.reset()
            return
        if parents != list(range(len(known))):
            for member, cache in zip(self.members, self._caches, strict=True):
                select(cache, parents, groups=len(member), rows=len(known))
        self._known = known[parents, :shared]


def _continued(known: Tokens, rows: Tokens, most: int) -> tuple[list[int], int]:
    """For each row the known one that shares most of its first columns, and how many all share with theirs."""
    shared = min(known.shape[1], most)
    parents: list[int] = []
    if shared <= 0:
        return parents, 0
    for i, row in enumerate(rows):
        usable = _usable(known[:, :shared], row[:shared])
        best = int(usable.argmax())
        parents.append(i if i < len(known) and usable[i] == usable[best] else best)
        shared = min(shared, int(usable[best]))
    return parents, shared


def _usable(known: Tokens, row: Tokens) -> NDArray[np.int64]:
    """First columns of each known row whose states are the new row's, too.

    A token may have become padding since it was read, if none behind it, which has seen it, is still text.
    """
    hidden = (row == _PADDING) & (known != _PADDING)
    seen = np.logical_or.accumulate(hidden, axis=1) & (row != _PADDING)
    wrong = ((known != row) & ~hidden) | seen
    columns: NDArray[np.int64] = np.where(wrong.any(axis=1), wrong.argmax(axis=1), known.shape[1])
    return columns
