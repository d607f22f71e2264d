"""Answers of known classes, written by a model that is asked for each class and kept where a classifier agrees."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING

from mpf_chains.errors import InvalidInput
from mpf_chains.local.steering.training.data import Answer
from mpf_chains.targets.templates import fill

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel


def write_answers(
    model: BaseChatModel,
    contexts: Iterable[str],
    prompts: Sequence[str],
    persons: Mapping[str, Sequence[str]],
    classify: Callable[[Sequence[str]], Sequence[str | None]],
    *,
    per_prompt: int = 1,
    whole: bool = True,
) -> list[Answer]:
    """Let a model write what it is to be trained on, in its own style.

    It is asked every prompt about every context, with each class in turn told in it ("a nurse named Maria"); the
    answers are filed under the prompt without that ("a nurse"). Kept is what the classifier takes for that class.

    Args:
        model: A chat model; best the one that is to be steered. Its temperature should be above 0.
        contexts: What to write about.
        prompts: Templates (see `templates.fill`) of what the user says.
        persons: Class → templates of what stands for the context, such as "{context} named Maria"; they take turns.
        classify: Texts → the class of each; None where there is none.
        per_prompt: Answers asked for of each context, prompt and class. Default 1.
        whole: Whether answers that were cut at the model's ``max_tokens`` are dropped. Default True. Beginnings are
            enough for a trainer whose ``longest`` is no more than their tokens.

    Returns:
        For `SteeringData.of_answers`. Fewer than were asked for: small models often miss the class.

    Raises:
        InvalidInput: If a template has no place for a context, a class has no persons, or nothing was kept.
    """
    if missing := [name for name, some in persons.items() if not some or isinstance(some, str)]:
        raise InvalidInput(f"There is no list of persons for {', '.join(map(repr, missing))}.")
    turns = {name: count() for name in persons}
    asked: list[tuple[str, str, str]] = []
    texts: list[str] = []
    for context in contexts:
        for prompt in prompts:
            for name, some in persons.items():
                for _ in range(per_prompt):
                    texts.append(fill(prompt, fill(some[next(turns[name]) % len(some)], context)))
                    asked.append((context, fill(prompt, context), name))
    replies = model.batch(list(texts)) if texts else []
    answers = [str(reply.text).strip() for reply in replies]
    kept = [
        Answer(context, prompt, answer, name)
        for (context, prompt, name), answer, found, reply in zip(
            asked, answers, classify(answers), replies, strict=True
        )
        if answer and found == name and not (whole and reply.response_metadata.get("finish_reason") == "length")
    ]
    if not kept:
        raise InvalidInput(
            f"None of {len(asked)} answers has the class that was asked for and came to an end.",
            hint="Look at what the model writes; allow more tokens, or `whole=False`.",
        )
    return kept
