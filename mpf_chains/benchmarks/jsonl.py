"""Benchmarks as JSON lines: one object per row, and an optional first object for the benchmark as a whole."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mpf_chains.benchmarks.lines import Place
from mpf_chains.benchmarks.records import Header, Record
from mpf_chains.benchmarks.rows import FieldError, Row, plain_data
from mpf_chains.benchmarks.strict_json import iter_objects
from mpf_chains.errors import InvalidInput
from mpf_chains.perspectives import Perspective

_REQUIRED = ("id", "entity", "question")
_FIELDS = (*_REQUIRED, "target_text", "target_score", "split", "metadata")


class JSONLFormat:
    """JSON lines, UTF-8. Keys are those of `Row`; blank lines are skipped.

    A first line `{"benchmark": name, "baseline": {entity: {"name", "instruction", "arguments"}}}` is written where the
    benchmark has baseline perspectives.
    """

    def records(self, path: Path) -> Iterator[Record]:
        """Rows with their places, one at a time."""
        first = True
        for place, text, fields in iter_objects(path):
            if not (first and "benchmark" in fields):
                yield _record(fields, text, place)
            first = False

    def header(self, path: Path) -> Header:
        """Name and baseline from the first line, if it holds them."""
        for place, _, fields in iter_objects(path):
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


def _record(fields: Mapping[str, Any], text: str, place: Place) -> Record:
    missing = [name for name in _REQUIRED if name not in fields]
    unknown = [name for name in fields if name not in _FIELDS]
    if missing:
        raise place.error(f"the row has no {', '.join(map(repr, missing))}; {', '.join(_REQUIRED)} are needed.")
    if unknown:
        raise place.at(_column(text, unknown[0])).error(
            f"unknown key {unknown[0]!r}; allowed are {', '.join(_FIELDS)}.", hint='Put other data under "metadata".'
        )
    try:
        return Record(place, Row(**fields))
    except FieldError as error:
        raise place.at(_column(text, error.field_name)).error(error.message, hint=error.hint) from error


def _header(fields: Mapping[str, Any], place: Place) -> Header:
    name, baseline = fields["benchmark"], fields.get("baseline", {})
    if not (isinstance(name, str) and isinstance(baseline, dict) and fields.keys() <= {"benchmark", "baseline"}):
        raise place.error('the benchmark line must be {"benchmark": name, "baseline": {entity: perspective}}.')
    try:
        plain_data("benchmark", name)
        plain_data("baseline", baseline)
    except FieldError as error:
        raise place.error(error.message, hint=error.hint) from error
    return Header(name, {entity: _perspective(entity, parts, place) for entity, parts in baseline.items()})


def _perspective(entity: str, parts: Any, place: Place) -> Perspective:
    try:
        return Perspective(**parts)
    except (TypeError, AttributeError, InvalidInput) as error:
        raise place.error(
            f"the baseline of {entity!r} is no perspective ({error}); it needs name, instruction, arguments."
        ) from error


def _text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"


def _column(text: str, key: str) -> int:
    return text.find(json.dumps(key, ensure_ascii=False)) + 1 or 1
