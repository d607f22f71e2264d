"""Benchmarks as CSV: our own columns, and those of SAGED files."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mpf_chains.benchmarks.lines import Place, iter_lines
from mpf_chains.benchmarks.records import Header, Record
from mpf_chains.benchmarks.rows import FieldError, Row
from mpf_chains.benchmarks.strict_json import parse_object
from mpf_chains.errors import BenchmarkError, NotSupportedError

_REQUIRED = ("id", "entity", "question")
_OPTIONAL = ("target_text", "split", "metadata")
_SCORE = "target_score."
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_SAGED_REQUIRED = ("keyword", "prompts")
_SAGED_KNOWN = (*_SAGED_REQUIRED, "concept", "domain", "baseline", "source_tag")
_FORMULA = tuple("=+-@\t\r'")  # a spreadsheet would run the cell (or, for ', hide the mark)

Cells = dict[str, tuple[int, str]]  # column name -> (field number from 1, text)


class CSVFormat:
    """CSV, UTF-8, comma, with a header row.

    Columns: id, entity, question and, where wanted, target_text, target_score.<feature>, split, and metadata as a JSON
    object.
    Cells that start with = + - @ (or tab, return, apostrophe) are written with an apostrophe before them, so that no
    spreadsheet runs them, and read back without it. Empty optional cells mean none.
    """

    def records(self, path: Path) -> Iterator[Record]:
        """Rows with their places, one at a time."""
        for place, cells in iter_table(path, _REQUIRED, unescape=True):
            for name, (column, _) in cells.items():
                if name not in _REQUIRED + _OPTIONAL and not name.startswith(_SCORE):
                    raise Place(path, 1, column).error(
                        f"unknown column {name!r}; allowed are {', '.join(_REQUIRED + _OPTIONAL)}, {_SCORE}<feature>.",
                        hint="Put other data into the column `metadata` as a JSON object.",
                    )
            yield _record(cells, place)

    def header(self, path: Path) -> Header:
        """CSV says nothing about the benchmark as a whole."""
        del path
        return Header()

    def lines(self, rows: Iterable[Row], header: Header) -> Iterator[str]:
        """The file's text, row by row."""
        if header.baseline:
            raise NotSupportedError(
                "CSV has no place for the baseline perspectives of a benchmark.",
                hint="Write .jsonl, or write Benchmark(name, rows with targets).",
            )
        kept = list(rows)
        features = list(dict.fromkeys(name for row in kept for name in row.target_score))
        yield _csv_line([*_REQUIRED, *_OPTIONAL, *(_SCORE + name for name in features)])
        for row in kept:
            metadata = json.dumps(dict(row.metadata), ensure_ascii=True) if row.metadata else ""
            texts = [row.id, row.entity, row.question, row.target_text or "", row.split, metadata]
            scores = [repr(row.target_score[name]) if name in row.target_score else "" for name in features]
            yield _csv_line([_escaped(text) for text in texts] + scores)


class SagedFormat:
    """CSV files of SAGED, reading only.

    Columns: keyword (the entity), prompts (the question), baseline (the target text), concept, domain, source_tag;
    every other column holds one perspective's answers and is kept in `metadata["answers"]`. These files have no ids and
    no split: row n about an entity gets the id "entity/n", and all rows are "decomposition".
    """

    def records(self, path: Path) -> Iterator[Record]:
        """Rows with their places, one at a time."""
        count: dict[str, int] = {}
        for place, cells in iter_table(path, _SAGED_REQUIRED, unescape=False):
            texts = {name: text for name, (_, text) in cells.items()}
            entity = texts["keyword"]
            count[entity] = count.get(entity, 0) + 1
            metadata: dict[str, Any] = {
                name: texts[name] for name in ("concept", "domain", "source_tag") if texts.get(name)
            }
            metadata["answers"] = {name: text for name, text in texts.items() if name not in _SAGED_KNOWN and text}
            fields = {
                "id": f"{entity}/{count[entity]}",
                "entity": entity,
                "question": texts["prompts"],
                "target_text": texts.get("baseline") or None,
                "metadata": metadata,
            }
            columns = {"entity": "keyword", "id": "keyword", "question": "prompts", "target_text": "baseline"}
            yield _located(fields, place, {name: cells[key][0] for name, key in columns.items() if key in cells})

    def header(self, path: Path) -> Header:
        """SAGED files say nothing about the benchmark as a whole."""
        del path
        return Header()

    def lines(self, rows: Iterable[Row], header: Header) -> Iterator[str]:
        """Not offered: our own formats keep everything."""
        del rows, header
        raise NotSupportedError("SAGED files are read only.", hint="Write .jsonl or .csv.")


