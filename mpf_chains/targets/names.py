"""Attributes and classes that are known by name, however they are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

_KNOWN: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "gender": {
            "female": ("females", "woman", "women"),
            "male": ("males", "man", "men"),
            "nonbinary": ("non-binary", "non binary"),
        },
        "race": {
            "white": ("whites",),
            "black": ("blacks",),
            "asian": ("asians",),
            "hispanic": ("hispanics",),
            "indigenous": (),
        },
        "sentiment": {"positive": (), "neutral": (), "negative": ()},
    }
)


def canonical(attribute: str, name: str) -> str:
    """The name under which a class of gender, race or sentiment ships; of others the name itself.

    Examples:
        >>> canonical("gender", "Women"), canonical("age", "Old")
        ('female', 'Old')
    """
    folded = name.casefold()
    return next((each for each, more in _KNOWN.get(attribute, {}).items() if folded in {each, *more}), name)


def attribute_of(classes: Iterable[str]) -> str | None:
    """The attribute of which these are different classes: "gender", "race" or "sentiment"; None if it is none of them.

    Examples:
        >>> attribute_of(["Men", "Women"]), attribute_of(["old", "young"])
        ('gender', None)
    """
    names = tuple(classes)
    for attribute, known in _KNOWN.items():
        found = {canonical(attribute, name) for name in names}
        if found <= known.keys() and len(found) == len(names):
            return attribute
    return None
