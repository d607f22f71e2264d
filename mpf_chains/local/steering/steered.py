"""A model under a steering adapter."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from mpf_chains.local.experts.models.lora import BatchedLoRA
from mpf_chains.local.hooks import OwnedHook
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

    The model's own weights stay as they are; the hooks go after this object has; see `OwnedHook`.

    Args:
        model: The model, without an adapter in it.
        tokenizer: Its tokenizer.
        adapter: What steers it.

    Attributes:
        ids: The id of each class's token.
        plain_opening: Whether answers begin as if there were no steering token.

    Raises:
        InvalidInput: If the adapter does not fit the model.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, adapter: SteeringAdapter) -> None:
        adapter.check(model, tokenizer)
        self.ids = adapter.tokens.ids(model, tokenizer)
        self.plain_opening = adapter.plain_opening
        self._model, self._here = model, _Here()
        self._output = adapter.output_rows.to(model.device)
        self._changes: list[BatchedLoRA | NewEmbeddings] = []
        if adapter.lora is not None:
            self._changes.append(BatchedLoRA(model, [adapter.lora]))
        if adapter.input_rows is not None:
            self._changes.append(NewEmbeddings(model, adapter.input_rows.to(model.device)))
        OwnedHook(self, Steered._note, output_layer(model).register_forward_pre_hook)

    @contextmanager
    def active(self) -> Iterator[None]:
        """While open, forward passes of this thread are steered."""
        here = self._here
        before, here.on = here.on, True
        try:
            with ExitStack() as stack:
                for change in self._changes:
                    stack.enter_context(change.active())
                yield
        finally:
            here.on = before

    def _note(self, _layer: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        if self._here.on:
            self._here.states = inputs[0][:, -1]

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


class NewEmbeddings:
    """Embeddings of their own for the ids behind a model's vocabulary, inside `active` and for the thread in there.

    Args:
        model: The model. Its own weights stay as they are; the hooks go after this object has; see `OwnedHook`.
        rows: Shape (tokens, width); read at each pass, so they can learn.
    """

    def __init__(self, model: PreTrainedModel, rows: torch.Tensor) -> None:
        self._size, self._rows, self._here = vocabulary_size(model), rows, _Here()
        layer: Any = model.get_input_embeddings()
        OwnedHook(self, NewEmbeddings._clamp, layer.register_forward_pre_hook)
        OwnedHook(self, NewEmbeddings._replace, layer.register_forward_hook)

    @contextmanager
    def active(self) -> Iterator[None]:
        """While open, forward passes of this thread know the new ids."""
        before, self._here.on = self._here.on, True
        try:
            yield
        finally:
            self._here.on = before

    def _clamp(self, _layer: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        if not self._here.on:
            return None
        self._here.ids = inputs[0]
        return (inputs[0].clamp(max=self._size - 1), *inputs[1:])

    def _replace(self, _layer: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        ids, self._here.ids = self._here.ids, None
        if not self._here.on or ids is None or not (ids >= self._size).any():
            return None
        new = ids - self._size
        return torch.where((new >= 0)[..., None], self._rows.to(output.dtype)[new.clamp(min=0)], output)


class _Here(threading.local):
    """What is on in a thread, and what its last pass read: the ids, or what the output layer got."""

    on = False
    ids: torch.Tensor | None = None
    states: torch.Tensor | None = None


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