def is_saged(path: Path) -> bool:
    """Whether the header row of a CSV file is that of SAGED."""
    for _, names in _rows(path):
        return set(_SAGED_REQUIRED) <= set(names)
    return False


def _record(cells: Cells, place: Place) -> Record:
    texts = {name: text for name, (_, text) in cells.items()}
    fields: dict[str, Any] = {name: texts[name] for name in _REQUIRED}
    fields["target_text"] = texts.get("target_text") or None
    fields["split"] = texts.get("split") or "decomposition"
    if texts.get("metadata"):
        fields["metadata"] = parse_object(texts["metadata"], place.at(cells["metadata"][0]), cell=True)
    fields["target_score"] = {
        name.removeprefix(_SCORE): _number(text, name, place.at(column))
        for name, (column, text) in cells.items()
        if name.startswith(_SCORE) and text
    }
    return _located(fields, place, {name: column for name, (column, _) in cells.items()})


def _located(fields: Mapping[str, Any], place: Place, columns: Mapping[str, int]) -> Record:
    try:
        return Record(place, Row(**fields))
    except FieldError as error:
        raise place.at(columns.get(error.field_name, 1)).error(error.message, hint=error.hint) from error


def _number(text: str, column: str, place: Place) -> float:
    if not _NUMBER.fullmatch(text.strip()):
        raise place.error(f"{column!r} is {text[:80]!r}; it must be a finite number.")
    return float(text)


def iter_table(path: Path, required: tuple[str, ...], *, unescape: bool) -> Iterator[tuple[Place, Cells]]:
    """Rows of a CSV file as cells by column name, one at a time.

    Args:
        path: The file, with a header row.
        required: Columns that it must have.
        unescape: Whether an apostrophe before what a spreadsheet would run is taken away.

    Raises:
        BenchmarkError: Naming file:line:column, if the header or a row does not fit or the file is no CSV.
    """
    names: list[str] | None = None
    for place, fields in _rows(path):
        cells = [_unescaped(text) for text in fields] if unescape else fields
        if names is None:
            names = cells
            _check_header(names, required, place)
        elif len(cells) != len(names):
            raise place.error(
                f"the row has {len(cells)} fields; the header has {len(names)}.",
                hint="Put texts with commas, quotes or line breaks in double quotes.",
            )
        else:
            yield place, {name: (number, text) for number, (name, text) in enumerate(zip(names, cells, strict=True), 1)}


def _check_header(names: list[str], required: tuple[str, ...], place: Place) -> None:
    missing = [name for name in required if name not in names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if missing:
        raise place.error(
            f"the header has no column {', '.join(map(repr, missing))}; it has {', '.join(map(repr, names))}.",
            hint=f"Columns needed: {', '.join(required)}. The separator must be a comma.",
        )
    if twice:
        column = len(names) - names[::-1].index(twice[0])
        raise place.at(column).error(f"the column {twice[0]!r} is given more than once.")


def _rows(path: Path) -> Iterator[tuple[Place, list[str]]]:
    reader = csv.reader((text for _, text in iter_lines(path)), strict=True)
    while True:
        start = Place(path, reader.line_num + 1)
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise start.error(
                f"not CSV: {error}.", hint="Is a double quote left open, or a field very long?"
            ) from error
        if fields is None:
            return
        if fields:
            yield start, fields


def _csv_line(cells: list[str]) -> str:
    limit = csv.field_size_limit()
    longest = max(map(len, cells))
    if longest > limit:
        raise BenchmarkError(f"A text has {longest} characters; CSV readers take {limit}.", hint="Write .jsonl.")
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerow(cells)
    return buffer.getvalue()


def _escaped(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


def _unescaped(text: str) -> str:
    return text[1:] if text.startswith("'") and text[1:].startswith(_FORMULA) else text
