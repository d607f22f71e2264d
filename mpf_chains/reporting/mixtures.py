"""The weights: what they mean, how sure they are, and what was traded for what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpf_chains.artifact import Calibration, Interval
from mpf_chains.reporting.content import (
    Bar,
    Block,
    Bullets,
    Cell,
    Curve,
    Figure,
    Number,
    Paragraph,
    Rows,
    Section,
    Table,
)
from mpf_chains.reporting.findings import POOLED
from mpf_chains.reporting.text import counted, data, fixed, listed, share

MOST_PANELS = 12
EVERY = "All entities together"


def weights_section(calibrations: Mapping[str, Calibration]) -> Section:
    """Each calibration's weights, in words, drawn and as a table."""
    return _per_calibration("Weights, and what they mean", calibrations, _weights)


def trade_section(calibrations: Mapping[str, Calibration]) -> Section:
    """What the fit could have had with other strengths of its terms, and where a perspective is missing."""
    section = _per_calibration("What the fit traded, and what it cannot reach", calibrations, _trade)
    words = (
        "The fit lowers two things that pull apart: the KL divergence of all answers' scores from the target's, and "
        "the calibration error, the mean distance of each answer's score from its own target. A point of the Pareto "
        "front is the best fit for one weighting of the two: along it neither falls without the other rising."
    )
    return Section(section.title, (Paragraph(words), *section.blocks))


def _per_calibration(title: str, calibrations: Mapping[str, Calibration], write: Any) -> Section:
    if len(calibrations) == 1:
        return Section(title, tuple(write(*calibrations.values())))
    parts = [Section(data(label), tuple(write(calibration))) for label, calibration in calibrations.items()]
    return Section(title, tuple(parts))


def hundredths(weights: Mapping[str, float]) -> dict[str, int]:
    """Weights as whole numbers that sum to 100: those with the largest remainders are rounded up (Hamilton's method).

    Examples:
        >>> hundredths({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3})
        {'a': 34, 'b': 33, 'c': 33}
    """
    whole = {name: int(100 * weight) for name, weight in weights.items()}
    left = round(100 * sum(weights.values())) - sum(whole.values())
    by_remainder = sorted(weights, key=lambda name: whole[name] - 100 * weights[name])
    for name in by_remainder[:left]:
        whole[name] += 1
    return whole


def _weights(calibration: Calibration) -> list[Block]:
    entities = list(calibration.weights)
    only = len(entities) == 1
    rows = {**calibration.weights, **({} if only else {POOLED: calibration.pooled})}
    spans = {**calibration.intervals, POOLED: calibration.pooled_intervals}
    shown = [POOLED, *entities][: MOST_PANELS + 1] if not only else entities
    charts = tuple(_bars(calibration, entity, rows[entity], spans.get(entity, {})) for entity in shown)
    left_out = len(rows) - len(shown)
    more = f" The table has {counted(left_out, 'more entity', 'more entities')}." if left_out else ""
    sure = f", with {calibration.level * 100:g} % intervals" if any(spans.values()) else "; no intervals were computed"
    legend = (("bar after", "weight"), *((("whisker", "interval"),) if any(spans.values()) else ()))
    return [
        Paragraph(_meaning(calibration)),
        Bullets(tuple(_in_words(calibration, entity, rows[entity], spans.get(entity, {})) for entity in shown)),
        *_doubts(calibration),
        Figure(f"Weights{sure}.{more}", charts, legend, _weights_table(calibration, rows, spans)),
    ]


def _meaning(calibration: Calibration) -> str:
    if calibration.mode == "sampled":
        return (
            "A weight is the share of requests that one perspective answers: each request is answered under one "
            "perspective, drawn with these weights."
        )
    n = calibration.provenance.get("settings", {}).get("n")
    drawn = f"{counted(n, 'answer')} drawn per request" if isinstance(n, int) else "several answers drawn per request"
    return (
        "A weight is a perspective's share of the answers that are merged: a request is answered under several "
        f"perspectives, drawn with these weights, and their answers are merged into one ({drawn} in validation)."
    )


