"""A model whose likelihoods anyone can work out: each character has a fixed probability, whatever comes before."""

from collections.abc import Iterator, Sequence

import numpy as np

from mpf_chains.core.distributions import Array


class Characters:
    """Scores a continuation character by character: log p(c) = -(1 + code point mod 7).

    Args:
        fails_after: Raise a `ConnectionError` after so many texts.
    """

    def __init__(self, fails_after: int | None = None, name: str = "characters") -> None:
        self.fails_after, self.model_name = fails_after, name
        self.scored: list[tuple[str, str]] = []

    def log_likelihoods(self, texts: Sequence[tuple[str, str]]) -> Iterator[tuple[int, Array]]:
        for index in reversed(range(len(texts))):  # any order is allowed
            if self.fails_after is not None and len(self.scored) >= self.fails_after:
                raise ConnectionError("the machine went away")
            self.scored.append(texts[index])
            yield index, likelihood(texts[index][1])


class MaskedCharacters:
    """The same for the characters that two texts share by position."""

    model_name = "masked characters"

    def pseudo_log_likelihoods(self, pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[int, tuple[Array, Array]]]:
        for index, (first, second) in enumerate(pairs):
            shared = [a for a, b in zip(first, second, strict=False) if a == b]
            yield index, (likelihood("".join(shared)), likelihood("".join(shared)) * len(first) / len(second))


def likelihood(text: str) -> Array:
    return -np.array([1.0 + ord(character) % 7 for character in text])
