"""What a benchmark format gives and takes: located rows, and what concerns the file as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from mpf_chains.benchmarks.lines import Place
from mpf_chains.benchmarks.rows import Row
from mpf_chains.perspectives import Perspective


@dataclass(frozen=True)
class Record:
    """A row and where it was read.

    Args:
        place: Start of the row.
        row: The row.
    """

    place: Place
    row: Row


@dataclass(frozen=True)
class Header:
    """What concerns a benchmark as a whole.

    Args:
        name: Name of the benchmark. Empty (the default) where the file does not say.
        baseline: Role-play perspectives by entity. Default none.
    """

    name: str = ""
    baseline: Mapping[str, Perspective] = field(default_factory=dict)


class Format(Protocol):
    """A file format for benchmarks. Reading streams: memory does not grow with the file."""

    def records(self, path: Path) -> Iterator[Record]:
        """Rows with their places, one at a time."""
        ...

    def header(self, path: Path) -> Header:
        """What the file says about the benchmark as a whole."""
        ...

    def lines(self, rows: Iterable[Row], header: Header) -> Iterator[str]:
        """The file's text, piece by piece."""
        ...