def _in_words(calibration: Calibration, entity: str, row: Mapping[str, float], spans: Mapping[str, Interval]) -> str:
    of = "requests" if calibration.mode == "sampled" else "drawn answers"
    parts = sorted(hundredths(row).items(), key=lambda item: -item[1])
    said = [f"{count} as {data(name)}" for name, count in parts if count]
    about = "" if entity == POOLED else f" about {data(entity)}"
    words = f"Of 100 {of}{about}, {listed(said)}."
    if entity == POOLED:
        words = f"{EVERY}, and entities not in the benchmark: {words[0].lower()}{words[1:]}"
    zero = [data(name) for name in row if name in spans and spans[name][0] <= 0 < row[name]]
    if zero:
        words += (
            f" The {'interval' if len(zero) == 1 else 'intervals'} of {listed(zero)} {_reach(len(zero))} down to 0."
        )
    if entity != POOLED:
        away = [data(name) for name, (low, high) in spans.items() if not low <= calibration.pooled[name] <= high]
        if away:
            words += f" Unlike for all entities together (outside the interval): {listed(away)}."
    return words


def _reach(count: int) -> str:
    return "reaches" if count == 1 else "reach"


def _doubts(calibration: Calibration) -> list[Block]:
    fits = {**calibration.fits, POOLED: calibration.diagnostics.get("pooled_fit", {})}
    vague = [_named(entity) for entity, fit in fits.items() if fit.get("identifiable") is False]
    said = []
    if vague:
        said.append(
            f"For {listed(vague)} other weights explain the data equally well: do not read meaning into each weight, "
            "only into the mixture that they make."
        )
    if any(any(row.values()) for row in [calibration.intervals]) and _wide(calibration):
        said.append(
            "Most intervals are wider than the weights themselves. The mixture is better known than its parts: "
            "perspectives that answer alike can stand in for each other."
        )
    return [Paragraph(text) for text in said]


def _wide(calibration: Calibration) -> bool:
    cells = [
        (calibration.weights[entity][name], high - low)
        for entity, row in calibration.intervals.items()
        for name, (low, high) in row.items()
        if calibration.weights[entity][name] > 0
    ]
    return bool(cells) and sum(width > weight for weight, width in cells) > len(cells) / 2


def _named(entity: str) -> str:
    return "all entities together" if entity == POOLED else data(entity)


def _bars(calibration: Calibration, entity: str, row: Mapping[str, float], spans: Mapping[str, Interval]) -> Rows:
    bars = tuple(Bar("after", data(name), weight, *spans.get(name, (None, None))) for name, weight in row.items())
    words = [
        f"{bar.label} {fixed(bar.value, 2)}"
        + ("" if bar.low is None or bar.high is None else f" from {fixed(bar.low, 2)} to {fixed(bar.high, 2)}")
        for bar in bars
    ]
    title = EVERY if entity == POOLED else data(entity)
    highest = max(end for row_spans in _all_spans(calibration) for end in row_spans)
    return Rows(title, f"{'; '.join(words)}.", 0.0, 1.0 if highest > 0.6 else 0.65, bars, bars=True)


def _all_spans(calibration: Calibration) -> list[list[float]]:
    values = [list(row.values()) for row in [*calibration.weights.values(), calibration.pooled]]
    ends = [
        [span[1] for span in row.values()] for row in [*calibration.intervals.values(), calibration.pooled_intervals]
    ]
    return [row for row in [*values, *ends] if row]


def _weights_table(
    calibration: Calibration, rows: Mapping[str, Mapping[str, float]], spans: Mapping[str, Mapping[str, Interval]]
) -> Table:
    names = calibration.perspectives.names
    cells: list[tuple[Cell, ...]] = [
        (
            EVERY if entity == POOLED else data(entity),
            *(Number(row[name], *spans.get(entity, {}).get(name, (None, None))) for name in names),
        )
        for entity, row in rows.items()
    ]
    sure = f" with {calibration.level * 100:g} % intervals" if any(spans.values()) else ""
    return Table(f"Weights{sure}", ("Entity", *map(data, names)), tuple(cells))


