"""Perspectives: named ways to condition a model, and sets of them.

A perspective is an instruction (joined to the system message) and/or arguments bound to the model call
(a temperature, a steering token, expert strengths). Prompts, experts and steering tokens are all perspectives,
so calibration, drawing and reports serve them alike.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from langchain_core.messages import BaseMessage, SystemMessage

from mpf_chains.errors import InvalidInput

Position = Literal["before", "after", "replace"]


@dataclass(frozen=True)
class Perspective:
    r"""A named way to condition a model.

    Args:
        name: Unique within its set; shows up in weights, reports and response metadata.
        instruction: Text that joins the system message. Empty (the default) leaves the prompt as it is.
        arguments: Keyword arguments bound to the model call, JSON-like values only. Default none.

    Raises:
        InvalidInput: If the name is empty or the arguments are not JSON-like.

    Examples:
        >>> critic = Perspective("critic", "Answer as a critical reviewer.")
        >>> [m.content for m in critic.condition([SystemMessage("Be brief.")])]
        ['Answer as a critical reviewer.\n\nBe brief.']
    """

    name: str
    instruction: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise InvalidInput("A perspective needs a name that is not blank.")
        try:
            json.dumps(dict(self.arguments), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InvalidInput(
                f"The arguments of perspective {self.name!r} must be JSON-like (text, numbers, lists, dicts): {error}."
            ) from error
        object.__setattr__(self, "arguments", MappingProxyType(dict(self.arguments)))

    def __hash__(self) -> int:
        return hash(self.digest)

    def __reduce__(self) -> tuple[type[Perspective], tuple[str, str, dict[str, Any]]]:
        return Perspective, (self.name, self.instruction, dict(self.arguments))

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of name, instruction and arguments: changes whenever the conditioning changes."""
        return _digest([self.name, self.instruction, dict(self.arguments)])

    def condition(self, messages: Sequence[BaseMessage], position: Position = "before") -> list[BaseMessage]:
        """Join the instruction to the system message; nothing else is touched and nothing is templated.

        Args:
            messages: The conversation. Not modified.
            position: Where the instruction goes relative to an existing leading system message: "before" (default)
                or "after" it with a blank line between, or "replace" it.

        Returns:
            A new list. Without a leading system message one is put first; with an empty instruction the
            messages are returned as they are.
        """
        if not self.instruction:
            return list(messages)
        if not messages or not isinstance(messages[0], SystemMessage):
            return [SystemMessage(self.instruction), *messages]
        system = messages[0]
        content: str | list[str | dict[str, Any]]
        if position == "replace":
            content = self.instruction
        elif isinstance(system.content, str):
            parts = [self.instruction, system.content]
            content = "\n\n".join(part for part in (parts if position == "before" else parts[::-1]) if part)
        elif position == "before":
            content = [{"type": "text", "text": f"{self.instruction}\n\n"}, *system.content]
        else:
            content = [*system.content, {"type": "text", "text": f"\n\n{self.instruction}"}]
        return [system.model_copy(update={"content": content}), *messages[1:]]


@dataclass(frozen=True, init=False)
class PerspectiveSet(Sequence[Perspective]):
    """An ordered set of perspectives with unique names.

    Args:
        perspectives: At least one perspective.

    Raises:
        InvalidInput: If there is none, or two share a name.

    Examples:
        >>> PerspectiveSet.builtin("mpf").names
        ('optimist', 'realist', 'empathetic', 'cautious', 'critical')
    """

    perspectives: tuple[Perspective, ...]

    def __init__(self, perspectives: Sequence[Perspective]) -> None:
        members = tuple(perspectives)
        if not members:
            raise InvalidInput("A perspective set needs at least one perspective.")
        names = [perspective.name for perspective in members]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InvalidInput(f"Perspective names must be unique; given more than once: {', '.join(twice)}.")
        object.__setattr__(self, "perspectives", members)

    @classmethod
    def builtin(cls, name: str) -> PerspectiveSet:
        """One of the sets that ship with the package.

        Args:
            name: "mpf" (optimist, realist, empathetic, cautious, critical: the five of the MPF paper,
                arXiv 2507.02595, in our own words), "gender", "race" or "sentiment" (attribute sets).

        Raises:
            InvalidInput: If there is no such set.
        """
        if name not in _BUILTIN:
            raise InvalidInput(f"There is no built-in perspective set {name!r}; choose one of {', '.join(_BUILTIN)}.")
        return cls([Perspective(key, text) for key, text in _BUILTIN[name].items()])

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in order."""
        return tuple(perspective.name for perspective in self.perspectives)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over the members' digests, in order."""
        return _digest([perspective.digest for perspective in self.perspectives])

    def __getitem__(self, index: Any) -> Any:
        """The perspective with this name or position (or a slice of positions, as a tuple)."""
        if isinstance(index, str):
            for perspective in self.perspectives:
                if perspective.name == index:
                    return perspective
            raise KeyError(index)
        return self.perspectives[index]

    def __len__(self) -> int:
        return len(self.perspectives)

    def __iter__(self) -> Iterator[Perspective]:
        return iter(self.perspectives)


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _attribute(kind: str, description: str) -> str:
    return (
        f"Whenever your answer involves a person whose {kind} is not given, make that person {description}. "
        f"Keep everything else in the answer as it would be."
    )


_BUILTIN: Mapping[str, Mapping[str, str]] = {
    "mpf": {
        "optimist": (
            "You are an optimist. Answer by stressing what is going well, what has been achieved and what good may "
            "still come of it. Be warm and enthusiastic, in a few sentences."
        ),
        "realist": (
            "You are a realist. Answer with plain, checkable facts and a balanced view of what works and what does "
            "not. Use neutral words and no praise, in a few sentences."
        ),
        "empathetic": (
            "You are an empathetic listener. Answer by describing how the people concerned feel and what they go "
            "through, with its hopes and its strains, in a few sentences."
        ),
        "cautious": (
            "You are a cautious adviser. Answer by pointing out risks, uncertainty and what could go wrong, and by "
            "warning against hasty conclusions, in a few sentences."
        ),
        "critical": (
            "You are a harsh critic, and disappointed. Begin your answer with 'Unfortunately,' and name the failures, "
            "the weaknesses and the problems, in a few sentences."
        ),
    },
    "gender": {
        "female": _attribute("gender", "a woman (she, her)"),
        "male": _attribute("gender", "a man (he, him)"),
    },
    "race": {
        "white": _attribute("race or ethnicity", "White"),
        "black": _attribute("race or ethnicity", "Black"),
        "asian": _attribute("race or ethnicity", "Asian"),
        "hispanic": _attribute("race or ethnicity", "Hispanic"),
        "indigenous": _attribute("race or ethnicity", "Indigenous"),
    },
    "sentiment": {
        "positive": "Answer in a clearly positive tone.",
        "neutral": "Answer in a neutral tone, neither positive nor negative.",
        "negative": "Answer in a clearly negative tone.",
    },
}
