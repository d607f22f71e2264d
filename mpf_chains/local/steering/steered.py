"""A model under a steering adapter."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from mpf_chains.local.experts.models.lora import BatchedLoRA
from mpf_chains.local.steering.adapter import SteeringAdapter
from mpf_chains.local.steering.calibration.calibration import Calibrated, calibrate
from mpf_chains.local.steering.calibration.states import last_states, output_layer, read_states
from mpf_chains.local.steering.tokens import vocabulary_size
from mpf_chains.targets.table import TargetTable
from mpf_chains.targets.templates import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Steered:
    """A model with an adapter: inside `active` it takes the ids of new tokens, and its low-rank changes are on.

    The model's own weights stay as they are; the hooks go when this object does.

    Args:
        model: The model, without an adapter in it.
        tokenizer: Its tokenizer.
        adapter: What steers it.

    Attributes:
        ids: The id of each class's token.

    Raises:
        InvalidInput: If the adapter does not fit the model.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, adapter: SteeringAdapter) -> None:
        adapter.check(model, tokenizer)
        self.ids = adapter.tokens.ids(model, tokenizer)
        self._model, self._here = model, _Here()
        self._output = adapter.output_rows.to(model.device)
        self._lora = None if adapter.lora is None else BatchedLoRA(model, [adapter.lora])
        rows = adapter.input_rows
        handles = [] if rows is None else embedding_hooks(model, rows.to(model.device), self._here)
        handles.append(output_layer(model).register_forward_pre_hook(_Note(self._here)))
        weakref.finalize(self, _remove, handles)

    @contextmanager
    def active(self) -> Iterator[None]:
        """While open, forward passes of this thread are steered."""
        here = self._here
        before, here.on = here.on, True
        try:
            with nullcontext() if self._lora is None else self._lora.active():
                yield
        finally:
            here.on = before

    @property
    def states(self) -> torch.Tensor:
        """What the output layer got at the last position of the last steered pass of this thread: (rows, width)."""
        if self._here.states is None:
            raise RuntimeError("This thread has read nothing.")
        return self._here.states

    def shares_of(self, states: torch.Tensor, logits: torch.Tensor) -> NDArray[np.float64]:
        """The classes' shares where answers begin.

        Args:
            states: Shape (rows, width): what the output layer got there.
            logits: Shape (rows, vocabulary): what it gave.

        Returns:
            Shape (rows, classes); each row sums to 1.
        """
        found = class_log_probabilities(states, logits, self._output, self.ids).double().softmax(-1)
        return np.asarray(found.cpu().numpy())

    def log_probabilities(self, prompts: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """Log-probability (nats) with which an answer begins with each class's token, among all tokens.

        Args:
            prompts: Token ids of whole prompts, read together.

        Returns:
            Shape (prompts, classes).
        """
        with torch.inference_mode(), self.active():
            states, logits = last_states(self._model, prompts)
            found = class_log_probabilities(states, logits, self._output, self.ids)
        return np.asarray(found.double().cpu().numpy())

    def shares(self, prompts: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """The same as shares of the classes: what ``draw="model"`` draws from; each row sums to 1."""
        found = np.exp(self.log_probabilities(prompts))
        return np.asarray(found / found.sum(axis=1, keepdims=True))


def class_log_probabilities(
    states: torch.Tensor, logits: torch.Tensor, rows: torch.Tensor, ids: Sequence[int]
) -> torch.Tensor:
    """Log-probabilities (nats) of the classes' tokens among all tokens, where an answer begins.

    Args:
        states: Shape (rows, width): what the output layer got.
        logits: Shape (rows, vocabulary): what it gave.
        rows: Shape (classes, width): of new tokens their output rows, of existing ones what is added to theirs.
        ids: Of the tokens; new ones lie behind the vocabulary.

    Returns:
        Shape (rows, classes).
    """
    wide = logits.float()
    if max(ids) >= wide.shape[1]:
        wide = functional.pad(wide, (0, max(ids) + 1 - wide.shape[1]), value=float("-inf"))
        wide[:, list(ids)] = 0.0
    index = torch.tensor(list(ids), device=wide.device)
    moved = wide.index_add(1, index, states.float() @ rows.T)
    return moved[:, index] - moved.logsumexp(-1, keepdim=True)


def embedding_hooks(model: PreTrainedModel, rows: torch.Tensor, here: _Here | None = None) -> list[Any]:
    """Give the ids behind a model's vocabulary embeddings of their own.

    Args:
        model: The model.
        rows: Shape (tokens, width).
        here: Says when, and in which threads. None (default): always.

    Returns:
        Handles, whose ``remove`` takes it back.
    """
    size = vocabulary_size(model)
    layer: Any = model.get_input_embeddings()
    here = here or _Everywhere()
    before, after = _Clamp(here, size), _Replace(here, size, rows)
    return [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]


class _Here(threading.local):
    """What hooks know of the thread that runs the model."""

    on = False
    ids: torch.Tensor | None = None
    states: torch.Tensor | None = None


class _Everywhere(_Here):
    on = True


class _Hook:
    """What a module calls."""

    def __init__(self, here: _Here) -> None:
        self._here = here

    def __reduce__(self) -> tuple[type[_Nothing], tuple[()]]:
        return _Nothing, ()  # a copy of the model is the model as it is


class _Nothing:
    """What stands in a copied or pickled model where a hook was."""

    def __call__(self, *_: Any) -> None:
        return


class _Clamp(_Hook):
    def __init__(self, here: _Here, size: int) -> None:
        super().__init__(here)
        self._size = size

    def __call__(self, _layer: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        if not self._here.on:
            return None
        self._here.ids = inputs[0]
        return (inputs[0].clamp(max=self._size - 1), *inputs[1:])


class _Replace(_Hook):
    def __init__(self, here: _Here, size: int, rows: torch.Tensor) -> None:
        super().__init__(here)
        self._size, self._rows = size, rows

    def __call__(self, _layer: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        ids, self._here.ids = self._here.ids, None
        if not self._here.on or ids is None or not (ids >= self._size).any():
            return None
        new = ids - self._size
        return torch.where((new >= 0)[..., None], self._rows.to(output.dtype)[new.clamp(min=0)], output)


class _Note(_Hook):
    def __call__(self, _layer: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        if self._here.on:
            self._here.states = inputs[0][:, -1]


def _remove(handles: Sequence[Any]) -> None:
    for handle in handles:
        handle.remove()


def refit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    adapter: SteeringAdapter,
    prompts: Sequence[Prompt],
    *,
    targets: TargetTable | None = None,
    ridge: float | None = 1e-4,
) -> tuple[SteeringAdapter, Calibrated]:
    """Set the output rows of an adapter to the optimum of the KL to the targets, everything else as it is.

    Args:
        model: The model, without an adapter in it.
        tokenizer: Its tokenizer.
        adapter: Whose rows to fit; its low-rank changes take part.
        prompts: About contexts of the targets.
        targets: Default: the adapter's own. Give others to add inferred ones.
        ridge: See `calibrate`; None chooses it. Default 1e-4, which fits the known contexts closely.

    Returns:
        The adapter with other output rows and these targets, and the fit.

    Raises:
        InvalidInput: If the adapter does not fit the model, or a context has no target.
        NotConverged: If the fit fails.
    """
    wanted = adapter.targets if targets is None else targets
    with Steered(model, tokenizer, adapter).active():
        readings = read_states(model, tokenizer, prompts, adapter.tokens)
    found = calibrate(readings, wanted, ridge=ridge)
    return replace(adapter, output_rows=torch.tensor(found.fit.rows), targets=wanted), found
