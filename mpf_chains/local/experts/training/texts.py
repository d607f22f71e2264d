"""Texts that experts are trained on: read, split and cut, the same way every time."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from mpf_chains.errors import BenchmarkError, InvalidInput
from mpf_chains.local.likelihood import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def texts_of_redditbias(
    folder: str | PathLike[str], axis: str, *, swapped: Literal["attr", "targets"] = "attr"
) -> tuple[list[str], list[str]]:
    """The training halves of an axis of RedditBias: biased sentences, and their counterparts in the same order.

    A leading "<bos>" is cut off, and letters are folded to lower case.
    Source: Barikeri et al., "RedditBias", ACL 2021; as expert texts in arXiv 2412.01711.

    Args:
        folder: Has ``<axis>_bias_manual_swapped_attr_train.txt``, itself or in a folder ``<axis>``.
        axis: "gender", "orientation", "race", "religion1" or "religion2".
        swapped: What the counterparts have instead: the opposite attribute ("attr", default) or the other group
            ("targets").

    Returns:
        (biased, anti-biased), equally many.

    Raises:
        BenchmarkError: If the file is not there, is not UTF-8, or has an odd number of sentences.
    """
    name = f"{axis}_bias_manual_swapped_{swapped}_train.txt"
    files = [file for file in (Path(folder) / name, Path(folder) / axis / name) if file.is_file()]
    if not files:
        raise BenchmarkError(
            f"{Path(folder)} has no {name}.",
            hint="Axes are gender, orientation, race, religion1 and religion2; get the text_files of RedditBias.",
        )
    try:
        lines = files[0].read_text("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise BenchmarkError(f"{files[0]} is not UTF-8: {error}.") from error
    texts = [line.strip().removeprefix("<bos>").strip().casefold() for line in lines if line.strip()]
    half, odd = divmod(len(texts), 2)
    if odd or not half:
        raise BenchmarkError(f"{files[0]} has {len(texts)} sentences; it should have two halves of equal length.")
    return texts[:half], texts[half:]


def checked(texts: Sequence[str], whose: str) -> list[str]:
    """Texts that can be trained on.

    Args:
        texts: Any number.
        whose: What they are for, for messages.

    Raises:
        InvalidInput: If there are fewer than 2, or one is no text, is blank or holds half a surrogate pair.
    """
    if isinstance(texts, str):
        raise InvalidInput(f"The texts for the {whose} are one text; give a list.")
    texts = list(texts)
    if len(texts) < 2:
        raise InvalidInput(f"There are {len(texts)} texts for the {whose}; at least 2 are needed.")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidInput(f"Text {i} for the {whose} is a {type(text).__name__}, not a text: {text!r:.80}.")
        if not text.strip():
            raise InvalidInput(f"Text {i} for the {whose} is blank; leave it out.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(f"Text {i} for the {whose} cannot be written as UTF-8: {error}.") from error
    return texts


def held_out(rows: Sequence[tuple[str, ...]], share: float, seed: int) -> frozenset[int]:
    """Choose at random which rows not to train on, at least one and not all.

    Rows with the same text in the same place are on the same side, so that nothing is measured on what was trained on;
    texts are the same if they differ by spaces and capitals only.

    Args:
        rows: Texts; counterparts in one row stay together.
        share: What share to hold out, in (0, 1).
        seed: Seeds the choice.

    Returns:
        Indices.

    Raises:
        InvalidInput: If the rows cannot be parted, because they are all the same.

    Examples:
        >>> sorted(held_out([(letter,) for letter in "abcdefgh"], 0.25, 0))
        [2, 4]
        >>> sorted(held_out([("He cooks.",), ("She cooks.",), ("he cooks.",)], 0.5, 1))
        [0, 2]
    """
    families = _families(rows)
    if len(families) < 2:
        raise InvalidInput(
            f"All {len(rows)} texts are the same, or hang together by some that are, so none can be held out.",
            hint="Give at least two different ones.",
        )
    wanted = min(max(1, round(share * len(rows))), len(rows) - 1)
    held: list[int] = []
    for i in np.random.default_rng(seed).permutation(len(families))[:-1]:
        if len(held) >= wanted:
            break
        held += families[i]
    return frozenset(held)


def _families(rows: Sequence[tuple[str, ...]]) -> list[list[int]]:
    """Indices of rows that must be on one side, in order of their first one."""
    family = list(range(len(rows)))

    def first(i: int) -> int:
        while family[i] != i:
            family[i] = i = family[family[i]]
        return i

    seen: dict[tuple[int, str], int] = {}
    for i, row in enumerate(rows):
        for place, text in enumerate(row):
            other = first(seen.setdefault((place, " ".join(text.casefold().split())), i))
            low, high = sorted((other, first(i)))
            family[high] = low
    found: dict[int, list[int]] = {}
    for i in range(len(rows)):
        found.setdefault(first(i), []).append(i)
    return list(found.values())


def pieces(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], longest: int, whose: str) -> list[list[list[int]]]:
    """Token ids of texts, each after the token that begins a text; long texts in several pieces.

    Args:
        tokenizer: The model's. Its BOS token, else its EOS token, begins a text.
        texts: None of them blank.
        longest: Tokens of a piece, that first one included; at least 2.
        whose: What they are for, for messages.

    Returns:
        For each text its pieces, each of at least 2 tokens.

    Raises:
        InvalidInput: If a text has no token.
    """
    try:
        encoded = encode(tokenizer, [("", text) for text in texts])
    except InvalidInput as error:
        raise InvalidInput(
            f"A text for the {whose} has no token of its own, or the tokenizer none that begins a text: {error}",
            hint="Leave that text out.",
        ) from error
    size = longest - 1
    return [
        [[*before, *targets[start : start + size]] for start in range(0, len(targets), size)]
        for before, targets in encoded
    ]
