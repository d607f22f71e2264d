"""Held-out answers: the systems side by side, their distributions, and each entity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mpf_chains.artifact import Calibration
from mpf_chains.reporting.content import (
    Bar,
    Block,
    Bullets,
    Cell,
    Figure,
    Line,
    Number,
    Role,
    Rows,
    Section,
    Steps,
    Table,
    Verdict,
)
from mpf_chains.reporting.findings import (
    Outcome,
    alignment,
    by_entity,
    change,
    features_of,
    is_aligned,
    number,
    outcomes,
)
from mpf_chains.reporting.text import counted, data, fixed, listed

MEASURED = ("mean", "kl", "calibration")
MOST_NAMED = 6


def held_out_section(calibrations: Mapping[str, Calibration]) -> Section:
    """What the systems really answered to questions that the weights had not seen."""
    title = "Before and after, on held-out questions"
    features = [name for name in features_of(calibrations) if any(outcomes(calibrations, name))]
    if not features:
        words = (
            "The weights were fitted but never tried on questions that they had not seen, so nothing is known about "
            "their effect. Calibrate with validate=(...) and a benchmark that has a 'validation' split."
        )
        return Section(title, (Verdict("open", "Nothing was validated", words),))
    parts = []
    for feature in features:
        groups: dict[str, list[Outcome]] = {}
        for outcome in outcomes(calibrations, feature):
            groups.setdefault(repr((outcome.record["target"], outcome.record.get("floor"))), []).append(outcome)
        for found in groups.values():
            names = f": {listed([one.name for one in found])}" if len(groups) > 1 else ""
            parts.append(Section(f"{data(feature)}{names}", _of_feature(feature, found)))
    return Section(title, parts[0].blocks if len(parts) == 1 else tuple(parts))


def entities_section(calibrations: Mapping[str, Calibration]) -> Section | None:
    """Each entity's held-out results; None where there is but one, or none."""
    blocks: list[Block] = []
    for label, calibration in calibrations.items():
        alone = {label: calibration}
        for outcome in (each for feature in calibration.features for each in outcomes(alone, feature)):
            parts = by_entity(alone, outcome)
            if len(parts) > 1 and outcome.after is not None:
                several = f": {data(outcome.feature)}" if len(calibration.features) > 1 else ""
                blocks.append(_by_entity(f"{outcome.name}{several}", outcome, parts))
    return Section("Entity by entity", tuple(blocks)) if blocks else None


def systems(found: list[Outcome]) -> list[tuple[Role, str, Mapping[str, Any], Outcome]]:
    """Role, name and measurements of every system; the model itself once, unless calibrations found it different."""
    rows: list[tuple[Role, str, Mapping[str, Any], Outcome]] = []
    befores: list[Mapping[str, Any]] = []
    for outcome in found:
        if outcome.before is not None and outcome.before not in befores:
            befores.append(outcome.before)
            rows.append(
                ("before", f"Before ({data(outcome.label)})" if len(befores) > 1 else "Before", outcome.before, outcome)
            )
        if outcome.after is not None:
            rows.append(("after", outcome.name, outcome.after, outcome))
    return rows


def _of_feature(feature: str, found: list[Outcome]) -> tuple[Block, ...]:
    """The systems that were judged against one target."""
    rows = systems(found)
    first = found[0]
    floor = first.record.get("floor")
    table: list[tuple[Cell, ...]] = [
        ("Target", Number(first.record["target_mean"]), Number(0.0), Number(0.0), "", Number(0))
    ]
    for _, name, measured, _ in rows:
        cells = [number(measured.get(key)) for key in MEASURED]
        table.append((name, *cells, alignment(measured), Number(measured.get("missing", 0))))
    if floor:
        words = Number(floor["mean"], 0.0, floor["high"])
        table.append(
            ("A perfect system of this size (noise floor)", Number(None), words, Number(None), "", Number(None))
        )
    caption = (
        f"{data(feature)} of answers to {counted(first.questions, 'held-out question')}, with {first.level * 100:g} % "
        "intervals. For the noise floor: its mean, and where 95 of 100 perfect systems lie."
    )
    columns = ("Answers", "Mean", "KL divergence (nats)", "Calibration error", "Told apart from the target?", "Missing")
    legend = [("target", "target"), ("before", "before"), ("after", "after"), ("mean", "mark on the axis: mean")]
    return (
        Table(caption, columns, tuple(table)),
        Figure(
            "Share of answers that score at most so much. The nearer a line runs to the target's, the better.",
            tuple(_distribution(outcome) for outcome in found),
            tuple(legend),
            _quantiles(found, rows),
        ),
        Figure(
            f"The same figures as in the table, with {first.level * 100:g} % intervals.",
            tuple(_dots(key, rows, first) for key in MEASURED),
            (
                ("dot before", "before"),
                ("dot after", "after"),
                ("ideal", "target's mean, or 0"),
                *((("floor", "noise floor: as near as a perfect system comes at this size"),) if floor else ()),
            ),
        ),
    )


