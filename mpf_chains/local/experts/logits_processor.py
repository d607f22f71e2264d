"""`ExpertLogitsProcessor`: expert pairs in any ``model.generate`` of transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import LogitsProcessor as _LogitsProcessor

from mpf_chains.errors import GenerationError, InvalidInput
from mpf_chains.local.experts.combine import combine, keep_normalised
from mpf_chains.local.experts.ensemble import ExpertEnsemble, check_columns
from mpf_chains.local.experts.padding import checked_mask, inferred_padding
from mpf_chains.local.experts.pair import ExpertPair
from mpf_chains.local.experts.vocabulary import vocabulary_size
from mpf_chains.local.sampling import Filter, Sampling, nucleus

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LogitsProcessor: Any = _LogitsProcessor  # parts of transformers are untyped


class ExpertLogitsProcessor(LogitsProcessor):  # type: ignore[misc]
    """Moves a base model's logits by what expert pairs say: z̃ = z + Σₐ αₐ (z⁺ₐ − z⁻ₐ).

    Source: arXiv 2412.01711; DExperts, arXiv 2105.03023. Works with greedy decoding, sampling, beams, several returned
    sequences and batches; pass it as ``model.generate(..., logits_processor=[processor])``. Small models read each
    position once: what they have read is kept between steps, follows beams from row to row (by comparing tokens), and
    is dropped when another prompt comes. One processor serves one ``generate`` at a time.

    With all α at 0, or a pair of two equal halves, scores come back untouched. Scores of −inf stay so. In beam search
    scores are log-probabilities, and stay normalised. What ``generate`` does besides comes in its own order: penalties
    for repetition and forbidden tokens work on the base's scores before, temperature, top_k, top_p and min_p on the
    corrected ones. A prompt longer than an expert's context is an error before the first token; how many tokens will
    follow no processor is told, so compare `ExpertEnsemble.context` with that yourself. ``generate_batch`` (continuous
    batching) takes no processors, and drops them without an error.

    **Left padding.** ``generate`` does not tell its processors which tokens are padding. Prompts of different lengths
    therefore need `attention_mask`, the one that ``generate`` gets; small models take masks and positions from it.
    Without it padding is inferred where the tokens leave no doubt: there is none if no prompt begins with the
    tokenizer's padding token, or if there is one prompt only; a padding token that is neither BOS nor EOS is padding
    at the beginning of a prompt. Anything else raises `InvalidInput`. A mask belongs to one batch of prompts: call
    `reset` with the next one.

    Args:
        pairs: An `ExpertPair`, several, or a loaded `ExpertEnsemble` (which several processors may share).
        tokenizer: The base model's. Small models must have its vocabulary; padding rows behind it do not matter, and
            no token is drawn from them.
        attention_mask: 1 for text, 0 for padding, shape (prompts, columns). Default: inferred, see above.
        alphas: Strength of each pair by name, in place of the pairs' own; those not named keep theirs.
        filter: "last" (default): combine; ``generate`` then filters by its own top_p, top_k. "base_first": of the
            base's scores keep the nucleus of `top_p`, combine in there; then ``generate`` filters as it was told.
        top_p: Share of the base's nucleus, in (0, 1]; for "base_first" only. Default 1.

    Attributes:
        positions: Columns that each small model has read since it was made.

    Raises:
        VocabularyMismatch: If a small model has another vocabulary.
        InvalidInput: If an argument is wrong or a pair cannot be loaded; while generating, if a prompt is longer than
            a small model's context (before the first token) or grows beyond it.
        GenerationError: While generating, if experts give logits that are not finite.
    """

    supports_continuous_batching = False

    def __init__(
        self,
        pairs: ExpertPair | Sequence[ExpertPair] | ExpertEnsemble,
        tokenizer: PreTrainedTokenizerBase,
        *,
        attention_mask: torch.Tensor | None = None,
        alphas: Mapping[str, float] | None = None,
        filter: Filter = "last",  # noqa: A002 - the field's term
        top_p: float = 1.0,
    ) -> None:
        if Sampling(top_p=top_p, filter=filter).filter == "last" and top_p != 1:
            raise InvalidInput(
                f"`top_p` is {top_p} and `filter` is 'last': the sampler filters then.",
                hint="Pass `top_p` to `model.generate`, or set `filter='base_first'`.",
            )
        if not isinstance(pairs, ExpertEnsemble):
            pairs = ExpertEnsemble(pairs)
        pairs.check_vocabulary(tokenizer)
        strengths = pairs.strengths(alphas)
        active = [loaded.pair.name for loaded in pairs.loaded if strengths[loaded.pair.name] and not loaded.idle]
        self._ensemble = pairs.only(active)
        self._alphas = torch.tensor([strengths[name] for name in active])
        self._reader = self._ensemble.reader()
        self._tokenizer, self._filter, self._top_p = tokenizer, filter, top_p
        self._size = vocabulary_size(tokenizer)
        self.reset(attention_mask)

    @property
    def positions(self) -> int:  # noqa: D102 - described by the class
        return self._reader.positions

    def reset(self, attention_mask: torch.Tensor | None = None) -> None:
        """Forget the prompt, and take the mask of the next one.

        Args:
            attention_mask: As above.
        """
        self._given = attention_mask
        self._prompt: torch.Tensor | None = None
        self._mask = torch.empty(0)
        self._reader.reset()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Correct the scores of the next token.

        Args:
            input_ids: Whole sequences, shape (rows, columns).
            scores: The base model's, shape (rows, vocabulary).

        Returns:
            Shape of ``scores``.
        """
        inside = nucleus(scores, [self._top_p] * len(scores)) if self._filter == "base_first" else None
        moved = scores
        if self._ensemble.members:
            mask = self._mask_of(input_ids)
            self._reader.check_length(input_ids.shape[1] if mask is None else int(mask.sum(1).max()))
            if inside is None or bool((inside.sum(-1) > 1).any()):  # else nothing is left to choose
                check_columns(self._size, scores)
                states = self._reader.read(input_ids, mask)
                contrast = self._ensemble.logits(states, self._alphas)[..., : self._size]
                contrast = self._ensemble.finite(contrast, states, _raise)[:, 0]
                moved = combine(scores, contrast, self._size)
        if inside is not None:
            moved = moved.masked_fill(~inside, float("-inf"))
        return scores if moved is scores else keep_normalised(scores, moved)

    def _mask_of(self, ids: torch.Tensor) -> torch.Tensor | None:
        """The mask of sequences that continue the prompt; it is found anew when the prompt is another one."""
        if not ids.shape[1]:
            raise InvalidInput("Experts need the prompt's token ids.", hint="Pass `input_ids`, not `inputs_embeds`.")
        if not self._continues_prompt(ids):
            if self._prompt is not None and self._given is not None:
                raise InvalidInput(
                    "This is another prompt than the one that `attention_mask` belongs to.",
                    hint="Call `reset(attention_mask)` before a new prompt.",
                )
            given = self._given
            mask = inferred_padding(ids, self._tokenizer) if given is None else checked_mask(given, ids)
            self._prompt, self._mask = ids[:: len(ids) // len(mask)].clone(), mask
        mask = self._mask
        if bool(mask.bool().all()):
            return None
        mask = mask.repeat_interleave(len(ids) // len(mask), dim=0)
        return torch.cat([mask, mask.new_ones(len(ids), ids.shape[1] - mask.shape[1])], dim=1)

    def _continues_prompt(self, ids: torch.Tensor) -> bool:
        """Whether these are continuations of the prompts; each may have several, which lie next to each other."""
        prompt = self._prompt
        if prompt is None or len(ids) % len(prompt) or ids.shape[1] < prompt.shape[1]:
            return False
        return torch.equal(ids[:, : prompt.shape[1]], prompt.repeat_interleave(len(ids) // len(prompt), dim=0))


def _raise(row: int, error: GenerationError) -> None:  # noqa: ARG001 - one row's error ends them all
    raise error
