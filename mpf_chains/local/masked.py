"""`MaskedLanguageModel`: pseudo-log-likelihoods from any masked language model of transformers."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mpf_chains.errors import GenerationError, InvalidInput
from mpf_chains.local.engine import Source, load_pretrained
from mpf_chains.local.fingerprint import weights_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Scores = NDArray[np.float64]
_LOGITS = 2**26  # logits in memory at a time


class MaskedLanguageModel:
    """A masked language model (BERT and its kin) that scores sentences.

    Constructing it is cheap: the weights are loaded by the first call.

    Args:
        model: Hub id, local folder, or a loaded model.
        tokenizer: Its loaded tokenizer; needed with a loaded model. Default: the one stored with the model.
        revision: Branch, tag or commit on the hub. Default: the main branch.
        device: Torch device. Default: "cuda" if there is one, else "cpu". A loaded model stays where it is.
        dtype: Name of a torch dtype. Default "auto", the checkpoint's own.
        batch: Tokens read together, at most, padding included; a longer sentence is read alone. Default 2048.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        revision: str | None = None,
        device: str | None = None,
        dtype: str = "auto",
        batch: int = 2048,
    ) -> None:
        if batch < 1:
            raise InvalidInput(f"`batch` is {batch}; it must be at least 1 token.")
        self.batch = batch
        self._source = Source(model, tokenizer, revision, device, dtype)
        self._lock = threading.Lock()
        self._loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """What decides scores: names this model in ledgers."""
        source = self._source
        named = {"model": source.name, "revision": source.revision, "dtype": source.dtype}
        weights = weights_of(source.model)
        return named if weights is None else {**named, "weights": weights}

    def pseudo_log_likelihoods(
        self, pairs: Sequence[tuple[str, str]]
    ) -> Iterator[tuple[int, tuple[NDArray[np.float64], NDArray[np.float64]]]]:
        """Log-probability of each token that two sentences share, given the rest of its sentence.

        The metric of CrowS-Pairs: Nangia et al., "CrowS-Pairs: A Challenge Dataset for Measuring Social Biases in
        Masked Language Models", EMNLP 2020, section 3: score(S) = sum over u in U of log P(u | U without u, M), where
        U are the tokens that both sentences have, found by aligning their token ids with
        `difflib.SequenceMatcher`, and M those they differ in. One token is masked at a time; special tokens are not
        scored. (Alignment differs from the authors' for sentences of 200 tokens and more only, where Python's
        matcher would ignore frequent tokens.)

        Args:
            pairs: Two sentences each.

        Returns:
            Iterator of (index, (scores of the first sentence, of the second)), both of shape (shared tokens,), in
            nats, at most 0, entry i of both for the same token. Every index once, in the order in which batches
            finish. Their sums are the paper's scores. The log-softmax is taken in float32 at least.

        Raises:
            InvalidInput: At once, before anything is computed, if the model cannot be loaded, the tokenizer has no
                mask token, or a sentence is too long or shares no token with the other.
            MissingExtra: If torch or transformers is not installed.
            GenerationError: While iterating, if the model fails.
        """
        model, tokenizer = self._load()
        longest = min(
            (int(limit) for limit in (tokenizer.model_max_length, _positions(model)) if limit is not None), default=None
        )
        sentences = [sentence for pair in pairs for sentence in pair]
        with self._lock:  # a fast tokenizer may not be used by two threads at once
            read: Any = tokenizer(sentences, return_special_tokens_mask=True) if sentences else None
        aligned = []
        for index in range(len(pairs)):
            sides = []
            for side in (2 * index, 2 * index + 1):
                ids, special = read["input_ids"][side], read["special_tokens_mask"][side]
                if longest is not None and len(ids) > longest:
                    raise InvalidInput(f"A sentence of pair {index} has {len(ids)} tokens; the model reads {longest}.")
                sides.append(_Sentence(index, side % 2, ids, special))
            aligned.append(_align(*sides))
        return self._score(aligned)

    def _load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        with self._lock:
            if self._loaded is None:
                model, tokenizer = self._source.model, self._source.tokenizer
                if isinstance(model, str):
                    model, stored = load_pretrained(self._source, "masked")
                    tokenizer = stored if tokenizer is None else tokenizer
                elif tokenizer is None:
                    raise InvalidInput("A loaded model needs its tokenizer.", hint="Pass `tokenizer=`.")
                if tokenizer.mask_token_id is None:
                    raise InvalidInput(
                        "The tokenizer has no mask token, so its model is no masked language model.",
                        hint="For a causal language model use ChatTransformers.log_likelihoods.",
                    )
                model.eval()
                self._loaded = (model, tokenizer)
            return self._loaded

    def _score(self, pairs: Sequence[_Pair]) -> Iterator[tuple[int, tuple[Scores, Scores]]]:
        if not pairs:
            return
        model, tokenizer = self._load()
        size = min(self.batch, _LOGITS // model.config.get_text_config().vocab_size)
        done = {pair.index: (np.full(pair.shared, np.nan), np.full(pair.shared, np.nan)) for pair in pairs}
        left = {pair.index: 2 * pair.shared for pair in pairs}
        for batch in _batches(pairs, size):
            scores = self._forward(model, tokenizer, batch)
            for row, value in zip(batch, scores, strict=True):
                done[row.sentence.pair][row.sentence.side][row.entry] = value
                left[row.sentence.pair] -= 1
                if not left[row.sentence.pair]:
                    yield row.sentence.pair, done.pop(row.sentence.pair)

    def _forward(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: Sequence[_Masked]) -> Scores:
        import torch

        longest = max(len(row.sentence.ids) for row in batch)
        ids = np.full((len(batch), longest), tokenizer.pad_token_id or 0)
        seen = np.zeros_like(ids)
        for i, row in enumerate(batch):
            length = len(row.sentence.ids)
            ids[i, :length], seen[i, :length] = row.sentence.ids, 1
            ids[i, row.place] = tokenizer.mask_token_id
        rows, places = np.arange(len(batch)), np.array([row.place for row in batch])
        targets = torch.tensor([row.sentence.ids[row.place] for row in batch], device=model.device)
        try:
            with self._lock, torch.inference_mode():
                tensors = [torch.from_numpy(array).to(model.device) for array in (ids, seen)]
                logits = model(input_ids=tensors[0], attention_mask=tensors[1]).logits[rows, places]
                precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
                chosen = precise.log_softmax(-1).gather(1, targets[:, None])[:, 0]
        except Exception as error:
            raise GenerationError(f"The local model failed: {type(error).__name__}: {error}.") from error
        scores: Scores = chosen.cpu().double().numpy()
        return scores


@dataclass(frozen=True, eq=False)
class _Sentence:
    """One sentence of a pair: which pair and which of the two, its token ids, and where they are special tokens."""

    pair: int
    side: int
    ids: Sequence[int]
    special: Sequence[int]


@dataclass(frozen=True, eq=False)
class _Pair:
    """Two sentences, and for each the places of the tokens they share."""

    sentences: tuple[_Sentence, _Sentence]
    places: tuple[Sequence[int], Sequence[int]]

    @property
    def index(self) -> int:
        return self.sentences[0].pair

    @property
    def shared(self) -> int:
        return len(self.places[0])


@dataclass(frozen=True, eq=False)
class _Masked:
    """A sentence with one place masked, which is the entry-th of its shared tokens."""

    sentence: _Sentence
    place: int
    entry: int


def _positions(model: PreTrainedModel) -> int | None:
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def _align(first: _Sentence, second: _Sentence) -> _Pair:
    blocks = SequenceMatcher(None, first.ids, second.ids, autojunk=False).get_matching_blocks()
    both = [(block.a + i, block.b + i) for block in blocks for i in range(block.size)]
    both = [(a, b) for a, b in both if not first.special[a] and not second.special[b]]
    if not both:
        raise InvalidInput(f"The sentences of pair {first.pair} share no token, so none can be scored.")
    return _Pair((first, second), ([a for a, _ in both], [b for _, b in both]))


def _batches(pairs: Sequence[_Pair], size: int) -> Iterator[list[_Masked]]:
    """Every shared token of every pair masked once; sentences of similar length together, the longest first."""
    batch: list[_Masked] = []
    longest = 0
    for pair in sorted(pairs, key=lambda pair: -max(len(sentence.ids) for sentence in pair.sentences)):
        for sentence, places in zip(pair.sentences, pair.places, strict=True):
            for entry, place in enumerate(places):
                longest = max(longest, len(sentence.ids))
                if batch and (len(batch) + 1) * longest > size:
                    yield batch
                    batch, longest = [], len(sentence.ids)
                batch.append(_Masked(sentence, place, entry))
    if batch:
        yield batch