def _trade(calibration: Calibration) -> list[Block]:
    by_entity = calibration.diagnostics.get("by_entity", {})
    pooled = by_entity.get(POOLED, {})
    fit = calibration.diagnostics.get("pooled_fit", {})
    blocks: list[Block] = []
    front = pooled.get("pareto", [])
    for f, feature in enumerate(calibration.features):
        if front and len(fit.get("kl", [])) > f:
            blocks += _front(calibration, f, feature, front, fit)
    if not front:
        blocks.append(
            Paragraph("No Pareto front was computed: that needs the convex solver without a limit on perspectives.")
        )
    blocks.append(Bullets(tuple(_reach_words(calibration))))
    return blocks


def _front(
    calibration: Calibration, f: int, feature: str, front: list[dict[str, Any]], fit: Mapping[str, Any]
) -> list[Block]:
    points = tuple((float(point["kl"][f]), float(point["calibration"][f])) for point in front)
    chosen = (float(fit["kl"][f]), float(fit["calibration"][f]))
    kls, errors = ([point[i] for point in points] for i in (0, 1))
    words = (
        f"On the {counted(fit.get('questions', 0), 'question')} fitted on, KL divergence ranges from {fixed(min(kls))} "
        f"to {fixed(max(kls))} along the front and calibration error from {fixed(min(errors))} to "
        f"{fixed(max(errors))}; the weights taken have {fixed(chosen[0])} and {fixed(chosen[1])}"
        f"{_strengths(calibration, f)}."
    )
    floor = (fit.get("floor") or [{}])[f] if len(fit.get("floor") or []) > f else {}
    if floor and max(kls) <= floor["high"]:
        words += (
            f" The noise floor reaches up to {fixed(floor['high'])} at this size: the whole front lies within it, so "
            "there is little to trade."
        )
    table = Table(
        f"Pareto front, {data(feature)}, all entities together",
        ("Share of KL in the objective", "KL divergence (nats)", "Calibration error"),
        tuple((share(point["kl_share"]), Number(x), Number(y)) for point, (x, y) in zip(front, points, strict=True)),
    )
    curve = Curve(
        f"Pareto front: {data(feature)}",
        f"A line from KL {fixed(points[0][0])}, calibration error {fixed(points[0][1])} to KL {fixed(points[-1][0])}, "
        f"calibration error {fixed(points[-1][1])}; the fit is at {fixed(chosen[0])} and {fixed(chosen[1])}.",
        points,
        chosen,
        "KL divergence (nats)",
        "calibration error",
    )
    legend = (("dot plain", "best fit for one weighting"), ("dot after", "the fit taken"))
    return [Paragraph(words), Figure("Down and to the left is better.", (curve,), legend, table)]


def _strengths(calibration: Calibration, f: int) -> str:
    objectives = calibration.provenance.get("settings", {}).get("objectives") or []
    if not objectives:
        return ""
    objective = objectives[min(f, len(objectives) - 1)]
    return f" (strengths: KL {objective.get('kl', 0):g}, calibration {objective.get('calibration', 0):g})"


def _reach_words(calibration: Calibration) -> list[str]:
    """Where the target has more mass than the mixture reaches, where that is more than noise."""
    fits = {**calibration.fits, POOLED: calibration.diagnostics.get("pooled_fit", {})}
    said = []
    for entity, fit in fits.items():
        if fit.get("uncovered", 0) > 0:
            beyond = share(fit["uncovered"])
            said.append(f"For {_named(entity)}, {beyond} of the target lies in score bins that no perspective reaches.")
        missing = calibration.diagnostics.get("by_entity", {}).get(entity, {}).get("missing", [])
        for f, gap in enumerate(missing):
            floors = fit.get("floor", [])
            if f < len(floors) and fit["kl"][f] > floors[f]["high"]:
                low, high = gap["score_range"]
                kl, floor = fixed(fit["kl"][f]), fixed(floors[f]["high"])
                where = f"{data(calibration.features[f])} from {fixed(low, 2)} to {fixed(high, 2)}"
                said.append(
                    f"For {_named(entity)} the best mixture stays above the noise floor (KL divergence {kl}, floor up "
                    f"to {floor}). The target has {fixed(gap['ratio'], 1)} times as much {where} as the mixture: a "
                    "perspective that answers there would help most."
                )
    if not said:
        return [
            "On the questions fitted on, no entity's target lies beyond what the perspectives reach by more than noise."
        ]
    return said
