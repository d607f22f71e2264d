"""Checks of what metrics are given: every number finite and within its range, all arrays of one length."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpf_chains.core.distributions import Array
from mpf_chains.errors import FeatureError, InvalidInput


def floats(name: str, values: ArrayLike) -> Array:
    """An array of floats of any shape.

    Raises:
        InvalidInput: If something in it is no number, or rows differ in length.
    """
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInput(f"{name} must be numbers: {error}.") from error


def numbers(
    name: str, values: ArrayLike, n: int | None = None, bounds: tuple[float, float] = (-np.inf, np.inf)
) -> Array:
    """A vector of finite numbers.

    Args:
        name: What to call it in messages.
        values: The numbers.
        n: How many there must be. Default any number but none.
        bounds: Smallest and largest allowed.

    Raises:
        InvalidInput: If it is no vector of n numbers.
        FeatureError: If a number is not finite or outside the bounds; nothing is clipped.
    """
    array = floats(name, values)
    if array.ndim != 1 or not array.size:
        raise InvalidInput(f"{name} must be a vector with at least one number, not of shape {array.shape}.")
    if n is not None and len(array) != n:
        raise InvalidInput(f"{name} has {len(array)} entries where {n} are needed, one per item.")
    low, high = bounds
    bad = np.flatnonzero(~(np.isfinite(array) & (array >= low) & (array <= high)))
    if bad.size:
        raise FeatureError(
            f"{name}[{bad[0]}] is {array[bad[0]]}; it must be finite and within [{low}, {high}].",
            hint="Leave items without a score out of every array.",
        )
    return array


def flags(name: str, values: ArrayLike, n: int | None = None) -> Array:
    """A vector of zeros and ones.

    Args:
        name: What to call it in messages.
        values: Booleans, or zeros and ones.
        n: How many there must be. Default any number but none.

    Raises:
        InvalidInput: If it is anything else.
    """
    array = numbers(name, values, n)
    bad = np.flatnonzero((array != 0) & (array != 1))
    if bad.size:
        raise InvalidInput(f"{name}[{bad[0]}] is {array[bad[0]]}; it must be true or false, 0 or 1.")
    return array


def labels(name: str, values: Iterable[Any], n: int) -> tuple[NDArray[np.intp], list[str]]:
    """Numbers of labels, and the labels in the order of their numbers: sorted, whatever their order in the data.

    Args:
        name: What to call it in messages.
        values: One label per item: texts, or anything that reads as one.
        n: How many there must be.

    Raises:
        InvalidInput: If there are not n labels, or one is missing (None, NaN or blank).
    """
    if isinstance(values, str):
        raise InvalidInput(f"{name} must be one label per item, not the text {values!r}.")
    texts = ["" if _missing(value) else str(value) for value in values]
    if len(texts) != n:
        raise InvalidInput(f"{name} has {len(texts)} entries where {n} are needed, one per item.")
    blank = next((index for index, text in enumerate(texts) if not text.strip()), None)
    if blank is not None:
        raise InvalidInput(f"{name}[{blank}] is missing or blank.", hint="Give every item a label.")
    known = sorted(set(texts))
    number = {text: index for index, text in enumerate(known)}
    return np.array([number[text] for text in texts], dtype=np.intp), known


def _missing(value: Any) -> bool:
    """Whether a label is None, NaN, NaT or pandas' NA, which is neither equal to itself nor not."""
    try:
        return value is None or bool(value != value)  # noqa: PLR0124
    except (TypeError, ValueError):
        return True


def groups_of(values: Iterable[Any], n: int, least: int = 2) -> tuple[NDArray[np.intp], list[str]]:
    """Numbers and names of the groups that a metric compares.

    Args:
        values: One label per item.
        n: How many there must be.
        least: How many different groups there must be. Default 2.

    Raises:
        InvalidInput: If labels are missing or too few groups are there.
    """
    codes, names = labels("groups", values, n)
    if len(names) < least:
        raise InvalidInput(f"At least {least} groups are needed to compare; there is only {', '.join(names)}.")
    return codes, names


def clusters_of(values: Iterable[Any] | None, n: int) -> NDArray[np.intp] | None:
    """Numbers of the clusters of items, or None where each item stands alone."""
    return None if values is None else labels("clusters", values, n)[0]


def split(by: Iterable[Any] | None, n: int) -> dict[str, NDArray[np.intp]]:
    """Row numbers of each label, sorted by label; empty for None."""
    if by is None:
        return {}
    codes, names = labels("by", by, n)
    return {name: np.flatnonzero(codes == code) for code, name in enumerate(names)}


def subset(array: NDArray[Any] | None, rows: NDArray[np.intp]) -> NDArray[Any] | None:
    """The rows of an array that may be missing."""
    return None if array is None else array[rows]


def ragged(name: str, values: Sequence[ArrayLike], n: int | None = None) -> list[Array]:
    """Vectors of log-probabilities, one per item and of any length but none.

    Raises:
        InvalidInput: If there are not n, or one is no vector.
        FeatureError: If a number is not finite or positive.
    """
    if not len(values) or (n is not None and len(values) != n):
        raise InvalidInput(f"{name} has {len(values)} entries where {n or 'at least 1'} are needed, one per item.")
    return [numbers(f"{name}[{i}]", row, bounds=(-np.inf, 0.0)) for i, row in enumerate(values)]
