"""One question about one entity, with what its answers should look like."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args

from mpf_chains.errors import BenchmarkError

Split = Literal["decomposition", "validation"]
"""The MPF paper's words: weights are fitted on the first and judged on the second."""

SPLITS: tuple[str, ...] = get_args(Split)
MAX_DEPTH = 32


class FieldError(BenchmarkError):
    """A field of a row that cannot be used; readers add the place in the file.

    Args:
        field_name: The field.
        message: What was wrong, the value, and what is allowed.
        hint: What to do about it.
    """

    def __init__(self, field_name: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.field_name = field_name
        self.message = message

    def __reduce__(self) -> tuple[type[BenchmarkError], tuple[str]]:
        return BenchmarkError, (str(self),)


@dataclass(frozen=True)
class Row:
    """One question about one entity.

    Args:
        id: Unique within its benchmark.
        entity: What the question is about; weights are fitted per entity.
        question: Sent to the model as it is; nothing in it is templated.
        target_text: The text whose score is the target. Default none.
        target_score: Target scores by feature name, finite, used instead of scoring a text. Default none.
        split: "decomposition" (default; fitted on) or "validation" (judged on).
        metadata: Anything else, JSON-like, at most 32 levels deep; kept as it is. Rows about several entities that
            repeat one question with one target should share a "question_id" here: calibration then counts them as
            one question in pooled results. Default empty.

    Raises:
        BenchmarkError: If a field has a wrong type, is blank, or is not valid Unicode text.

    Examples:
        >>> Row("q1", "ETH Zurich", "What is ETH Zurich known for?", target_score={"sentiment": 0.7}).split
        'decomposition'
    """

    id: str
    entity: str
    question: str
    target_text: str | None = None
    target_score: Mapping[str, float] = field(default_factory=dict)
    split: Split = "decomposition"
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("id", "entity", "question"):
            check_text(name, getattr(self, name))
        if self.target_text is not None:
            check_text("target_text", self.target_text)
        if self.split not in SPLITS:
            raise FieldError("split", f"`split` is {self.split!r}; it must be one of {', '.join(SPLITS)}.")
        if not isinstance(self.metadata, Mapping):
            raise FieldError("metadata", f"`metadata` is a {type(self.metadata).__name__}; it must be an object.")
        object.__setattr__(self, "target_score", MappingProxyType(_scores(self.target_score)))
        object.__setattr__(self, "metadata", MappingProxyType(plain_data("metadata", self.metadata)))

    def __hash__(self) -> int:
        return hash((self.id, self.entity, self.question))

    def __reduce__(self) -> tuple[type[Row], tuple[Any, ...]]:
        scores, metadata = dict(self.target_score), dict(self.metadata)
        return Row, (self.id, self.entity, self.question, self.target_text, scores, self.split, metadata)

    def as_dict(self) -> dict[str, Any]:
        """The row as plain data; fields that hold nothing are left out."""
        optional = {
            "target_text": self.target_text,
            "target_score": dict(self.target_score),
            "metadata": dict(self.metadata),
        }
        required = {"id": self.id, "entity": self.entity, "question": self.question, "split": self.split}
        return required | {name: value for name, value in optional.items() if value}


def check_text(name: str, value: object) -> None:
    """Check that a value is a text with something in it.

    Raises:
        FieldError: If it is none, blank, holds NUL, or is not valid Unicode.
    """
    if not isinstance(value, str):
        raise FieldError(name, f"`{name}` is a {type(value).__name__}; it must be a text.")
    if not value.strip():
        hint = "Leave it out where there is none." if name == "target_text" else ""
        raise FieldError(name, f"`{name}` is blank; it must hold some text.", hint=hint)
    if "\0" in value:
        raise FieldError(name, f"`{name}` holds a NUL character; texts must not.", hint="Remove it.")
    _check_unicode(name, value)


def _check_unicode(name: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise FieldError(
            name, f"`{name}` holds half of a surrogate pair at character {error.start + 1}; it must be valid Unicode."
        ) from error


def _scores(scores: object) -> dict[str, float]:
    if not isinstance(scores, Mapping):
        raise FieldError(
            "target_score", f"`target_score` is a {type(scores).__name__}; it must map features to scores."
        )
    for name, score in scores.items():
        check_text("target_score", name)
        if not is_finite(score):
            shown = repr(score)[:80]
            raise FieldError("target_score", f"`target_score` of {name!r} is {shown}; it must be a finite number.")
    return {name: float(score) for name, score in scores.items()}


def is_finite(value: object) -> bool:
    """Whether a value is a number that a float can hold; booleans are none."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer of more than 308 digits
        return False


def plain_data(name: str, value: Any, depth: int = 0) -> Any:
    """A copy made of dicts, lists, texts, finite numbers, booleans and None.

    Args:
        name: The field, for messages.
        value: What to copy.
        depth: How deep it lies in the field. Default 0.

    Raises:
        FieldError: If it holds anything else, or is nested deeper than 32 levels.
    """
    if depth > MAX_DEPTH:
        raise FieldError(name, f"`{name}` is nested deeper than {MAX_DEPTH} levels.", hint="Flatten it.")
    if isinstance(value, str):
        _check_unicode(name, value)
        return value
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {plain_data(name, key, depth): plain_data(name, item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_data(name, item, depth + 1) for item in value]
    raise FieldError(
        name, f"`{name}` holds {value!r}; it must be JSON-like: texts, finite numbers, lists, string keys."
    )
