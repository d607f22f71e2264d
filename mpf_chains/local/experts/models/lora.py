"""Several LoRA adapters on one model at once: each group of rows of a batch gets its own adapter."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from mpf_chains.errors import NotSupportedError
from mpf_chains.local.experts.files.adapter import Adapter
from mpf_chains.local.hooks import OwnedHook

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class BatchedLoRA:
    """Adapters on the linear modules of a model, one for each of as many equal groups of rows.

    A batch of ``len(adapters) · n`` rows is read as n rows with the first adapter, then n with the second, and so on.
    For a linear module y = W x all groups share one product with W; the low-rank parts are two batched products.

    The model is changed only inside `active`, and only for the thread that is in there; the hooks go after this object
    has; see `OwnedHook`.

    Args:
        model: The model. Its own weights stay as they are.
        adapters: One for each group of rows; None for the model as it is, which must come before the others.

    Raises:
        InvalidInput: If an adapter does not fit the model.
    """

    def __init__(self, model: PreTrainedModel, adapters: Sequence[Adapter | None]) -> None:
        self._groups = len(adapters)
        tuned = [adapter for adapter in adapters if adapter is not None]
        self._untuned = self._groups - len(tuned)
        if any(adapter is not None for adapter in adapters[: self._untuned]):
            raise ValueError("Groups without an adapter come first.")
        for adapter in tuned:
            adapter.check(model)
        self._here = _Here()
        self._factors = {}
        for name in sorted({module for adapter in tuned for module in adapter.factors}):
            module = model.get_submodule(name)
            self._factors[name] = _stack(tuned, name, module, model)
            OwnedHook(self, partial(BatchedLoRA._add, name=name), module.register_forward_hook)

    @contextmanager
    def active(self, *positions: int) -> Iterator[None]:
        """While open, forward passes of this thread use the adapters.

        Args:
            positions: Rows times columns that a module can see: of the whole batch, and those that get logits. Not
                needed with one group of rows.
        """
        before, self._here.positions = self._here.positions, positions
        try:
            yield
        finally:
            self._here.positions = before

    def _add(
        self, _module: Any, arguments: tuple[torch.Tensor, ...], output: torch.Tensor, *, name: str
    ) -> torch.Tensor | None:
        """Add the low-rank parts to what a module gives, in place; None outside `active`."""
        positions = self._here.positions
        if positions is None:
            return None
        inputs, (down, up) = arguments[0], self._factors[name]
        if self._groups > 1 and inputs.numel() // inputs.shape[-1] not in positions:
            raise NotSupportedError(
                f"{name!r} gets {inputs.numel() // inputs.shape[-1]} of {positions[0]} positions, so its rows cannot "
                "be told apart.",
                hint="Leave modules that see a part of the batch (a mixture of experts) out of `target_modules`.",
            )
        x = inputs.reshape(self._groups, -1, inputs.shape[-1])[self._untuned :]
        y = output.view(self._groups, -1, output.shape[-1])[self._untuned :]
        low = torch.bmm(x.to(down.dtype), down)
        if y.dtype == up.dtype:
            y.baddbmm_(low, up)
        else:
            y.add_(torch.bmm(low, up))
        return output


class _Here(threading.local):
    positions: tuple[int, ...] | None = None


def _stack(
    adapters: Sequence[Adapter], name: str, module: torch.nn.Module, model: PreTrainedModel
) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors of all adapters for one module: (groups, in, rank) and (groups, rank, out), zeros where one has none.

    On a CPU they stay float32: products this small take a quarter of the time that they take in bfloat16.
    """
    pairs = [adapter.factors.get(name) for adapter in adapters]
    known = [pair for pair in pairs if pair is not None]
    rank = max(down.shape[0] for down, _ in known)
    device = next((weight.device for weight in module.parameters()), model.device)
    down = torch.zeros(len(pairs), rank, known[0][0].shape[1])
    up = torch.zeros(len(pairs), rank, known[0][1].shape[0])
    for i, pair in enumerate(pairs):
        if pair is not None:
            down[i, : pair[0].shape[0]], up[i, : pair[1].shape[1]] = pair[0], pair[1].T
    dtype = torch.promote_types(model.dtype, torch.float32) if device.type == "cpu" else model.dtype
    return down.to(device, dtype).transpose(1, 2), up.to(device, dtype)
