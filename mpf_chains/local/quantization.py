"""int8 weights: less memory than bfloat16, and on a CPU less time per token of a small batch.

SmolLM2-135M on one thread of a busy machine, against the same dtype without rounding (2993 tokens of WikiText-2;
``tests/benchmarks/int8_throughput.py``): in bfloat16 1.56 times as many tokens per second at batch 1, 1.49 at batch 4,
0.85 at batch 16, and a perplexity of 21.70 instead of 21.64. In float32 it is slower than none: 0.59 at batch 1.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from mpf_chains.errors import MissingExtra

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FEW = 16  # rows up to which torch's kernel is faster than multiplying with the weights made bfloat16 again


@contextmanager
def _quiet() -> Iterator[None]:
    noisy = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    levels = [logger.level for logger in noisy]
    for logger in noisy:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(noisy, levels, strict=True):
            logger.setLevel(level)


def require_torchao() -> None:
    """Import torchao, before transformers does it, without its reports of kernels that are for other hardware.

    Raises:
        MissingExtra: If it is not installed.
    """
    try:
        with _quiet():
            import_module("torchao.quantization")
    except ImportError as error:
        raise MissingExtra("torchao", "int8") from error


def quantize(model: PreTrainedModel) -> None:
    """Round the weights of all linear layers, the output head included, to int8, in place; activations are not rounded.

    torchao rounds them: one scale per output row, symmetric, to nearest. Embeddings stay as they are; a head that
    shared their weights gets its own. On a CPU, in bfloat16, few rows go through torch's own int8 kernel, which reads
    half the memory; torchao's way there, making the weights bfloat16 again at every step, is slower than not rounding.

    Args:
        model: Any model of transformers; best in bfloat16.
    """
    torchao: Any = import_module("torchao.quantization")
    with _quiet():
        torchao.quantize_(model, torchao.Int8WeightOnlyConfig(set_inductor_config=False))
    if model.device.type == "cpu":
        for parent in list(model.modules()):
            for name, child in parent.named_children():
                if type(child) is torch.nn.Linear:
                    setattr(parent, name, Int8Linear(child))


class Int8Linear(torch.nn.Module):
    """A linear layer with torchao's int8 weights, for CPUs.

    Args:
        linear: Quantised by torchao.
    """

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        weight: Any = linear.weight
        self.register_buffer("weight", weight.qdata.contiguous())
        self.register_buffer("scale", weight.scale.flatten().to(weight.dtype))
        self.bias = linear.bias

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """``hidden @ (weight * scale).T + bias``, shape (..., outputs)."""
        weight: Any = self.weight
        scale: Any = self.scale
        flat = hidden.reshape(-1, hidden.shape[-1])
        if hidden.dtype == torch.bfloat16 and len(flat) <= _FEW:
            product = torch._weight_int8pack_mm(flat.contiguous(), weight, scale)
        else:
            product = torch.nn.functional.linear(flat, weight.to(hidden.dtype)) * scale
        if self.bias is not None:
            product = product + self.bias
        return product.reshape(*hidden.shape[:-1], -1)
