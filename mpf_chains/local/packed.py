"""Models that read packed tokens and say what comes next: a causal language model, or one that experts correct."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from mpf_chains.local.experts.ensemble import check_columns
from mpf_chains.local.experts.models.products import OneDNN
from mpf_chains.local.experts.models.variants import Variants

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mpf_chains.local.experts.files.loading import Half, LoadedPair


@dataclass(frozen=True, eq=False)
class Trees:
    """How the nodes of a batch of trees hang together.

    Args:
        seen: Whether a node sees another one, shape (rows, nodes, nodes).
        positions: How far each node is from its root, shape (rows, nodes).
    """

    seen: torch.Tensor
    positions: torch.Tensor

    def arguments(self, model: PreTrainedModel) -> dict[str, torch.Tensor]:
        """What a model is called with to read them."""
        mask = torch.full(self.seen.shape, torch.finfo(model.dtype).min, dtype=model.dtype)
        mask[self.seen] = 0
        return {"attention_mask": mask[:, None].to(model.device), "position_ids": self.positions.to(model.device)}


class PackedModel(Protocol):
    """Reads tokens, and gives the logits of what follows some of them."""

    @property
    def models(self) -> Sequence[PreTrainedModel]:
        """Those that read; logits are on the device of the first."""

    @property
    def held(self) -> int:
        """Logits in memory for each position that is read."""

    def read(
        self, ids: torch.Tensor, asked: slice, trees: Trees | None = None, cache: Any = None, *, more: bool = False
    ) -> tuple[Any, Any]:
        """Read tokens.

        Args:
            ids: Shape (rows, columns).
            asked: Columns whose successors are asked for.
            trees: How the tokens of a row hang together. None (default): as a sequence.
            cache: What an earlier call returned; these tokens come behind those. None (default): nothing is before.
            more: Whether others will come behind these. Default False.

        Returns:
            What `logits` takes, and a cache if more will come.
        """

    def logits(self, states: Any, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Logits of what follows some positions.

        Args:
            states: From `read`.
            rows: Row of each position.
            columns: Its column, counted from the first one asked for.

        Returns:
            float32 at least, shape (positions, vocabulary).
        """


