"""Putting one entity's name in the place of another's."""

from __future__ import annotations

import re

from mpf_chains.errors import InvalidInput

PLACEHOLDER = "{entity}"


def fill_entity(text: str, entity: str) -> str:
    """Put a name in the place of the literal `{entity}`; no other brace means anything.

    Examples:
        >>> fill_entity("Is {entity} {0.__class__}?", "ETH Zurich")
        'Is ETH Zurich {0.__class__}?'
    """
    return text.replace(PLACEHOLDER, entity)


def swap_entity(text: str, old: str, new: str) -> str:
    """Replace a name by another one, as whole words only.

    The name is found as written or all in upper case, across any white space; upper case stays upper case. Possessives
    stay possessives: "Atlas's" becomes "Yale's"; the bare apostrophe of a name ending in s ("Atlas' halls") is kept
    only if the new name ends in s as well.

    Args:
        text: Any text.
        old: The name to replace, not blank.
        new: The name to put there, not blank.

    Returns:
        The text with every occurrence replaced, in one pass.

    Raises:
        InvalidInput: If a name is blank.

    Examples:
        >>> swap_entity("XAVIRIA UNIVERSITY: Xaviria University's halls", "Xaviria University", "Yale")
        "YALE: Yale's halls"
    """
    if not old.strip() or not new.strip():
        raise InvalidInput(f"Names must not be blank; got {old!r} and {new!r}.")
    written = dict.fromkeys([old, old.upper()])
    choices = "|".join(r"\s+".join(re.escape(word) for word in name.split()) for name in written)
    # A bare apostrophe is a possessive if the name ends in s, a word follows, and no quotation mark opened before.
    bare = r"(?P<bare>['’](?=\s+\w))?" if old.strip()[-1] in "sS" else "(?P<bare>)"
    pattern = rf"(?<!\w)(?P<quote>['‘]?)(?P<name>{choices})(?!\w){bare}"

    def replacement(match: re.Match[str]) -> str:
        shouted = match["name"].isupper() and not old.isupper()
        name, mark, quote = new.upper() if shouted else new, match["bare"] or "", match["quote"]
        if mark and not quote and name[-1] not in "sS":
            mark += "S" if shouted else "s"
        return quote + name + mark

    return re.sub(pattern, replacement, text)
