"""What a calibration asks the model: the calls of each step, with the cells they fill."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from langchain_core.messages import HumanMessage
from langchain_core.runnables import Runnable

from mpf_chains.benchmarks import Benchmark, Row
from mpf_chains.fusion import merge_messages
from mpf_chains.perspectives import Perspective, PerspectiveSet, Position
from mpf_chains.runtime import Call
from mpf_chains.runtime.tokens import Estimate, Request, TokenCounter

System = Literal["normal", "sampled", "aggregated"]

NORMAL = Perspective("normal")


@dataclass(frozen=True)
class Plan:
    """How many calls a calibration makes, counted before any is made; retries aside.

    Attributes:
        calibration: All distinct calls that answer the decomposition questions under every perspective, and role-play
            targets; those in the ledger included.
        validation: Most calls that held-out validation can still need: for "normal" those not in the ledger yet; for
            "sampled" one and for "aggregated" n + 1 per question (n = 1: one). Which of the latter are in the ledger
            depends on the weights, so none is taken off, and fewer may be made.
        done: Those of `calibration` whose answers are in the ledger already.
        requests: What is still to be asked, for `estimate`.
    """

    calibration: int
    validation: int
    done: int
    requests: Sequence[Request] = field(default=(), repr=False, compare=False)

    @property
    def remaining(self) -> int:
        """Most calls that are still to be made: `calibration` - `done` + `validation`."""
        return self.calibration - self.done + self.validation

    def estimate(self, model: Runnable[Any, Any]) -> Estimate:
        """Most tokens that the remaining calls take, and with a `Price` what they cost, before any is made.

        Args:
            model: The model to be calibrated; it counts, and its `max_tokens` limits the answers. `ChatTransformers`
                loads its tokenizer for it.

        Returns:
            The estimate, for `remaining` calls. Where the perspective is still to be drawn, the dearest counts.

        Examples:
            >>> from mpf_chains import Benchmark, MPFCalibrator
            >>> from mpf_chains.runtime import Price
            >>> from mpf_chains.testing import BiasedChatModel
            >>> model = BiasedChatModel().bind(max_tokens=100)
            >>> plan = MPFCalibrator(model=model, validate=["normal"]).plan(Benchmark.builtin("university"))
            >>> estimate = plan.estimate(model)
            >>> estimate.calls, estimate.output_tokens, estimate.cost(Price(input=0, output=2.5))
            (2160, 216000, 0.54)
        """
        return TokenCounter(model).estimate(self.requests)


@dataclass(frozen=True)
class Caller:
    """Makes the calls of one calibration.

    Args:
        position: How an instruction joins a system message.
        seed: If given, bound as ``seed=`` to every call, varied by draw, for models that take one. Default None.
        temperature: The model's own, where no perspective sets another. Default None (unknown).
    """

    position: Position = "before"
    seed: int | None = None
    temperature: float | None = None

    def answer(self, row: Row, perspective: Perspective, draw: int = 0) -> Call:
        """The call that answers a row's question under a perspective; at temperature 0 all draws are the first."""
        draw = 0 if self.repeats(perspective) else draw
        return self._call([HumanMessage(row.question)], row, perspective, draw, "generate")

    def repeats(self, perspective: Perspective) -> bool:
        """Whether the model gives the same answer each time under a perspective: whether its temperature is 0."""
        return bool(perspective.arguments.get("temperature", self.temperature) == 0)

    def target(self, row: Row, baseline: Perspective) -> Call:
        """The call that answers a row's question as its entity's role-played baseline."""
        return self._call([HumanMessage(row.question)], row, baseline, 0, "target")

    def arguments(self, perspective: Perspective, draw: int) -> dict[str, object]:
        """What is bound to a call: the perspective's arguments, and the seed of the draw."""
        arguments = dict(perspective.arguments)
        if self.seed is not None:
            digest = hashlib.blake2b(repr((self.seed, draw)).encode(), digest_size=4).digest()
            arguments.setdefault("seed", int.from_bytes(digest, "big") >> 1)
        return arguments

    def _call(self, question: list[HumanMessage], row: Row, perspective: Perspective, draw: int, kind: str) -> Call:
        return Call(
            messages=tuple(perspective.condition(question, self.position)),
            arguments=self.arguments(perspective, draw),
            draw=draw,
            kind=kind,
            label=f"{row.entity} / {row.id} / {perspective.name} / draw {draw}",
        )


def grid_calls(
    caller: Caller, rows: Sequence[Row], perspectives: PerspectiveSet, draws: int
) -> dict[tuple[str, str, int], Call]:
    """Calls of every (row id, perspective name, draw)."""
    return {
        (row.id, perspective.name, draw): caller.answer(row, perspective, draw)
        for perspective in perspectives
        for row in rows
        for draw in range(draws)
    }


def target_calls(caller: Caller, benchmark: Benchmark, rows: Sequence[Row], features: Sequence[str]) -> dict[str, Call]:
    """Calls, by row id, for rows that have neither a target text nor every target score."""
    return {
        row.id: caller.target(row, benchmark.baseline[row.entity])
        for row in rows
        if row.target_text is None and not all(name in row.target_score for name in features)
    }


def planned(
    calls: Mapping[str, Call], normal: Mapping[str, Call], drawn: Sequence[Request], answered: Collection[str]
) -> Plan:
    """The plan.

    Args:
        calls: Key to call, of all that answer decomposition questions or role-play targets.
        normal: Key to call, of held-out questions without a perspective.
        drawn: Requests of the systems that draw perspectives for held-out questions.
        answered: Keys whose answers are in the ledger.
    """
    single = [call for key, call in {**normal, **calls}.items() if key not in answered]
    return Plan(
        calibration=len(calls),
        validation=sum(key not in answered for key in normal.keys() - calls.keys()) + sum(each.times for each in drawn),
        done=sum(key in answered for key in calls),
        requests=(*(Request((call,)) for call in single), *drawn),
    )


def drawn_requests(
    caller: Caller,
    rows: Sequence[Row],
    perspectives: PerspectiveSet,
    systems: Sequence[System],
    draws: int,
    merge_instruction: str,
) -> list[Request]:
    """What "sampled" and "aggregated" ask of each held-out question, at most; merges included.

    Args:
        caller: Makes the calls.
        rows: The held-out rows.
        perspectives: Those to draw from.
        systems: The systems to validate.
        draws: Draws per fused answer.
        merge_instruction: Instruction of the merging call.
    """
    requests: list[Request] = []
    for row in rows:
        answers = tuple(caller.answer(row, perspective) for perspective in perspectives)
        if "sampled" in systems:
            requests.append(Request(answers))
        if "aggregated" in systems:
            requests.append(Request(answers, draws))
            if draws > 1:
                messages = merge_messages(
                    [HumanMessage(row.question)], list(map(str, range(draws))), merge_instruction, "0" * 32
                )
                merge = Call(tuple(messages), caller.arguments(NORMAL, 0), kind="merge")
                requests.append(Request((merge,), drafts=draws))
    return requests
