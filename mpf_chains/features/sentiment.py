"""Sentiment by VADER, the default feature: a lexicon and rules, no model, no network."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mpf_chains.features.feature import Feature

if TYPE_CHECKING:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer


class SentimentFeature(Feature):
    """Sentiment of English text: (compound + 1) / 2 of VADER, from 0 (negative) over 0.5 (neutral) to 1 (positive).

    VADER adds up word valences, so long one-sided texts come close to 0 or 1; a text with no word of its lexicon, the
    empty one included, scores 0.5. Steps of 0.00005.

    References:
        Hutto and Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text", 2014.

    Examples:
        >>> SentimentFeature()(["A wonderful place.", "A place.", "A terrible place."]).round(2)
        array([0.79, 0.5 , 0.26])
    """

    name = "sentiment"
    bounds = (0.0, 1.0)
    libraries = ("vaderSentiment",)

    def _score(
        self,
        answers: Sequence[str],
        *,
        questions: Sequence[str] | None = None,
        references: Sequence[str | None] | None = None,
    ) -> list[float]:
        del questions, references
        analyzer = _analyzer()
        return [(analyzer.polarity_scores(text)["compound"] + 1.0) / 2.0 for text in answers]


@functools.cache
def _analyzer() -> SentimentIntensityAnalyzer:
    """The analyser, whose lexicon is read once per process."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    with warnings.catch_warnings():  # it opens its lexicon in a way that newer Pythons deprecate
        warnings.simplefilter("ignore", DeprecationWarning)
        return SentimentIntensityAnalyzer()
