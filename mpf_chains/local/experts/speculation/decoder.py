"""Speculative debiased decoding: small models draft with their experts, one pass of the base model verifies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mpf_chains.errors import InvalidInput
from mpf_chains.local.decoding import Openings, Row, note, rests, within
from mpf_chains.local.experts.combine import combine
from mpf_chains.local.experts.ensemble import ExpertEnsemble, check_columns
from mpf_chains.local.experts.models.reader import Reader
from mpf_chains.local.experts.models.variants import Variants
from mpf_chains.local.experts.padding import unpadded
from mpf_chains.local.experts.speculation.drafting import DraftLength, PromptLookup
from mpf_chains.local.experts.speculation.grid import Grid
from mpf_chains.local.experts.speculation.law import Laws
from mpf_chains.local.experts.speculation.speculated import Draft, Speculated
from mpf_chains.local.experts.vocabulary import token_ids, vocabulary_size
from mpf_chains.local.sampling import Filter, Sampling, is_whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LONGEST = 12  # tokens of a draft


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

    A row's text depends on its prompt, its sampling and its seed alone: each place has its own random numbers, so
    neither the length of drafts nor the other rows of the batch matter (apart from rounding).

    A decoder serves one call at a time, with any strengths; the times it has measured serve all later calls.

    Args:
        model: The base model.
        ensemble: The pairs.
        tokenizer: The base model's.
        alphas: Strength of each pair by name for `generate`, in place of the pairs' own.
        draft: "small" or "prompt_lookup". None (default): "small" if the pairs share a small model that is not the
            base, unless nothing is to be drafted.
        draft_length: Tokens per draft; 0: lockstep. None (default): at most 12, by measured acceptance and times.

    Attributes:
        context: Positions that all models can read. None: no limit.

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
        if draft not in (None, "small", "prompt_lookup"):
            raise InvalidInput(f"`draft` is {draft!r}; it must be 'small', 'prompt_lookup' or None.")
        if draft_length is not None and not (is_whole(draft_length, least=0) and draft_length <= 64):
            raise InvalidInput(f"`draft_length` is {draft_length!r}; it must be a whole number from 0 to 64, or None.")
        ensemble.check_vocabulary(tokenizer)
        self.alphas = tuple(ensemble.strengths(alphas).values())
        shared = _shared_model(ensemble)
        on_base = shared is model
        lockstep = draft is None and draft_length == 0
        self.draft: Draft | None = (
            None if lockstep else draft or ("prompt_lookup" if shared is None or on_base else "small")
        )
        self.ensemble, self.draft_length = ensemble, draft_length
        self.size = vocabulary_size(tokenizer)
        self.base: Variants | None = None if on_base and self.draft != "small" else Variants(model, [None])
        self.pace = DraftLength(LONGEST)
        self._untuned = self.draft == "small" or on_base
        self._model, self._tokenizer = model, tokenizer
        everything = self.working([1.0] * len(ensemble.pairs))[0]
        limits = [member.context for member in (*everything.members, *([self.base] if self.base else []))]
        self.context: int | None = min((limit for limit in limits if limit is not None), default=None)

    def working(self, *alphas: Sequence[float]) -> tuple[ExpertEnsemble, list[int]]:
        """The pairs that do something for one of these strengths, and their places among all pairs."""
        pairs = self.ensemble.loaded
        active = [i for i, pair in enumerate(pairs) if not pair.idle and any(each[i] for each in alphas)]
        return self.ensemble.only([pairs[i].pair.name for i in active], untuned=self._untuned), active

    def decode(self, rows: Sequence[Row]) -> Speculated:
        """Generate until every row has ended.

        Args:
            rows: Prompts with at least one token; how each chooses, ``sampling.alphas`` in the order of the
                ensemble's pairs (none: all 0); as many ``uniforms`` as it may get tokens (the random numbers
                themselves come from ``sampling.uniforms``). Each gets its tokens by ``push``, several at a time, and
                ends when that says so. One for which experts give logits that are not finite hears it by ``fail``.

        Raises:
            InvalidInput: If there is no row, one has no prompt or a wrong number of strengths, or its text outgrows a
                model's context. Too long a prompt is found before anything is generated.
        """
        ends = (self._model.generation_config.eos_token_id, self._tokenizer.eos_token_id)
        return self._decode(rows, frozenset[int]().union(*map(_end_tokens, ends)))

    def _decode(self, rows: Sequence[Row], ends: frozenset[int]) -> Speculated:
        count = len(self.ensemble.pairs)
        if not rows or not all(len(row.prompt) for row in rows):
            raise InvalidInput("There must be at least one row, and each must have a prompt.")
        for row in rows:
            if len(row.sampling.alphas) not in {0, count}:
                raise InvalidInput(f"A row has {len(row.sampling.alphas)} strengths in `alphas` for {count} pairs.")
            if self.context is not None and len(row.prompt) > self.context:
                raise InvalidInput(
                    f"A prompt has {len(row.prompt)} tokens; one of the models reads at most {self.context}.",
                    hint="Shorten the prompt, or use experts with a longer context.",
                )
        with torch.inference_mode():
            return _Run(self, rows, ends).finish()

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
        """Continue prompts, all alike: `decode` for those who have tensors.

        Args:
            input_ids: Prompts, padded on the left, shape (rows, columns).
            attention_mask: 1 for text, 0 for padding, same shape. None (default): no padding.
            max_new_tokens: At most so many, at least 1; fewer where a model's context is full before.
            temperature: 0: greedy. Default 1.
            top_k: Keep the so many most probable tokens. None (default): all.
            top_p: In (0, 1]. Default 1.
            filter: Whose share `top_p` is: see `mpf_chains.local.experts.speculation.law.Laws`.
            seed: Of all draws; with a row's place in the batch and its prompt it decides the row's. None (default):
                from torch's own generator.
            eos_token_id: Tokens that end a text. None (default): those of the model's generation config.

        Raises:
            InvalidInput: If an argument is wrong, or a prompt is longer than a model's context.
            GenerationError: If experts give logits that are not finite.
        """
        if not is_whole(max_new_tokens, least=1):
            raise InvalidInput(f"`max_new_tokens` is {max_new_tokens!r}; it must be a whole number from 1.")
        law = Sampling(temperature, top_k, top_p, seed, alphas=self.alphas, filter=filter)
        ends = _end_tokens(self._model.generation_config.eos_token_id if eos_token_id is None else eos_token_id)
        entropy = int(torch.randint(2**62, ())) if seed is None else seed
        rows = []
        for i, prompt in enumerate(unpadded(input_ids, attention_mask)):
            room = max_new_tokens if self.context is None else self.context + 1 - len(prompt)  # the last is not read
            seeded = replace(law, seed=int.from_bytes(f"{entropy}:{i}".encode(), "big"))
            rows.append(_Text(token_ids(prompt, self.size, "input_ids"), seeded, min(max_new_tokens, room), ends))
        return self._decode(rows, ends)


class _Text:
    """A row of `SpeculativeDecoder.generate`."""

    def __init__(self, prompt: Sequence[int], sampling: Sampling, most: int, ends: frozenset[int]) -> None:
        self.prompt, self.sampling, self.ends = prompt, sampling, ends
        self.uniforms = np.zeros(max(most, 0), dtype=np.float32)

    def push(self, token: int) -> bool:
        """Whether it ends the text."""
        return token in self.ends

    def note(self, logprob: float, top: list[tuple[int, float]]) -> None:
        """Not asked for."""

    def cycle(self, *, drafted: int, accepted: int, fallback: str | None) -> None:
        """Counted by `Speculated`."""

    def fail(self, error: BaseException) -> None:
        raise error


class _Run:
    """One generation under way."""

    def __init__(self, decoder: SpeculativeDecoder, rows: Sequence[Row], ends: frozenset[int]) -> None:
        self.decoder, self.grid = decoder, Grid(rows, ends)
        none = (0.0,) * len(decoder.ensemble.pairs)
        alphas = [row.sampling.alphas or none for row in rows]
        self.ensemble, active = decoder.working(*alphas)
        self._alphas = torch.tensor(alphas)[:, active]
        self._openings = [row.sampling.openings for row in rows]
        self.small = self.ensemble.reader()
        self.base = self.small if decoder.base is None else Reader([decoder.base])
        self.lookups = [PromptLookup(row.prompt) for row in rows] if decoder.draft == "prompt_lookup" else []
        self.lengths: list[int] = []
        self.drafted = self.accepted = self.rejected = self.row_cycles = 0
        self.fallback: str | None = None
        self.reason: str | None = None

    def finish(self) -> Speculated:
        """Cycle until every row has ended."""
        live = None
        while self.grid.live:
            if self.grid.live != live:
                live = self.grid.live
                self.laws = Laws([row.sampling for row in self.grid.rows], self.decoder.size)
                self.alphas = self._alphas[live]
            self._cycle(self._length())
        return Speculated(
            self.grid.tokens, self.decoder.draft, tuple(self.lengths), self.drafted, self.accepted, self.rejected,
            self.row_cycles, self.fallback,
        )  # fmt: skip

    @property
    def openings(self) -> list[Openings]:
        """What each row must still begin with."""
        return [self._openings[row] for row in self.grid.live]

    def _length(self) -> int:
        """How many tokens to draft now; says in `reason` why none, if there is room."""
        pace, fixed = self.decoder.pace, self.decoder.draft_length
        self.reason = None
        room = self.grid.room(self.decoder.context, pace.longest if fixed is None else fixed)
        if not room:
            return 0
        if any(self.openings):
            self.reason = "A text must begin with given tokens."
        elif not (self.small.croppable and self.base.croppable):
            self.reason = "A model's cache cannot be cropped (sliding windows or recurrence), so nothing is drafted."
        elif fixed is None:
            wanted = pace.choose(len(self.grid.live))
            self.reason = pace.verdict
            room = min(wanted, room)
        self.fallback = self.reason or self.fallback
        return 0 if self.reason else room

    def _cycle(self, k: int) -> None:
        grid, rows = self.grid, len(self.grid.live)
        cycle = self._with_small(k) if self.decoder.draft == "small" else self._with_lookup(k)
        tokens, kept, real = cycle.tokens.cpu(), cycle.kept.cpu(), cycle.real
        k = tokens.shape[1] - 1
        seen = kept.long().cumprod(1)  # 1: accepted, and all before it
        looked_at = torch.cat([torch.ones(rows, 1, dtype=torch.long), seen[:, :-1]], dim=1).bool() & real
        self._follow_openings(tokens[:, 0].tolist())
        stay = seen[:, :k].sum(1).tolist()
        before = list(grid.live)
        taken = grid.take(tokens, stay, partial(self._tell, cycle, real[:, :k].sum(1).tolist(), stay))
        for row, count in zip(before, taken, strict=True) if self.lookups else ():
            self.lookups[row].extend(grid.tokens[row][-count:])
        self.decoder.pace.note(
            rows=rows,
            columns=k + 1,
            verifying=cycle.verifying,
            drafting=cycle.drafting,
            accepted=int((kept & looked_at).sum()),
            drafted=int(looked_at.sum()),
        )
        self.lengths.append(k)
        self.row_cycles += rows
        self.drafted += int(real[:, :k].sum())
        pushed = torch.arange(k)[None] < torch.tensor(taken)[:, None]
        self.accepted += int((seen[:, :k].bool() & pushed & real[:, :k]).sum())
        self.rejected += int((looked_at[:, :k] & ~kept[:, :k] & pushed).sum())

    def _follow_openings(self, tokens: Sequence[int]) -> None:
        for row, token in zip(self.grid.live, tokens, strict=True):
            self._openings[row] = rests(self._openings[row], token)

    def _tell(self, cycle: _Cycle, drafted: Sequence[int], kept: Sequence[int], column: int, here: list[int]) -> None:
        """What rows hear before they get their tokens of a column."""
        rows = self.grid.rows
        if not column:
            for i in here:
                rows[i].cycle(drafted=drafted[i], accepted=kept[i], fallback=self.reason)
        noting = [i for i in here if rows[i].sampling.top_logprobs is not None]
        if noting:
            z, contrast = (each[noting] for each in cycle.logits[column])
            note(combine(z, contrast, self.decoder.size), cycle.tokens[noting, column], [rows[i] for i in noting])

    def _with_small(self, k: int) -> _Cycle:
        """Draft one by one, verify all in one pass, and settle one token more for rows that keep all drafts."""
        grid, cycle = self.grid, _Cycle()
        steps = []
        for j in range(k):
            steps.append(self._draft(j, cycle))
            grid.append(steps[-1].token)
            if grid.all_ended():
                break
        k = len(steps)
        start, before = perf_counter(), self.base.positions
        z = self._base_logits(k + 1)
        if k:
            cycle.add(*self._settle(z[:, :k], steps, 0, cycle))
        all_kept = not k or bool(cycle.kept.all(1).any())
        float(z[0, 0, 0])  # an accelerator has finished then
        if self.base.positions - before == k + 1:
            cycle.verifying = perf_counter() - start
        if all_kept:
            cycle.add(*self._settle(z[:, k:], [self._draft(k, cycle)], k, cycle))
        else:
            cycle.add(cycle.tokens[:, :1], torch.zeros_like(cycle.kept[:, :1]))
        cycle.real = torch.ones_like(cycle.kept, device="cpu")
        return cycle

    def _draft(self, j: int, cycle: _Cycle) -> _Step:
        grid = self.grid
        start, before = perf_counter(), self.small.positions
        states = self.small.read(grid.ids, grid.mask)
        small, contrast = self.ensemble.small_and_contrast(states, self.alphas)
        contrast = self._finite(contrast, states)
        law = self.laws.probabilities(self._opened(small), contrast)
        token = self.laws.draw(law, grid.uniforms(j, 1)[..., 0]).cpu()
        if self.small.positions - before == 1:
            cycle.drafting.append(perf_counter() - start)
        return _Step(token, law, contrast)

    def _settle(
        self, z: torch.Tensor, steps: Sequence[_Step], first: int, cycle: _Cycle
    ) -> tuple[torch.Tensor, torch.Tensor]:
        contrast, law, drafts = (
            torch.cat([getattr(step, name) for step in steps], dim=1) for name in ("contrast", "law", "token")
        )
        cycle.logits += [(z[:, j], contrast[:, j]) for j in range(len(steps))]
        target = self.laws.probabilities(self._opened(z), contrast)
        return self.laws.settle(target, law, drafts, self.grid.uniforms(first, len(steps))[..., 1:])

    def _opened(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits in which a row that has openings left has only their first tokens; then there is one column."""
        openings = self.openings
        return within(logits[:, 0], openings)[:, None] if any(openings) else logits

    def _with_lookup(self, k: int) -> _Cycle:
        """Look drafts up, and read them with base and experts in one pass each."""
        grid, cycle = self.grid, _Cycle()
        found = [grid.until_end(self.lookups[row].draft(k + 1)) if self.lookups else [] for row in grid.live]
        k = min(k, max(map(len, found)))
        filled = [tokens[: k + 1] + [0] * (k + 1 - len(tokens)) for tokens in found]
        drafts = torch.tensor(filled)
        cycle.real = torch.arange(k + 1)[None] < torch.tensor([len(tokens) for tokens in found])[:, None]
        grid.append(drafts[:, :k])
        start, before = perf_counter(), self.base.positions
        z, contrast = self._logits_and_contrast(k + 1)
        cycle.logits = [(z[:, j], contrast[:, j]) for j in range(k + 1)]
        target = self.laws.probabilities(self._opened(z), contrast)
        cycle.add(*self.laws.settle(target, None, drafts, grid.uniforms(0, k + 1)[..., 1:]))
        cycle.kept = cycle.kept.cpu() & cycle.real
        if self.base.positions - before == k + 1:
            cycle.verifying = perf_counter() - start
        return cycle

    def _logits_and_contrast(self, keep: int) -> tuple[torch.Tensor, torch.Tensor]:
        grid, ensemble = self.grid, self.ensemble
        if not ensemble.members:
            z = self._base_logits(keep)
            return z, torch.zeros_like(z)
        states = self.small.read(grid.ids, grid.mask, keep)
        if self.base is not self.small:
            return self._base_logits(keep), self._finite(ensemble.logits(states, self.alphas), states)
        if self.laws.needs_base:
            z, contrast = ensemble.small_and_contrast(states, self.alphas)
            return z, self._finite(contrast, states)
        z = self._finite(ensemble.logits(states, self.alphas, untuned=1), states)  # both, with half the products
        return z, torch.zeros_like(z)

    def _finite(self, logits: torch.Tensor, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """The contrast (or the law), 0 in rows where it is not finite: these end with an error, without the others."""
        rows = self.grid.rows
        return self.ensemble.finite(logits, states, lambda i, error: rows[i].fail(error))

    def _base_logits(self, keep: int) -> torch.Tensor:
        (states,) = self.base.read(self.grid.ids, self.grid.mask, keep)
        z = self.base.members[0].logits(states, torch.ones(1))
        check_columns(self.decoder.size, z)
        return z


@dataclass(frozen=True)
class _Step:
    """A draft, shape (rows, 1), the law it was drawn from, and the contrast there."""

    token: torch.Tensor
    law: torch.Tensor
    contrast: torch.Tensor


class _Cycle:
    """What a cycle found: tokens, whether each is its draft, whether there was one, logits behind them, and times."""

    def __init__(self) -> None:
        self.logits: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.tokens = self.kept = self.real = torch.empty(0)
        self.verifying: float | None = None
        self.drafting: list[float] = []

    def add(self, tokens: torch.Tensor, kept: torch.Tensor) -> None:
        """Put columns behind the others."""
        first = not self.tokens.numel()
        self.tokens = tokens if first else torch.cat([self.tokens, tokens], dim=1)
        self.kept = kept if first else torch.cat([self.kept, kept], dim=1)


def _end_tokens(given: Any) -> frozenset[int]:
    """Of one id, several or none."""
    several = [given] if is_whole(given) else () if given is None else given
    if not isinstance(several, Iterable) or isinstance(several, str) or not all(map(is_whole, several)):
        raise InvalidInput(f"`eos_token_id` is {given!r}; it must be a token id, or several.")
    return frozenset(map(int, several))


def _shared_model(ensemble: ExpertEnsemble) -> Any:
    """The small model that all pairs were tuned from; None if there is not one."""
    models = [None if pair.untuned is None else pair.untuned.small.model for pair in ensemble.loaded]
    first = models[0] if models else None
    return first if all(model is first for model in models) else None
