"""Finding entities' names in texts, and putting one in the place of another."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from mpf_chains.errors import InvalidInput

PLACEHOLDER = "{entity}"

# Thai to Khmer, kana, Han, Hangul: no blanks between words, or particles joined to names, so no boundaries to look for.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
_INSIDE = rf"(?:[^\W{_UNSPACED}]|[\u0300-\u036f])"  # what a name cannot begin after or end before
_AN = re.compile(
    r"(?!eu|ew|one?\b|once\b|uni|use|usu|u[bcdfghjklmnpqrstvwxyz][aeiou])[aeiou]|hon(?:est|ou?r)|hour|heir"
)


def fill_entity(text: str, entity: str) -> str:
    """Put a name in the place of the literal `{entity}`; no other brace means anything.

    Examples:
        >>> fill_entity("Is {entity} {0.__class__}?", "ETH Zurich")
        'Is ETH Zurich {0.__class__}?'
    """
    return text.replace(PLACEHOLDER, entity)


def mentioned(text: str, names: Sequence[str]) -> tuple[str, ...]:
    """The names that a text holds as whole words, as written or all in upper case, across any white space.

    Args:
        text: Any text.
        names: Names, none blank. A name inside a longer one of them is not a mention of it.

    Returns:
        Those that occur, in the order of `names`.

    Raises:
        InvalidInput: If a name is blank.

    Examples:
        >>> mentioned("ETH ZURICH leads; Yale's halls are old, Yaleish too.", ["ETH", "ETH Zurich", "Yale"])
        ('ETH Zurich', 'Yale')
    """
    if not names:
        return ()
    spelled = {_spelling(form): name for name in names for form in (name.upper(), name)}
    found = {spelled[_spelling(match["name"])] for match in re.finditer(_pattern(names), text)}
    return tuple(name for name in dict.fromkeys(names) if name in found)


def swap_entity(text: str, old: str | Sequence[str], new: str, *, articles: bool = True) -> str:
    """Replace a name by another one, as whole words only.

    The name is found as written or all in upper case, across any white space; upper case stays upper case. In scripts
    written without blanks (Chinese, Japanese, Thai) and before Korean particles there are no word boundaries to heed.
    Possessives stay possessives: "Atlas's" becomes "Yale's"; the bare apostrophe of a name ending in s ("Atlas'
    halls") is kept only if the new name ends in s as well.

    Args:
        text: Any text.
        old: The name to replace, not blank; or several names of one entity, the longest one that fits being replaced.
        new: The name to put there, not blank.
        articles: Whether an English "a" or "an" before the name follows it ("an Atlas guide", "a Yale guide"). It is
            touched only where it fitted the old name and does not fit the new one, judged by spelling. Default True;
            pass False for texts in other languages.

    Returns:
        The text with every occurrence replaced, in one pass.

    Raises:
        InvalidInput: If a name is blank.

    Examples:
        >>> swap_entity("XAVIRIA UNIVERSITY: Xaviria University's halls", "Xaviria University", "Yale")
        "YALE: Yale's halls"
        >>> swap_entity("A Xaviria student of Xaviria University", ["Xaviria University", "Xaviria"], "ETH Zurich")
        'An ETH Zurich student of ETH Zurich'
    """
    names = [old] if isinstance(old, str) else list(old)
    if not new.strip():
        raise InvalidInput(f"Names must not be blank; got {', '.join(map(repr, [*names, new]))}.")
    written = {_spelling(name) for name in names}
    wanted = _article(new)

    def replacement(match: re.Match[str]) -> str:
        found, mark, quote = match["name"], match["bare"] or "", match["quote"] or ""
        shouted = found.isupper() and _spelling(found) not in written
        name = new.upper() if shouted else new
        if mark and not quote and name[-1] not in "sS":
            mark += "S" if shouted else "s"
        before = match["article"] or ""
        if before and articles and wanted and wanted != before.lower() == _article(_as_written(found, names)):
            before = wanted.upper() if shouted else wanted.capitalize() if before[0] == "A" else wanted
        return before + (match["gap"] or "") + quote + name + mark

    return re.sub(_pattern(names), replacement, text)


def _pattern(names: Sequence[str]) -> str:
    """Groups article, gap, quote, name, bare (a possessive apostrophe without s)."""
    if not names or not all(name.strip() for name in names):
        raise InvalidInput(f"Names must not be blank; got {', '.join(map(repr, names)) or 'none'}.")
    forms = sorted({_spelling(form) for name in names for form in (name, name.upper())}, key=lambda s: (-len(s), s))
    choices = "|".join(map(_bounded, forms))
    # A bare apostrophe is a possessive if the name ends in s, a word follows, and no quotation mark opened before.
    bare = r"(?P<bare>(?<=[sS])['’](?=\s+\w))?"
    article = rf"(?:(?<!{_INSIDE})(?P<article>an?|An?|AN)(?P<gap>\s+))?"
    return rf"{article}(?P<quote>(?<!{_INSIDE})['‘])?(?P<name>{choices}){bare}"


def _bounded(name: str) -> str:
    words = r"\s+".join(re.escape(word) for word in name.split())
    before = "" if re.match(rf"[{_UNSPACED}]", name) else rf"(?<!{_INSIDE})"
    after = "" if re.match(rf"[{_UNSPACED}]", name[-1]) else rf"(?!{_INSIDE})"
    return before + words + after


def _spelling(name: str) -> str:
    return " ".join(name.split())


def _as_written(found: str, names: Sequence[str]) -> str:
    return next((name for name in names if _spelling(name.upper()) == _spelling(found)), found)


def _article(name: str) -> str | None:
    """The English article a name takes, by its spelling; None where that says nothing."""
    plain = unicodedata.normalize("NFD", name.strip())
    word = re.match(r"[A-Za-z][A-Za-z\u0300-\u036f]*", plain)
    if word is None:
        return None
    letters = word[0].encode("ascii", "ignore").decode()
    spelled_out = letters.isupper() and len(letters) > 1 and (len(letters) <= 3 or not re.search("[AEIOUY]", letters))
    if spelled_out or len(letters) == 1:
        return "an" if letters[0] in "AEFHILMNORSX" else "a"
    return "an" if _AN.match(letters.lower()) else "a"
