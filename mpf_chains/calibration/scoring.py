"""Answers and targets to scores, in chunks, each remembered in the ledger before the next."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from mpf_chains.benchmarks import Row
from mpf_chains.errors import FeatureError, LedgerError
from mpf_chains.features import Feature
from mpf_chains.runtime import Call, Completion, Ledger
from mpf_chains.runtime.canonical import sha256_of

USABLE = ("ok", "length")
"""Statuses that are answers; empty ones, refusals and failures are missing cells, never placeholder texts."""
CHUNK: Final = 32
"""Texts scored at once; what an interruption can cost, where scoring is paid for."""

Item = tuple[Completion, Row]


def score_name(feature: str, target_text: str | None) -> str:
    """What the score of an answer is filed under in the ledger; pins what the answer is compared with.

    Args:
        feature: Digest of the feature.
        target_text: The target text of the question's row.
    """
    return hashlib.sha256(feature.encode() + repr(target_text).encode()).hexdigest()


class Scorer:
    """Scores texts on every feature: each once, whatever is interrupted, as long as the ledger is the same.

    Args:
        features: The features.
        ledger: Where scores are kept beside their answers.
    """

    def __init__(self, features: Sequence[Feature], ledger: Ledger) -> None:
        self.features = list(features)
        self.ledger = ledger
        self._digests = [feature.digest for feature in features]
        self._known: dict[tuple[str, str], float] = {}  # (key, name) to score

    def score(self, items: Sequence[Item]) -> list[list[float] | None]:
        """Scores of each item on each feature; None where there is no usable answer.

        Raises:
            FeatureError: If a feature fails; the message names the question. What was scored before is kept.
            LedgerError: If an answer was kept without its text and lacks a score.
        """
        usable = [item for item in items if item[0].status in USABLE]
        scored = zip(*[self._column(f, usable) for f in range(len(self.features))], strict=True)
        return [list(next(scored)) if completion.status in USABLE else None for completion, _ in items]

    def score_targets(self, f: int, rows: Sequence[Row]) -> list[float]:
        """Scores of the rows' own target texts on the f-th feature."""
        keys = [sha256_of(["target", row.question, row.target_text]) for row in rows]
        stored = self.ledger.scores(keys)
        targets = [
            Completion(key, "ok", row.target_text, scores=stored.get(key, {}))
            for key, row in zip(keys, rows, strict=True)
        ]
        return self._column(f, list(zip(targets, rows, strict=True)))

    def while_at_hand(self, rows: Mapping[str, Sequence[Row]]) -> Callable[[Completion, Call], dict[str, float]]:
        """For an executor whose ledger keeps no text: a function that scores an answer before its text goes.

        Args:
            rows: Key of a call to the rows whose question it answers.
        """

        def score(completion: Completion, call: Call) -> dict[str, float]:  # noqa: ARG001
            scores: dict[str, float] = {}
            for row in rows[completion.key] if completion.status in USABLE else ():
                for f in range(len(self.features)):
                    if (name := self._name(f, row)) not in scores:
                        (scores[name],) = self._fresh(f, [(completion, row)])
            return scores

        return score

    def _name(self, f: int, row: Row) -> str:
        return score_name(self._digests[f], row.target_text)

    def _column(self, f: int, items: Sequence[Item]) -> list[float]:
        """Scores on the f-th feature: those that are known, and the others chunk by chunk."""
        cells = [(completion.key, self._name(f, row)) for completion, row in items]
        todo: dict[tuple[str, str], Item] = {}
        for cell, (completion, row) in zip(cells, items, strict=True):
            if cell[1] in completion.scores:
                self._known[cell] = completion.scores[cell[1]]
            elif cell not in self._known:
                if completion.text is None:
                    raise LedgerError(
                        f"The ledger keeps no texts, and its answer to row {row.id!r} lacks a score.",
                        hint="The features or targets have changed since: use a new ledger, or store_text=True.",
                    )
                todo[cell] = completion, row
        waiting = list(todo)
        for start in range(0, len(waiting), CHUNK):
            chunk = waiting[start : start + CHUNK]
            stored: dict[str, dict[str, float]] = {}
            for (key, name), score in zip(chunk, self._fresh(f, [todo[cell] for cell in chunk]), strict=True):
                self._known[key, name] = stored.setdefault(key, {})[name] = score
            self.ledger.add_scores(stored)
        return [self._known[cell] for cell in cells]

    def _fresh(self, f: int, items: Sequence[Item]) -> list[float]:
        texts, questions = [completion.text or "" for completion, _ in items], [row.question for _, row in items]
        try:
            scores = self.features[f](texts, questions=questions, references=[row.target_text for _, row in items])
        except FeatureError as error:
            places = ", ".join(dict.fromkeys(row.id for _, row in items[:3]))
            raise FeatureError(f"Scoring answers to {places}, … failed. {error}") from error
        return [float(score) for score in scores]
