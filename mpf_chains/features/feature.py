"""The protocol of features: texts in, one finite score per text inside a declared range out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpf_chains.errors import FeatureError
from mpf_chains.features.digests import digest_of, installed_version


class Feature(ABC):
    """A number measured on each answer, inside a declared range.

    Subclasses set `name` and `bounds` (on the class or the instance) and implement `_score`. Everything kept on the
    instance is pinned in `digest`; override `_configuration` where it holds things that are no plain data.

    Attributes:
        name: Key of the feature in `Row.target_score`, weights, reports. Not blank.
        bounds: Lowest and highest possible score, both finite, low < high.
        libraries: Distributions whose version decides the score; pinned in `digest`. Default none.
        revision: Raised by the class when the same configuration starts to give other scores. Default 1.

    Examples:
        >>> class Shouting(Feature):
        ...     name, bounds = "shouting", (0.0, 1.0)
        ...
        ...     def _score(self, answers, *, questions=None, references=None):
        ...         return [float(text.isupper()) for text in answers]
        >>> Shouting()(["HELP", "Thanks."])
        array([1., 0.])
    """

    name: str
    bounds: tuple[float, float]
    libraries: ClassVar[tuple[str, ...]] = ()
    revision: ClassVar[int] = 1

    @abstractmethod
    def _score(
        self,
        answers: Sequence[str],
        *,
        questions: Sequence[str] | None = None,
        references: Sequence[str | None] | None = None,
    ) -> ArrayLike:
        """Score the answers; called with at least one, and with lists of equal length."""

    def __call__(
        self,
        answers: Sequence[str],
        *,
        questions: Sequence[str] | None = None,
        references: Sequence[str | None] | None = None,
    ) -> NDArray[np.float64]:
        """Score a batch of answers.

        Args:
            answers: The n texts to score.
            questions: The question of each answer, for features that read it. Default none.
            references: The target text of each answer, for features that compare. Default none.

        Returns:
            (n,) float64, in the order of the answers, finite and within `bounds`. Nothing is clipped. n = 0 gives
            an empty array.

        Raises:
            FeatureError: If the arguments do not fit together, or a score is not finite or outside `bounds`; the
                message names feature, index, value and the start of the text.
        """
        texts = self._texts("answers", answers)
        companions: dict[str, list[Any]] = {}
        for label, values in (("questions", questions), ("references", references)):
            if values is not None:
                companions[label] = self._texts(label, values, optional=label == "references")
                if len(companions[label]) != len(texts):
                    raise FeatureError(
                        f"Feature {self.name!r} got {len(companions[label])} {label} for {len(texts)} answers; "
                        "there must be one per answer, or none at all."
                    )
        if not texts:
            return np.empty(0, dtype=np.float64)
        return self._validated(self._score(texts, **companions), texts, companions.get("questions"))

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of class, configuration and library versions: changes whenever scores may change."""
        kind = type(self)
        return digest_of(
            {
                "class": f"{kind.__module__}.{kind.__qualname__}",
                "revision": self.revision,
                "name": self.name,
                "bounds": list(self.bounds),
                "configuration": self._configuration(),
                "libraries": {library: installed_version(library) for library in self.libraries},
            }
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r}, bounds={self.bounds!r})"

    def _configuration(self) -> Mapping[str, Any]:
        """What decides the scores besides the class: everything kept on the instance, unless overridden."""
        return vars(self)

    def _texts(self, label: str, values: Sequence[str | None], *, optional: bool = False) -> list[Any]:
        if isinstance(values, (str, bytes)):
            raise FeatureError(
                f"Feature {self.name!r} takes a list of {label}, not one text.", hint=f"Pass [{label[:-1]}]."
            )
        texts = list(values)
        for index, text in enumerate(texts):
            if not (isinstance(text, str) or (optional and text is None)):
                raise FeatureError(
                    f"{label}[{index}] given to feature {self.name!r} is {type(text).__name__}; it must be a str.",
                    hint="Leave missing answers out; they have no score." if text is None else "",
                )
        return texts

    def _validated(self, scores: ArrayLike, texts: list[str], questions: list[str] | None) -> NDArray[np.float64]:
        low, high = self.bounds
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise FeatureError(
                f"The bounds of feature {self.name!r} are {self.bounds}; they must be finite, low < high."
            )
        try:
            values = np.array(scores, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise FeatureError(f"Feature {self.name!r} must return numbers: {error}.") from error
        if values.shape != (len(texts),):
            raise FeatureError(
                f"Feature {self.name!r} returned scores of shape {values.shape} for {len(texts)} texts; "
                "there must be exactly one score per text."
            )
        wrong = np.flatnonzero(~((values >= low) & (values <= high)))  # NaN compares false, so it is caught as well
        if wrong.size:
            index = int(wrong[0])
            question = f" (question {_start(questions[index])})" if questions else ""
            raise FeatureError(
                f"Feature {self.name!r} scored answer {index}{question} as {values[index]}; scores must be finite and "
                f"within [{low}, {high}]. The text starts {_start(texts[index])}.",
                hint="Scores are never clipped: correct the scorer or its bounds.",
            )
        return values


def _start(text: str, length: int = 60) -> str:
    return repr(text if len(text) <= length else f"{text[:length]}…")
