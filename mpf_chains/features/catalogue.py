"""Features by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from numpy.typing import ArrayLike

from mpf_chains.errors import FeatureError
from mpf_chains.features.feature import Feature
from mpf_chains.features.function import CallableFeature
from mpf_chains.features.lexicon import GENDERED, LexiconShare
from mpf_chains.features.sentiment import SentimentFeature

_BUILTIN: Mapping[str, Callable[[], Feature]] = {
    "sentiment": SentimentFeature,
    "gender": lambda: LexiconShare(*GENDERED, name="gender"),
}


def get_feature(spec: str | Feature | Callable[[Sequence[str]], ArrayLike]) -> Feature:
    """The feature that a `feature=` argument means.

    Args:
        spec: "sentiment" (VADER, 0 to 1), "gender" (share of female among gendered words, 0 to 1), a `Feature`, or a
            function from a list of texts to scores between 0 and 1 (other bounds: `CallableFeature`).

    Returns:
        A feature; one given is returned as it is.

    Raises:
        FeatureError: If there is no such feature.

    Examples:
        >>> get_feature("gender")(["She met him."])
        array([0.5])
    """
    if isinstance(spec, Feature):
        return spec
    if isinstance(spec, str):
        if spec not in _BUILTIN:
            raise FeatureError(
                f"There is no built-in feature {spec!r}; choose one of {', '.join(_BUILTIN)}.",
                hint="Or pass a Feature, or a function from texts to scores.",
            )
        return _BUILTIN[spec]()
    if isinstance(spec, type) or not callable(spec):
        raise FeatureError(f"`feature` must be a name, a Feature or a function, not {spec!r}.")
    return CallableFeature(spec)
