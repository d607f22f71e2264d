"""Products with float32 weights on a CPU, by the library that is faster there when there are few rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class OneDNN:
    """oneDNN in place of MKL for the float32 linear modules of a model on a CPU.

    For 2 or 3 rows torch's own float32 product reads the weights once per row, and for some more it packs them. With
    oneDNN, which torch has on board and uses for bfloat16, all linear modules of SmolLM2-135M took 36 ms for 1 row, 46
    for 3 and 52 for 5 (torch: 46, 67 and 57; one core of an AMD EPYC). Results differ by rounding.

    Modules are changed only inside `active`; another thread that uses them meanwhile gets the same products. Without
    effect on devices, dtypes, quantised weights and modules for which there is nothing to gain.

    Args:
        model: The model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._ours: list[tuple[dict[str, Any], Callable[[torch.Tensor], torch.Tensor]]] = []
        kernel = _kernel()
        compiled = getattr(model, "_compiled_call_impl", None) is not None or "forward" in vars(model)
        if kernel is None or compiled:
            return
        for module in model.modules():
            if type(module) is torch.nn.Linear and _is_plain(module.weight) and "forward" not in vars(module):
                self._ours.append((vars(module), partial(_product, kernel, module)))

    @contextmanager
    def active(self) -> Iterator[None]:
        """While open, the model's modules multiply with oneDNN."""
        for attributes, product in self._ours:
            attributes["forward"] = product
        try:
            yield
        finally:
            for attributes, _ in self._ours:
                attributes.pop("forward", None)


def _kernel() -> Any:
    """The product that torch's own compiler for CPUs uses; None where torch was built without."""
    untyped: Any = torch.backends.mkldnn
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None) if untyped.is_available() else None


def _is_plain(weight: torch.Tensor) -> bool:
    usual = type(weight) in {torch.nn.Parameter, torch.Tensor} and weight.device.type == "cpu"
    return usual and weight.dtype == torch.float32 and weight.is_contiguous()


def _product(kernel: Any, module: torch.nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    if inputs.dtype != torch.float32 or torch.is_grad_enabled():  # another thread may be training it
        return torch.nn.functional.linear(inputs, module.weight, module.bias)
    product: torch.Tensor = kernel(inputs, module.weight, module.bias, "none", [], "")
    return product
