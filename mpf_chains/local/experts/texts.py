"""Texts that experts are trained on: read, split and cut, the same way every time."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

from mpf_chains.errors import BenchmarkError, InvalidInput
from mpf_chains.local.likelihood import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")


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
        lines = files[0].read_text("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise BenchmarkError(f"{files[0]} is not UTF-8: {error}.") from error
    texts = [line.strip().removeprefix("<bos>").strip().casefold() for line in lines if line.strip()]
    half, odd = divmod(len(texts), 2)
    if odd or not half:
        raise BenchmarkError(f"{files[0]} has {len(texts)} sentences; it should have two halves of equal length.")
    return texts[:half], texts[half:]


def split(texts: Sequence[T], share: float, seed: int) -> tuple[list[T], list[T]]:
    """Part texts at random into some to train on and some to hold out, at least one each.

    Lists of one length are parted alike, so counterparts stay together.

    Args:
        texts: At least 2.
        share: What share to hold out, in (0, 1).
        seed: Seeds the choice.

    Examples:
        >>> split("abcdefgh", 0.25, 0)
        (['a', 'b', 'd', 'f', 'g', 'h'], ['c', 'e'])
    """
    count = min(max(1, round(share * len(texts))), len(texts) - 1)
    held = set(np.random.default_rng(seed).permutation(len(texts))[:count].tolist())
    return [text for i, text in enumerate(texts) if i not in held], [texts[i] for i in sorted(held)]


def pieces(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], longest: int) -> list[list[int]]:
    """Token ids of texts, each after the token that begins a text; long texts in several pieces.

    Args:
        tokenizer: The model's. Its BOS token, else its EOS token, begins a text.
        texts: None of them blank.
        longest: Tokens of a piece, that first one included; at least 2.

    Raises:
        InvalidInput: If a text is blank or has no token.
    """
    for i, text in enumerate(texts):
        if not text.strip():
            raise InvalidInput(f"Text {i} is blank; leave it out.")
    size = longest - 1
    return [
        [*before, *targets[start : start + size]]
        for before, targets in encode(tokenizer, [("", text) for text in texts])
        for start in range(0, len(targets), size)
    ]
