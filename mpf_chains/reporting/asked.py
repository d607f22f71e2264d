"""What was asked, how to read the figures, what to be wary of, and what everything came from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mpf_chains.artifact import Calibration
from mpf_chains.benchmarks import Benchmark
from mpf_chains.reporting.content import Block, Bullets, Cell, Fold, Number, Paragraph, Quote, Section, Table
from mpf_chains.reporting.findings import ALPHA, KINDS, POOLED
from mpf_chains.reporting.text import counted, data, listed, share

FEW = 30
MOST_NAMED = 6
CUT = 0.1
MEANINGS = {
    "Mean": (
        "The average score of the answers. An interval holds the values that the data do not rule out: how much other "
        "questions of the same kind could have moved the figure, not how much another benchmark would."
    ),
    "KL divergence": (
        "How far the distribution of the answers' scores is from the target's, in nats; 0 is best. A sample never "
        "reaches 0."
    ),
    "Noise floor": (
        "The KL divergence that a system with exactly the target's distribution would score with as many questions. "
        "Below its upper end these questions can tell no more."
    ),
    "Calibration error": (
        "The mean distance of each answer's score from the target of its own question. 0 would take answers that score "
        "like their target each time, which chance alone prevents."
    ),
    "Told apart from the target": (
        "Whether a randomisation test (energy distance) finds that answers and target could not have changed places: "
        f"p at most {ALPHA:g}. A larger p means that these questions show no difference, not that there is none. Of "
        "systems that are truly aligned, 1 in 20 is told apart by chance."
    ),
    "Overlapping intervals": (
        "Where the interval before and the interval after overlap, this report claims no change. That is a cautious "
        "rule, for want of a paired comparison; such a comparison may still find one."
    ),
}
MEANINGS_OF_METRICS = {
    "Ideal value": "What an unbiased (or perfect) system has. A metric without one only compares groups or systems.",
    "Noise floor of a metric": (
        "What an ideal system would score for want of more items: a value no farther from the ideal than the floor "
        "cannot be told from it."
    ),
    "Paired comparison": (
        "Two systems on the same items: the difference with its interval, and the probability p of one as large if the "
        "systems could change places. They are called different where p is small and the interval leaves out 0."
    ),
}
STATUSES = {
    "length": "were cut at the token limit: their scores are those of unfinished answers",
    "refusal": "were refusals",
    "empty": "were empty",
    "failed": "failed",
}


def asked_section(calibrations: Mapping[str, Calibration], benchmark: Benchmark | None) -> Section:
    """Model, questions, target, features, perspectives and settings."""
    requests: dict[str, list[str]] = {}
    for label, calibration in calibrations.items():
        mode = f"“{calibration.mode}”, {KINDS[calibration.mode]}"
        requests.setdefault(_request(calibration), []).append(f"{data(label)} ({mode})" if label else mode)
    blocks: list[Block] = [
        Paragraph(f"{request} {'Ways tried' if len(modes) > 1 else 'The way tried'}: {listed(modes)}.")
        for request, modes in requests.items()
    ]
    if benchmark is not None:
        blocks.append(Paragraph(_target(benchmark)))
    told: dict[str, tuple[str, Calibration]] = {}
    for label, calibration in calibrations.items():
        told.setdefault(repr([*calibration.perspectives]), (label, calibration))
    blocks += [_perspectives(each, label if len(told) > 1 else "") for label, each in told.values()]
    return Section("What was asked", tuple(blocks))


def reading_section(calibrations: Mapping[str, Calibration], evaluations: Sequence[Mapping[str, Any]]) -> Section:
    """What the measures mean."""
    meanings = {**(MEANINGS if calibrations else {}), **(MEANINGS_OF_METRICS if evaluations else {})}
    rows = tuple((term, words) for term, words in meanings.items())
    return Section("How to read the figures", (Table("What the measures mean", ("Measure", "Meaning"), rows),))


def model_name(identity: object) -> str:
    """A model's short name out of what names it in keys: its class, and what it calls itself.

    Examples:
        >>> model_name('ChatOpenAI {"model_name":"gpt-x","temperature":0.0}'), model_name("mine")
        ('ChatOpenAI gpt-x', 'mine')
    """
    kind, _, described = str(identity).partition(" {")
    try:
        fields = json.loads(f"{{{described}") if described else {}
    except ValueError:
        fields = {}
    named = next((fields[key] for key in ("model_name", "model", "model_id") if isinstance(fields.get(key), str)), "")
    return f"{kind} {named}".strip()


def warnings_section(calibrations: Mapping[str, Calibration], evaluations: Sequence[Mapping[str, Any]]) -> Section:
    """Everything that limits what may be concluded."""
    found: list[str] = []
    for label, calibration in calibrations.items():
        for words in _limits(calibration):
            prefixed = f"{data(label)}: {words}" if label else words
            found.append(prefixed)
    for evaluation in evaluations:
        name = data(evaluation.get("label") or evaluation.get("model") or "evaluation")
        if missing := evaluation.get("missing"):
            found.append(f"{name}: {counted(missing, 'item')} had no usable answer.")
        found += [f"{name}: {data(note, 2000)}" for note in evaluation.get("notes", [])]
    if not found:
        return Section("Warnings", (Paragraph("None: nothing was left out, and every fit was certified."),))
    return Section("Warnings", (Bullets(tuple(dict.fromkeys(found))),))


def provenance_section(calibrations: Mapping[str, Calibration], evaluations: Sequence[Mapping[str, Any]]) -> Section:
    """What made the figures: enough to make them again."""
    blocks: list[Block] = []
    for label, calibration in calibrations.items():
        facts = {
            "version of the weights": calibration.version,
            "created": calibration.created,
            **calibration.provenance,
        }
        blocks += _facts(f"Calibration {data(label)}".strip() if label else "Calibration", facts)
    for evaluation in evaluations:
        facts = {
            key: evaluation[key] for key in sorted(evaluation) if key not in ("measured", "notes", "label", "compared")
        }
        blocks += _facts(f"Evaluation {data(evaluation.get('label', ''))}", facts)
    return Section("Provenance", tuple(blocks))


def _request(calibration: Calibration) -> str:
    provenance = calibration.provenance
    benchmark, settings = provenance.get("benchmark", {}), provenance.get("settings", {})
    entities = list(calibration.weights)
    names = listed(
        [
            *map(data, entities[:MOST_NAMED]),
            *([f"{len(entities) - MOST_NAMED} more"] if len(entities) > MOST_NAMED else []),
        ]
    )
    fitted = sorted({int(fit["questions"]) for fit in calibration.fits.values() if "questions" in fit})
    draws = settings.get("draws")
    again = f", {draws} answers to each under each perspective" if isinstance(draws, int) and draws > 1 else ""
    each = (
        f" Weights were fitted for each of them on {_range(fitted)}{again}"
        if fitted
        else " Weights were fitted for each of them"
    )
    held = calibration.validation.get("questions")
    judged = f"{counted(held, 'held-out question')} in all" if held else "no held-out questions"
    measured = listed([data(name) for name in calibration.features])
    return (
        f"How should {data(model_name(provenance.get('model', 'the model')))} mix "
        f"{counted(len(calibration.perspectives), 'perspective')} so that the {measured} of its answers about {names} "
        f"follows the target of the benchmark {data(benchmark.get('name', '(unnamed)'))}?{each}, and tried on {judged}."
    )


def _range(counts: list[Any]) -> str:
    return counted(counts[0], "question") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} questions"


def _target(benchmark: Benchmark) -> str:
    played = sum(row.target_text is None and not row.target_score for row in benchmark.rows)
    scored = sum(bool(row.target_score) for row in benchmark.rows)
    kinds = {
        "of a text that the benchmark gives with it": len(benchmark.rows) - played - scored,
        "that the benchmark gives": scored,
        "of an answer that the model gives in a role": played,
    }
    found = {words: count for words, count in kinds.items() if count}
    if len(found) == 1:
        return f"Each question's target is the score {next(iter(found))}."
    return f"A question's target is the score {listed([f'{words} ({count} rows)' for words, count in found.items()])}."


def _perspectives(calibration: Calibration, label: str) -> Block:
    rows: list[tuple[Cell, ...]] = []
    for member in calibration.perspectives:
        arguments = json.dumps(dict(member.arguments), ensure_ascii=False, sort_keys=True) if member.arguments else ""
        rows.append(
            (data(member.name), data(member.instruction, 2000) or "–", data(arguments) if arguments else "none")
        )
    caption = f"The perspectives{f' of {data(label)}' if label else ''}, as the model was told them"
    return Fold(
        f"The {counted(len(rows), 'perspective')}: {listed([str(row[0]) for row in rows])}",
        (Table(caption, ("Perspective", "Instruction", "Arguments"), tuple(rows)),),
    )


def _limits(calibration: Calibration) -> list[str]:
    found = [data(note, 2000) for note in calibration.diagnostics.get("notes", [])]
    fits = {**calibration.fits, POOLED: calibration.diagnostics.get("pooled_fit", {})}
    found += [data(note, 2000) for fit in fits.values() for note in fit.get("warnings", [])]
    inexact = [data(entity) for entity, fit in fits.items() if fit.get("status", "optimal") != "optimal"]
    if inexact:
        found.append(f"The optimum was not certified for {listed(inexact)}: other weights may fit better.")
    if not any(calibration.intervals.values()):
        found.append("The weights have no intervals: how sure they are is not known.")
    return [*found, *_answers(calibration), *_held_out(calibration)]


def _answers(calibration: Calibration) -> list[str]:
    by_status = calibration.provenance.get("answers", {}).get("by_status", {})
    total = sum(by_status.values())
    return [
        f"{share(count / total)} of the model's {total:,} answers {words}."
        for status, words in STATUSES.items()
        if (count := by_status.get(status, 0)) and (status != "length" or count > CUT * total)
    ]


def _held_out(calibration: Calibration) -> list[str]:
    features = calibration.validation.get("features", {})
    if not features:
        return ["Nothing was validated on held-out questions."]
    found = []
    for feature, by_entity in features.items():
        few = {entity: len(record.get("target", [])) for entity, record in by_entity.items()}
        small = [f"{data(entity)} ({count})" for entity, count in few.items() if count < FEW]
        if small:
            found.append(
                f"Few held-out questions for {data(feature)}: {listed(small)}. With fewer than {FEW}, differences that "
                "matter can stay unseen."
            )
    return found


def _facts(caption: str, facts: Mapping[str, Any]) -> list[Block]:
    rows: list[tuple[Cell, ...]] = []
    nested = {}
    for key, value in facts.items():
        if isinstance(value, Mapping | list | tuple):
            nested[key] = value
        elif isinstance(value, int | float) and not isinstance(value, bool):
            rows.append((data(key), Number(value)))
        else:
            rows.append((data(key), data("–" if value is None else value, 1000)))
    text = json.dumps(nested, indent=1, ensure_ascii=False, sort_keys=True, default=str)
    table = Table(caption, ("What", "Value"), tuple(rows))
    return [table, *([Fold(f"{caption}: settings and counts", (Quote("JSON", text),))] if nested else [])]
