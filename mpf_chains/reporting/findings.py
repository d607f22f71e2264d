"""What held-out answers show: before against after, and how to say it without claiming more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mpf_chains.artifact import Calibration
from mpf_chains.reporting.content import Number, Tone, Verdict
from mpf_chains.reporting.text import counted, data, fixed, listed, p_value

POOLED = "(pooled)"
ALPHA = 0.05
"""Answers are called distinguishable from the target below this p-value."""
KINDS = {"sampled": "one perspective answers each request", "aggregated": "several answers are merged"}
Change = Literal["lower", "higher", "unsettled"]


@dataclass(frozen=True)
class Outcome:
    """One system's answers to held-out questions beside the model's own.

    Attributes:
        label: What the calibration is called in the report; may be empty.
        system: "sampled" or "aggregated"; "normal" where nothing but the model itself was asked.
        feature: Name of the feature.
        record: What the calibration's validation holds for this feature and entity.
        level: Coverage of the intervals.
    """

    label: str
    system: str
    feature: str
    record: Mapping[str, Any]
    level: float

    @property
    def before(self) -> Mapping[str, Any] | None:
        """The model's own answers."""
        found: Mapping[str, Any] | None = self.record["systems"].get("normal")
        return found

    @property
    def after(self) -> Mapping[str, Any] | None:
        """The debiased answers."""
        found: Mapping[str, Any] | None = None if self.system == "normal" else self.record["systems"][self.system]
        return found

    @property
    def name(self) -> str:
        """What its answers are called in tables and charts."""
        return f"After: {data(self.label)}" if self.label else f"After ({self.system})"

    @property
    def questions(self) -> int:
        """Held-out questions answered by all systems."""
        return len(self.record["target"])


def outcomes(calibrations: Mapping[str, Calibration], feature: str, entity: str = POOLED) -> Iterator[Outcome]:
    """What was validated on a feature and entity, in order; calibrations without such a validation are left out."""
    for label, calibration in calibrations.items():
        record = calibration.validation.get("features", {}).get(feature, {}).get(entity, {})
        systems = record.get("systems", {})
        after = [system for system in KINDS if system in systems]
        for system in after or [system for system in systems if system == "normal"]:
            words = f"{label}, {system}" if label and len(after) > 1 else label
            yield Outcome(words, system, feature, record, calibration.level)


def features_of(calibrations: Mapping[str, Calibration]) -> list[str]:
    """All calibrated features, in order."""
    return list(dict.fromkeys(name for calibration in calibrations.values() for name in calibration.features))


def change(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, key: str) -> Change:
    """Whether a statistic moved for sure: beyond both intervals, a cautious rule for two results on the same questions.

    Args:
        before: The model's own measurements.
        after: The debiased ones.
        key: "kl" or "calibration".
    """
    if not before or not after or key not in before or key not in after:
        return "unsettled"
    if after[key]["high"] < before[key]["low"]:
        return "lower"
    return "higher" if after[key]["low"] > before[key]["high"] else "unsettled"


def number(statistic: Mapping[str, Any] | None) -> Number:
    """A measurement with its interval, for a table."""
    return Number(None) if statistic is None else Number(statistic["value"], statistic["low"], statistic["high"])


def is_aligned(measured: Mapping[str, Any] | None) -> bool | None:
    """Whether answers could not be told from the target; None where that was not tested."""
    p = None if measured is None else measured.get("p_aligned")
    return None if p is None else p > ALPHA


def alignment(measured: Mapping[str, Any] | None) -> str:
    """The same in words for a table."""
    aligned = is_aligned(measured)
    if measured is None or aligned is None:
        return "not tested"
    return f"{'no' if aligned else 'yes'} ({p_value(measured['p_aligned'])})"


def by_entity(alone: Mapping[str, Calibration], outcome: Outcome) -> dict[str, Outcome]:
    """A pooled outcome's parts: what the same system did for each entity.

    Args:
        alone: The one calibration that it is of, by its label.
        outcome: The pooled outcome.
    """
    (calibration,) = alone.values()
    return {
        entity: one
        for entity in calibration.weights
        for one in outcomes(alone, outcome.feature, entity)
        if one.system == outcome.system
    }


