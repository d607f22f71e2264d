"""A model under a steering adapter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from mpf_chains.local.steering.adapter import SteeringAdapter
from mpf_chains.local.steering.calibration.calibration import Calibrated, calibrate
from mpf_chains.local.steering.calibration.states import last_states, read_states
from mpf_chains.local.steering.tokens import vocabulary_size
from mpf_chains.local.steering.training.templates import Prompt
from mpf_chains.targets.table import TargetTable

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Steered:
    """A model with an adapter: inside `active` it takes the ids of new tokens, and its low-rank changes are on.

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
        self._model, self._adapter = model, adapter
        self._output = adapter.output_rows.to(model.device)

    @contextmanager
    def active(self) -> Iterator[None]:
        """While open, whoever uses the model uses it steered: let nobody else."""
        adapter, model = self._adapter, self._model
        handles = [] if adapter.input_rows is None else embedding_hooks(model, adapter.input_rows.to(model.device))
        for name, (down, up) in adapter.lora.factors.items() if adapter.lora else ():
            hook = _LowRank(down.to(model.device), up.to(model.device))
            handles.append(model.get_submodule(name).register_forward_hook(hook))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

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


def embedding_hooks(model: PreTrainedModel, rows: torch.Tensor) -> list[Any]:
    """Give the ids behind a model's vocabulary embeddings of their own.

    Args:
        model: The model.
        rows: Shape (tokens, width).

    Returns:
        Handles, whose ``remove`` takes it back.
    """
    size = vocabulary_size(model)
    layer: Any = model.get_input_embeddings()
    seen: list[torch.Tensor] = []

    def before(_layer: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        seen.append(inputs[0])
        return (inputs[0].clamp(max=size - 1), *inputs[1:])

    def after(_layer: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        new = seen.pop() - size
        if not (new >= 0).any():
            return None
        return torch.where((new >= 0)[..., None], rows.to(output.dtype)[new.clamp(min=0)], output)

    return [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]


class _LowRank:
    def __init__(self, down: torch.Tensor, up: torch.Tensor) -> None:
        self._down, self._up = down, up

    def __call__(self, _module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        low = functional.linear(inputs[0].to(self._down.dtype), self._down)
        return output + functional.linear(low, self._up).to(output.dtype)


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
