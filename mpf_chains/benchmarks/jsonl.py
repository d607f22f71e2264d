"""Benchmarks as JSON lines: one object per row, and an optional first object for the benchmark as a whole."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mpf_chains.benchmarks.lines import Place, iter_lines
from mpf_chains.benchmarks.records import Header, Record
from mpf_chains.benchmarks.rows import FieldError, Row
from mpf_chains.errors import InvalidInput
from mpf_chains.perspectives import Perspective

_REQUIRED = ("id", "entity", "question")
_FIELDS = (*_REQUIRED, "target_text", "target_score", "split", "metadata")
_NOT_A_NUMBER = re.compile(r"\bNaN\b|-?\bInfinity\b")


class JSONLFormat:
    """JSON lines, UTF-8. Keys are those of `Row`; blank lines are skipped.

    A first line `{"benchmark": name, "baseline": {entity: {"name", "instruction", "arguments"}}}` is written where the
    benchmark has baseline perspectives.
    """

    def records(self, path: Path) -> Iterator[Record]:
        """Rows with their places, one at a time."""
        first = True
        for place, text, fields in _objects(path):
            if not (first and "benchmark" in fields):
                yield _record(fields, text, place)
            first = False

    def header(self, path: Path) -> Header:
        """Name and baseline from the first line, if it holds them."""
        for place, _, fields in _objects(path):
            return _header(fields, place) if "benchmark" in fields else Header()
        return Header()

    def lines(self, rows: Iterable[Row], header: Header) -> Iterator[str]:
        """The file's text, line by line."""
        if header.baseline:
            baseline = {
                entity: {"name": one.name, "instruction": one.instruction, "arguments": dict(one.arguments)}
                for entity, one in header.baseline.items()
            }
            yield _text({"benchmark": header.name, "baseline": baseline})
        for row in rows:
            yield _text(row.as_dict())


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
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise _at(place, place.column if cell else error.colno).error(
            f"not JSON: {error.msg}.", hint=f"Every {'cell' if cell else 'line'} must hold one complete JSON object."
        ) from error
    except RecursionError as error:
        raise place.error("the JSON is nested too deep.", hint="Flatten it.") from error
    except ValueError as error:
        found = _NOT_A_NUMBER.search(text)
        raise _at(place, found.start() + 1 if found and not cell else place.column).error(
            f"not usable JSON: {error}."
        ) from error
    if not isinstance(value, dict):
        kind = "array" if isinstance(value, list) else type(value).__name__
        raise place.error(
            f"a JSON {kind} where one JSON object must be.",
            hint="Write each element of the array on a line of its own." if kind == "array" and not cell else "",
        )
    return value


def _objects(path: Path) -> Iterator[tuple[Place, str, dict[str, Any]]]:
    for number, text in iter_lines(path):
        if text.strip():
            place = Place(path, number)
            if text.lstrip().startswith("["):
                raise place.error(
                    "a JSON array starts here; JSON lines have one object per line.",
                    hint="Write each element of the array on a line of its own.",
                )
            yield place, text, parse_object(text.rstrip("\r\n"), place)


def _record(fields: Mapping[str, Any], text: str, place: Place) -> Record:
    missing = [name for name in _REQUIRED if name not in fields]
    unknown = [name for name in fields if name not in _FIELDS]
    if missing:
        raise place.error(f"the row has no {', '.join(map(repr, missing))}; {', '.join(_REQUIRED)} are needed.")
    if unknown:
        raise _at(place, _column(text, unknown[0])).error(
            f"unknown key {unknown[0]!r}; allowed are {', '.join(_FIELDS)}.", hint='Put other data under "metadata".'
        )
    try:
        return Record(place, Row(**fields))
    except FieldError as error:
        raise _at(place, _column(text, error.field_name)).error(error.message, hint=error.hint) from error


def _header(fields: Mapping[str, Any], place: Place) -> Header:
    name, baseline = fields["benchmark"], fields.get("baseline", {})
    if not (isinstance(name, str) and isinstance(baseline, dict) and fields.keys() <= {"benchmark", "baseline"}):
        raise place.error('the benchmark line must be {"benchmark": name, "baseline": {entity: perspective}}.')
    return Header(name, {entity: _perspective(entity, parts, place) for entity, parts in baseline.items()})


def _perspective(entity: str, parts: Any, place: Place) -> Perspective:
    try:
        return Perspective(**parts)
    except (TypeError, AttributeError, InvalidInput) as error:
        raise place.error(
            f"the baseline of {entity!r} is no perspective ({error}); it needs name, instruction, arguments."
        ) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        raise ValueError(f"the key {twice[0]!r} is given more than once")
    return result


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number; numbers must be finite")


def _text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"


def _column(text: str, key: str) -> int:
    return text.find(json.dumps(key, ensure_ascii=False)) + 1 or 1


def _at(place: Place, column: int) -> Place:
    return Place(place.path, place.line, column)
