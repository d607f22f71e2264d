"""Keys and values in buffers with room to grow, whose rows can be reordered and whose last columns can be cut off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer as _DynamicLayer

DynamicLayer: Any = _DynamicLayer  # parts of transformers are untyped
_BLOCK = 128  # columns by which a buffer grows


class BufferedLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer; a step writes its column where transformers' layer would copy all the others.

    Args:
        layer: A filled layer of transformers.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = layer.dtype, layer.device, True
        self._buffers = [_widen(states, _BLOCK) for states in (layer.keys, layer.values)]
        self._show(layer.keys.shape[-2])

    def _show(self, length: int) -> None:
        self._length = length
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put new columns behind the others; returns all keys and all values."""
        start, length = self._length, self._length + key_states.shape[-2]
        for i, states in enumerate((key_states, value_states)):
            if length > self._buffers[i].shape[-2]:
                self._buffers[i] = _widen(self.values if i else self.keys, max(_BLOCK, states.shape[-2]))
            self._buffers[i][:, :, start:length] = states
        self._show(length)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Make row i what row ``indices[i]`` is now; rows may be repeated and left out. Copies those that move."""
        places = torch.arange(len(indices), device=indices.device)
        moved = indices != places
        if len(indices) <= len(self.keys):
            for buffer in self._buffers:
                buffer[places[moved], :, : self._length] = buffer[indices[moved], :, : self._length]
            self._buffers = [buffer[: len(indices)] for buffer in self._buffers]
        else:
            self._buffers = [buffer[indices] for buffer in self._buffers]
        self._show(self._length)

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last columns; the number is negative, as in transformers."""
        self._show(self._length - abs(tokens_to_remove))


def buffered(cache: Any) -> Any:
    """The cache, with buffers in place of those layers that are plain (no sliding window, no recurrent state)."""
    for i, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[i] = BufferedLayer(layer)
    return cache


def select(cache: Any, parents: Sequence[int], groups: int, rows: int) -> None:
    """Reorder the rows within each group of rows.

    Args:
        cache: Holds ``groups · rows`` rows.
        parents: For each new row of a group the old row it continues.
        groups: Number of groups.
        rows: Rows of a group now.
    """
    index = torch.tensor([group * rows + parent for group in range(groups) for parent in parents])
    with torch.inference_mode():
        for layer in cache.layers:
            if layer.is_initialized:  # layers that borrow the states of others are not
                layer.batch_select_indices(index.to(layer.device))


def crop(cache: Any, columns: int) -> bool:
    """Drop the last columns. False, with nothing changed, where the cache cannot be put back as it was."""
    if columns and not all(isinstance(layer, BufferedLayer) for layer in cache.layers):
        return False
    for layer in cache.layers:
        layer.crop(-columns)
    return True


def _widen(states: torch.Tensor, columns: int) -> torch.Tensor:
    rows, heads, length, size = states.shape
    buffer = states.new_zeros(rows, heads, length + columns, size)
    buffer[:, :, :length] = states
    return buffer
