"""A report as one HTML page that asks for nothing: no script, no font, no picture from elsewhere."""

from __future__ import annotations

import html
import re
from functools import singledispatchmethod
from typing import Any

from mpf_chains.reporting.content import (
    Block,
    Bullets,
    Cell,
    Figure,
    Fold,
    Number,
    Paragraph,
    Quote,
    Report,
    Section,
    Table,
    Verdict,
)
from mpf_chains.reporting.style import STYLE
from mpf_chains.reporting.svg import chart_svg
from mpf_chains.reporting.text import fixed, harmless, plain, spans, visible

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
DENSE = 3
"""With more intervals in a row, each goes below its value."""
SWATCHES = {
    "target": '<line class="line target" x1="0" x2="28" y1="7" y2="7"/>',
    "before": '<line class="line before" x1="0" x2="28" y1="7" y2="7"/>',
    "after": '<line class="line after" x1="0" x2="28" y1="7" y2="7"/>',
    "dot before": '<circle class="dot before" cx="14" cy="7" r="5"/>',
    "dot after": '<circle class="dot after" cx="14" cy="7" r="5"/>',
    "dot plain": '<circle class="dot plain" cx="14" cy="7" r="3"/>',
    "bar after": '<rect class="bar after" x="2" y="2" width="24" height="10"/>',
    "bar plain": '<rect class="bar plain" x="2" y="2" width="24" height="10"/>',
    "whisker": '<path class="whisker" d="M3 7H25M3 3V11M25 3V11"/>',
    "floor": '<rect class="floor" x="2" y="0" width="24" height="14"/>',
    "floor-mean": '<line class="floor-mean" x1="14" x2="14" y1="0" y2="14"/>',
    "ideal": '<line class="ideal" x1="14" x2="14" y1="0" y2="14"/>',
    "mean": '<line class="mean plain" x1="14" x2="14" y1="2" y2="14"/>',
}


def html_page(report: Report) -> str:
    """Write a report as HTML.

    Args:
        report: What it says.

    Returns:
        A whole page; every text in it is escaped.
    """
    page = _Page()
    parts = [page.part(section) for section in report.sections]
    contents = "".join(f'<li><a href="#{name}">{_words(title)}</a></li>' for name, title in page.parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n<meta name="color-scheme" content="light dark">\n'
        f"<title>{html.escape(_line(report.title))}</title>\n"
        f'<link rel="icon" href="data:,">\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n'
        '<a class="skip" href="#main">Skip to the content</a>\n'
        f'<header>\n<h1>{_words(report.title)}</h1>\n<p class="subtitle">{_words(report.subtitle)}</p>\n'
        f'<nav aria-label="Contents"><ul>{contents}</ul></nav>\n</header>\n'
        f'<main id="main" tabindex="-1">\n{"".join(parts)}</main>\n'
        f"<footer><p>{_words(report.foot)}</p></footer>\n</body>\n</html>\n"
    )


class _Page:
    """Counts headings and charts, so that each has a name of its own."""

    def __init__(self) -> None:
        self.parts: list[tuple[str, str]] = []
        self.charts = 0
        self.level = 2

    def part(self, section: Section) -> str:
        name = f"part{len(self.parts) + 1}"
        self.parts.append((name, section.title))
        body = f'<h2 id="{name}">{_words(section.title)}</h2>\n{self._all(section.blocks)}'
        return f'<section class="part" aria-labelledby="{name}">\n{body}</section>\n'

    def _all(self, blocks: tuple[Block, ...]) -> str:
        return "".join(f"{self.block(block)}\n" for block in blocks)

    @singledispatchmethod
    def block(self, block: Any) -> str:
        raise TypeError(type(block).__name__)

    @block.register
    def _(self, block: Paragraph) -> str:
        return f"<p>{_words(block.text)}</p>"

    @block.register
    def _(self, block: Verdict) -> str:
        words = f'<p class="title">{_words(block.title)}</p><p>{_words(block.text)}</p>'
        return f'<div class="verdict {block.tone}">{words}</div>'

    @block.register
    def _(self, block: Bullets) -> str:
        return "<ul>" + "".join(f"<li>{_words(item)}</li>" for item in block.items) + "</ul>"

    @block.register
    def _(self, block: Table) -> str:
        head = "".join(f'<th scope="col">{_words(harmless(name))}</th>' for name in block.columns)
        rows = [
            f'<tr><th scope="row">{_cell(first)}</th>'
            + "".join(f'<td class="{_kind(cell)}">{_cell(cell)}</td>' for cell in others)
            + "</tr>"
            for first, *others in block.rows
        ]
        intervals = max(sum(isinstance(cell, Number) and cell.low is not None for cell in row) for row in block.rows)
        kind = ' class="dense"' if intervals > DENSE else ""
        table = (
            f"<table{kind}><caption><span>{_words(block.caption)}</span></caption><thead><tr>{head}</tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table>"
        )
        return f'<div class="scroll" role="group" tabindex="0" aria-label="{_attribute(block.caption)}">{table}</div>'

    @block.register
    def _(self, block: Quote) -> str:
        note = f" · {_words(block.note)}" if block.note else ""
        return (
            f'<figure class="quote"><figcaption><b>{_words(block.who)}</b>{note}</figcaption>'
            f'<blockquote dir="auto" tabindex="0">{html.escape(visible(block.text))}</blockquote></figure>'
        )

    @block.register
    def _(self, block: Figure) -> str:
        drawings = []
        for chart in block.charts:
            self.charts += 1
            name = f'<p class="name">{_words(chart.title)}</p>'
            drawings.append(f"<div>{name}{chart_svg(chart, f'chart{self.charts}')}</div>")
        legend = "".join(f"<li>{_swatch(mark)}{_words(words)}</li>" for mark, words in block.legend)
        table = "" if block.table is None else self.block(Fold("The figures as a table", (block.table,)))
        return (
            f'<figure><figcaption>{_words(block.caption)}</figcaption><div class="charts">{"".join(drawings)}</div>'
            + (f'<ul class="legend">{legend}</ul>' if legend else "")
            + f"{table}</figure>"
        )

    @block.register
    def _(self, block: Fold) -> str:
        state = " open" if block.is_open else ""
        return (
            f"<details{state}><summary>{_words(block.summary)}</summary><div>{self._all(block.blocks)}</div></details>"
        )

    @block.register
    def _(self, block: Section) -> str:
        self.level += 1
        body = f"<h{self.level}>{_words(block.title)}</h{self.level}>\n{self._all(block.blocks)}"
        self.level -= 1
        return body


def _words(text: str) -> str:
    """Escaped words, with the data in them isolated: a name written right to left does not turn its sentence round."""
    return "".join(
        f"<bdi>{html.escape(part)}</bdi>" if is_data else html.escape(part).replace(" %", "&nbsp;%")
        for is_data, part in spans(text)
    )


def _line(text: str) -> str:
    return " ".join(plain(text).split())


def _attribute(text: str) -> str:
    return html.escape(_line(text), quote=True)


def _kind(cell: Cell) -> str:
    return "number" if isinstance(cell, Number) else "text"


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return re.sub(r"\n", "<br>", _words(harmless(cell)))
    if cell.value is None:
        return "–"
    value = fixed(cell.value, cell.digits)
    if cell.low is None or cell.high is None:
        return value
    return f'{value} <span class="interval">[{fixed(cell.low, cell.digits)}, {fixed(cell.high, cell.digits)}]</span>'


def _swatch(mark: str) -> str:
    return f'<svg aria-hidden="true" width="28" height="14">{SWATCHES[mark]}</svg>'
