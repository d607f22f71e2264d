"""Held-out validation: what each system really answers to questions that the weights have not seen."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from langchain_core.messages import HumanMessage

from mpf_chains.benchmarks import Row
from mpf_chains.calibration.fitting import POOLED, Fitter, question_of
from mpf_chains.calibration.plan import NORMAL, Caller
from mpf_chains.calibration.scoring import USABLE
from mpf_chains.core import Grid, Sampler, alignment_test, bootstrap_statistics, noise_floor
from mpf_chains.features import Feature
from mpf_chains.fusion import merge_messages
from mpf_chains.perspectives import PerspectiveSet
from mpf_chains.runtime import Call, Completion


@dataclass(frozen=True)
class Answers:
    """How systems answer: the calls of drawn perspectives and of merges."""

    caller: Caller
    perspectives: PerspectiveSet
    merge_instruction: str

    def drawn(self, row: Row, names: Sequence[str]) -> list[tuple[str, Call]]:
        """One call per drawn perspective; the i-th draw of a perspective asks for its i-th answer.

        As in the fusion, a perspective that is drawn alone answers once.
        """
        seen: Counter[str] = Counter()
        calls = []
        for name in names:
            calls.append((name, self.caller.answer(row, self.perspectives[name], seen[name])))
            seen[name] += len(set(names)) > 1
        return calls

    def merges(
        self, rows: Sequence[Row], found: Sequence[Sequence[Completion]], drawn: Sequence[Sequence[str]]
    ) -> list[tuple[Call | None, Row]]:
        """The merging call of each question, or None where only one perspective gave an answer.

        The marker code is a hash of the answers, so that a resumed run asks for the same merge.
        """
        calls: list[tuple[Call | None, Row]] = []
        for row, group, names in zip(rows, found, drawn, strict=True):
            usable = [
                (name, answer.text or "") for name, answer in zip(names, group, strict=True) if answer.status in USABLE
            ]
            call = None
            if len({name for name, _ in usable}) > 1:
                texts = [text for _, text in usable]
                code = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:32]
                messages = merge_messages([HumanMessage(row.question)], texts, self.merge_instruction, code)
                arguments = self.caller.arguments(NORMAL, 0)
                call = Call(
                    tuple(messages), arguments=arguments, kind="merge", label=f"{row.entity} / {row.id} / merge"
                )
            calls.append((call, row))
        return calls


def validation_calls(
    answers: Answers, rows: Sequence[Row], weights: Mapping[str, Mapping[str, float]], sampler: Sampler, draws: int
) -> list[list[tuple[str, Call]]]:
    """Per row the drawn perspectives and their calls, drawn as the router and the fusion draw."""
    return [
        answers.drawn(
            row,
            [sampler.draw(weights[row.entity], key=row.id, index=i, entity=row.entity) for i in range(draws)],
        )
        for row in rows
    ]


def summarise(
    scores: Mapping[str, Sequence[list[float] | None]],
    rows: Sequence[Row],
    targets: Mapping[str, list[float] | None],
    features: Sequence[Feature],
    fitter: Fitter,
    drawn: Mapping[str, Sequence[Sequence[str]]],
) -> dict[str, Any]:
    """Metrics per feature, entity (and pooled) and system, with intervals, floors and the scores behind them.

    Systems are compared on the questions that all of them answered. Rows of one question (about several entities)
    are resampled, swapped and counted together.
    """
    report: dict[str, Any] = {"questions": len(rows), "features": {}}
    entities = list(dict.fromkeys(row.entity for row in rows))
    for f, feature in enumerate(features):
        grid = fitter.grids[f]
        by_entity: dict[str, dict[str, Any]] = {}
        for entity in [*entities, POOLED]:
            chosen = [i for i, row in enumerate(rows) if entity in (row.entity, POOLED)]
            answered = [i for i in chosen if all(values[i] is not None for values in scores.values())]
            missing = {system: sum(values[i] is None for i in chosen) for system, values in scores.items()}
            if not answered:
                by_entity[entity] = {"systems": {}, "missing": missing}
                continue
            target = [_value(targets[rows[i].id], f) for i in answered]
            groups = [question_of(rows[i]) for i in answered]
            systems = {
                system: {
                    **_measured(target, [_value(values[i], f) for i in answered], groups, grid, fitter),
                    "missing": missing[system],
                }
                for system, values in scores.items()
            }
            floor = noise_floor(target, grid, groups=groups, seed=fitter.seed)
            by_entity[entity] = {
                "systems": systems,
                "floor": {"mean": floor.mean, "high": floor.high},
                "target_mean": float(np.mean(target)),
                "target": target,
            }
        report["features"][feature.name] = by_entity
    report["draws"] = {
        system: dict(sorted(Counter(name for group in groups for name in group).items()))
        for system, groups in drawn.items()
    }
    return report


def _measured(
    target: Sequence[float], scores: Sequence[float], groups: Sequence[str], grid: Grid, fitter: Fitter
) -> dict[str, Any]:
    statistics = bootstrap_statistics(target, scores, grid, groups=groups, level=fitter.level, seed=fitter.seed)
    measured: dict[str, Any] = {
        name: {"value": value, "low": low, "high": high} for name, (value, low, high) in statistics.items()
    }
    measured["p_aligned"] = alignment_test(target, scores, groups=groups, seed=fitter.seed)
    return {**measured, "scores": list(scores)}


def _value(scores: list[float] | None, f: int) -> float:
    return float("nan") if scores is None else scores[f]
