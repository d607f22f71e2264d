"""Benchmark files: the format of a path, streaming rows, complete reading and writing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from mpf_chains.benchmarks.jsonl import JSONLFormat
from mpf_chains.benchmarks.records import Format, Header
from mpf_chains.benchmarks.rows import Row
from mpf_chains.benchmarks.tables import CSVFormat, SagedFormat, is_saged
from mpf_chains.errors import BenchmarkError


def iter_rows(path: str | Path) -> Iterator[Row]:
    """Rows of a benchmark file, one at a time, in flat memory.

    Args:
        path: A .jsonl, .ndjson or .csv file (ours, or of SAGED: told apart by the header row), UTF-8.

    Yields:
        Rows in the order of the file. Whether ids are unique and rows have targets is checked by `Benchmark.read`.

    Raises:
        BenchmarkError: Naming file:line:column, if something in the file cannot be used.
    """
    file = Path(path)
    for record in format_of(file).records(file):
        yield record.row


def read_rows(path: Path) -> tuple[tuple[Row, ...], Header]:
    """All rows of a file and what it says about the benchmark as a whole.

    Raises:
        BenchmarkError: As `iter_rows`, and if an id comes twice.
    """
    form = format_of(path)
    rows: list[Row] = []
    lines: dict[str, int] = {}
    for record in form.records(path):
        identifier = record.row.id
        if identifier in lines:
            raise record.place.error(
                f"the id {identifier!r} was given on line {lines[identifier]} already; ids must be unique."
            )
        lines[identifier] = record.place.line
        rows.append(record.row)
    if not rows:
        raise BenchmarkError(f"{path}:1:1: the file has no rows; it must hold at least one.")
    return tuple(rows), form.header(path)


def write_rows(path: Path, rows: Iterable[Row], header: Header) -> None:
    """Write a file as a whole: a failure leaves what was there before.

    Raises:
        BenchmarkError: If the format is unknown or cannot hold a row, or the file cannot be written.
        NotSupportedError: If the format cannot hold the baseline.
    """
    form = format_of(path, writing=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="") as file:
            file.writelines(form.lines(rows, header))
        partial.replace(path)
    except OSError as error:
        raise BenchmarkError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):
            partial.unlink()


def format_of(path: Path, *, writing: bool = False) -> Format:
    """The format of a file, by its suffix; CSV files of SAGED are told by their header row.

    Args:
        path: The file.
        writing: Whether it is to be written: then nothing is read, and CSV is our own. Default no.

    Raises:
        BenchmarkError: If there is no such format, or a CSV file cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix in {".jsonl", ".ndjson"}:
        return JSONLFormat()
    if suffix == ".csv":
        return SagedFormat() if not writing and is_saged(path) else CSVFormat()
    raise BenchmarkError(
        f"{path} has the suffix {suffix!r}; benchmarks are .jsonl, .ndjson or .csv files.",
        hint="Write each element of the JSON array on a line of a .jsonl file." if suffix == ".json" else "",
    )
