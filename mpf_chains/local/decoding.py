"""The decode loop: many rows through one causal language model, each leaving as soon as it is finished."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer as _DynamicLayer

from mpf_chains.local.sampling import Sampling, pick

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DynamicLayer: Any = _DynamicLayer  # parts of transformers are untyped
Openings = tuple[tuple[int, ...], ...]
_BLOCK = 128  # columns by which a cache buffer grows


class Row(Protocol):
    """One sequence being generated."""

    prompt: Sequence[int]
    sampling: Sampling
    uniforms: NDArray[np.float32]

    def push(self, token: int) -> bool:
        """Take the next token; True when the row needs no more."""
        ...

    def note(self, logprob: float, top: list[tuple[int, float]]) -> None:
        """Hear of the next token's log-probability before `push`; called only if ``sampling.top_logprobs`` is set."""
        ...


def decode(model: PreTrainedModel, rows: Sequence[Row], pad: int = 0) -> int:
    """Generate until every row is finished.

    Prompts are padded on the left; equal prompts are read once; a finished row leaves the batch, and the cache, at
    once. Rows do not see each other: apart from rounding, each gets what it would get alone.

    Args:
        model: A causal language model whose keys and values are held in a ``DynamicCache``.
        rows: What to generate; ``push`` is called once per row and step, in the calling thread.
        pad: Any valid token id; padding is masked.

    Returns:
        Number of forward passes.
    """
    with torch.inference_mode():
        accepted = inspect.signature(model.forward).parameters
        logits, cache, mask = _prefill(model, rows, pad, accepted)
        uniforms = torch.from_numpy(_stack([row.uniforms for row in rows])).to(model.device)
        live = list(rows)
        openings = [row.sampling.openings for row in live]
        steps = 1
        while True:
            allowed = _within(logits, openings) if any(openings) else logits
            tokens = pick(allowed, [row.sampling for row in live], uniforms[:, steps - 1])
            _note(logits, tokens, live)
            openings = [_rests(each, token) for each, token in zip(openings, tokens.tolist(), strict=True)]
            finished = [row.push(token) for row, token in zip(live, tokens.tolist(), strict=True)]
            if any(finished):
                order = _without(finished)
                if not order:
                    return steps
                live, openings = [live[i] for i in order], [openings[i] for i in order]
                index = torch.tensor(order, device=model.device)
                tokens, mask, uniforms = tokens[index], mask[index], uniforms[index]
                cache.batch_select_indices(index)
            mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=1)
            logits = _forward(model, tokens[:, None], mask, cache, accepted)
            steps += 1


def _prefill(
    model: PreTrainedModel, rows: Sequence[Row], pad: int, accepted: Any
) -> tuple[torch.Tensor, DynamicCache, torch.Tensor]:
    """Read the distinct prompts; then one logits row, cache row and mask row for each of the rows."""
    distinct = {tuple(row.prompt): None for row in rows}
    position = {prompt: i for i, prompt in enumerate(distinct)}
    longest = max(map(len, distinct))
    ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in distinct], device=model.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in distinct], device=model.device)
    cache = DynamicCache(config=model.config)
    logits = _forward(model, ids, mask, cache, accepted)
    index = torch.tensor([position[tuple(row.prompt)] for row in rows], device=model.device)
    layers: list[Any] = cache.layers
    for i, layer in enumerate(layers):
        if type(layer) is DynamicLayer:
            layers[i] = _BufferedLayer(layer, index)
        else:
            layer.batch_select_indices(index)
    return logits[index], cache, mask[index]


