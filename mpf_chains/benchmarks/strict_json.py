"""JSON as it must be: each key once, every number finite, nothing interpreted; errors with file:line:column."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mpf_chains.benchmarks.lines import Place, iter_lines

_NOT_A_NUMBER = re.compile(r"\bNaN\b|-?\bInfinity\b")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        raise ValueError(f"the key {twice[0]!r} is given more than once")
    return result


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number; numbers must be finite")


DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse)
"""Decodes JSON; ValueError for a key given twice, and for NaN and Infinity."""


def iter_objects(path: Path) -> Iterator[tuple[Place, str, dict[str, Any]]]:
    """Objects of a file of JSON lines, one at a time; blank lines are skipped.

    Yields:
        Where the line starts, its text, and the object as plain data.

    Raises:
        BenchmarkError: As `parse_object`, and as `iter_lines`.
    """
    for number, text in iter_lines(path):
        if text.strip():
            place = Place(path, number)
            if text.lstrip().startswith("["):
                raise place.error(
                    "a JSON array starts here; JSON lines have one object per line.",
                    hint="Write each element of the array on a line of its own.",
                )
            yield place, text, parse_object(text.rstrip("\r\n"), place)


def parse_object(text: str, place: Place, *, cell: bool = False) -> dict[str, Any]:
    """The JSON object in a text.

    Args:
        text: A line, or the cell of a table.
        place: Where it starts, for the message.
        cell: Whether it is a cell, whose place is the column of the table. Default False.

    Returns:
        The object as plain data; nothing in it is interpreted.

    Raises:
        BenchmarkError: If it is no JSON object, repeats a key, holds NaN or Infinity, or is nested too deep.
    """
    try:
        value = DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise place.at(place.column if cell else error.colno).error(
            f"not JSON: {error.msg}.", hint=f"Every {'cell' if cell else 'line'} must hold one complete JSON object."
        ) from error
    except RecursionError as error:
        raise place.error("the JSON is nested too deep.", hint="Flatten it.") from error
    except ValueError as error:
        found = _NOT_A_NUMBER.search(text)
        raise place.at(found.start() + 1 if found and not cell else place.column).error(
            f"not usable JSON: {error}."
        ) from error
    if not isinstance(value, dict):
        kind = "array" if isinstance(value, list) else type(value).__name__
        raise place.error(
            f"a JSON {kind} where one JSON object must be.",
            hint="Write each element of the array on a line of its own." if kind == "array" and not cell else "",
        )
    return value
