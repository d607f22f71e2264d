"""What a model thinks of contexts: how much likelier texts about them are with one class in them than with another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mpf_chains.errors import InvalidInput
from mpf_chains.local.steering.calibration.rows import Readings
from mpf_chains.targets.templates import fill

GENDER_PROBES = (
    ("She is {a_context}.", "He is {a_context}."),
    ("She works as {a_context}.", "He works as {a_context}."),
    ("The woman works as {a_context}.", "The man works as {a_context}."),
    ("My mother is {a_context}.", "My father is {a_context}."),
    ("My sister is {a_context}.", "My brother is {a_context}."),
    ("Mary is {a_context}.", "John is {a_context}."),
    ("His wife is {a_context}.", "Her husband is {a_context}."),
    ("her job as {a_context}", "his job as {a_context}"),
    ("The {context} said that she", "The {context} said that he"),
    ("The {context} finished work, and then she", "The {context} finished work, and then he"),
    ("The {context} put on her", "The {context} put on his"),
    ("The {context} took off her", "The {context} took off his"),
    ("I asked the {context} about her", "I asked the {context} about his"),
    ("The {context} was tired because she", "The {context} was tired because he"),
    ("When the {context} arrived, she", "When the {context} arrived, he"),
    ("The {context} herself", "The {context} himself"),
    ("The {context} loves her job.", "The {context} loves his job."),
    ("the female {context}", "the male {context}"),
    ("The {context} is a woman.", "The {context} is a man."),
    ("Most {context}s are women", "Most {context}s are men"),
    ("Jennifer, {a_context},", "Michael, {a_context},"),
    ("As {a_context}, she", "As {a_context}, he"),
    ("The {context} and her husband", "The {context} and his wife"),
    ("{A_context} must do her", "{A_context} must do his"),
    ("My aunt works as {a_context}.", "My uncle works as {a_context}."),
    ("My daughter works as {a_context}.", "My son works as {a_context}."),
    ("The girl works as {a_context}.", "The boy works as {a_context}."),
    ("The lady works as {a_context}.", "The gentleman works as {a_context}."),
    ("My grandmother works as {a_context}.", "My grandfather works as {a_context}."),
    ("His wife works as {a_context}.", "Her husband works as {a_context}."),
    ("My girlfriend works as {a_context}.", "My boyfriend works as {a_context}."),
    ("That woman works as {a_context}.", "That man works as {a_context}."),
    ("Her mother works as {a_context}.", "Her father works as {a_context}."),
    ("My niece works as {a_context}.", "My nephew works as {a_context}."),
)
"""Pairs of texts that differ in the gender of a person of an occupation: female, male."""


_TOGETHER = 3.0
"""How much longer the mean contrast is than the single ones are together."""


class Likelihoods(Protocol):
    """What scores texts, as `ChatTransformers` does."""

    def log_likelihoods(self, texts: Sequence[tuple[str, str]]) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """Log-probabilities of the tokens of (context, continuation) pairs, with their index, in any order."""
        ...


def read_contrasts(model: Likelihoods, contexts: Iterable[str], probes: Sequence[Sequence[str]]) -> Readings:
    """Read how a model's likelihood of texts about each context depends on the class named in them.

    For texts of one probe the log-likelihoods are taken less their mean over the classes, and over all contexts brought
    to mean 0 and variance 1; contexts without a target help with that. Beside them stands their mean over the probes,
    made long, so that a ridge costs it less: what all probes agree on is believed before what one of them says. These
    few figures say more about a context that was not trained on than the model's hidden states do: SmolLM2's error of
    the share of women in 10 of 60 occupations was 0.12, that of its states 0.16 to 0.18 (30 or 50 others known, 20
    random splits).

    Args:
        model: A `ChatTransformers`.
        contexts: At least two, all different.
        probes: Each a text for every class, in the order of the target's classes, with places for the context (see
            `templates.fill`), such as `GENDER_PROBES`.

    Returns:
        One reading per context: for `infer_targets`. The last value of a state is a constant.

    Raises:
        InvalidInput: If there are fewer than two contexts, or probes differ in how many classes they have.
    """
    names = tuple(contexts)
    classes = len(probes[0]) if probes else 0
    if len(set(names)) < max(2, len(names)):
        raise InvalidInput(
            f"There are {len(names)} contexts, {len(set(names))} of them different; two are needed at least."
        )
    if classes < 2 or any(isinstance(probe, str) or len(probe) != classes for probe in probes):
        raise InvalidInput("Each probe must be a list with a text for every class, of which there are two at least.")
    texts = [fill(text, name) for probe in probes for text in probe for name in names]
    scores = np.empty(len(texts))
    for index, found in model.log_likelihoods([("", text) for text in texts]):
        scores[index] = found.sum()
    by_text = scores.reshape(len(probes), classes, len(names))
    contrasts = by_text - by_text.mean(axis=1, keepdims=True)
    contrasts -= contrasts.mean(axis=2, keepdims=True)
    contrasts /= np.maximum(contrasts.std(axis=2, keepdims=True), 1e-12)
    together = contrasts.mean(axis=0)
    together *= _TOGETHER * np.sqrt(len(probes)) / np.maximum(together.std(axis=1, keepdims=True), 1e-12)
    states = np.vstack([contrasts.reshape(-1, len(names)), together]).T
    length = np.sqrt((states**2).sum(axis=1).mean())
    constant = np.full((len(names), 1), 10 * max(float(length), 1.0))  # long, so that an intercept is free
    none = np.full(len(names), -np.inf)
    return Readings(np.hstack([states, constant]), none, np.zeros((len(names), classes)), names)
