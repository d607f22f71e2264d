"""What changes the law of a base model where texts are scored."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpf_chains.errors import InvalidInput, NotSupportedError
from mpf_chains.local.experts.vocabulary import vocabulary_size

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from mpf_chains.local.engine import Engine
    from mpf_chains.local.experts.ensemble import ExpertEnsemble
    from mpf_chains.local.experts.files.loading import LoadedPair
    from mpf_chains.local.packed import PackedModel
    from mpf_chains.local.steering.shared import SharedSteering


@dataclass(frozen=True)
class Correction:
    """What changes a base model: expert pairs that move something, and low-rank changes of its own.

    Args:
        pairs: The pairs; there may be none.
        alphas: α of each, not 0.
        tokenizer: The base model's.
        steering: Has the low-rank changes. None (default): there are none.
    """

    pairs: Sequence[LoadedPair]
    alphas: Sequence[float]
    tokenizer: PreTrainedTokenizerBase
    steering: SharedSteering | None = None

    @classmethod
    def of(
        cls,
        engine: Engine,
        ensemble: ExpertEnsemble | None,
        alphas: Sequence[float] | None,
        steering: SharedSteering | None = None,
    ) -> Correction:
        """What an ensemble with these strengths, and a steering adapter, do to an engine's model.

        Raises:
            NotSupportedError: If low-rank changes of the base model meet experts that are the base model too.
            InvalidInput: If there are not as many strengths as pairs, or one is not finite.
            VocabularyMismatch: If an expert has another vocabulary.
        """
        model, tokenizer, _ = engine.load()
        loaded = () if ensemble is None else ensemble.loaded
        given = [pair.pair.alpha for pair in loaded] if alphas is None else list(alphas)
        if len(given) != len(loaded):
            raise InvalidInput(f"There are {len(given)} `alphas` for {len(loaded)} expert pairs; give one for each.")
        for pair, alpha in zip(loaded, given, strict=True):
            if not abs(alpha) < float("inf"):
                raise InvalidInput(f"The alpha of {pair.pair.name!r} is {alpha}; it must be a finite number.")
        active = [i for i, pair in enumerate(loaded) if given[i] and not pair.idle]
        if ensemble is not None and active:
            with engine.lock:
                ensemble.check_vocabulary(tokenizer)
        if steering is not None:
            steering.load()
            halves = [half for i in active for half in (loaded[i].expert, loaded[i].anti_expert)]
            if steering.adapter.lora is not None and any(half.small.model is model for half in halves):
                raise NotSupportedError(
                    "Likelihoods read experts on the model itself in one pass with it, which the steering adapter's "
                    "low-rank changes would change too.",
                    hint="Give `alphas` of 0, or use experts on a model of their own.",
                )
        return cls([loaded[i] for i in active], [float(given[i]) for i in active], tokenizer, steering)

    @property
    def size(self) -> int:
        """Tokens of the vocabulary."""
        return vocabulary_size(self.tokenizer)

    @property
    def who(self) -> str:
        """Who reads, for messages."""
        return "the model and its experts read" if self.pairs else "the model reads"

    def context(self, model: PreTrainedModel) -> int | None:
        """Tokens that the model and its experts can all read. None: any number."""
        experts = [half.small.model for pair in self.pairs for half in (pair.expert, pair.anti_expert)]
        configs = [each.config.get_text_config() for each in (model, *experts)]
        contexts = [getattr(config, "max_position_embeddings", None) for config in configs]
        return min((int(each) for each in contexts if each is not None), default=None)

    def on(self) -> AbstractContextManager[None]:
        """While open, this thread's passes of the base model have its low-rank changes."""
        return nullcontext() if self.steering is None else self.steering.reading()

    def reader(self, model: PreTrainedModel) -> PackedModel:
        """The model, corrected."""
        from mpf_chains.local.packed import CorrectedModel, PlainModel

        return CorrectedModel(model, self.pairs, self.alphas, self.size) if self.pairs else PlainModel(model)
