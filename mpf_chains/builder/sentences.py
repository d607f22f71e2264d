"""Sentences of a text, with their places in it.

The rules are few and written down here; they are made for prose in the Latin, Cyrillic and Greek scripts and for the
full stops of Chinese and Japanese. Markdown headings, code blocks and tables are no prose and are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_FULL_STOPS: Final = "。！？｡"
# Never the end of a sentence: a name, a number or the rest of the phrase follows.
_AT_NAMES: Final = """
mr mrs ms dr prof st mt ft gen col capt lt sgt sen rep gov hon rev fr messrs mme mlle no nos nr fig figs eq eqs vol
pp ed eds ch sec e.g i.e cf vs v viz z.b d.h bzw usw approx ca c
"""
# May end one: it does where the next word is one that sentences like to begin with.
_AT_EITHER: Final = """
etc al inc ltd co corp bros jr sr esq univ dept est ave blvd rd u.s u.k u.n e.u d.c a.m p.m ph.d m.d b.a m.a b.sc
m.sc jan feb mar apr jun jul aug sep sept oct nov dec mon tue wed thu fri sat sun
"""
_FIRST_WORDS: Final = """
the a an it its he she they we i you this that these those there here his her their our my in on at by for from
with to of as if when while after before since although though because but and or so yet however moreover
nevertheless meanwhile today then now what who where why how some many most several few all both each no not one
two
"""
_LEADING, _EITHER, _STARTERS = (frozenset(w.split()) for w in (_AT_NAMES, _AT_EITHER, _FIRST_WORDS))
_CLOSING: Final = "\"'”’»›)\\]」』】）》"
_OPENING: Final = "\"'“‘«‹(\\[„¿¡"
_END: Final = re.compile(
    rf"(?:(?<![.!?…])[.!?…]+[{_CLOSING}*_]*(?=\s)|[。！？｡]+[{_CLOSING}]*)"  # CJK stops need no blank after them
)
_NEXT: Final = re.compile(rf"\s+[{_OPENING}*_]*(\w[\w'’]{{0,15}})?")
_LONGEST: Final = 12  # characters of an abbreviation that are looked at
_PAIRS: Final = (("“", "”"), ("«", "»"), ("(", ")"), ("[", "]"), ("「", "」"), ("『", "』"), ("（", "）"))
_BLANK: Final = re.compile(r"(?:[-=*_]{3,}|\|.*|:?-+:?(?:\|:?-+:?)+|#{1,6}[ \t].*)?")
_FENCE: Final = re.compile(r"[ \t]*(```|~~~)")
_MARKER: Final = re.compile(r"[ \t]*(?:>[ \t]*)*(?:(?:[-*+•]|\d{1,3}[.)])[ \t]+)?")


@dataclass(frozen=True)
class Sentence:
    """A sentence and where it stands.

    Args:
        text: The sentence, every run of white space in it made one blank.
        start: Index in the source of its first character, from 0.
        end: Index after its last character.
    """

    text: str
    start: int
    end: int


def sentences(text: str) -> list[Sentence]:
    """Split a text into sentences.

    A sentence ends at . ! ? or … before white space, unless the word before is an abbreviation or an initial, the next
    letter is small, or a quotation or bracket is open; at the full stops of Chinese and Japanese anywhere; and at the
    end of a paragraph or list item. Decimals, addresses and versions hold no white space, so nothing splits them.

    Args:
        text: Plain text or Markdown.

    Returns:
        The sentences in order, without headings, code blocks, tables and the signs that start list items and
        quotations. Pieces without a final stop (titles, items) are among them; see `is_complete`.

    Examples:
        >>> [one.text for one in sentences("Dr. Hill left in 1999. It cost 3.5 million.  Why? She said: “No. Never.”")]
        ['Dr. Hill left in 1999.', 'It cost 3.5 million.', 'Why?', 'She said: “No. Never.”']
    """
    return [sentence for start, end in _blocks(text) for sentence in _split(text, start, end)]


def is_complete(sentence: str) -> bool:
    """Whether a sentence ends as one: in a full stop, question or exclamation mark, before closing quotes or brackets.

    Examples:
        >>> is_complete("It works."), is_complete("Contents"), is_complete("「好。」")
        (True, False, True)
    """
    return re.search(rf"[.!?…。！？｡][{_CLOSING}*_]*$", sentence) is not None


def _blocks(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of each paragraph or list item."""
    start: int | None = None
    place, fence = 0, ""
    for line in text.splitlines(keepends=True):
        mark = _FENCE.match(line)
        fenced = bool(fence) or mark is not None
        if mark is not None and fence in {"", mark[1]}:
            fence = "" if fence else mark[1]
        marker = _MARKER.match(line)
        first = place + (marker.end() if marker else 0)
        empty = fenced or _BLANK.fullmatch(line.strip()) is not None
        if start is not None and (empty or first > place + len(line) - len(line.lstrip(" \t"))):
            yield start, place
            start = None
        if start is None and not empty:
            start = first
        place += len(line)
    if start is not None:
        yield start, place


def _split(text: str, start: int, end: int) -> Iterator[Sentence]:
    nesting = _Nesting(text[start:end])
    seen = start
    for match in _END.finditer(text, start, end):
        nesting.read(text[seen : match.end()])
        seen = match.end()
        if _ends(text, start, match, end) and not nesting.is_open:
            yield from _sentence(text, start, seen)
            start = seen
    yield from _sentence(text, start, end)


class _Nesting:
    """What quotations and brackets are open; signs that do not pair in their block do not count."""

    def __init__(self, block: str) -> None:
        self._pairs = [pair for pair in _PAIRS if block.count(pair[0]) == block.count(pair[1])]
        self._straight = block.count('"') % 2 == 0
        self._depths = [0] * len(self._pairs)
        self._quotes = 0

    def read(self, text: str) -> None:
        self._quotes += text.count('"')
        for index, (opening, closing) in enumerate(self._pairs):
            self._depths[index] += text.count(opening) - text.count(closing)

    @property
    def is_open(self) -> bool:
        return any(depth > 0 for depth in self._depths) or (self._straight and self._quotes % 2 == 1)


def _sentence(text: str, start: int, end: int) -> Iterator[Sentence]:
    words = text[start:end]
    if words.strip():
        end -= len(words) - len(words.rstrip())
        start += len(words) - len(words.lstrip())
        yield Sentence(" ".join(text[start:end].split()), start, end)


def _ends(text: str, start: int, match: re.Match[str], end: int) -> bool:
    if match[0][0] in _FULL_STOPS:  # a quotation may end before the sentence around it does
        return match[0][-1] in _FULL_STOPS or not text[match.end() : match.end() + 1].isalnum()
    after = _NEXT.match(text, match.end(), end)
    word = (after[1] if after else None) or ""
    if word and word[0].islower():
        return False
    if match[0][0] != "." or match[0].startswith(".."):
        return True
    before = re.split(r"[\s(\[\"“‘«]", text[max(start, match.start() - _LONGEST) : match.start()])[-1]
    if re.fullmatch(r"(?:\w\.)*[^\W\d_]", before) and before != "I":
        return word.lower() in _STARTERS  # initials
    if before.lower() in _EITHER:
        return word.lower() in _STARTERS
    return before.lower() not in _LEADING
