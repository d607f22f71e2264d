"""`ExpertEnsemble`: the small models of several pairs, evaluated together on what is being written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING

import torch

from mpf_chains.errors import GenerationError, InvalidInput, VocabularyMismatch
from mpf_chains.local.experts.files.loading import Half, LoadedPair, load_pairs
from mpf_chains.local.experts.models.reader import Reader
from mpf_chains.local.experts.models.variants import Variants, output_rows
from mpf_chains.local.experts.pair import ExpertPair
from mpf_chains.local.experts.shared import strengths
from mpf_chains.local.experts.vocabulary import check_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_KEPT = 8  # choices of pairs whose adapters stay ready


class ExpertEnsemble:
    """Loaded expert pairs. Adapters on one small model are rows of one forward pass; each full model is another.

    An expert that several pairs share, or a small model that stands in for several missing halves, is read once.

    Args:
        pairs: A pair, or several with unique names; or some that are loaded already.
        device: Torch device for models that are loaded here. None (default): "cuda" if there is one, else "cpu".
        dtype: Name of a torch dtype for them. Default "auto", the checkpoint's own.
        untuned: Whether the untuned small model is read too, for `logits` with ``untuned=1``. All pairs must then have
            the same ``base``. Default False: only where it stands in for a missing half.

    Attributes:
        pairs: The pairs, in order.
        members: Models with the variants of each that are read.
        loaded: The pairs with their models.
        untuned: The small model that is read untuned. None: not asked for.

    Raises:
        InvalidInput: If something cannot be loaded, or ``untuned`` is asked for and the bases differ.
    """

    def __init__(
        self,
        pairs: ExpertPair | Sequence[ExpertPair | LoadedPair],
        *,
        device: str | None = None,
        dtype: str = "auto",
        untuned: bool = False,
    ) -> None:
        pairs = [pairs] if isinstance(pairs, ExpertPair) else pairs
        for pair in pairs:
            if not isinstance(pair, ExpertPair | LoadedPair):
                raise InvalidInput(f"{pair!r} is no `ExpertPair`.")
        fresh = iter(load_pairs([pair for pair in pairs if isinstance(pair, ExpertPair)], device=device, dtype=dtype))
        self.loaded = tuple(pair if isinstance(pair, LoadedPair) else next(fresh) for pair in pairs)
        self._parts: dict[tuple[frozenset[str], bool], ExpertEnsemble] = {}
        self._group(self._shared_base() if untuned else None)

    def _group(self, shared: Half | None) -> None:
        """Put what is read together, model by model."""
        self.pairs = tuple(loaded.pair for loaded in self.loaded)
        halves: list[Half] = [] if shared is None else [shared]
        for loaded in self.loaded:
            if not loaded.idle:
                halves += [loaded.expert, loaded.anti_expert]
        groups: dict[int, dict[tuple[int, str], Half]] = {}
        for half in sorted(halves, key=lambda half: half.adapter is not None):  # stable: untuned models first
            groups.setdefault(id(half.small.model), {}).setdefault(half.key, half)
        self.members = tuple(
            Variants(next(iter(group.values())).small.model, [half.adapter for half in group.values()])
            for group in groups.values()
        )
        self._signs = [self._signs_of(list(group)) for group in groups.values()]
        small = None if shared is None else shared.key
        self.untuned = shared
        self._untuned = [torch.tensor([float(key == small) for key in group]) for group in groups.values()]

    def _shared_base(self) -> Half:
        found = {loaded.untuned.key: loaded.untuned for loaded in self.loaded if loaded.untuned is not None}
        if len(found) != 1 or any(loaded.untuned is None for loaded in self.loaded):
            raise InvalidInput(
                "The untuned small model is needed, and the pairs do not all have the same `base`.",
                hint="Use adapters on one small model.",
            )
        return next(iter(found.values()))

    def _signs_of(self, keys: Sequence[tuple[int, str]]) -> torch.Tensor:
        """+1 where a variant is a pair's expert, -1 where it is its anti-expert, shape (pairs, variants)."""
        experts = [[key == pair.expert.key for key in keys] for pair in self.loaded]
        anti_experts = [[key == pair.anti_expert.key for key in keys] for pair in self.loaded]
        signs = torch.tensor(experts).float() - torch.tensor(anti_experts).float()  # 0 where both halves are the same
        return signs.reshape(len(self.loaded), len(keys))

    @property
    def context(self) -> int | None:
        """Positions that all members can read. None: no limit."""
        return min((member.context for member in self.members if member.context is not None), default=None)

    def only(self, names: Iterable[str], *, untuned: bool = False) -> ExpertEnsemble:
        """An ensemble of some of these pairs, on the same loaded models; the last eight choices are kept.

        Args:
            names: Of the pairs; with ``untuned`` there may be none.
            untuned: As for the class.

        Raises:
            InvalidInput: If there is no pair of that name, or ``untuned`` is asked for and the bases differ.
        """
        wanted = set(names)
        unknown = sorted(wanted - {pair.name for pair in self.pairs})
        if unknown:
            known = ", ".join(pair.name for pair in self.pairs)
            raise InvalidInput(f"There is no expert pair named {unknown[0]!r}; there are: {known}.")
        if len(wanted) == len(self.pairs) and untuned == (self.untuned is not None):
            return self
        key = (frozenset(wanted), untuned)
        some = self._parts.get(key)
        if some is None:
            while len(self._parts) >= _KEPT:
                self._parts.pop(next(iter(self._parts)), None)  # and with it what it put into the models
            some = copy(self)
            some._parts = {}
            some.loaded = tuple(loaded for loaded in self.loaded if loaded.pair.name in wanted)
            some._group((some if some.loaded else self)._shared_base() if untuned else None)
            self._parts[key] = some
        return some

    def strengths(self, alphas: Mapping[str, float] | None = None) -> dict[str, float]:
        """α of each pair by name, in order: the pair's own, or the given one.

        Raises:
            InvalidInput: If a name is unknown or a strength is not finite.
        """
        return strengths(self.pairs, alphas)

    def check_vocabulary(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Compare every small model's vocabulary with the base model's.

        Raises:
            VocabularyMismatch: See `mpf_chains.local.experts.vocabulary.check_vocabulary`.
        """
        checked = set()
        for loaded in self.loaded:
            for half in (loaded.expert, loaded.anti_expert):
                if id(half.small) not in checked:
                    checked.add(id(half.small))
                    rows = output_rows(half.small.model)
                    who = f"{half.small.name!r} (pair {loaded.pair.name!r})"
                    check_vocabulary(tokenizer, half.small.tokenizer, rows, who)

    def reader(self) -> Reader:
        """A new reader of sequences; one for each generation that is under way."""
        return Reader(self.members)

    def logits(self, states: Sequence[torch.Tensor], alphas: torch.Tensor, *, untuned: float = 0.0) -> torch.Tensor:
        """Evaluate untuned · z_small + Σₐ αₐ (z⁺ₐ − z⁻ₐ), with one product with each output head.

        With ``untuned`` 0 this is what is added to a base model's logits; with 1 it is the law of the small model
        with its own pairs: the draft of speculative decoding or, with pairs on the base itself, all of z̃.

        Args:
            states: From `Reader.read`, one for each member.
            alphas: Strengths, shape (pairs,), or (rows, pairs) where they differ between rows.
            untuned: Weight of the untuned small model; needs an ensemble made with ``untuned=True``.

        Returns:
            float32, shape (rows, columns, vocabulary): without the padding that some member may have behind its
            vocabulary and others not.
        """
        return self._sums(states, [(alphas, untuned)])[:, 0]

    def small_and_contrast(
        self, states: Sequence[torch.Tensor], alphas: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """z_small and Σₐ αₐ (z⁺ₐ − z⁻ₐ), with one product with each output head for both.

        Args:
            states: From `Reader.read`, of an ensemble made with ``untuned=True``.
            alphas: As for `logits`.

        Returns:
            Two of what `logits` gives.
        """
        if not alphas.shape[-1]:
            small = self.logits(states, alphas, untuned=1)
            return small, torch.zeros_like(small)
        small, contrast = self._sums(states, [(0 * alphas, 1.0), (alphas, 0.0)]).unbind(1)
        return small, contrast

    def _sums(self, states: Sequence[torch.Tensor], terms: Sequence[tuple[torch.Tensor, float]]) -> torch.Tensor:
        """Several sums with their strengths and weights of the untuned model, shape (rows, sums, columns, size)."""
        parts = []
        for member, signs, small, state in zip(self.members, self._signs, self._untuned, states, strict=True):
            weights = [alphas.float().cpu() @ signs + untuned * small for alphas, untuned in terms]
            parts.append(member.logits(state, torch.stack(weights, dim=-2)))
        return _sum(parts)

    def contributions(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """z⁺ₐ − z⁻ₐ of every pair, float32, shape (rows, pairs, columns, vocabulary); one must have unlike halves."""
        return _sum(
            [
                member.logits(state, signs)
                for member, signs, state in zip(self.members, self._signs, states, strict=True)
            ]
        )

    def finite(
        self, logits: torch.Tensor, states: Sequence[torch.Tensor], fail: Callable[[int, GenerationError], None]
    ) -> torch.Tensor:
        """What `logits` gave, with 0 in rows that are not finite, so that they do not harm the others.

        Args:
            logits: Shape (rows, columns, vocabulary).
            states: That they were computed from.
            fail: Called for each such row, with its number and an error that says whether a model or α is to blame.
        """
        bad = ~logits.isfinite().flatten(1).all(1)
        rows = bad.nonzero()[:, 0].tolist()
        for row in rows:
            fail(row, self._failure([state[:, [row]] for state in states]))
        return logits.masked_fill(bad[:, None, None], 0.0) if rows else logits

    def _failure(self, states: Sequence[torch.Tensor]) -> GenerationError:
        broken: dict[str, None] = {}
        for member, signs, untuned, state in zip(self.members, self._signs, self._untuned, states, strict=True):
            for i in range(len(member)):
                if not member.logits(state[[i]], torch.ones(1)).isfinite().all():
                    names = [pair.name for pair, sign in zip(self.pairs, signs[:, i].tolist(), strict=True) if sign]
                    small = ["the model that they adapt"] if untuned[i] else []
                    broken |= dict.fromkeys([*small, *(f"pair {name!r}" for name in names)])
        if not broken:
            return GenerationError("The experts' logits, times alpha, are not all finite.", hint="Lower alpha.")
        return GenerationError(
            f"The experts' logits are not all finite, whatever alpha is: those of {' and '.join(broken)}.",
            hint="Look for weights that are no finite numbers, or load with dtype='float32'.",
        )


def _sum(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    size = min(part.shape[-1] for part in parts)
    total = parts[0][..., :size]
    for part in parts[1:]:
        total = total + part[..., :size].to(total.device)
    return total


def check_columns(size: int, scores: torch.Tensor) -> None:
    """Whether a base model has a logit for each token.

    Raises:
        VocabularyMismatch: If it has fewer.
    """
    if scores.shape[-1] < size:
        raise VocabularyMismatch(
            f"Token id {scores.shape[-1]} has no logit: the base model gives {scores.shape[-1]}, and its tokenizer has "
            f"{size} tokens.",
            hint="Give the base model's own tokenizer.",
        )
