"""Speculative debiased decoding: small models draft with their experts, one pass of the base model verifies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import torch

from mpf_chains.errors import InvalidInput
from mpf_chains.local.experts.combine import Filter
from mpf_chains.local.experts.drafting import DraftLength, looked_up
from mpf_chains.local.experts.ensemble import ExpertEnsemble, check_columns
from mpf_chains.local.experts.grid import Grid
from mpf_chains.local.experts.law import Law
from mpf_chains.local.experts.reader import Reader
from mpf_chains.local.experts.variants import Variants
from mpf_chains.local.experts.vocabulary import vocabulary_size

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Draft = Literal["small", "prompt_lookup"]
LONGEST = 8  # tokens of a draft


@dataclass(frozen=True)
class Speculated:
    """Generated tokens, and how they came about.

    Args:
        tokens: Of each row, with the end token if it came, without padding.
        draft: What drafted.
        lengths: Tokens drafted per row, cycle by cycle; 0: a lockstep cycle.
        drafted: Drafts that the base model read, all rows together.
        accepted: Those of them that are part of the text.
        rejected: Drafts that were replaced; those behind them were not looked at.
        row_cycles: Cycles that rows were in, added up.
        fallback: Why the last lockstep cycle drafted nothing though there was room. None: none did.
    """

    tokens: list[list[int]]
    draft: Draft
    lengths: tuple[int, ...]
    drafted: int
    accepted: int
    rejected: int
    row_cycles: int
    fallback: str | None

    @property
    def cycles(self) -> int:
        """Passes of the base model."""
        return len(self.lengths)

    @property
    def lockstep(self) -> int:
        """Cycles without a draft."""
        return self.lengths.count(0)

    @property
    def tokens_per_cycle(self) -> float:
        """Tokens that a row got in a cycle, on average; at least 1."""
        return sum(map(len, self.tokens)) / self.row_cycles

    @property
    def acceptance(self) -> float:
        """Share of drafts that stayed, of those that were looked at; NaN without any."""
        seen = self.accepted + self.rejected
        return self.accepted / seen if seen else float("nan")


class SpeculativeDecoder:
    """Generates what `ExpertLogitsProcessor` does in ``model.generate``, in fewer passes of the base model.

    In a cycle the small model with its pairs, q ∝ exp(z_small + Σ α (z⁺ − z⁻)), drafts k tokens; one pass of the base
    model over them gives p ∝ exp(z + Σ α (z⁺ − z⁻)) at each place, with the contrasts that drafting has computed; a
    draft x stays with probability min(1, p(x) / q(x)), and the first that does not is replaced by a draw from
    max(p − q, 0), normalised. If all stay there is one more token. The text has exactly the law p; greedy texts are
    those of lockstep decoding. Source: arXiv 2211.17192 and arXiv 2302.01318 with the target of arXiv 2412.01711.

    Where the pairs share no small model, or theirs is the base model itself, drafts are looked up in the text.

    Rows of a batch accept different numbers of drafts: rejected ones become padding inside the row, hidden by the
    mask, and go when the context is full. Models whose caches cannot be cropped (sliding windows, recurrence) are
    decoded in lockstep; `Speculated.fallback` says so.

    A seed gives the same text whatever the draft length was, as every place of the text has its own random numbers.
    A decoder serves one call at a time; the times it has measured serve all later ones.

    Args:
        model: The base model.
        ensemble: The pairs.
        tokenizer: The base model's.
        alphas: Strength of each pair by name, in place of the pairs' own.
        draft: "small" or "prompt_lookup". None (default): "small" if the pairs share a small model that is not the
            base.
        draft_length: Tokens per draft; 0: lockstep. None (default): at most 8, by measured acceptance and times.

    Raises:
        VocabularyMismatch: If a small model has another vocabulary.
        InvalidInput: If an argument is wrong, or "small" is asked for and the pairs do not share a small model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        ensemble: ExpertEnsemble,
        tokenizer: PreTrainedTokenizerBase,
        *,
        alphas: Mapping[str, float] | None = None,
        draft: Draft | None = None,
        draft_length: int | None = None,
    ) -> None:
        if draft not in {None, "small", "prompt_lookup"}:
            raise InvalidInput(f"`draft` is {draft!r}; it must be 'small', 'prompt_lookup' or None.")
        if draft_length is not None and not 0 <= draft_length <= 64:
            raise InvalidInput(f"`draft_length` is {draft_length}; it must lie between 0 and 64, or be None.")
        ensemble.check_vocabulary(tokenizer)
        strengths = ensemble.strengths(alphas)
        active = [pair.pair.name for pair in ensemble.loaded if strengths[pair.pair.name] and not pair.idle]
        shared = _shared_model(ensemble)
        on_base = shared is model
        self.draft: Draft = draft or ("prompt_lookup" if shared is None or on_base else "small")
        untuned = self.draft == "small" or on_base
        names = active or ([pair.name for pair in ensemble.pairs] if untuned else [])
        if names != [pair.name for pair in ensemble.pairs] or untuned != (ensemble.untuned is not None):
            ensemble = ensemble.only(names, untuned=untuned)
        self.ensemble = ensemble
        self.alphas = torch.tensor([strengths[name] for name in names])
        self.draft_length = draft_length
        self.size = vocabulary_size(tokenizer)
        self.base: Variants | None = None if on_base and self.draft == "prompt_lookup" else Variants(model, [None])
        self.pace = DraftLength(LONGEST)
        self._model, self._tokenizer = model, tokenizer

    def generate(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        filter: Filter = "last",  # noqa: A002 - the field's term
        seed: int | None = None,
        eos_token_id: int | Sequence[int] | None = None,
    ) -> Speculated:
        """Continue prompts.

        Args:
            input_ids: Prompts, padded on the left, shape (rows, columns).
            attention_mask: 1 for text, 0 for padding, same shape. None (default): no padding.
            max_new_tokens: At least 1.
            temperature: 0: greedy. Default 1.
            top_k: Keep the so many most probable tokens. None (default): all.
            top_p: In (0, 1]. Default 1.
            filter: Whose share `top_p` is: see `mpf_chains.local.experts.law.Law`.
            seed: Of all draws. None (default): from torch's own generator.
            eos_token_id: Tokens that end a text. None (default): those of the model's generation config.

        Raises:
            InvalidInput: If an argument is wrong, or the text outgrows a model's context.
            GenerationError: If experts give logits that are not finite.
        """
        if max_new_tokens < 1:
            raise InvalidInput(f"`max_new_tokens` is {max_new_tokens}; it must be at least 1.")
        law = Law(self.size, temperature, top_k, top_p, filter)
        ends = self._model.generation_config.eos_token_id if eos_token_id is None else eos_token_id
        ends = frozenset([ends] if isinstance(ends, int) else ends or ())
        grid = Grid(input_ids, attention_mask, max_new_tokens, ends, seed)
        with torch.inference_mode():
            return _Run(self, law, grid).finish()


