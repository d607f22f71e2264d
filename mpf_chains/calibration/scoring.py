"""Answers to scores, in batches, remembered in the ledger."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

from mpf_chains.benchmarks import Row
from mpf_chains.errors import FeatureError, LedgerError
from mpf_chains.features import Feature
from mpf_chains.runtime import Call, Completion, Ledger

USABLE = ("ok", "length")
"""Statuses that are answers; empty ones, refusals and failures are missing cells, never placeholder texts."""


class Scorer:
    """Scores answers on every feature, looking first at what the ledger knows.

    Args:
        features: The features.
        ledger: Where scores are kept beside their answers.
    """

    def __init__(self, features: Sequence[Feature], ledger: Ledger) -> None:
        self.features = list(features)
        self.ledger = ledger
        self._digests = [feature.digest for feature in features]

    def names(self, row: Row) -> list[str]:
        """What each feature's score of an answer to this row is filed under; pins what the answer is compared with."""
        pinned = repr(row.target_text).encode()
        return [hashlib.sha256(digest.encode() + pinned).hexdigest() for digest in self._digests]

    def score(self, items: Sequence[tuple[Completion, Row]]) -> list[list[float] | None]:
        """Scores of each item on each feature; None where there is no usable answer.

        Raises:
            FeatureError: If a feature fails; the message names the question.
            LedgerError: If an answer was kept without its text and lacks a score.
        """
        known: list[list[float] | None] = []
        todo: list[int] = []
        for index, (completion, row) in enumerate(items):
            names = self.names(row)
            if completion.status in USABLE and all(name in completion.scores for name in names):
                known.append([completion.scores[name] for name in names])
            else:
                known.append(None)
                if completion.status in USABLE:
                    if completion.text is None:
                        raise LedgerError(
                            f"The ledger keeps no texts, and its answer to row {row.id!r} lacks a score.",
                            hint="The features or targets have changed since: use a new ledger, or store_text=True.",
                        )
                    todo.append(index)
        if todo:
            fresh = self.texts([items[i][0].text or "" for i in todo], [items[i][1] for i in todo])
            self.ledger.add_scores(
                {
                    items[i][0].key: dict(zip(self.names(items[i][1]), scores, strict=True))
                    for i, scores in zip(todo, fresh, strict=True)
                }
            )
            for i, scores in zip(todo, fresh, strict=True):
                known[i] = scores
        return known

    def texts(
        self, texts: Sequence[str], rows: Sequence[Row], features: Sequence[Feature] | None = None
    ) -> list[list[float]]:
        """Scores of texts that belong to rows, on each feature (default: all)."""
        chosen = self.features if features is None else features
        questions, references = [row.question for row in rows], [row.target_text for row in rows]
        try:
            columns = [feature(texts, questions=questions, references=references) for feature in chosen]
        except FeatureError as error:
            places = ", ".join(dict.fromkeys(row.id for row in rows[:3]))
            raise FeatureError(f"Scoring answers to {places}, … failed. {error}") from error
        return [[float(column[i]) for column in columns] for i in range(len(texts))]

    def while_at_hand(self, rows: Mapping[str, Sequence[Row]]) -> Callable[[Completion, Call], dict[str, float]]:
        """For an executor whose ledger keeps no text: a function that scores an answer before its text goes.

        Args:
            rows: Key of a call to the rows whose question it answers.
        """

        def score(completion: Completion, call: Call) -> dict[str, float]:  # noqa: ARG001
            if completion.status not in USABLE:
                return {}
            scores: dict[str, float] = {}
            for row in rows[completion.key]:
                scores |= zip(self.names(row), self.texts([completion.text or ""], [row])[0], strict=True)
            return scores

        return score