def baseline(outcome: Outcome) -> str:
    """The target, the model as it is, and how near a perfect system would come: the same for all that share them."""
    target = fixed(outcome.record["target_mean"], 2)
    parts = [
        f"The target's {data(outcome.feature)} averages {target} over {counted(outcome.questions, 'held-out answer')}."
    ]
    if outcome.before is not None:
        parts.append(
            f"Before, the model's answers averaged {_mean(outcome.before, outcome.level)}; {_told(outcome.before)}."
        )
    if floor := outcome.record.get("floor"):
        parts.append(
            f"At this size a perfect system would score a KL divergence of about {fixed(floor['mean'], 2)}, and up to "
            f"{fixed(floor['high'], 2)} in 95 of 100 cases: that is the noise floor."
        )
    return " ".join(parts)


def verdict(outcome: Outcome, parts: Mapping[str, Outcome], about: str = "") -> Verdict:
    """The finding on one system: a few words, and the figures behind them.

    Args:
        outcome: The system, all entities pooled.
        parts: Entity → the same system for that entity.
        about: What goes before the few words. Default the outcome's label.
    """
    tone, title = _judged(outcome)
    said = []
    if outcome.after is not None:
        mean = _mean(outcome.after, outcome.level)
        said.append(f"After ({KINDS[outcome.system]}), answers averaged {mean}; {_told(outcome.after)}.")
    if outcome.after is not None and outcome.before is not None:
        said.append(_distances(outcome))
    worse = [data(entity) for entity, one in parts.items() if one.after is not None and _judged(one)[0] == "bad"]
    if worse and len(parts) > 1:
        said.append(f"Answers moved away from the target for {listed(worse)}.")
    name = about or data(outcome.label)
    title = f"{name}: {title}" if name else f"{title[0].upper()}{title[1:]}"
    return Verdict(tone, title, " ".join(said))


def _judged(outcome: Outcome) -> tuple[Tone, str]:
    before, after = outcome.before, outcome.after
    if after is None:
        return "note", "only the model itself was measured; nothing is known about the weights' effect"
    now = is_aligned(after)
    if before is None:
        words = "cannot be told from" if now else "differ from"
        return (
            "note",
            f"answers {words} the target; before was not measured" if now is not None else "before was not measured",
        )
    was = is_aligned(before)
    moves = {change(before, after, key) for key in ("kl", "calibration")}
    if moves >= {"higher", "lower"}:
        return "open", "mixed: one distance to the target fell and the other rose"
    if "higher" in moves or (was and now is False):
        return "bad", "answers moved away from the target"
    if now and was is False:
        return _now_aligned(outcome, after, sure="lower" in moves)
    if "lower" in moves:
        return "good", "closer to the target" + ("" if now else ", but still told apart from it")
    if was and now:
        found = "these questions are too few to show a bias, or there is none"
        return "open", f"answers could not be told from the target before, nor after: {found}"
    return "open", "no improvement is shown"


def _now_aligned(outcome: Outcome, after: Mapping[str, Any], *, sure: bool) -> tuple[Tone, str]:
    """Told from the target before and no longer: good, unless the mean is still off."""
    if sure:
        return "good", "answers moved to where they can no longer be told from the target"
    if not after["mean"]["low"] <= outcome.record["target_mean"] <= after["mean"]["high"]:
        return "open", "answers can no longer be told from the target as a whole, but their mean is still off"
    return "good", "answers can no longer be told from the target, though the distances' intervals overlap"


def _mean(measured: Mapping[str, Any], level: float) -> str:
    mean = measured["mean"]
    span = f"{fixed(mean['low'], 2)} to {fixed(mean['high'], 2)}"
    return f"{fixed(mean['value'], 2)} ({level * 100:g} % interval {span})"


def _told(measured: Mapping[str, Any]) -> str:
    aligned = is_aligned(measured)
    if aligned is None:
        return "whether they differ from the target was not tested"
    word = "cannot be told from" if aligned else "differ from"
    return f"they {word} the target ({p_value(measured['p_aligned'])})"


def _distances(outcome: Outcome) -> str:
    before, after = outcome.before or {}, outcome.after or {}
    names = {"kl": "KL divergence", "calibration": "calibration error"}
    moved = []
    for key, name in names.items():
        words = {
            "lower": "below its interval before",
            "higher": "above its interval before",
            "unsettled": "the intervals overlap, so this alone shows no change",
        }[change(before, after, key)]
        moved.append(f"{name} went from {fixed(before[key]['value'], 2)} to {fixed(after[key]['value'], 2)} ({words})")
    return f"{moved[0]}; {moved[1]}."
