"""Texts of tokens, with nothing in them that hides, moves or colours something."""

from __future__ import annotations

import re
import unicodedata
from codecs import getincrementaldecoder
from collections.abc import Sequence

_ESCAPED = re.compile(r"((?:\\x[89a-f][0-9a-f])+)")
_SIGNS = {" ": "␣", "\n": "↵", "\r": "␍", "\t": "⇥"}
_JOINERS = "\u200c\u200d"
"""Without these, words of Persian and Indian scripts and many emoji fall apart."""


def whole_characters(texts: Sequence[str]) -> list[str]:
    r"""Put characters that are spread over several tokens together again, each where its last byte is.

    Args:
        texts: Texts of tokens, one after the other, with bytes that are no whole character as "\xe2\x82".

    Returns:
        As many texts; bytes that never become a character stay as they are.

    Examples:
        >>> whole_characters(["5 ", r"\xe2\x82", r"\xac", "!"]), whole_characters([r"\xe2", "a"])
        (['5 ', '', '€', '!'], ['', '\\xe2a'])
    """
    decoder = getincrementaldecoder("utf-8")("backslashreplace")
    found = [decoder.decode(_bytes(text)) for text in texts]
    if found:
        found[-1] += decoder.decode(b"", final=True)
    return found


def readable(text: str) -> str:
    r"""A text in which every control and format character is a sign that can be seen, but for line ends.

    Examples:
        >>> readable("\x1b[31mred\u202e one\n")
        '␛[31mred⟨U+202E⟩ one\n'
    """
    return "".join(_sign(character) for character in text)


def spelled(text: str) -> str:
    r"""A token's text by itself: in one line, with spaces and single bytes that can be seen.

    Examples:
        >>> spelled(" she\n"), spelled(r"\xe2\x82")
        ('␣she↵', '⟨E2 82⟩')
    """
    return "".join(
        f"⟨{_bytes(part).hex(' ').upper()}⟩" if i % 2 else "".join(map(_spelled, part))
        for i, part in enumerate(_ESCAPED.split(text))
    )


def _sign(character: str) -> str:
    if character in "\n " or character in _JOINERS:
        return character
    if character in _SIGNS:
        return _SIGNS[character]
    code, category = ord(character), unicodedata.category(character)
    if category == "Cc":
        return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"
    return f"⟨U+{code:04X}⟩" if category in {"Cf", "Cs", "Zl", "Zp"} else character


def _spelled(character: str) -> str:
    if character in _SIGNS:
        return _SIGNS[character]
    return f"⟨U+{ord(character):04X}⟩" if unicodedata.category(character) == "Zs" else _sign(character)


def _bytes(text: str) -> bytes:
    parts = _ESCAPED.split(text)
    return b"".join(
        bytes.fromhex(part.replace("\\x", "")) if i % 2 else part.encode(errors="backslashreplace")
        for i, part in enumerate(parts)
    )
