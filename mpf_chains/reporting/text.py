"""Text as a reader may safely see it: control characters made visible, data set apart from words, cells made harmless.

Words of a report may hold text from data (entity names, answers). `data` wraps such a span in Unicode's own isolates
(FSI … PDI), so that right-to-left names do not turn the sentence around them; renderers read the marks off again with
`spans`. Nothing here escapes for a format: renderers escape all text, whether it was marked or not.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator

FSI, PDI = "\u2068", "\u2069"
JOINERS = "\u200c\u200d"
"""Not shown between letters of scripts and emoji that need them."""
NUMBER_SIGNS = "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2"
"""Format characters that are drawn: signs that go around or above numbers in Arabic and Syriac."""
FORMULA = "=+-@\uff1d\uff0b\uff0d\uff20"
"""First characters, full-width ones too, that make a spreadsheet take a cell for a formula."""

_SUSPECT = re.compile(r"[^\n\x20-\x7e\xa1-\xac\xae-\u02ff]")
_SPAN = re.compile(f"{FSI}([^{FSI}{PDI}]*){PDI}")


def visible(text: str) -> str:
    r"""The text with every character that would hide, move or colour something replaced by a sign that says so.

    Args:
        text: Any text, lone surrogates and terminal escapes included.

    Returns:
        Text in which line ends are "\n", tabs are spaces and no control or format character is left, but for joiners
        where a script needs them.

    Examples:
        >>> visible("\x1b[31mred\u202e\u200b"), visible("a\r\nb\tc")
        ('␛[31mred⟨U+202E⟩⟨U+200B⟩', 'a\nb c')
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\t", " ")

    def shown(match: re.Match[str]) -> str:
        character, at = match[0], match.start()
        if character in JOINERS and _joins(text, at):
            return character
        code, category = ord(character), unicodedata.category(character)
        if category == "Cc":
            return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"
        if category in {"Cf", "Cs", "Zl", "Zp"} and character not in NUMBER_SIGNS:
            return f"⟨U+{code:04X}⟩"
        return " " if category == "Zs" and character != "\u3000" else character

    return _SUSPECT.sub(shown, text)


def data(value: object, longest: int = 300) -> str:
    """A span of text from data, to go into words: visible, on one line, at most so many characters, isolated."""
    return f"{FSI}{clip(' '.join(visible(str(value)).split()), longest)}{PDI}"


def spans(text: str) -> Iterator[tuple[bool, str]]:
    """Split words into (is data, text) spans, all of it visible.

    Examples:
        >>> list(spans("About " + data("ETH") + "."))
        [(False, 'About '), (True, 'ETH'), (False, '.')]
    """
    for i, part in enumerate(_SPAN.split(text)):
        if part:
            yield i % 2 == 1, visible(part)


def plain(text: str) -> str:
    """Words without marks."""
    return "".join(part for _, part in spans(text))


def clip(text: str, longest: int) -> str:
    """At most so many characters, and how many were left out."""
    left_out = len(text) - longest
    return text if left_out <= 0 else f"{text[:longest].rstrip()} … ({left_out:,} more characters)"


def shortened(text: str, columns: int) -> str:
    """What fits a label of so many columns, of which wide characters (Chinese, Japanese, Korean, emoji) take two."""
    text = " ".join(plain(text).split())
    used = 0
    for i, character in enumerate(text):
        used += 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if used > columns:
            return f"{text[: max(1, i - 1)].rstrip()}…"
    return text


def harmless(cell: str) -> str:
    r"""A text cell that no spreadsheet takes for a formula: an apostrophe goes before = + - @ (OWASP, "CSV Injection").

    Examples:
        >>> harmless('=HYPERLINK("http://x")'), harmless("plain")
        ('\'=HYPERLINK("http://x")', 'plain')
    """
    return f"'{cell}" if plain(cell).lstrip().startswith(tuple(FORMULA)) else cell


def fixed(value: float, digits: int = 3) -> str:
    """A number with so many decimals, fewer where it is large; ∞ and – for what is none."""
    if isinstance(value, int):
        return str(value)
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "∞" if value > 0 else "-∞"
    fewer = len(str(int(abs(value)))) - 1
    text = f"{value:.{max(0, digits - fewer)}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def share(value: float) -> str:
    """A share as percent; neither 0 nor 100 unless it is."""
    if 0 < value < 0.005:
        return "under 1 %"
    return "over 99 %" if 0.995 <= value < 1 else f"{value:.0%}".replace("%", " %")


def p_value(p: float) -> str:
    """A p-value as a report states it."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def listed(items: list[str]) -> str:
    """Items in a sentence.

    Examples:
        >>> listed(["a", "b", "c"])
        'a, b and c'
    """
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else "none"


def counted(count: int, one: str, many: str = "") -> str:
    """A number with its noun."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _joins(text: str, at: int) -> bool:
    around = text[at - 1 : at] + text[at + 1 : at + 2]
    return len(around) == 2 and all(ord(c) > 0x2FF and unicodedata.category(c)[0] in "LMS" for c in around)
