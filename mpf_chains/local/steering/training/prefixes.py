"""Prompts that are read once, because nothing that learns changes what is made of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import DynamicCache

from mpf_chains.local.experts.models.cache import DynamicLayer
from mpf_chains.local.steering.calibration.states import arguments, output_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_KEPT = 256


class _Prefix(NamedTuple):
    """What is made of a prompt: keys and values of each layer, and at its end what the output layer gets and gives."""

    layers: Sequence[tuple[torch.Tensor, torch.Tensor]]
    state: torch.Tensor
    logits: torch.Tensor


class Prefixes:
    """Keys and values of prompts, of the 256 that were used last.

    Args:
        model: A causal language model that does not change.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._known: OrderedDict[tuple[int, ...], _Prefix] = OrderedDict()
        kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
        self.possible = kinds <= {DynamicLayer}
        """Whether the model's cache is plain: no sliding window, no recurrent state."""

    def after(
        self, prompts: Sequence[Sequence[int]], ids: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Read what follows some prompts.

        Args:
            prompts: Token ids.
            ids: Shape (prompts, columns): what follows, padded on the right.
            mask: Same shape: 0 for padding, 1 for tokens.

        Returns:
            At the end of the prompts what the output layer gets, shape (prompts, width), and gives, (prompts,
            vocabulary); then the logits behind each column, (prompts, columns, vocabulary).
        """
        ids, mask = (each.to(self._model.device) for each in (ids, mask))
        found = [self._prefix(tuple(prompt)) for prompt in prompts]
        size = max(map(len, prompts))
        cache: Any = DynamicCache()
        for layer in range(len(found[0].layers)):
            keys, values = (
                torch.stack([
                    torch.nn.functional.pad(prefix.layers[layer][i], (0, 0, size - len(prompt), 0))
                    for prefix, prompt in zip(found, prompts, strict=True)
                ])
                for i in (0, 1)
            )  # fmt: skip
            cache.update(keys, values, layer)
        before = torch.tensor([[0] * (size - len(each)) + [1] * len(each) for each in prompts], device=ids.device)
        whole = torch.cat([before, mask], dim=1)
        told = arguments(self._model, whole, ids.shape[1])
        if "position_ids" in told:
            told["position_ids"] = told["position_ids"][:, size:]
        output = self._model(input_ids=ids, attention_mask=whole, past_key_values=cache, use_cache=True, **told)
        state, logits = (torch.stack([getattr(prefix, name) for prefix in found]) for name in ("state", "logits"))
        return state, logits, output.logits

    def _prefix(self, prompt: tuple[int, ...]) -> _Prefix:
        if prompt not in self._known:
            ids = torch.tensor([prompt], device=self._model.device)
            mask = torch.ones_like(ids)
            with torch.no_grad(), output_inputs(self._model) as seen:
                told = arguments(self._model, mask, 1)
                output = self._model(input_ids=ids, attention_mask=mask, use_cache=True, **told)
            layers = [(layer.keys[0], layer.values[0]) for layer in output.past_key_values.layers]
            self._known[prompt] = _Prefix(layers, seen[0][0, -1].clone(), output.logits[0, -1].clone())
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(prompt)
        return self._known[prompt]
