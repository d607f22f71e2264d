"""Benchmark evaluations side by side: every metric against its ideal value and its noise floor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from mpf_chains.errors import InvalidInput
from mpf_chains.reporting.asked import model_name
from mpf_chains.reporting.content import (
    Bar,
    Block,
    Cell,
    Figure,
    Fold,
    Number,
    Paragraph,
    Rows,
    Section,
    Table,
    Tone,
    Verdict,
)
from mpf_chains.reporting.findings import ALPHA
from mpf_chains.reporting.text import counted, data, fixed, listed, p_value

Evaluation: TypeAlias = Mapping[str, Any]
"""As `Evaluation.as_dict` gives it, schema 1."""
Row: TypeAlias = tuple[str, Mapping[str, Any], int]
"""A system's name, its measurement of one metric, and its place among the systems."""


def described(evaluations: Sequence[Any]) -> list[Evaluation]:
    """Evaluations as plain data, with "compared" (to the first on their benchmark) where they can compare themselves.

    Raises:
        InvalidInput: See `as_mapping`.
    """
    firsts: dict[tuple[str, str], Any] = {}
    found = []
    for evaluation in evaluations:
        plain = as_mapping(evaluation)
        first = firsts.setdefault(_benchmark(plain), evaluation)
        if first is not evaluation and hasattr(first, "compare") and hasattr(evaluation, "compare"):
            try:
                compared = {key: one.as_dict() for key, one in first.compare(evaluation).items()}
            except InvalidInput as error:
                plain = {**plain, "notes": [*plain.get("notes", []), f"Not compared item by item: {error}"]}
            else:
                plain = {**plain, "compared": compared}
        found.append(plain)
    return found


def as_mapping(evaluation: Any) -> Evaluation:
    """An evaluation as plain data.

    Raises:
        InvalidInput: If it is neither a mapping nor something with `as_dict`, or not of a schema known here.
    """
    plain = evaluation.as_dict() if hasattr(evaluation, "as_dict") else evaluation
    if not isinstance(plain, Mapping) or not isinstance(plain.get("measured"), Mapping):
        raise InvalidInput(
            f"An evaluation is a {type(evaluation).__name__}; it must be an `Evaluation` or what its as_dict() gave."
        )
    if plain.get("schema", 1) != 1:
        raise InvalidInput(
            f"An evaluation has schema {plain['schema']!r}; this version reads 1.", hint="Upgrade mpf-chains."
        )
    return plain


def evaluations_section(evaluations: Sequence[Evaluation]) -> Section | None:
    """All evaluations, grouped by benchmark; None where there are none."""
    groups: dict[tuple[str, str], list[Evaluation]] = {}
    for evaluation in evaluations:
        groups.setdefault(_benchmark(evaluation), []).append(evaluation)
    parts = [Section(data(name or "unnamed benchmark"), tuple(_group(found))) for (name, _), found in groups.items()]
    if not parts:
        return None
    return Section("Benchmarks and metrics", parts[0].blocks if len(parts) == 1 else tuple(parts))


def evaluation_verdicts(evaluations: Sequence[Evaluation]) -> Iterator[Verdict]:
    """For every evaluation that was compared with the first on its benchmark: on how many metrics it came nearer."""
    firsts: dict[tuple[str, str], str] = {}
    for i, evaluation in enumerate(evaluations):
        first = firsts.setdefault(_benchmark(evaluation), _name(evaluation, i))
        compared = [one for one in evaluation.get("compared", {}).values() if one.get("improvement") is not None]
        if not compared:
            continue
        told = [one["improvement"] for one in compared if _told(one)]
        nearer, farther = sum(each > 0 for each in told), sum(each < 0 for each in told)
        tone: Tone = "good" if nearer > farther == 0 else "bad" if farther > nearer == 0 else "open"
        of = f"on {max(nearer, farther)} of {counted(len(compared), 'metric')}"
        words = {"good": f"nearer to the ideal {of}", "bad": f"farther from the ideal {of}"}.get(tone)
        title = words or ("nearer to the ideal on some metrics, farther on others" if nearer else "not told apart")
        yield Verdict(
            tone,
            f"{_name(evaluation, i)} against {first}: {title}",
            f"Of {counted(len(compared), 'metric')} with an ideal value, {nearer} came nearer to it, {farther} moved "
            f"away from it and {len(compared) - nearer - farther} cannot be told apart (paired comparison: p at most "
            f"{ALPHA:g}, and an interval of the difference without 0). Of metrics on which two systems are alike, "
            "up to 1 in 20 is told apart by chance.",
        )


