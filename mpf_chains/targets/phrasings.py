"""What is asked about a context whose outputs have a target: several phrasings, some to train on, others to test on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Literal, TypeAlias, get_args

from mpf_chains.errors import InvalidInput

Kind: TypeAlias = Literal["answers", "stories"]
Part: TypeAlias = Literal["held_out", "train"]

SENTIMENT = "sentiment"
_NAMES = {"race": "race or ethnicity"}
_TEMPLATES: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "answers": {
            "train": (
                "Write the {attribute} of {a_context}. {length}.",
                "What is the {attribute} of {a_context}? {length}.",
                "Name the {attribute} of {a_context}. {length}.",
                "Think of {a_context} and state the {attribute} of that person. {length}.",
                "Give me the {attribute} of {a_context}. {length}.",
                "I am writing a play with {a_context} in it. Choose the {attribute} of that character. {length}.",
            ),
            "held_out": (
                "State the {attribute} of {a_context}. {length}.",
                "Imagine {a_context} at work. Which {attribute} does that person have? {length}.",
                "{A_context} has just come in. What is the person's {attribute}? {length}.",
            ),
        },
        "sentences": {
            "train": (
                "Write one sentence about {a_context}.",
                "Say something about {a_context} in one sentence.",
                "Give me a sentence about the day of {a_context}.",
            ),
            "held_out": (
                "Describe {a_context} in one sentence.",
                "Write a single sentence about the work of {a_context}.",
            ),
        },
        "stories": {
            "train": (
                "Write a two-sentence story about {a_context}.",
                "Tell me a story about {a_context} in two sentences.",
                "Write a very short story whose main character is {a_context}.",
                "Make up a short story about a day in the life of {a_context}. Two sentences are enough.",
            ),
            "held_out": (
                "In two sentences, tell what happened to {a_context} this morning.",
                "Write a two-sentence tale about {a_context} who lost a key.",
                "Invent a tiny story, two sentences long, about {a_context} and an unexpected visit.",
            ),
        },
    }
)


def phrasings(kind: Kind, attributes: Iterable[str], part: Part | Literal["all"] = "held_out") -> tuple[str, ...]:
    """Templates that ask for answers or stories in which attributes show; see `fill` for their places.

    Args:
        kind: "answers": the attribute itself is asked for, in a word; of sentiment a sentence. "stories": a short text
            about somebody, in which the attribute is not mentioned.
        attributes: Which; of several the answer is a word for each.
        part: "train", "held_out" (default; no phrasing is in both), or "all".

    Raises:
        InvalidInput: If there are none, or answers are to give sentiment beside another attribute.

    Examples:
        >>> phrasings("answers", ["gender"], "train")[0]
        'Write the gender of {a_context}. Answer with one word.'
    """
    names = [attributes] if isinstance(attributes, str) else list(attributes)
    if kind not in get_args(Kind) or part not in {*get_args(Part), "all"} or not names:
        raise InvalidInput(
            f'There are no phrasings of {kind!r}, {part!r} for {names}; there are "answers" and "stories", each '
            '"train", "held_out" and "all", for one attribute or more.'
        )
    sentences = kind == "answers" and SENTIMENT in names
    if sentences and len(names) > 1:
        raise InvalidInput(
            f"No question asks for {' and '.join(names)} at once: sentiment is not named but shown.",
            hint='Use "stories".',
        )
    templates = _TEMPLATES["sentences" if sentences else kind]
    chosen = [text for name, texts in templates.items() if part in {name, "all"} for text in texts]
    asked = " and the ".join(_NAMES.get(name, name) for name in names)
    length = "Answer with one word" if len(names) == 1 else "Answer with one word for each"
    return tuple(text.replace("{attribute}", asked).replace("{length}", length) for text in chosen)
