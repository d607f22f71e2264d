"""Texts about contexts, written from templates."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mpf_chains.errors import InvalidInput

_AN = re.compile(r"(?!uni(?![mn])|u[rst][aeiou]|e[uw]|on(?:e|ce)\b)[aeiou]|h(?:our|onest|onou?r|eir)", re.IGNORECASE)


class Prompt(NamedTuple):
    """What is asked about a context.

    Args:
        context: What it is about, as the target table names it.
        text: What the user says.
    """

    context: str
    text: str


def fill(template: str, context: str, *, needed: bool = True) -> str:
    """Write a context into a template, once or several times.

    Args:
        template: With ``{context}``, or ``{a_context}`` for the name with its English article, which is "an" before
            the sound of a vowel ("an hour", "a university"); ``{A_context}`` begins a sentence. Other braces stay as
            they are.
        context: What to write.
        needed: Whether there must be a place for it. Default True.

    Raises:
        InvalidInput: If the template has no place for it and needs one.

    Examples:
        >>> fill("Is {a_context} a man or a woman?", "engineer")
        'Is an engineer a man or a woman?'
    """
    article = "an" if _AN.match(context) else "a"
    text = template.replace("{a_context}", f"{article} {context}").replace("{context}", context)
    text = text.replace("{A_context}", f"{article.capitalize()} {context}")
    if needed and text == template:
        raise InvalidInput(
            f"The template {template!r} has no place for a context.", hint="Write {context} or {a_context} into it."
        )
    return text


def prompts_about(contexts: Iterable[str], templates: Sequence[str]) -> list[Prompt]:
    """All templates filled with all contexts, those of one context next to each other.

    Examples:
        >>> prompts_about(["nurse"], ["Describe {a_context}.", "Who is the {context}?"])[1]
        Prompt(context='nurse', text='Who is the nurse?')
    """
    if isinstance(templates, str):
        raise InvalidInput("`templates` is one text; it must be a list of them.")
    return [Prompt(context, fill(template, context)) for context in contexts for template in templates]