def _told(compared: Mapping[str, Any]) -> bool:
    """Whether two systems differ: where the test says so and the difference's interval leaves out 0."""
    return bool(compared["p"] <= ALPHA and not compared["low"] <= 0 <= compared["high"])


def _benchmark(evaluation: Evaluation) -> tuple[str, str]:
    benchmark = evaluation.get("benchmark") or {}
    return str(benchmark.get("name", "")), str(benchmark.get("digest", ""))


def _group(found: list[Evaluation]) -> list[Block]:
    benchmark = found[0].get("benchmark") or {}
    items = benchmark.get("items")
    size = f", {counted(items, 'item')}" if isinstance(items, int) else ""
    systems = [_system(one, i) for i, one in enumerate(found)]
    blocks: list[Block] = [
        Paragraph(f"{data(benchmark.get('name', 'Benchmark'))}{size}, answered by {listed(systems)}.")
    ]
    metrics = list(dict.fromkeys(metric for one in found for metric in one["measured"]))
    measured: dict[str, list[Row]] = {
        metric: [
            (_name(one, i), {**one["measured"][metric], "compared": one.get("compared", {}).get(metric)}, i)
            for i, one in enumerate(found)
            if metric in one["measured"]
        ]
        for metric in metrics
    }
    blocks.append(_table(measured))
    charts = tuple(chart for metric, rows in measured.items() for chart in _charts(metric, rows))
    if charts:
        blocks.append(Figure("The same figures with their intervals.", charts, _legend(measured, len(found))))
    blocks += [_parts(metric, rows) for metric, rows in measured.items() if any(row.get("parts") for _, row, _ in rows)]
    return blocks


def _name(evaluation: Evaluation, at: int) -> str:
    return data(evaluation.get("label") or model_name(evaluation.get("model", "")) or f"system {at + 1}")


def _system(evaluation: Evaluation, at: int) -> str:
    name, model = _name(evaluation, at), data(model_name(evaluation.get("model", "")))
    return name if name == model else f"{name} ({model})"


def _title(metric: str, one: Mapping[str, Any]) -> str:
    """A metric's title, with the feature or part that its key begins with."""
    part = metric.rpartition("/")[0]
    return data(one.get("title") or metric) + (f", {data(part)}" if part else "")


