"""What steering is trained on: answers of each class about each context, with the right token and with a wrong one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from mpf_chains.core.sampling import QuotaSampler
from mpf_chains.errors import InvalidInput
from mpf_chains.targets.table import TargetTable
from mpf_chains.targets.templates import fill


class Answer(NamedTuple):
    """An answer and its class.

    Args:
        context: What it is about.
        prompt: What the user says.
        text: What is answered, without a steering token.
        cls: The class that it has.
    """

    context: str
    prompt: str
    text: str
    cls: str


@dataclass(frozen=True)
class SteeringRow:
    """A prompt and an answer to it.

    Args:
        context: What it is about.
        prompt: What the user says.
        answer: What follows the steering token.
        token: The class whose token begins the answer.
        text: The class that the answer has. A row is desirable if it is the token's.
    """

    context: str
    prompt: str
    answer: str
    token: str
    text: str

    @property
    def desirable(self) -> bool:
        """Whether the answer is what its token announces."""
        return self.token == self.text


@dataclass(frozen=True)
class SteeringData:
    """Rows to train on, and the targets of their contexts. ``print`` it before training.

    Args:
        targets: Has a target for the context of every row.
        rows: Some of them desirable.

    Raises:
        InvalidInput: If there are no desirable rows, or a row is blank, or of an unknown context or class.
    """

    targets: TargetTable
    rows: tuple[SteeringRow, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(self.rows))
        for i, row in enumerate(self.rows):
            if row.context not in self.targets:
                raise InvalidInput(f"Row {i} is about {row.context!r}, which has no target.")
            for name in (row.token, row.text):
                if name not in self.targets.classes:
                    raise InvalidInput(
                        f"Row {i} has the class {name!r}; the classes are {', '.join(self.targets.classes)}."
                    )
            if not row.prompt.strip() or not row.answer.strip():
                raise InvalidInput(f"Row {i} has a blank prompt or answer.")
        if not any(row.desirable for row in self.rows):
            raise InvalidInput(f"None of {len(self.rows)} rows is desirable; some must be.")

    @classmethod
    def build(
        cls,
        targets: TargetTable,
        prompts: Sequence[str],
        answers: Mapping[str, Sequence[str]],
        *,
        per_context: int = 4,
        classes: Literal["target", "even"] = "target",
        mismatched: bool = True,
        seed: int = 0,
    ) -> SteeringData:
        """Write rows from templates.

        Args:
            targets: Whose contexts to write about.
            prompts: Templates (see `templates.fill`) of what the user says.
            answers: Class → templates of answers that have it, with or without a place for a context.
            per_context: Desirable rows of each context. Default 4.
            classes: How often each class is written: "target" (default), in proportion to the context's target, drawn
                by quota; or "even", equally often.
            mismatched: Whether each desirable row gets an undesirable one beside it: same prompt, same token, an answer
                of another class. Default True.
            seed: Seeds which templates come together. Default 0.

        Raises:
            InvalidInput: If a class has no answers, or a prompt has no place for a context.
        """
        if missing := [name for name in targets.classes if not answers.get(name)]:
            raise InvalidInput(f"There are no answers of class {', '.join(map(repr, missing))}.")
        if not prompts or per_context < 1:
            raise InvalidInput(f"There are {len(prompts)} prompts, and {per_context} rows per context; both need 1.")
        generator, sampler = np.random.default_rng(seed), QuotaSampler(seed)
        even = dict.fromkeys(targets.classes, 1 / len(targets.classes))
        rows = []
        for context in targets.contexts:
            weights = targets[context] if classes == "target" else even
            asked = _in_turn(generator, prompts, per_context)
            for number, prompt in enumerate(asked):
                token = sampler.draw(weights, entity=context if classes == "target" else "")
                others = [name for name in targets.classes if name != token]
                texts = [token, others[number % len(others)]] if mismatched else [token]
                for text in texts:
                    answer = fill(answers[text][int(generator.integers(len(answers[text])))], context, needed=False)
                    rows.append(SteeringRow(context, fill(prompt, context), answer, token, text))
        return cls(targets, tuple(rows))

    @classmethod
    def of_answers(
        cls, targets: TargetTable, answers: Iterable[Answer], *, mismatched: bool = True, seed: int = 0
    ) -> SteeringData:
        """Rows of answers whose class is known, such as those of `write_answers`.

        Args:
            targets: Has a target for the context of every answer.
            answers: Of all classes in every context.
            mismatched: Whether each gets an undesirable row beside it: same prompt, same token, and an answer of
                another class, to the same prompt if there is one, else about the same context. Answers in whose
                context there is no other class get none. Default True.
            seed: Seeds which answers come together. Default 0.

        Raises:
            InvalidInput: As for the rows.
        """
        generator, rows = np.random.default_rng(seed), []
        of_context: dict[str, list[Answer]] = {}
        for answer in answers:
            of_context.setdefault(answer.context, []).append(answer)
        for context, some in of_context.items():
            for answer in some:
                rows.append(SteeringRow(context, answer.prompt, answer.text, answer.cls, answer.cls))
                others = [other for other in some if other.cls != answer.cls]
                near = [other for other in others if other.prompt == answer.prompt] or others
                if mismatched and near:
                    other = near[int(generator.integers(len(near)))]
                    rows.append(SteeringRow(context, answer.prompt, other.text, answer.cls, other.cls))
        return cls(targets, tuple(rows))

    def __add__(self, other: SteeringData) -> SteeringData:
        """Both one's rows, for one adapter that serves both.

        Raises:
            InvalidInput: If they have other targets.
        """
        if self.targets.digest != other.targets.digest:
            raise InvalidInput("Steering data with different targets cannot be trained on together.")
        return SteeringData(self.targets, self.rows + other.rows)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of rows and targets."""
        rows = [[row.context, row.prompt, row.answer, row.token, row.text] for row in self.rows]
        return hashlib.sha256(json.dumps([self.targets.digest, rows]).encode()).hexdigest()

    def held_out(self, share: float, seed: int, *, least: int = 1) -> tuple[SteeringData, SteeringData]:
        """Part the contexts into some to train on and some to measure with, at least one each.

        Args:
            share: Of the contexts, to measure with, in (0, 1).
            seed: Seeds the choice.
            least: Contexts to measure with, if that leaves as many to train on. Default 1.

        Raises:
            InvalidInput: If there is only one context.
        """
        names = list(dict.fromkeys(row.context for row in self.rows))
        if len(names) < 2 or not 0 < share < 1:
            raise InvalidInput(f"{share} of {len(names)} contexts cannot be held out; two are needed at least.")
        order = np.random.default_rng(seed).permutation(len(names))
        fewest = least if len(names) >= 2 * least else 1
        held = {names[i] for i in order[: min(max(fewest, round(share * len(names))), len(names) - 1)]}
        parts = [tuple(row for row in self.rows if (row.context in held) == out) for out in (False, True)]
        return SteeringData(self.targets, parts[0]), SteeringData(self.targets, parts[1])

    def preview(self, rows: int = 6) -> str:
        """What is there, for people: counts, and some rows.

        Args:
            rows: How many of them, evenly spread. Default 6.
        """
        contexts = dict.fromkeys(row.context for row in self.rows)
        kinds = {name: [row for row in self.rows if row.token == name] for name in self.targets.classes}
        lines = [
            f"{len(self.rows)} rows about {len(contexts)} contexts, {self.targets.attribute}:",
            *(
                f"  token {name!r}: {sum(row.desirable for row in some)} desirable, "
                f"{sum(not row.desirable for row in some)} with an answer of another class"
                for name, some in kinds.items()
            ),
        ]
        step = max(1, len(self.rows) // max(1, rows))
        for row in self.rows[:: step | 1][:rows]:
            mark = "+" if row.desirable else "-"
            lines.append(
                f"{mark} {row.prompt!r} → [{row.token}] {row.answer!r}" + ("" if row.desirable else f" ({row.text})")
            )
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.preview()


def _in_turn(generator: np.random.Generator, templates: Sequence[str], count: int) -> list[str]:
    """So many templates: all of them in a random order, again and again."""
    rounds = [generator.permutation(len(templates)) for _ in range(-(-count // len(templates)))]
    return [templates[i] for i in np.concatenate(rounds)[:count].tolist()]
