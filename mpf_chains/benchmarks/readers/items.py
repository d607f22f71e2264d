"""What a published benchmark is made of: choices between texts, prompts, pairs of prompts, passages to score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, TypeVar

from mpf_chains.benchmarks.rows import FieldError, Row, check_text, is_finite

STEREOTYPE = "stereotype"
ANTI_STEREOTYPE = "anti-stereotype"
UNRELATED = "unrelated"
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Choice:
    """Candidate texts in one context, for a model that can say how likely each is.

    Args:
        id: Unique within its benchmark.
        group: What results are broken down by: bias type, category, occupation.
        candidates: The texts to compare, at least two.
        labels: What each candidate stands for, in the order of `candidates`. Each reader says which labels it gives;
            "stereotype" and "anti-stereotype" mean the same in all that give them.
        context: The text before the candidate. Default "": each candidate is a whole text.
        question: A question between context and candidates. Default "".
        correct: Index of the right candidate. Default None: none is right.
        condition: The arm that the item belongs to, such as "ambiguous" or "pro". Default "".
        family: Items made from one template share it: counterfactuals of one another, and the unit to resample for
            intervals. Default: the id.
        tags: Anything else, texts or finite numbers by name. Default empty.

    Raises:
        BenchmarkError: If a field has a wrong type, is blank or out of range.

    Examples:
        >>> item = Choice("1", "gender", ("He cooks.", "She cooks."), ("anti-stereotype", "stereotype"))
        >>> item.index("stereotype")
        1
    """

    id: str
    group: str
    candidates: tuple[str, ...]
    labels: tuple[str, ...]
    context: str = ""
    question: str = ""
    correct: int | None = None
    condition: str = ""
    family: str = ""
    tags: Mapping[str, str | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _complete(self, required=("id", "group"), optional=("context", "question", "condition"))
        for name in ("candidates", "labels"):
            given = getattr(self, name)
            values = (given,) if isinstance(given, str) else tuple(given)
            for value in values:
                check_text(name, value)
            object.__setattr__(self, name, values)
        if not 2 <= len(self.candidates) == len(self.labels):
            raise FieldError(
                "candidates",
                f"there are {len(self.candidates)} candidates and {len(self.labels)} labels; "
                "there must be at least two, with a label each.",
            )
        if self.correct is not None and self.correct not in range(len(self.candidates)):
            raise FieldError(
                "correct", f"`correct` is {self.correct!r}; it must be from 0 to {len(self.candidates) - 1}."
            )

    def index(self, label: str) -> int:
        """Index of the one candidate with a label.

        Raises:
            BenchmarkError: If not exactly one candidate has it.
        """
        if self.labels.count(label) != 1:
            raise FieldError("labels", f"Item {self.id!r} has labels {', '.join(self.labels)}; not one {label!r}.")
        return self.labels.index(label)

    def __hash__(self) -> int:
        return hash((self.id, self.candidates))

    def __reduce__(self) -> tuple[type[Choice], tuple[Any, ...]]:
        return Choice, tuple(as_dict(self).values())


@dataclass(frozen=True)
class Prompt:
    """A text that a model continues or answers; what it writes is scored.

    Args:
        id: Unique within its benchmark.
        group: The group of people it is about; gaps are measured between groups of one domain.
        text: What the model is given.
        domain: What the groups divide, such as "gender". Default "".
        reference: How the text went on where it comes from. Default "".
        family: Prompts that differ in the group only share it: counterfactuals of one another. Default: the id.
        tags: Anything else, texts or finite numbers by name. Default empty.

    Raises:
        BenchmarkError: If a field has a wrong type or is blank.
    """

    id: str
    group: str
    text: str
    domain: str = ""
    reference: str = ""
    family: str = ""
    tags: Mapping[str, str | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _complete(self, required=("id", "group", "text"), optional=("domain", "reference"))

    def __hash__(self) -> int:
        return hash((self.id, self.text))

    def __reduce__(self) -> tuple[type[Prompt], tuple[Any, ...]]:
        return Prompt, tuple(as_dict(self).values())


@dataclass(frozen=True)
class PromptPair:
    """Two openings that differ only in the group of people they name; a model should go on alike.

    Args:
        id: Unique within its benchmark.
        prompts: The two openings, given to the model as they stand; they must differ.
        groups: The group that each names; they must differ.
        domain: What the groups divide, such as "gender". Default "".
        family: Pairs made from one template share it; the unit to resample for intervals. Default: the id.
        tags: Anything else, texts or finite numbers by name. Default empty.

    Raises:
        BenchmarkError: If a field has a wrong type or is blank, or the two prompts or groups are the same.

    Examples:
        >>> PromptPair("1", ("The man worked as", "The woman worked as"), ("male", "female")).family
        '1'
    """

    id: str
    prompts: tuple[str, str]
    groups: tuple[str, str]
    domain: str = ""
    family: str = ""
    tags: Mapping[str, str | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _complete(self, required=("id",), optional=("domain",))
        for name in ("prompts", "groups"):
            given = getattr(self, name)
            values = (given,) if isinstance(given, str) else tuple(given)
            for value in values:
                check_text(name, value)
            object.__setattr__(self, name, values)
            if len(values) != 2 or values[0] == values[1]:
                raise FieldError(name, f"`{name}` is {values!r}; it must be two different texts.")

    def __hash__(self) -> int:
        return hash((self.id, self.prompts))

    def __reduce__(self) -> tuple[type[PromptPair], tuple[Any, ...]]:
        return PromptPair, tuple(as_dict(self).values())


@dataclass(frozen=True)
class Passage:
    """A text whose likelihood is measured as a whole.

    Args:
        id: Unique within its benchmark.
        text: The text, exactly as it stands: joined, the passages of a file are the file.
        title: Its heading. Default "".
        family: Passages that belong together share it. Default: the id.
        tags: Anything else, texts or finite numbers by name. Default empty.

    Raises:
        BenchmarkError: If a field has a wrong type or is blank.
    """

    id: str
    text: str
    title: str = ""
    family: str = ""
    tags: Mapping[str, str | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _complete(self, required=("id", "text"), optional=("title",))

    def __hash__(self) -> int:
        return hash((self.id, self.text))

    def __reduce__(self) -> tuple[type[Passage], tuple[Any, ...]]:
        return Passage, tuple(as_dict(self).values())


Item = Choice | Prompt | PromptPair | Passage | Row
ItemT = TypeVar("ItemT", bound=Item)


def as_dict(item: Choice | Prompt | PromptPair | Passage) -> dict[str, Any]:
    """The item as plain data, every field in order."""
    values = {one.name: getattr(item, one.name) for one in fields(item)}
    return values | {"tags": dict(item.tags)}


def _complete(
    item: Choice | Prompt | PromptPair | Passage, *, required: tuple[str, ...], optional: tuple[str, ...]
) -> None:
    for name in required:
        check_text(name, getattr(item, name))
    for name in (*optional, "family"):
        if getattr(item, name) != "":
            check_text(name, getattr(item, name))
    for name, value in item.tags.items():
        if isinstance(value, str):
            check_text(f"tags[{name!r}]", value)
        elif not is_finite(value):
            raise FieldError("tags", f"tags[{name!r}] is {value!r}; it must be a text or a finite number.")
    object.__setattr__(item, "family", item.family or item.id)
    object.__setattr__(item, "tags", MappingProxyType(dict(item.tags)))
