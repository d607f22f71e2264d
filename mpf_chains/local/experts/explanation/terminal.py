"""An explanation in a terminal, through rich: colours where there are any, marks in any case."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from rich.table import Table
from rich.text import Text

from mpf_chains.local.experts.explanation.readable import spelled
from mpf_chains.local.experts.explanation.view import FACTORS, factor, nats, probability

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mpf_chains.local.experts.explanation.records import Moved
    from mpf_chains.local.experts.explanation.view import ExplanationView, ShownToken

_STYLES: Final = {
    1: "black on #cfe0fa", 2: "black on #a3c4f3", 3: "bold black on #74a5eb",
    -1: "black on #fae3cc", -2: "black on #f3c394", -3: "bold black on #ea9f58",
}  # fmt: skip
_MARKS: Final = {True: ("+", "-"), False: ("▲", "▼")}
_ROWS: Final = 10
"""Tokens listed below the text."""
_OTHERS: Final = 2
"""Other tokens named in a row."""


def rendered(view: ExplanationView, *, ascii_only: bool) -> Iterator[RenderableType]:
    """What to print, one below the other.

    Args:
        view: What is shown.
        ascii_only: Whether the terminal cannot show other characters.
    """
    more, less = _MARKS[ascii_only]
    answer = Text()
    for token in view.tokens:
        answer.append_text(_token(token, ascii_only=ascii_only))
    yield answer
    yield Text()
    legend = (
        f"{more} more probable with the experts, {less} less: by a factor of {FACTORS[0]:g} or more; two of them "
        f"{FACTORS[1]:g}, three {FACTORS[2]:g}."
    )
    yield _text(f"{view.summary()} {legend}", ascii_only, style="dim")
    listed = view.strongest(_ROWS)
    if listed:
        yield Text()
        yield _table(view, listed, ascii_only=ascii_only)


def _token(token: ShownToken, *, ascii_only: bool) -> Text:
    """The text with its marks behind it, and before a line end, so that they stand in its line."""
    body = token.text.rstrip("\n")
    marks = _marks(token, ascii_only)
    sign = "↵" if marks and not body else body
    shown = _text(f"{sign}{marks}", ascii_only, style=_STYLES.get(token.level, ""))
    return shown.append(token.text[len(body) :])


def _table(view: ExplanationView, listed: list[tuple[int, ShownToken]], *, ascii_only: bool) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    pairs = view.pairs if len(view.pairs) > 1 else ()
    for name in ("place", "token", "probability", "change", *pairs, "most changed here"):
        table.add_column(_text(spelled(name).replace("␣", " "), ascii_only), overflow="fold")
    for place, token in listed:
        record = token.record
        others = [each for each in record.alternatives if each.token != record.token][:_OTHERS]
        cells = [
            str(place + 1),
            token.name,
            _before_after(record),
            f"{factor(record.change)} {_marks(token, ascii_only)}",
        ]
        cells += [nats(record.contributions.get(name)) for name in pairs]
        cells.append("\n".join(f"{spelled(each.text)} {_before_after(each)}" for each in others))
        table.add_row(*(_text(cell, ascii_only) for cell in cells))
    return table


def _before_after(moved: Moved) -> str:
    return f"{probability(moved.before)} → {probability(moved.after)}"


def _marks(token: ShownToken, ascii_only: bool) -> str:
    more, less = _MARKS[ascii_only]
    return more * token.level or less * -token.level


def _text(text: str, ascii_only: bool, *, style: str = "") -> Text:
    if ascii_only:
        for sign, plain in (("→", "->"), ("×", "x"), ("α", "alpha"), ("–", "-"), ("␣", "_"), ("↵", "\\n")):
            text = text.replace(sign, plain)
        text = text.encode("ascii", "backslashreplace").decode()
    return Text(text, style=style)
