"""What a report says, free of any format: HTML, Markdown and CSV are written from this one model.

All text is words in which spans of data are marked by `text.data`; renderers escape everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

Role: TypeAlias = Literal["target", "before", "after", "plain"]
Tone: TypeAlias = Literal["good", "bad", "open", "note"]


@dataclass(frozen=True)
class Number:
    """A number in a table: exporters keep it one.

    Args:
        value: The number; None where there is none.
        low: Lower end of its interval. Default none.
        high: Upper end of its interval. Default none.
        digits: Decimals shown. Default 3.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    digits: int = 3


Cell: TypeAlias = str | Number


@dataclass(frozen=True)
class Paragraph:
    """Words."""

    text: str


@dataclass(frozen=True)
class Verdict:
    """A finding, set apart.

    Args:
        tone: Whether it is good, bad, open (nothing is settled), or a note.
        title: The finding in a few words; colour alone never says it.
        text: The finding with its figures.
    """

    tone: Tone
    title: str
    text: str


@dataclass(frozen=True)
class Bullets:
    """A list."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table; the first cell of each row names the row.

    Args:
        caption: What it shows.
        columns: Names of the columns.
        rows: As many cells as columns each.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Quote:
    """Somebody's own words, as they are.

    Args:
        who: Who said them.
        text: The words; lines are kept.
        note: What is known about them. Default nothing.
    """

    who: str
    text: str
    note: str = ""


@dataclass(frozen=True)
class Line:
    """A sample whose cumulative distribution is drawn."""

    role: Role
    label: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Steps:
    """Cumulative distributions; below the axis, each one's mean.

    Args:
        title: What is drawn.
        description: What is to be seen, for those who do not see it.
        low: Left end.
        high: Right end.
        lines: The samples.
        x_label: Name of the scores.
    """

    title: str
    description: str
    low: float
    high: float
    lines: tuple[Line, ...]
    x_label: str


@dataclass(frozen=True)
class Bar:
    """A value with its interval: infinite ends reach to the edge, None are not drawn."""

    role: Role
    label: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Rows:
    """Values under each other, as dots, or as bars from 0.

    Args:
        title: What is drawn.
        description: What is to be seen, for those who do not see it.
        low: Left end.
        high: Right end.
        rows: The values.
        bars: Whether as bars. Default as dots.
        ideal: Where a line marks the value wished for. Default none.
        floor: Where a band marks what cannot be told from it: from, to, and a mark within (the mean). Default none.
    """

    title: str
    description: str
    low: float
    high: float
    rows: tuple[Bar, ...]
    bars: bool = False
    ideal: float | None = None
    floor: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Curve:
    """Points joined by a line, and one of them chosen.

    Args:
        title: What is drawn.
        description: What is to be seen, for those who do not see it.
        points: (x, y) in order.
        chosen: The point that was taken.
        x_label: Name of x.
        y_label: Name of y.
    """

    title: str
    description: str
    points: tuple[tuple[float, float], ...]
    chosen: tuple[float, float]
    x_label: str
    y_label: str


Chart: TypeAlias = Steps | Rows | Curve


@dataclass(frozen=True)
class Figure:
    """Charts that belong together.

    Args:
        caption: What they show.
        charts: At least one.
        legend: (mark, words) of each kind of mark.
        table: The figures drawn; None where a table beside it has them.
    """

    caption: str
    charts: tuple[Chart, ...]
    legend: tuple[tuple[str, str], ...] = ()
    table: Table | None = None


@dataclass(frozen=True)
class Fold:
    """Something for those who want it: folded in HTML unless `is_open`, open in print and in Markdown."""

    summary: str
    blocks: tuple[Block, ...]
    is_open: bool = False


@dataclass(frozen=True)
class Section:
    """A heading and what is under it."""

    title: str
    blocks: tuple[Block, ...]


Block: TypeAlias = Paragraph | Verdict | Bullets | Table | Quote | Figure | Fold | Section


@dataclass(frozen=True)
class Report:
    """A whole report.

    Args:
        title: Its title.
        subtitle: What it is about, in a line.
        sections: Its parts.
        foot: Last line: what made it.
    """

    title: str
    subtitle: str
    sections: tuple[Section, ...]
    foot: str

    def tables(self) -> Iterator[Table]:
        """All its tables, those under figures too, in order."""
        for section in self.sections:
            yield from _tables(section.blocks)


def _tables(blocks: tuple[Block, ...]) -> Iterator[Table]:
    for block in blocks:
        if isinstance(block, Table):
            yield block
        elif isinstance(block, Figure) and block.table is not None:
            yield block.table
        elif isinstance(block, Fold | Section):
            yield from _tables(block.blocks)
