"""Likelihoods and next-token distances through the ledger: each text is scored once, whatever is interrupted."""

from __future__ import annotations

import asyncio
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mpf_chains.core.distributions import Array
from mpf_chains.errors import FeatureError
from mpf_chains.evaluation.bound import method_of
from mpf_chains.evaluation.metrics import hellinger_distances
from mpf_chains.evaluation.tasks import Scored, ScoredKind
from mpf_chains.runtime import Ledger
from mpf_chains.runtime.canonical import sha256_of

Pair = tuple[str, str]
Scores = dict[str, float]
_SAVED_EVERY: Final = 2.0  # seconds: what an interruption can cost
_TOTAL, _TOKENS, _DISTANCE = "log_likelihood", "tokens", "hellinger"
_AT_ONCE: Final = 32  # pairs whose distributions may be in memory: 64 vocabularies
_SUM: Final = (0.99, 1.001)  # of probabilities: rounding, and what a model gives to padding behind its vocabulary


@runtime_checkable
class LikelihoodModel(Protocol):
    """A model that says how likely texts are, such as `mpf_chains.local.ChatTransformers`."""

    def log_likelihoods(self, texts: Sequence[Pair]) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """Log-probabilities (nats) of the tokens of each continuation after its context.

        Args:
            texts: (context, continuation) pairs.

        Yields:
            The number of a pair with an array (T,) for its T tokens, in any order.
        """
        ...


@runtime_checkable
class MaskedModel(Protocol):
    """A masked language model, such as `mpf_chains.local.MaskedLanguageModel`."""

    def pseudo_log_likelihoods(
        self, pairs: Sequence[Pair]
    ) -> Iterator[tuple[int, tuple[NDArray[np.float64], NDArray[np.float64]]]]:
        """Log-probabilities (nats) of the tokens that two sentences share, each masked, in the first and the second."""
        ...


