"""JSON documents: one value per file, whose parts keep their places."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpf_chains.benchmarks.lines import Place, iter_lines
from mpf_chains.benchmarks.readers.fields import Fields
from mpf_chains.benchmarks.strict_json import DECODER
from mpf_chains.errors import BenchmarkError

_SPACE = " \t\r\n"


@dataclass(frozen=True)
class _Source:
    path: Path
    text: str
    line_starts: tuple[int, ...]

    def place(self, offset: int) -> Place:
        line = bisect_right(self.line_starts, offset)
        return Place(self.path, line, offset - self.line_starts[line - 1] + 1)


@dataclass(frozen=True)
class Node:
    """A value inside a JSON document.

    Args:
        source: The document.
        value: The value as plain data; nothing in it is interpreted.
        start: Where its text starts.
        end: Where its text ends.
    """

    source: _Source
    value: Any
    start: int
    end: int

    @property
    def place(self) -> Place:
        """Where the value starts."""
        return self.source.place(self.start)

    def error(self, message: str, *, hint: str = "") -> BenchmarkError:
        """An error at this value."""
        return self.place.error(message, hint=hint)

    def members(self) -> Iterator[tuple[str, Node]]:
        """Keys and values of an object.

        Raises:
            BenchmarkError: If the value is no object.
        """
        if not isinstance(self.value, dict):
            raise self.error(f"a JSON {_kind(self.value)} where an object must be.")
        position = self._skip(self.start + 1)
        while self.source.text[position] != "}":
            key, position = DECODER.raw_decode(self.source.text, position)
            position = self._skip(self._skip(position) + 1)  # the colon
            value, end = DECODER.raw_decode(self.source.text, position)
            yield key, Node(self.source, value, position, end)
            position = self._next(end)

    def elements(self) -> Iterator[Node]:
        """Elements of an array.

        Raises:
            BenchmarkError: If the value is no array.
        """
        if not isinstance(self.value, list):
            raise self.error(f"a JSON {_kind(self.value)} where an array must be.")
        position = self._skip(self.start + 1)
        while self.source.text[position] != "]":
            value, end = DECODER.raw_decode(self.source.text, position)
            yield Node(self.source, value, position, end)
            position = self._next(end)

    def member(self, name: str) -> Node:
        """One value of an object.

        Raises:
            BenchmarkError: If the value is no object or has no such key.
        """
        for key, node in self.members():
            if key == name:
                return node
        raise self.error(f"there is no {name!r}; there is {', '.join(map(repr, self.value)) or 'nothing'}.")

    def fields(self) -> Fields:
        """An object's keys and values, to be checked one by one.

        Raises:
            BenchmarkError: If the value is no object.
        """
        if not isinstance(self.value, dict):
            raise self.error(f"a JSON {_kind(self.value)} where an object must be.")
        return Fields(self.value, self.place, self.source.text[self.start : self.end])

    def text(self) -> str:
        """A text that is not blank.

        Raises:
            BenchmarkError: If the value is none.
        """
        return Fields({"text": self.value}, self.place).text("text")

    def _skip(self, position: int) -> int:
        while self.source.text[position] in _SPACE:
            position += 1
        return position

    def _next(self, position: int) -> int:
        position = self._skip(position)
        return self._skip(position + 1) if self.source.text[position] == "," else position


def read_document(path: Path) -> Node:
    """A JSON document. It is read as a whole: memory grows with the file.

    Raises:
        BenchmarkError: Naming file:line:column, if it is no JSON, repeats a key, holds NaN, or is nested too deep.
    """
    lines = [text for _, text in iter_lines(path)]
    starts = [0]
    for line in lines[:-1]:
        starts.append(starts[-1] + len(line))
    source = _Source(path, "".join(lines), tuple(starts))
    try:
        value = DECODER.decode(source.text)
    except json.JSONDecodeError as error:
        hint = "The file must be one JSON document"
        raise source.place(min(error.pos, len(source.text))).error(
            f"not JSON: {error.msg}.",
            hint=f"{hint}, not JSON lines." if error.msg == "Extra data" else f"{hint}; is it complete?",
        ) from error
    except RecursionError as error:
        raise Place(path, 1).error("the JSON is nested too deep.", hint="Flatten it.") from error
    except ValueError as error:
        raise Place(path, 1).error(f"not usable JSON: {error}.") from error
    start = len(source.text) - len(source.text.lstrip(_SPACE))
    return Node(source, value, start, len(source.text))


def _kind(value: object) -> str:
    names = {list: "array", dict: "object", str: "text", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