class PlainModel:
    """A causal language model as it is.

    Args:
        model: The model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.models = (model,)
        self.held = int(model.config.get_text_config().vocab_size)
        self._accepts = frozenset(inspect.signature(model.forward).parameters)
        self._products = OneDNN(model)

    def read(  # noqa: D102 - described by the protocol
        self, ids: torch.Tensor, asked: slice, trees: Trees | None = None, cache: Any = None, *, more: bool = False
    ) -> tuple[Any, Any]:
        (model,) = self.models
        arguments: dict[str, Any] = trees.arguments(model) if trees else {}
        if "use_cache" in self._accepts:
            arguments["use_cache"] = more
        if cache is not None:
            arguments["past_key_values"] = cache
        columns = torch.arange(ids.shape[1], device=model.device)[asked]
        if "logits_to_keep" in self._accepts and len(columns) < ids.shape[1]:
            arguments["logits_to_keep"] = columns
        with self._products.active():
            output: Any = model(input_ids=ids.to(model.device), **arguments)
        logits = output.logits if output.logits.shape[1] == len(columns) else output.logits[:, asked]
        return logits, getattr(output, "past_key_values", None)

    def logits(self, states: Any, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:  # noqa: D102
        logits: torch.Tensor = states[rows.to(states.device), columns.to(states.device)]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


class CorrectedModel:
    """A base model with expert pairs: z̃ = z + Σₐ αₐ (z⁺ₐ − z⁻ₐ).

    Source: arXiv 2412.01711; DExperts, arXiv 2105.03023, equation 1. Adapters on one model are rows of one pass over
    it; if that model is the base, the base is another of those rows. Where a head is linear, hidden states are added
    up before it. The experts' contexts and vocabularies are not checked here.

    Args:
        model: The base model.
        pairs: The pairs.
        alphas: Their strengths.
        size: Tokens of the vocabulary; logits behind it are padding, and left out.
    """

    def __init__(self, model: PreTrainedModel, pairs: Sequence[LoadedPair], alphas: Sequence[float], size: int) -> None:
        base = id(model), ""
        models = {base[0]: model}
        found: dict[int, dict[tuple[int, str], Half | None]] = {base[0]: {base: None}}
        halves = [half for pair in pairs for half in (pair.expert, pair.anti_expert)]
        for half in sorted(halves, key=lambda half: half.adapter is not None):  # stable: untuned models first
            models[half.key[0]] = half.small.model
            found.setdefault(half.key[0], {}).setdefault(half.key, half)
        self.models = tuple(models.values())
        self._members = [
            PackedVariants(models[place], [half.adapter if half else None for half in group.values()])
            for place, group in found.items()
        ]
        self._signs = [
            torch.tensor(
                [[int(key == base) for key in group]]
                + [[(key == pair.expert.key) - (key == pair.anti_expert.key) for key in group] for pair in pairs]
            ).double()
            for group in found.values()
        ]
        self._mix = torch.tensor([[1.0, *alphas]], dtype=torch.float64)
        self._size = size
        self.held = max(size, sum(member.held for member in self._members))

    def read(  # noqa: D102 - described by the protocol
        self, ids: torch.Tensor, asked: slice, trees: Trees | None = None, cache: Any = None, *, more: bool = False
    ) -> tuple[Any, Any]:
        caches = cache or [None] * len(self._members)
        both = [
            member.states(ids, asked, trees, each, more=more)
            for member, each in zip(self._members, caches, strict=True)
        ]
        return [states for states, _ in both], [after for _, after in both]

    def logits(self, states: Any, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return self._sums(states, rows, columns, self._mix)[0]

    def parts(self, states: Any, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """z, and z⁺ − z⁻ of each pair: as `logits`, shape (1 + pairs, positions, vocabulary)."""
        return self._sums(states, rows, columns, torch.eye(self._mix.shape[1], dtype=torch.float64))

    def _sums(self, states: Any, rows: torch.Tensor, columns: torch.Tensor, mix: torch.Tensor) -> torch.Tensor:
        base = self.models[0]
        dtype = torch.promote_types(base.dtype, torch.float32)
        total = torch.zeros(len(mix), len(rows), self._size, dtype=dtype, device=base.device)
        for member, signs, each in zip(self._members, self._signs, states, strict=True):
            weights = mix @ signs
            used = weights.any(-1)
            part = member.logits(each[:, None, rows.to(each.device), columns.to(each.device)], weights[used])[0]
            check_columns(self._size, part)
            total[used.to(base.device)] += part[..., : self._size].to(base.device)
        return total


class PackedVariants(Variants):
    """A model with several adapters that reads packed tokens."""

    @property
    def held(self) -> int:
        """Logits in memory for each position that is read."""
        return 0 if self._head is not None else len(self) * int(self.model.config.get_text_config().vocab_size)

    def states(
        self, ids: torch.Tensor, asked: slice, trees: Trees | None, cache: Any, *, more: bool
    ) -> tuple[torch.Tensor, Any]:
        """As `PackedModel.read`.

        Returns:
            States for `logits`, shape (variants, rows, columns asked for, size), and a cache.
        """
        count, (rows, width) = len(self), ids.shape
        device = self.model.device
        columns = torch.arange(width, device=device)[asked]
        tensors = {"input_ids": ids.to(device)} | (trees.arguments(self.model) if trees else {})
        arguments: dict[str, Any] = {
            name: tensor.expand(count, *tensor.shape).flatten(0, 1) for name, tensor in tensors.items()
        }
        if "use_cache" in self._accepts:
            arguments["use_cache"] = more
        if cache is not None:
            arguments["past_key_values"] = cache
        if "logits_to_keep" in self._accepts and len(columns) < width:
            arguments["logits_to_keep"] = columns
        seen = count * rows * width
        with self._lora.active(seen, count * rows * len(columns)), self._products.active():
            output = self._body(**arguments)
        states: torch.Tensor = output.logits if self._head is None else output.last_hidden_state
        if states.shape[1] != len(columns):
            states = states[:, asked]
        return states.reshape(count, rows, len(columns), -1), getattr(output, "past_key_values", None)
