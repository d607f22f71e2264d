"""Sequences that several models read together, each position once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mpf_chains.local.experts.cache import buffered, crop, select
from mpf_chains.local.experts.variants import Variants

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

    def read(self, ids: torch.Tensor, mask: torch.Tensor | None = None, keep: int = 1) -> list[torch.Tensor]:
        """States after the last columns of these sequences.

        Args:
            ids: Whole sequences, padded on the left, shape (rows, columns).
            mask: 1 for text, 0 for padding, same shape. None (default): no padding.
            keep: Last columns to return states of; at least 1. Default 1.

        Returns:
            For each member its states, shape (variants, rows, keep, size); see `Variants.logits`.

        Raises:
            InvalidInput: If a sequence is longer than a model's context.
        """
        self.check_length(ids.shape[1])
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
        shared = min(_shared_columns(known, rows), most)
        if shared <= 0 or not all(crop(cache, self.known - shared) for cache in self._caches):
            self.reset()
        else:
            self._known = known[:, :shared]


def _shared_columns(one: Tokens, other: Tokens) -> int:
    """First columns that are the same in both, row for row."""
    if len(one) != len(other):
        return 0
    columns = min(one.shape[1], other.shape[1])
    same = (one[:, :columns] == other[:, :columns]).all(axis=0)
    return columns if same.all() else int(same.argmin())
