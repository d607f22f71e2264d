"""Log-likelihoods through the ledger: each text is scored once, whatever is interrupted."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mpf_chains.errors import FeatureError
from mpf_chains.evaluation.tasks import Scored
from mpf_chains.runtime import Ledger
from mpf_chains.runtime.canonical import sha256_of

Pair = tuple[str, str]
_SAVED_EVERY: Final = 2.0  # seconds: what an interruption can cost
_TOTAL, _TOKENS = "log_likelihood", "tokens"


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


class Likelihoods:
    """Scores pairs of texts with a model, and keeps the scores in a ledger.

    Args:
        model: A `LikelihoodModel` or a `MaskedModel`.
        model_id: What names it in keys.
        ledger: Where scores are kept.
        progress: Whether to show a bar.
    """

    def __init__(self, model: LikelihoodModel | MaskedModel, model_id: str, ledger: Ledger, progress: bool) -> None:
        self.model, self.model_id, self.ledger, self.progress = model, model_id, ledger, progress
        self.masked = not isinstance(model, LikelihoodModel)

    def pending(self, pairs: Sequence[Pair]) -> int:
        """How many different pairs are not in the ledger yet."""
        keys = {self._key(pair) for pair in pairs}
        return len(keys) - len(self.ledger.scores(keys))

    async def score(self, pairs: Sequence[Pair]) -> list[tuple[Scored, ...]]:
        """Scores of each pair: one, or under a masked model that of the first text and that of the second.

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

    def _score(self, todo: Mapping[str, Pair], stop: threading.Event) -> dict[str, dict[str, float]]:
        keys, fresh = list(todo), dict[str, dict[str, float]]()
        unsaved, saved_at = dict[str, dict[str, float]](), time.monotonic()
        with tqdm(total=len(keys), desc="scoring", unit="text", disable=not self.progress) as bar:
            try:
                for index, arrays in self._raw(list(todo.values())):
                    fresh[keys[index]] = unsaved[keys[index]] = self._checked(todo[keys[index]], arrays)
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

    def _raw(self, pairs: Sequence[Pair]) -> Iterable[tuple[int, Sequence[NDArray[np.float64]]]]:
        if isinstance(self.model, LikelihoodModel):
            return ((index, (array,)) for index, array in self.model.log_likelihoods(pairs))
        return self.model.pseudo_log_likelihoods(pairs)

    def _checked(self, pair: Pair, arrays: Sequence[NDArray[np.float64]]) -> dict[str, float]:
        scores: dict[str, float] = {}
        for number, array in enumerate(arrays):
            if not len(array) or not np.isfinite(array).all() or (array > 1e-6).any():
                raise FeatureError(
                    f"{self.model_id} gave {np.asarray(array)[:5].tolist()}… as log-probabilities of {pair[1][:60]!r}; "
                    "they must be finite, at most 0, one at least."
                )
            suffix = f"/{number}" if number else ""
            scores |= {_TOTAL + suffix: float(np.sum(array, dtype=np.float64)), _TOKENS + suffix: float(len(array))}
        return scores

    def _read(self, scores: Mapping[str, float]) -> tuple[Scored, ...]:
        suffixes = ("", "/1") if self.masked else ("",)
        return tuple(Scored(scores[_TOTAL + suffix], int(scores[_TOKENS + suffix])) for suffix in suffixes)

    def _key(self, pair: Pair) -> str:
        return sha256_of(["pseudo-likelihood" if self.masked else "likelihood", self.model_id, *pair])


def can_score(model: Any) -> bool:
    """Whether a model gives likelihoods of one kind or the other."""
    return isinstance(model, LikelihoodModel | MaskedModel)
