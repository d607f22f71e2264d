"""Answers as they were given: one question under every perspective, and held-out ones before and after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from mpf_chains.artifact import Calibration
from mpf_chains.benchmarks import Benchmark, Row
from mpf_chains.calibration.plan import NORMAL, Caller
from mpf_chains.calibration.scoring import USABLE, score_name
from mpf_chains.calibration.validation import Answers, validation_calls
from mpf_chains.core import IIDSampler, QuotaSampler
from mpf_chains.fusion import MERGE_INSTRUCTION
from mpf_chains.reporting.content import Block, Fold, Paragraph, Quote, Section
from mpf_chains.reporting.mixtures import hundredths
from mpf_chains.reporting.text import clip, data, fixed, visible
from mpf_chains.runtime import Completion, Ledger

LONGEST = 1500
TITLE = "Examples of answers"
SYSTEMS = ("sampled", "aggregated")


@dataclass
class Shelf:
    """A ledger's answers by what they answer: (entity, row id, perspective), draw 0; merges are under "merge"."""

    answers: dict[tuple[str, str, str], list[Completion]] = field(default_factory=dict)
    by_key: dict[str, Completion] = field(default_factory=dict)
    without_text: int = 0

    @classmethod
    def of(cls, ledger: Ledger, entities: list[str]) -> Shelf:
        """Sort a ledger's rows by their labels ("entity / row id / perspective / draw n")."""
        shelf = cls()
        longest_first = sorted(entities, key=len, reverse=True)
        for row in ledger.rows():
            answer = row.completion
            if answer.status not in USABLE:
                continue
            if answer.text is None:
                shelf.without_text += 1
                continue
            shelf.by_key[answer.key] = answer
            entity = next((name for name in longest_first if row.label.startswith(f"{name} / ")), None)
            rest = [] if entity is None else row.label[len(entity) + 3 :].rsplit(" / ", 2)
            if entity is not None and len(rest) == 3 and rest[2] == "draw 0" and row.kind == "generate":
                shelf.answers.setdefault((entity, rest[0], rest[1]), []).append(answer)
        return shelf


def examples_section(
    calibrations: Mapping[str, Calibration], ledger: Ledger, benchmark: Benchmark | None, count: int
) -> Section:
    """Answers out of a ledger.

    Args:
        calibrations: What the answers were given for.
        ledger: Where they are.
        benchmark: The benchmark calibrated on; without it, questions and answers before and after are not known.
        count: How many questions of each kind, at least 1.
    """
    entities = list(dict.fromkeys(entity for calibration in calibrations.values() for entity in calibration.weights))
    shelf = Shelf.of(ledger, entities)
    if not shelf.by_key:
        words = (
            "The ledger keeps no texts (store_text=False), so there are no answers to show."
            if shelf.without_text
            else "The ledger holds no answers of this calibration."
        )
        return Section(TITLE, (Paragraph(words),))
    blocks: list[Block] = []
    first = next(iter(calibrations.values()))
    perspectives = list(_under_perspectives(first, shelf, benchmark, count, alone=len(calibrations) == 1))
    if perspectives:
        words = (
            f"The first question about each entity that every perspective answered (at most {count}), not chosen by "
            "result. Answers are the model's own words and are not checked."
        )
        blocks.append(Section("One question under every perspective", (Paragraph(words), *perspectives)))
    pairs = [] if benchmark is None else list(_before_and_after(calibrations, shelf, benchmark, count))
    if pairs:
        words = f"The first held-out question about each entity (at most {count}), not chosen by result."
        blocks.append(Section("Before and after", (Paragraph(words), *pairs)))
    if not blocks:
        blocks.append(Paragraph("The ledger holds no question that every perspective answered."))
    return Section(TITLE, tuple(blocks))


def _under_perspectives(
    calibration: Calibration, shelf: Shelf, benchmark: Benchmark | None, count: int, *, alone: bool
) -> Iterator[Block]:
    names = calibration.perspectives.names
    rows = {} if benchmark is None else {(row.entity, row.id): row for row in benchmark.rows}
    for entity in list(calibration.weights)[:count]:
        places = dict.fromkeys(place[1] for place in shelf.answers if place[0] == entity)
        ids = [row.id for row in benchmark.rows if row.entity == entity] if benchmark is not None else list(places)
        found = next((id_ for id_ in ids if all((entity, id_, name) in shelf.answers for name in names)), None)
        if found is None:
            continue
        row = rows.get((entity, found))
        shares = hundredths(calibration.weights[entity])
        quotes: list[Block] = []
        for name in names:
            answer, doubt = _chosen(calibration, shelf, (entity, found, name), row)
            notes = [*([f"weight {shares[name]} of 100"] if alone else []), *_scored(calibration, answer, row), *doubt]
            quotes.append(_quote(data(name), answer, notes))
        yield _fold(entity, found, row, quotes, is_open=entity == next(iter(calibration.weights)))


