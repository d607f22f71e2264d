"""Strict, streaming text input: UTF-8 lines with their numbers, errors with file:line:column."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mpf_chains.errors import BenchmarkError

MAX_LINE = 16 * 1024 * 1024
"""Longest accepted line in bytes: a file that is one huge line is not read into memory."""


@dataclass(frozen=True)
class Place:
    """A place in a file.

    Args:
        path: The file.
        line: Line number from 1.
        column: Character in the line, from 1; in CSV files the number of the field.
    """

    path: Path
    line: int
    column: int = 1

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}"

    def at(self, column: int) -> Place:
        """Another column of the same line."""
        return Place(self.path, self.line, column)

    def error(self, message: str, *, hint: str = "") -> BenchmarkError:
        """An error that starts with this place."""
        return BenchmarkError(f"{self}: {message}", hint=hint)


def iter_lines(path: Path) -> Iterator[tuple[int, str]]:
    r"""Lines of a UTF-8 file with their numbers, one at a time.

    Args:
        path: The file. A byte order mark is skipped.

    Yields:
        Number from 1 and text, with its line end ("\n" or "\r\n") where it has one. Other line separators of Unicode
        do not end a line.

    Raises:
        BenchmarkError: If the file cannot be opened, is empty, is not UTF-8, or holds NUL or an overlong line.
    """
    number = 0
    try:
        with _opened(path) as file:
            while raw := file.readline(MAX_LINE + 1):
                number += 1
                yield number, _decoded(raw, Place(path, number))
    except OSError as error:
        raise BenchmarkError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not number:
        raise Place(path, 1).error("the file is empty; it must hold at least one row.")


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except ValueError as error:  # the name holds NUL or half a surrogate pair
        raise BenchmarkError(f"{str(path)!r} cannot be read: {error}.") from error


def _decoded(raw: bytes, place: Place) -> str:
    if len(raw) > MAX_LINE:
        raise place.error(
            f"the line is longer than {MAX_LINE // 2**20} MiB.", hint="Is it one JSON value? Write one row per line."
        )
    if place.line == 1:
        if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise place.error("the file is UTF-16; it must be UTF-8.", hint="Save it as UTF-8.")
        raw = raw.removeprefix(codecs.BOM_UTF8)
    if b"\0" in raw:
        column = len(raw[: raw.index(b"\0")].decode(errors="replace")) + 1
        raise place.at(column).error(
            "the line holds a NUL byte; text must not.", hint="Save the file as UTF-8 text and remove it."
        )
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        column = len(raw[: error.start].decode()) + 1
        raise place.at(column).error(
            f"byte 0x{raw[error.start]:02x} is not UTF-8.", hint="Save the file as UTF-8."
        ) from error