@runtime_checkable
class NextTokenModel(Protocol):
    """A model that gives the distribution of the next token, such as `mpf_chains.local.ChatTransformers`."""

    def next_token_log_probabilities(self, prompts: Sequence[str]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Log-probabilities (nats) of every token of the vocabulary after each prompt.

        Args:
            prompts: Raw texts.

        Yields:
            The number of a prompt with an array (V,), which may hold -inf, in any order.
        """
        ...


class TextScores(ABC):
    """What a model makes of pairs of texts, kept in a ledger.

    Args:
        model: A model that has `method`; arguments may be bound to it.
        model_id: What names it in keys.
        ledger: Where scores are kept.
        progress: Whether to show a bar.

    Raises:
        NotSupportedError: If something is bound to the model that its method does not take.

    Attributes:
        method: Name of the model's method that scores.
    """

    method: ClassVar[str]
    _key_of: ClassVar[str]

    def __init__(self, model: Any, model_id: str, ledger: Ledger, progress: bool) -> None:
        self.model_id, self.ledger, self.progress = model_id, ledger, progress
        self.scorer: Callable[..., Iterator[tuple[int, Any]]] = method_of(model, self.method)

    def pending(self, pairs: Sequence[Pair]) -> int:
        """How many different pairs are not in the ledger yet."""
        keys = {self._key(pair) for pair in pairs}
        return len(keys) - len(self.ledger.scores(keys))

    async def score(self, pairs: Sequence[Pair]) -> list[tuple[Any, ...]]:
        """What each pair comes to: see the class.

        Raises:
            FeatureError: If the model leaves a pair out, or gives what is no log-probability.
        """
        keys = [self._key(pair) for pair in pairs]
        stored = self.ledger.scores(set(keys))
        todo = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in stored}
        if todo:
            self.ledger.check_writable(len(todo))
            stop = threading.Event()
            try:
                stored |= await asyncio.to_thread(self._score, todo, stop)
            finally:
                stop.set()
        return [self._read(stored[key]) for key in keys]

    @abstractmethod
    def _fresh(self, pairs: Sequence[Pair]) -> Iterator[tuple[int, Scores]]:
        """The number of each pair with what is kept of it."""

    @abstractmethod
    def _read(self, scores: Mapping[str, float]) -> tuple[Any, ...]:
        """What a pair comes to, from what is kept."""

    def _score(self, todo: Mapping[str, Pair], stop: threading.Event) -> dict[str, Scores]:
        keys, fresh = list(todo), dict[str, Scores]()
        unsaved, saved_at = dict[str, Scores](), time.monotonic()
        with tqdm(total=len(keys), desc="scoring", unit="text", disable=not self.progress) as bar:
            try:
                for index, scores in self._fresh(list(todo.values())):
                    fresh[keys[index]] = unsaved[keys[index]] = scores
                    bar.update()
                    if stop.is_set():
                        break
                    if time.monotonic() - saved_at > _SAVED_EVERY:
                        self.ledger.add_scores(unsaved)
                        unsaved, saved_at = {}, time.monotonic()
            finally:
                self.ledger.add_scores(unsaved)
        if len(fresh) < len(keys) and not stop.is_set():
            raise FeatureError(f"{self.model_id} scored {len(fresh)} of {len(keys)} texts; it must score each.")
        return fresh

    def _checked(self, pair: Pair, array: NDArray[np.float64], suffix: str = "") -> Scores:
        if not len(array) or not np.isfinite(array).all() or (array > 1e-6).any():
            raise FeatureError(
                f"{self.model_id} gave {np.asarray(array)[:5].tolist()}… as log-probabilities of {pair[1][:60]!r}; "
                "they must be finite, at most 0, one at least."
            )
        return {_TOTAL + suffix: float(np.sum(array, dtype=np.float64)), _TOKENS + suffix: float(len(array))}

    def _key(self, pair: Pair) -> str:
        return sha256_of([self._key_of, self.model_id, *pair])


class Likelihoods(TextScores):
    """How likely continuations are after their contexts: one `Scored` a pair."""

    method = "log_likelihoods"
    _key_of = "likelihood"

    def _fresh(self, pairs: Sequence[Pair]) -> Iterator[tuple[int, Scores]]:
        return ((index, self._checked(pairs[index], array)) for index, array in self.scorer(pairs))

    def _read(self, scores: Mapping[str, float]) -> tuple[Scored, ...]:
        return (_scored(scores),)


class PseudoLikelihoods(TextScores):
    """How likely a masked model finds the tokens that two sentences share: a `Scored` for each sentence."""

    method = "pseudo_log_likelihoods"
    _key_of = "pseudo-likelihood"

    def _fresh(self, pairs: Sequence[Pair]) -> Iterator[tuple[int, Scores]]:
        for index, (first, second) in self.scorer(pairs):
            yield index, {**self._checked(pairs[index], first), **self._checked(pairs[index], second, "/1")}

    def _read(self, scores: Mapping[str, float]) -> tuple[Scored, ...]:
        return _scored(scores), _scored(scores, "/1")


class Distances(TextScores):
    """Hellinger distance between the next token's distributions after two prompts: one number a pair.

    Only the distance is kept: two vocabularies of probabilities per pair would be some 400 kB. Pairs are taken some at
    a time, so memory does not grow with their number.
    """

    method = "next_token_log_probabilities"
    _key_of = "hellinger"

    def _fresh(self, pairs: Sequence[Pair]) -> Iterator[tuple[int, Scores]]:
        for start in range(0, len(pairs), _AT_ONCE):
            some = range(start, min(start + _AT_ONCE, len(pairs)))
            prompts = list(dict.fromkeys(prompt for index in some for prompt in pairs[index]))
            waiting, found = set(some), dict[str, Array]()
            for number, array in self.scorer(prompts):
                found[prompts[number]] = self._probabilities(prompts[number], array)
                ready = [index for index in waiting if all(prompt in found for prompt in pairs[index])]
                waiting.difference_update(ready)
                for index in ready:
                    yield index, {_DISTANCE: self._distance(*(found[prompt] for prompt in pairs[index]))}

    def _distance(self, first: Array, second: Array) -> float:
        if first.shape != second.shape:
            raise FeatureError(f"{self.model_id} gave vocabularies of {len(first)} and {len(second)} tokens.")
        return float(hellinger_distances(first, second))

    def _probabilities(self, prompt: str, array: NDArray[np.float32]) -> Array:
        with np.errstate(over="ignore"):
            values = np.exp(np.asarray(array, dtype=np.float64))
        total = float(values.sum()) if values.ndim == 1 else np.nan
        if not _SUM[0] <= total <= _SUM[1]:
            raise FeatureError(
                f"{self.model_id} gave {np.ravel(array)[:5].tolist()}… as log-probabilities of the token after "
                f"{prompt[:60]!r}; they must be a vector of natural logarithms of numbers that sum to 1, not {total}."
            )
        return np.asarray(values / total)

    def _read(self, scores: Mapping[str, float]) -> tuple[float, ...]:
        return (scores[_DISTANCE],)


SCORES: Mapping[ScoredKind, type[TextScores]] = {
    "likelihood": Likelihoods, "masked": PseudoLikelihoods, "next_token": Distances,
}  # fmt: skip
"""What scores a benchmark, by the way it is put to a model."""


def _scored(scores: Mapping[str, float], suffix: str = "") -> Scored:
    return Scored(scores[_TOTAL + suffix], int(scores[_TOKENS + suffix]))