def _chosen(
    calibration: Calibration, shelf: Shelf, place: tuple[str, str, str], row: Row | None
) -> tuple[Completion, list[str]]:
    """This calibration's own answer where the benchmark tells which that is, else the first with its label."""
    answers = shelf.answers[place]
    if row is not None:
        call = _caller(calibration).answer(row, calibration.perspectives[place[2]])
        if (own := shelf.by_key.get(call.key(str(calibration.provenance.get("model"))))) is not None:
            return own, []
    others = len(answers) - 1
    return answers[0], [f"one of {others + 1} with this label in the ledger"] if others else []


def _before_and_after(
    calibrations: Mapping[str, Calibration], shelf: Shelf, benchmark: Benchmark, count: int
) -> Iterator[Block]:
    held_out: dict[str, list[Row]] = {}
    for row in benchmark.rows:
        if row.split == "validation":
            held_out.setdefault(row.entity, []).append(row)
    shown = 0
    for entity, rows in held_out.items():
        for row in rows if shown < count else ():
            before = _befores(calibrations, shelf, row)
            after = [quote for label, each in calibrations.items() for quote in _afters(label, each, shelf, row)]
            if before and after:
                target = [] if row.target_text is None else [Quote("Target", _clipped(row.target_text))]
                yield _fold(entity, row.id, row, [*target, *before, *after], is_open=not shown)
                shown += 1
                break


def _befores(calibrations: Mapping[str, Calibration], shelf: Shelf, row: Row) -> list[Quote]:
    """The model's own answers, found by the keys of the calls that validation made: one, if the model is one."""
    found: dict[str, Quote] = {}
    for calibration in calibrations.values():
        key = _caller(calibration).answer(row, NORMAL).key(str(calibration.provenance.get("model")))
        if key in shelf.by_key:
            answer = shelf.by_key[key]
            found[key] = _quote("Before", answer, _scored(calibration, answer, row))
    return list(found.values())


def _afters(label: str, calibration: Calibration, shelf: Shelf, row: Row) -> Iterator[Quote]:
    validated = calibration.provenance.get("settings", {}).get("validate", [])
    for system in SYSTEMS:
        if system in validated and (found := _after(calibration, shelf, row, system)) is not None:
            answer, names = found
            how = f"{'merged from' if len(set(names)) > 1 else 'drawn:'} {', '.join(map(data, dict.fromkeys(names)))}"
            who = f"After: {data(label)}" if label else "After"
            yield _quote(who, answer, [system, how, *_scored(calibration, answer, row)])


def _after(calibration: Calibration, shelf: Shelf, row: Row, system: str) -> tuple[Completion, list[str]] | None:
    settings, model = calibration.provenance.get("settings", {}), str(calibration.provenance.get("model"))
    if row.entity not in calibration.weights:
        return None
    seed = int(settings.get("seed", 0))
    sampler = QuotaSampler(seed) if settings.get("sampler") == "quota" else IIDSampler(seed)
    answers = Answers(_caller(calibration), calibration.perspectives, MERGE_INSTRUCTION)
    draws = 1 if system == "sampled" else int(settings.get("n", 1))
    (drawn,) = validation_calls(answers, [row], calibration.weights, sampler, draws)
    names = [name for name, _ in drawn]
    found = [shelf.by_key.get(call.key(model)) for _, call in drawn]
    kept = [answer for answer in found if answer is not None]
    if len(kept) < len(found):
        return None
    ((merge, _),) = answers.merges([row], [kept], [names])
    answer = kept[0] if merge is None else shelf.by_key.get(merge.key(model))
    return None if answer is None else (answer, names)


def _caller(calibration: Calibration) -> Caller:
    settings = calibration.provenance.get("settings", {})
    seed = settings.get("seed", 0) if settings.get("bind_seed") else None
    return Caller(settings.get("position", "before"), seed)


def _scored(calibration: Calibration, answer: Completion, row: Row | None) -> list[str]:
    """Its scores, where the ledger has them."""
    target = None if row is None else row.target_text
    found = []
    for name in calibration.features:
        digest = str(calibration.provenance.get("features", {}).get(name, ""))
        key = score_name(digest, target)
        if key in answer.scores:
            found.append(f"{data(name)} {fixed(answer.scores[key], 2)}")
    return found


def _quote(who: str, answer: Completion, notes: list[str]) -> Quote:
    cut = ["cut at the token limit"] if answer.status == "length" else []
    return Quote(who, _clipped(answer.text or ""), " · ".join([*notes, *cut]))


def _clipped(text: str) -> str:
    return clip(visible(text).strip(), LONGEST)


def _fold(entity: str, row_id: str, row: Row | None, quotes: list[Block], *, is_open: bool) -> Block:
    if row is None:
        return Fold(f"{data(entity)}: row {data(row_id)}", tuple(quotes), is_open)
    question = Quote("Question", _clipped(row.question), f"row {data(row_id)}")
    return Fold(f"{data(entity)}: {data(row.question, 100)}", (question, *quotes), is_open)
