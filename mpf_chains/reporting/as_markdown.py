"""A report as Markdown (CommonMark with GitHub's tables): the same content, every text escaped."""

from __future__ import annotations

import re
from functools import singledispatchmethod
from typing import Any

from mpf_chains.reporting.content import (
    Block,
    Bullets,
    Cell,
    Figure,
    Fold,
    Paragraph,
    Quote,
    Report,
    Section,
    Table,
    Verdict,
)
from mpf_chains.reporting.text import FSI, PDI, fixed, harmless, spans, visible

ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;"}
"""Written so that readers which take raw HTML, or know no escaped pipes, see no markup either."""
_MARKUP = re.compile(r"[&<>|]|[\\`*_\[\]#~$^]|:(?=//)|(?<=www)\.|(?<=\w)@(?=\w)", re.IGNORECASE)
_LEADING = re.compile(r"^[ ]*(?:([-+=])|(\d+)([.)]))", re.MULTILINE)
_RIGHT_TO_LEFT = re.compile(r"[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff]")


def markdown_text(report: Report) -> str:
    """Write a report as Markdown.

    Args:
        report: What it says.

    Returns:
        The text; nothing from data is read as markup.
    """
    writer = _Writer()
    parts = [f"# {_words(report.title)}", _words(report.subtitle)]
    parts += [part for section in report.sections for part in writer.block(section)]
    parts += ["---", _words(report.foot)]
    return "\n\n".join(part for part in parts if part) + "\n"


class _Writer:
    """Knows how deep it is."""

    def __init__(self) -> None:
        self.level = 1

    def _all(self, blocks: tuple[Block, ...]) -> list[str]:
        return [part for block in blocks for part in self.block(block)]

    @singledispatchmethod
    def block(self, block: Any) -> list[str]:
        raise TypeError(type(block).__name__)

    @block.register
    def _(self, block: Section) -> list[str]:
        self.level += 1
        parts = [f"{'#' * self.level} {_words(block.title)}", *self._all(block.blocks)]
        self.level -= 1
        return parts

    @block.register
    def _(self, block: Paragraph) -> list[str]:
        return [_words(block.text)]

    @block.register
    def _(self, block: Verdict) -> list[str]:
        return [f"> **{_words(block.title)}**\\\n> {_words(block.text)}"]

    @block.register
    def _(self, block: Bullets) -> list[str]:
        return ["\n".join(f"- {_words(item)}" for item in block.items)]

    @block.register
    def _(self, block: Table) -> list[str]:
        lines = [" | ".join(_cell(name) for name in block.columns), " | ".join("---" for _ in block.columns)]
        lines += [" | ".join(_cell(cell) for cell in row) for row in block.rows]
        return [f"*{_words(block.caption)}*", "\n".join(f"| {line} |" for line in lines)]

    @block.register
    def _(self, block: Quote) -> list[str]:
        note = f" · {_words(block.note)}" if block.note else ""
        lines = [_escaped(line.strip()) for line in visible(block.text).strip().split("\n")]
        body = [
            f"> {line}\\" if line and after else f"> {line}"
            for line, after in zip(lines, [*lines[1:], ""], strict=True)
        ]
        return [f"**{_words(block.who)}**{note}", "\n".join(body)]

    @block.register
    def _(self, block: Figure) -> list[str]:
        lines = [f"- {_words(chart.title)}: {_words(chart.description)}" for chart in block.charts]
        table = [] if block.table is None else self.block(block.table)
        return [f"*Charts in the HTML report: {_words(block.caption)}*", "\n".join(lines), *table]

    @block.register
    def _(self, block: Fold) -> list[str]:
        return [f"**{_words(block.summary)}**", *self._all(block.blocks)]


def _words(text: str) -> str:
    """Escaped words on one line; data written right to left is isolated, as in HTML, by characters that do so."""
    found = "".join(
        f"{FSI}{part}{PDI}" if is_data and _RIGHT_TO_LEFT.search(part) else part for is_data, part in spans(text)
    )
    return _escaped(" ".join(found.split()))


def _escaped(text: str) -> str:
    text = _MARKUP.sub(lambda match: ENTITIES.get(match[0]) or f"\\{match[0]}", text)
    return _LEADING.sub(lambda match: f"\\{match[1]}" if match[1] else f"{match[2]}\\{match[3]}", text)


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return _words(harmless(cell))
    if cell.value is None:
        return "–"
    if cell.low is None or cell.high is None:
        return fixed(cell.value, cell.digits)
    return f"{fixed(cell.value, cell.digits)} \\[{fixed(cell.low, cell.digits)}, {fixed(cell.high, cell.digits)}\\]"
