"""One causal language model and LoRA variants of it, which read the same tokens as rows of one forward pass."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache

from mpf_chains.errors import InvalidInput
from mpf_chains.local.experts.files.adapter import Adapter
from mpf_chains.local.experts.models.lora import BatchedLoRA
from mpf_chains.local.experts.models.products import OneDNN
from mpf_chains.local.quantization import Int8Linear

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Variants:
    """A model with several adapters, evaluated together.

    The logits of a variant are E h: h its final hidden state (after the last norm), E the output head that all share.
    So a weighted sum of logits is E (Σ wᵥ hᵥ), one product with the head, wherever the head is linear; whether it is
    was tried when this was made.

    Args:
        model: A causal language model.
        adapters: One for each variant; None for the model as it is, which comes first if it is there.

    Attributes:
        context: Positions that the model can read. None: no such limit.
    """

    def __init__(self, model: PreTrainedModel, adapters: Sequence[Adapter | None]) -> None:
        self.model = model
        self.adapters = tuple(adapters)
        self.context: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._lora = BatchedLoRA(model, self.adapters)
        self._products = OneDNN(model)
        self._head = None if any(map(_changes_head(model), self.adapters)) else linear_head(model)
        self._body: Any = model if self._head is None else model.base_model
        self._accepts = frozenset(inspect.signature(self._body.forward).parameters)

    def __len__(self) -> int:
        return len(self.adapters)

    def new_cache(self) -> Any:
        """An empty cache for what this model reads."""
        return DynamicCache(config=self.model.config)

    def read(self, ids: torch.Tensor, mask: torch.Tensor | None, cache: Any, keep: int = 1) -> torch.Tensor:
        """Read tokens after those in the cache.

        Args:
            ids: New tokens, shape (rows, columns).
            mask: 1 for text, 0 for padding on the left, shape (rows, columns in the cache + new ones). None: no
                padding.
            cache: From `new_cache`; it comes to hold ``len(self) · rows`` rows, variant by variant.
            keep: Last columns to return states of. Default 1.

        Returns:
            States for `logits`, shape (variants, rows, keep, size).
        """
        count, (rows, columns) = len(self), ids.shape
        arguments: dict[str, Any] = {}
        if mask is not None:
            arguments["attention_mask"] = mask.repeat(count, 1)
            if "position_ids" in self._accepts:
                positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -columns:]
                arguments["position_ids"] = positions.repeat(count, 1)
        if "logits_to_keep" in self._accepts:
            arguments["logits_to_keep"] = keep
        seen = (count * rows * columns, count * rows * keep)
        with torch.inference_mode(), self._lora.active(*seen), self._products.active():
            output = self._body(input_ids=ids.repeat(count, 1), past_key_values=cache, use_cache=True, **arguments)
            states: torch.Tensor = output.logits if self._head is None else output.last_hidden_state
            return states[:, -keep:].reshape(count, rows, keep, -1)

    def logits(self, states: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Weighted sums of the variants' logits.

        Args:
            states: From `read`, shape (variants, rows, columns, size).
            weights: Weight of each variant, shape (variants,), or (sums, variants) or (rows, sums, variants) for
                several sums.

        Returns:
            float32 (of a float64 model float64), shape (rows, columns, vocabulary), or (rows, sums, columns,
            vocabulary) for several sums.
        """
        several = weights.ndim > 1
        precise = torch.promote_types(states.dtype, torch.float32)
        weights = weights.to(states.device, precise)
        weights = weights.reshape((-1, *weights.shape[-2:]) if several else (1, 1, -1))
        with torch.inference_mode():
            mixed = torch.einsum("rsv,vrch->rsch", weights.expand(states.shape[1], -1, -1), states.to(precise))
            if self._head is not None:
                with self._products.active():
                    mixed = self._head(mixed.to(states.dtype)).to(precise)
                bias = getattr(self._head, "bias", None)
                if bias is not None:  # the head has added it once, whatever the weights sum to
                    mixed += (weights.sum(-1) - 1)[:, :, None, None] * bias.to(precise)
        return mixed if several else mixed[:, 0]

    def check_length(self, length: int) -> None:
        """Whether the model can read that many positions.

        Raises:
            InvalidInput: If it cannot.
        """
        if self.context is not None and length > self.context:
            raise InvalidInput(
                f"The text has {length} tokens; an expert ({type(self.model).__name__}) reads at most {self.context}.",
                hint="Shorten the prompt or the answer, or use experts with a longer context.",
            )


def output_head(model: PreTrainedModel) -> Any:
    """The module that makes logits of hidden states."""
    untyped: Any = model
    return untyped.get_output_embeddings()


def output_rows(model: PreTrainedModel) -> int:
    """How many logits it gives."""
    return int(output_head(model).weight.shape[0])


def linear_head(model: PreTrainedModel) -> torch.nn.Module | None:
    """The module that makes logits of the final hidden state, if it is linear and nothing comes before or after it.

    Tried on a few tokens, which must come out the same to the last bit; scaled or soft-capped logits do not. What came
    out is remembered for as long as the model has this head.
    """
    head = output_head(model)
    known = _tried.get(model)
    if known is None or known[0]() is not head:
        known = _tried[model] = (weakref.ref(head), _is_linear(model, head))
    return head if known[1] else None


_tried: weakref.WeakKeyDictionary[Any, tuple[weakref.ref[Any], bool]] = weakref.WeakKeyDictionary()


def _is_linear(model: PreTrainedModel, head: Any) -> bool:
    body: Any = model.base_model
    if body is model or not isinstance(head, torch.nn.Linear | Int8Linear):
        return False
    ids = torch.arange(8, device=model.device)[None] % model.config.get_text_config().vocab_size
    with torch.inference_mode():
        output = body(input_ids=ids, use_cache=False)
        direct = model(input_ids=ids, use_cache=False).logits
        states = getattr(output, "last_hidden_state", None)
        return states is not None and torch.equal(head(states), direct)


def _changes_head(model: PreTrainedModel) -> Any:
    head = output_head(model)
    names = {name for name, module in model.named_modules() if module is head}
    return lambda adapter: adapter is not None and not names.isdisjoint(adapter.factors)