def _distribution(outcome: Outcome) -> Steps:
    samples: list[tuple[Role, str, list[float]]] = [("target", "target", outcome.record["target"])]
    for role, name, measured in (("before", "before", outcome.before), ("after", "after", outcome.after)):
        if measured is not None:
            samples.append((role, name, measured["scores"]))  # type: ignore[arg-type]
    ends = [value for _, _, values in samples for value in values]
    means = [f"{name} {fixed(sum(values) / len(values), 2)}" for _, name, values in samples]
    low, high = _wide(min(ends), max(ends))
    return Steps(
        title=outcome.name if outcome.after is not None else "Before",
        description=f"Cumulative distributions of {data(outcome.feature)}; means: {listed(means)}.",
        low=low,
        high=high,
        lines=tuple(Line(role, name, tuple(values)) for role, name, values in samples),
        x_label=f"{data(outcome.feature)} of the answer",
    )


def _quantiles(found: list[Outcome], rows: list[tuple[Role, str, Mapping[str, Any], Outcome]]) -> Table:
    shares = (0.1, 0.25, 0.5, 0.75, 0.9)

    def quantiles(values: list[float]) -> list[Cell]:
        return [Number(float(value)) for value in np.quantile(values, shares, method="inverted_cdf")]

    samples = [("Target", found[0].record["target"]), *((name, measured["scores"]) for _, name, measured, _ in rows)]
    cells = [(name, *quantiles(values)) for name, values in samples]
    columns = ("Answers", *(f"{share * 100:.0f} % score at most" for share in shares))
    return Table(f"Quantiles of {data(found[0].feature)}", columns, tuple(cells))


def _dots(key: str, rows: list[tuple[Role, str, Mapping[str, Any], Outcome]], first: Outcome) -> Rows:
    bars = tuple(
        Bar(role, name, measured[key]["value"], measured[key]["low"], measured[key]["high"])
        for role, name, measured, _ in rows
        if key in measured
    )
    floor = first.record.get("floor") if key == "kl" else None
    ideal = float(first.record["target_mean"]) if key == "mean" else 0.0
    band = (0.0, float(floor["high"]), float(floor["mean"])) if floor else None
    ends = [end for bar in bars for end in (bar.value, bar.low, bar.high) if end is not None]
    low, high = _wide(min([ideal, *ends]), max([ideal, *ends, *(band or ())]))
    words = [f"{bar.label} {fixed(bar.value)} from {fixed(bar.low or 0.0)} to {fixed(bar.high or 0.0)}" for bar in bars]
    title = {"mean": "Mean", "kl": "KL divergence (nats); 0 is best", "calibration": "Calibration error; 0 is best"}[
        key
    ]
    aim = f"Target {fixed(ideal)}. " if key == "mean" else ""
    noise = f" Noise floor {fixed(floor['mean'])}, up to {fixed(floor['high'])}." if floor else ""
    return Rows(title, f"{aim}{'; '.join(words)}.{noise}", low, high, bars, ideal=ideal, floor=band)


def _by_entity(name: str, outcome: Outcome, parts: Mapping[str, Outcome]) -> Section:
    rows: list[tuple[Cell, ...]] = [
        (
            data(entity),
            Number(one.record["target_mean"]),
            *[number((measured or {}).get(key)) for key in ("mean", "kl") for measured in (one.before, one.after)],
            alignment(one.before),
            alignment(one.after),
        )
        for entity, one in parts.items()
    ]
    columns = (
        "Entity", "Target mean", "Mean before", "Mean after", "KL before", "KL after", "Told apart before?", "After?",
    )  # fmt: skip
    caption = f"{data(outcome.feature)} by entity, {outcome.level * 100:g} % intervals"
    blocks = (Bullets(tuple(_differences(parts))), Table(caption, columns, tuple(rows)))
    return Section(name, blocks)


def _differences(parts: Mapping[str, Outcome]) -> list[str]:
    said = []
    tested = {name: one for name, one in parts.items() if is_aligned(one.after) is not None}
    if tested:
        now = [data(name) for name, one in tested.items() if is_aligned(one.after)]
        was = sum(bool(is_aligned(one.before)) for one in tested.values())
        which = f" ({listed(now)})" if 0 < len(now) <= MOST_NAMED else ""
        said.append(
            f"After, the answers about {len(now)} of {counted(len(tested), 'entity', 'entities')}{which} could not be "
            f"told from the target; before, {was}."
        )
    for word, kind in (("fell", "lower"), ("rose", "higher")):
        names = [
            data(name)
            for name, one in parts.items()
            if any(change(one.before, one.after, key) == kind for key in ("kl", "calibration"))
        ]
        if names:
            said.append(f"A distance to the target {word} beyond both intervals for {listed(names)}.")
    if len(said) <= 1:
        said.append("For no entity did a distance to the target change beyond both intervals.")
    return [*said, *_spread(parts)]


def _spread(parts: Mapping[str, Outcome]) -> list[str]:
    both = [one for one in parts.values() if one.before and one.after]
    if len(both) < 2:
        return []
    ends = []
    for side in ("before", "after"):
        means = [getattr(one, side)["mean"]["value"] for one in both]
        ends.append((min(means), max(means)))
    before, after = (f"between {fixed(low, 2)} and {fixed(high, 2)}" for low, high in ends)
    spreads = listed([fixed(high - low, 2) for low, high in ends])
    words = f"The entities' means lay {before} before and {after} after: spreads of {spreads}, part of which is chance."
    return [words]


def _wide(low: float, high: float) -> tuple[float, float]:
    """Ends with some room; scores from 0 to 1 keep these ends."""
    if low >= 0 and 0.6 < high <= 1:
        return 0.0, 1.0
    margin = 0.06 * (high - low) or 0.5
    return (0.0 if low == 0 else low - margin), high + margin