def speculative_generate(
    model: PreTrainedModel,
    ensemble: ExpertEnsemble,
    tokenizer: PreTrainedTokenizerBase,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    alphas: Mapping[str, float] | None = None,
    draft: Draft | None = None,
    draft_length: int | None = None,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    filter: Filter = "last",  # noqa: A002 - the field's term
    seed: int | None = None,
    eos_token_id: int | Sequence[int] | None = None,
) -> Speculated:
    """Generate once, with a new `SpeculativeDecoder`; arguments are its own and those of its ``generate``."""
    decoder = SpeculativeDecoder(model, ensemble, tokenizer, alphas=alphas, draft=draft, draft_length=draft_length)
    return decoder.generate(
        input_ids, attention_mask, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p,
        filter=filter, seed=seed, eos_token_id=eos_token_id,
    )  # fmt: skip


class _Run:
    """One generation under way."""

    def __init__(self, decoder: SpeculativeDecoder, law: Law, grid: Grid) -> None:
        self.decoder, self.law, self.grid = decoder, law, grid
        self.small = decoder.ensemble.reader()
        self.base = self.small if decoder.base is None else Reader([decoder.base])
        self.lengths: list[int] = []
        self.drafted = self.accepted = self.rejected = self.row_cycles = 0
        self.fallback: str | None = None

    def finish(self) -> Speculated:
        """Cycle until every row has ended."""
        while self.grid.live:
            self._cycle(self._length())
        return Speculated(
            self.grid.tokens, self.decoder.draft, tuple(self.lengths), self.drafted, self.accepted, self.rejected,
            self.row_cycles, self.fallback,
        )  # fmt: skip

    def _length(self) -> int:
        """How many tokens to draft now."""
        pace, fixed = self.decoder.pace, self.decoder.draft_length
        readers = [self.small, self.base]
        contexts = [member.context for reader in readers for member in reader.members if member.context is not None]
        room = self.grid.room(min(contexts, default=None), fixed or pace.longest)
        if room and not all(reader.croppable for reader in readers):
            self.fallback = "A model's cache cannot be cropped (sliding windows or recurrence), so nothing is drafted."
            return 0
        wanted = pace.choose(len(self.grid.live)) if fixed is None else fixed
        if room and fixed is None and pace.verdict is not None:
            self.fallback = pace.verdict
        return min(wanted, room)

    def _cycle(self, k: int) -> None:
        grid, rows = self.grid, len(self.grid.live)
        cycle = self._with_small(k) if self.decoder.draft == "small" else self._with_lookup(k)
        tokens, kept, real = cycle.tokens.cpu(), cycle.kept.cpu(), cycle.real
        k = tokens.shape[1] - 1
        seen = kept.long().cumprod(1)  # 1: accepted, and all before it
        looked_at = torch.cat([torch.ones(rows, 1, dtype=torch.long), seen[:, :-1]], dim=1).bool() & real
        taken = grid.take(tokens, seen[:, :k].sum(1).tolist())
        self.decoder.pace.note(
            columns=k + 1,
            verifying=cycle.verifying,
            drafting=cycle.drafting,
            accepted=int((kept & looked_at).sum()),
            drafted=int(looked_at.sum()),
        )
        self.lengths.append(k)
        self.row_cycles += rows
        self.drafted += int(real[:, :k].sum())
        within = torch.arange(k)[None] < torch.tensor(taken)[:, None]
        self.accepted += int((seen[:, :k].bool() & within & real[:, :k]).sum())
        self.rejected += int((looked_at[:, :k] & ~kept[:, :k] & within).sum())

    def _with_small(self, k: int) -> _Cycle:
        """Draft one by one, verify all in one pass, and settle one token more for rows that keep all drafts."""
        grid, cycle = self.grid, _Cycle()
        steps = []
        for j in range(k):
            steps.append(self._draft(j, cycle))
            grid.append(steps[-1].token)
            if grid.all_ended(j + 1):
                break
        k = len(steps)
        start, before = perf_counter(), self.base.positions
        z = self._base_logits(k + 1)
        if k:
            cycle.add(*self._settle(z[:, :k], steps, 0))
        if self.base.positions - before == k + 1:
            cycle.verifying = perf_counter() - start
        if not k or bool(cycle.kept.all(1).any()):
            cycle.add(*self._settle(z[:, k:], [self._draft(k, cycle)], k))
        else:
            cycle.add(cycle.tokens[:, :1], torch.zeros_like(cycle.kept[:, :1]))
        cycle.real = torch.ones_like(cycle.kept, device="cpu")
        return cycle

    def _draft(self, j: int, cycle: _Cycle) -> _Step:
        decoder, grid = self.decoder, self.grid
        start, before = perf_counter(), self.small.positions
        states = self.small.read(grid.ids, grid.mask)
        contrast = decoder.ensemble.logits(states, decoder.alphas)
        small = decoder.ensemble.logits(states, 0 * decoder.alphas, untuned=1)
        scores = self.law.scores(small, contrast)
        token = self.law.draw(scores, grid.uniforms(j, 1)[..., 0].to(scores.device)).cpu()
        if self.small.positions - before == 1:
            cycle.drafting.append(perf_counter() - start)
        return _Step(token, scores, contrast)

    def _settle(self, z: torch.Tensor, steps: Sequence[_Step], first: int) -> tuple[torch.Tensor, torch.Tensor]:
        contrast, scores, drafts = (
            torch.cat([getattr(step, name) for step in steps], dim=1) for name in ("contrast", "scores", "token")
        )
        target = self.law.scores(z, contrast)
        return self.law.settle(target, scores, drafts, self.grid.uniforms(first, len(steps))[..., 1:])

    def _with_lookup(self, k: int) -> _Cycle:
        """Look drafts up, and read them with base and experts in one pass each."""
        grid, cycle = self.grid, _Cycle()
        found = [looked_up(text, k + 1) for text in grid.texts()]
        found = [grid.until_end(tokens) for tokens in found]
        k = min(k, max(map(len, found)))
        filled = [tokens[: k + 1] + [0] * (k + 1 - len(tokens)) for tokens in found]
        drafts = torch.tensor(filled)
        cycle.real = torch.arange(k + 1)[None] < torch.tensor([len(tokens) for tokens in found])[:, None]
        grid.append(drafts[:, :k])
        start, before = perf_counter(), self.base.positions
        contrast, z = self._contrast_and_logits(k + 1)
        target = self.law.scores(z, contrast)
        cycle.add(*self.law.settle(target, None, drafts, grid.uniforms(0, k + 1)[..., 1:]))
        cycle.kept = cycle.kept.cpu() & cycle.real
        if self.base.positions - before == k + 1:
            cycle.verifying = perf_counter() - start
        return cycle

    def _contrast_and_logits(self, keep: int) -> tuple[torch.Tensor, torch.Tensor]:
        decoder, grid = self.decoder, self.grid
        ensemble = decoder.ensemble
        if not ensemble.members:
            z = self._base_logits(keep)
            return torch.zeros_like(z), z
        states = self.small.read(grid.ids, grid.mask, keep)
        contrast = ensemble.logits(states, decoder.alphas)
        if self.base is not self.small:
            return contrast, self._base_logits(keep)
        return contrast, ensemble.logits(states, 0 * decoder.alphas, untuned=1)

    def _base_logits(self, keep: int) -> torch.Tensor:
        (states,) = self.base.read(self.grid.ids, self.grid.mask, keep)
        z = self.base.members[0].logits(states, torch.ones(1))
        check_columns(self.decoder.size, z)
        return z


@dataclass(frozen=True)
class _Step:
    """A draft, shape (rows, 1), the scores it was drawn by, and the contrast there."""

    token: torch.Tensor
    scores: torch.Tensor
    contrast: torch.Tensor


class _Cycle:
    """What a cycle found: tokens, whether each is its draft, whether there was one, and times."""

    def __init__(self) -> None:
        self.tokens = self.kept = self.real = torch.empty(0)
        self.verifying: float | None = None
        self.drafting: list[float] = []

    def add(self, tokens: torch.Tensor, kept: torch.Tensor) -> None:
        """Put columns behind the others."""
        first = not self.tokens.numel()
        self.tokens = tokens if first else torch.cat([self.tokens, tokens], dim=1)
        self.kept = kept if first else torch.cat([self.kept, kept], dim=1)


def _shared_model(ensemble: ExpertEnsemble) -> Any:
    """The small model that all pairs were tuned from; None if there is not one."""
    models = [None if pair.untuned is None else pair.untuned.small.model for pair in ensemble.loaded]
    first = models[0] if models else None
    return first if all(model is first for model in models) else None