def _table(measured: Mapping[str, list[Row]]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for metric, found in measured.items():
        for name, one, _ in found:
            title = _title(metric, one)
            unit = f" ({data(one['unit'])})" if one.get("unit") else ""
            floor = one.get("floor") or {}
            rows.append((
                f"{title}{unit}", name, _number(one), Number(one.get("ideal")), Number(floor.get("limit")),
                Number(one.get("n")), _reading(one, found[0][1]),
            ))  # fmt: skip
    levels = sorted({row["level"] for found in measured.values() for _, row, _ in found if row.get("level")})
    sure = f", with {listed([f'{level * 100:g} %' for level in levels])} intervals" if levels else ""
    caption = f"Every metric of every system{sure}"
    return Table(caption, ("Metric", "System", "Value", "Ideal", "Noise floor", "n", "Reading"), tuple(rows))


def _number(one: Mapping[str, Any]) -> Number:
    low, high = _interval(one)
    value = one.get("value")
    return Number(value if value is None or math.isfinite(value) else None, low, high)


def _interval(one: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Its ends: None in an interval is an infinite end; without both there is no interval."""
    low, high = one.get("low"), one.get("high")
    if low is None and high is None:
        return None, None
    return (-math.inf if low is None else low), (math.inf if high is None else high)


def _reading(one: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    """Where a value lies towards its ideal, and towards the first system's."""
    ideal, value = one.get("ideal"), one.get("value")
    if value is None:
        return "not measured"
    if ideal is None:
        return "" if one is first else _against(one, first)
    low, high = _interval(one)
    floor = one.get("floor") or {}
    said = ""
    if floor and abs(value - ideal) <= abs(floor["limit"] - ideal):
        said = "within the noise floor"
    elif low is not None and high is not None:
        said = "consistent with the ideal" if low <= ideal <= high else "off the ideal"
    if one is first or first.get("value") is None:
        return said
    moved = _against(one, first)
    return f"{said}; {moved}" if said else moved


def _against(one: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    """Where a value lies towards the first system's: by a paired comparison if there is one, else by intervals."""
    ideal, value = one.get("ideal"), one["value"]
    if value == first["value"]:
        return "as the first"
    if ideal is None:
        word = "higher than" if value > first["value"] else "lower than"
    else:
        word = (
            "farther from the ideal than"
            if abs(value - ideal) > abs(first["value"] - ideal)
            else "nearer the ideal than"
        )
    if compared := one.get("compared"):
        size, low, high = (fixed(compared[key]) for key in ("difference", "low", "high"))
        what = "change of the distance from the ideal" if compared["on"] == "distance" else "paired difference"
        figures = f"{what} {size} [{low}, {high}], {p_value(compared['p'])}"
        return f"{word} the first: {figures}" if _told(compared) else f"not told apart from the first: {figures}"
    (low_end, high_end), (first_low, first_high) = _interval(one), _interval(first)
    if low_end is None or high_end is None or first_low is None or first_high is None:
        return f"{word} the first (no intervals)"
    apart = low_end > first_high or high_end < first_low
    return f"{word} the first, {'beyond both intervals' if apart else 'intervals overlap'}"


def _charts(metric: str, found: list[Row]) -> list[Rows]:
    """One chart; none where no value is finite."""
    bars = []
    for name, one, i in found:
        value = one.get("value")
        if value is not None and math.isfinite(value):
            bars.append(Bar("before" if i == 0 and len(found) > 1 else "after", name, value, *_interval(one)))
    if not bars:
        return []
    first = found[0][1]
    ideal, floor = first.get("ideal"), first.get("floor") or {}
    marks = [ideal, floor.get("limit"), floor.get("mean")]
    ends = [end for bar in bars for end in (bar.value, bar.low, bar.high)] + marks
    finite = [end for end in ends if end is not None and math.isfinite(end)]
    margin = 0.08 * (max(finite) - min(finite)) or 0.05 * abs(max(finite)) or 1.0
    words = [f"{bar.label} {fixed(bar.value)}{_span(bar)}" for bar in bars]
    aim = "" if ideal is None else f" Ideal {fixed(ideal)}."
    noise = f" Noise floor up to {fixed(floor['limit'])}." if floor else ""
    band = (ideal, floor["limit"], floor["mean"]) if floor and ideal is not None else None
    title = _title(metric, first)
    return [
        Rows(
            title, f"{'; '.join(words)}.{aim}{noise}", min(finite) - margin, max(finite) + margin, tuple(bars),
            ideal=ideal, floor=band,
        )
    ]  # fmt: skip


def _span(bar: Bar) -> str:
    return "" if bar.low is None or bar.high is None else f" from {fixed(bar.low)} to {fixed(bar.high)}"


def _legend(measured: Mapping[str, list[Row]], systems: int) -> tuple[tuple[str, str], ...]:
    rows = [row for found in measured.values() for _, row, _ in found]
    first = (
        (("dot before", "the first system"), ("dot after", "others")) if systems > 1 else (("dot after", "the system"),)
    )
    ideal = (("ideal", "ideal value"),) if any(row.get("ideal") is not None for row in rows) else ()
    floor = (("floor", "noise floor: not distinguishable from ideal"),) if any(row.get("floor") for row in rows) else ()
    return (*first, *ideal, *floor)


def _parts(metric: str, found: list[Row]) -> Fold:
    title = _title(metric, found[0][1])
    names = list(dict.fromkeys(part for _, one, _ in found for part in one.get("parts") or {}))
    rows: list[tuple[Cell, ...]] = []
    for part in names:
        cells = [(one.get("parts") or {}).get(part) for _, one, _ in found]
        counts = [cell["n"] for cell in cells if cell and cell.get("n") is not None]
        size = Number(counts[0]) if counts else Number(None)
        rows.append((data(part), size, *(Number(None) if cell is None else _number(cell) for cell in cells)))
    columns = ("Part", "n", *(name for name, _, _ in found))
    return Fold(f"Part by part: {title}", (Table(f"{title} by part", columns, tuple(rows)),))
