"""The one JSON form that is hashed and stored: sorted keys, ASCII, no NaN, nothing that JSON cannot hold."""

from __future__ import annotations

import hashlib
import json

from mpf_chains.errors import InvalidInput


def canonical_json(value: object) -> str:
    r"""Write a JSON-like value in its one canonical form.

    Args:
        value: Strings, finite numbers, booleans, None, and lists and string-keyed dicts of them.

    Returns:
        ASCII text that is the same on every machine and in every process.

    Raises:
        InvalidInput: If the value holds something else, or NaN or infinity.

    Examples:
        >>> canonical_json({"b": 1, "a": ["ü"]})
        '{"a":["\\u00fc"],"b":1}'
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidInput(
            f"A message or model argument cannot be written as JSON ({error}), so its call has no stable key.",
            hint="Use strings, finite numbers, booleans, None, lists and dicts.",
        ) from error


def sha256_of(value: object) -> str:
    """SHA-256 (64 hex digits) of the canonical JSON of a value."""
    return hashlib.sha256(canonical_json(value).encode("ascii")).hexdigest()


def storable(text: str) -> str:
    r"""Replace lone surrogates, which no UTF-8 file can hold, by U+FFFD; a split pair is joined again.

    Examples:
        >>> storable("a\ud83d\ude00b") == "a😀b", storable("a\ud83d") == "a�"
        (True, True)
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
