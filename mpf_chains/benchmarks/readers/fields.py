"""Values of one record of a benchmark file, each checked where it is used: errors name the place and the key."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from mpf_chains.benchmarks.lines import Place
from mpf_chains.benchmarks.rows import FieldError, check_text
from mpf_chains.benchmarks.tables import iter_table
from mpf_chains.errors import BenchmarkError

T = TypeVar("T")


@dataclass(frozen=True)
class Located(Generic[T]):
    """An item and where it was read.

    Args:
        place: Start of its record.
        item: The item.
    """

    place: Place
    item: T


@dataclass(frozen=True)
class Fields:
    """A record of a file: keys and values, none of them trusted.

    Args:
        values: The record.
        place: Where it starts.
        source: The JSON text it was read from, in which keys are looked up for messages. Default none.
        columns: Column numbers by key, for tables. Default none.
    """

    values: Mapping[str, Any]
    place: Place
    source: str = ""
    columns: Mapping[str, int] | None = None

    def at(self, name: str) -> Place:
        """Where a key stands, as exactly as is known."""
        if self.columns is not None:
            return self.place.at(self.columns.get(name, 1))
        before = self.source[: max(self.source.find(json.dumps(name, ensure_ascii=False)), 0)]
        lines = before.count("\n")
        start = 1 if lines else self.place.column
        return Place(self.place.path, self.place.line + lines, start + len(before) - (before.rfind("\n") + 1))

    def error(self, name: str, message: str, *, hint: str = "") -> BenchmarkError:
        """An error about the value of a key."""
        return self.at(name).error(message, hint=hint)

    def get(self, name: str) -> Any:
        """The value of a key that must be there."""
        if name not in self.values:
            there = ", ".join(map(repr, self.values)) or "nothing"
            raise self.place.error(f"there is no {name!r}; there is {there}.")
        return self.values[name]

    def text(self, name: str) -> str:
        """A text that is not blank."""
        value = self.get(name)
        try:
            check_text(name, value)
        except FieldError as error:
            raise self.error(name, error.message, hint=error.hint) from error
        return str(value)

    def one_of(self, name: str, allowed: Collection[str]) -> str:
        """One of some texts."""
        value = self.get(name)
        if not isinstance(value, str) or value not in allowed:
            raise self.error(name, f"{name!r} is {value!r}; it must be one of {', '.join(allowed)}.")
        return value

    def integer(self, name: str, bound: int | None = None) -> int:
        """An integer from 0, below a bound where one is given."""
        value = self.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0 or (bound is not None and value >= bound):
            allowed = "an integer from 0" + ("" if bound is None else f" to {bound - 1}")
            raise self.error(name, f"{name!r} is {value!r}; it must be {allowed}.")
        return value

    def number(self, name: str, bound: int | None = None) -> int:
        """An integer from 0 that is written as text."""
        text = self.get(name)
        value = int(text) if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 10 else text
        return Fields({name: value}, self.at(name)).integer(name, bound)

    def percentage(self, name: str) -> float:
        """A number from 0 to 100 that is written as text."""
        text = self.text(name)
        if not re.fullmatch(r"\d{1,3}(\.\d+)?", text, re.ASCII) or float(text) > 100:
            raise self.error(name, f"{name!r} is {text!r}; it must be a number from 0 to 100.")
        return float(text)

    def inner(self, name: str) -> Fields:
        """An object inside the record."""
        value = self.get(name)
        if not isinstance(value, Mapping):
            raise self.error(name, f"{name!r} is a {type(value).__name__}; it must be an object.")
        return Fields(value, self.at(name))

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts."""
        value = self.get(name)
        if not isinstance(value, (list, tuple)) or not all(isinstance(one, str) for one in value):
            raise self.error(name, f"{name!r} is {value!r}; it must be a list of texts.")
        return tuple(value)

    def located(self, make: Callable[..., T], **arguments: Any) -> Located[T]:
        """The item made from the record; what is wrong with it is an error at this place."""
        try:
            return Located(self.place, make(**arguments))
        except FieldError as error:
            raise self.error(error.field_name, error.message, hint=error.hint) from error


def csv_fields(path: Path, required: tuple[str, ...]) -> Iterator[Fields]:
    """Rows of a CSV file with a header row, one at a time.

    Raises:
        BenchmarkError: Naming file:line:column, if it is no such file.
    """
    for place, cells in iter_table(path, required, unescape=False):
        values = {name: text for name, (_, text) in cells.items()}
        yield Fields(values, place, columns={name: column for name, (column, _) in cells.items()})
