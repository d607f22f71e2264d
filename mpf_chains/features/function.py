"""Any function of texts as a feature."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import ArrayLike

from mpf_chains.errors import FeatureError
from mpf_chains.features.feature import Feature


class CallableFeature(Feature):
    """A function from texts to scores.

    Args:
        function: Takes a list of n texts, returns n numbers. Called with all texts at once.
        name: Name of the feature. Default: the function's name.
        bounds: Lowest and highest score it may return, finite, low < high. Default (0, 1).
        version: Pins the function in `digest` instead of its source and captured values. Needed for objects whose
            content cannot be read (a bound method, a model); change it whenever the scores change. Default none.

    Raises:
        FeatureError: If the function cannot be called, has no usable name, or the bounds are wrong. Reading `digest`
            raises it where the function cannot be pinned and `version` is not given.

    Examples:
        >>> words = CallableFeature(lambda texts: [len(t.split()) for t in texts], name="words", bounds=(0, 500))
        >>> words(["one two", ""])
        array([2., 0.])
    """

    def __init__(
        self,
        function: Callable[[Sequence[str]], ArrayLike],
        name: str | None = None,
        bounds: tuple[float, float] = (0.0, 1.0),
        *,
        version: str | None = None,
    ) -> None:
        if not callable(function) or isinstance(function, type):
            raise FeatureError(f"A feature needs a function from texts to scores, not {function!r}.")
        self.name = (name if name is not None else getattr(function, "__name__", "")).strip("<> ")
        if not self.name:
            raise FeatureError(f"{function!r} has no name of its own; pass `name=`.")
        low, high = (float(bound) for bound in bounds)
        if not (float("-inf") < low < high < float("inf")):
            raise FeatureError(f"`bounds` of feature {self.name!r} are {bounds}; they must be finite, low < high.")
        self.bounds = (low, high)
        self.function = function
        self.version = version

    def _score(
        self,
        answers: Sequence[str],
        *,
        questions: Sequence[str] | None = None,
        references: Sequence[str | None] | None = None,
    ) -> ArrayLike:
        del questions, references
        return self.function(answers)

    def _configuration(self) -> Mapping[str, Any]:
        return {"version": self.version} if self.version is not None else {"function": self.function}