def _forward(
    model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, cache: DynamicCache, accepted: Any
) -> torch.Tensor:
    """Logits after the last position, shape (rows, vocabulary)."""
    arguments: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
    if "position_ids" in accepted:
        arguments["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    output = model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **arguments)
    logits: torch.Tensor = output.logits[:, -1]
    return logits


def _within(logits: torch.Tensor, openings: Sequence[Openings]) -> torch.Tensor:
    """Logits in which a row that has openings left has only their first tokens."""
    within = logits.clone()
    for row, each in enumerate(openings):
        if each:
            first = torch.tensor([opening[0] for opening in each], device=logits.device)
            within[row] = float("-inf")
            within[row, first] = logits[row, first]
    return within


def _rests(openings: Openings, token: int) -> Openings:
    """What of the openings is left after this token; nothing once one of them is complete.

    Examples:
        >>> _rests(((5, 6, 7), (5, 8), (9,)), 5)
        ((6, 7), (8,))
    """
    rests = tuple(opening[1:] for opening in openings if opening[0] == token)
    return rests if all(rests) else ()


def _note(logits: torch.Tensor, tokens: torch.Tensor, rows: Sequence[Row]) -> None:
    """Tell the rows that want it how probable their tokens were."""
    wanted = {i: k for i, row in enumerate(rows) if (k := row.sampling.top_logprobs) is not None}
    if not wanted:
        return
    index = torch.tensor(list(wanted), device=logits.device)
    scores = logits[index]
    scores = (scores if scores.dtype == torch.float64 else scores.float()).log_softmax(-1)
    chosen = scores.gather(1, tokens[index, None])[:, 0].tolist()
    values, ids = scores.topk(min(max(wanted.values()), scores.shape[-1]))
    for i, logprob, top, names in zip(wanted, chosen, values.tolist(), ids.tolist(), strict=True):
        rows[i].note(logprob, list(zip(names, top, strict=True))[: wanted[i]])


def _without(finished: Sequence[bool]) -> list[int]:
    """Indices of unfinished rows, the last of them moved into the gaps: few rows of the cache have to be copied.

    Examples:
        >>> _without([False, True, False, False])
        [0, 3, 2]
    """
    order = [i for i, done in enumerate(finished) if not done]
    tail = [i for i in order if i >= len(order)]
    return [tail.pop() if finished[i] else i for i in range(len(order))]


def _stack(streams: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Streams of different lengths as one array; what lies after a stream's end is never read."""
    stacked = np.zeros((len(streams), max(map(len, streams))), dtype=np.float32)
    for row, stream in zip(stacked, streams, strict=True):
        row[: len(stream)] = stream
    return stacked


class _BufferedLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer in a buffer with room to grow.

    The layer of transformers concatenates, and so copies all of it, at every step, and copies it again to drop a row.
    Here a step was 5 to 10 % faster (batch of 32, 140 positions, CPU), and dropping a row copies at most one other.

    Args:
        layer: A filled layer of transformers.
        index: Which of its rows to take, with repetitions.
    """

    def __init__(self, layer: Any, index: torch.Tensor) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = layer.dtype, layer.device, True
        self._length = layer.keys.shape[-2]
        self._buffers = [_widen(states[index], _BLOCK) for states in (layer.keys, layer.values)]
        self._view()

    def _view(self) -> None:
        self.keys, self.values = (buffer[:, :, : self._length] for buffer in self._buffers)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        start, self._length = self._length, self._length + key_states.shape[-2]
        for i, states in enumerate((key_states, value_states)):
            if self._length > self._buffers[i].shape[-2]:
                self._buffers[i] = _widen(self._buffers[i], max(_BLOCK, states.shape[-2]))
            self._buffers[i][:, :, start : self._length] = states
        self._view()
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows. A row moves only to a place before its own, as `_without` orders them."""
        places = torch.arange(len(indices), device=indices.device)
        moved = indices != places
        for i, buffer in enumerate(self._buffers):
            buffer[places[moved], :, : self._length] = buffer[indices[moved], :, : self._length]
            self._buffers[i] = buffer[: len(indices)]
        self._view()


def _widen(states: torch.Tensor, columns: int) -> torch.Tensor:
    rows, heads, length, size = states.shape
    buffer = states.new_zeros(rows, heads, length + columns, size)
    buffer[:, :, :length] = states
    return buffer
