"""Held-out results as a table in plain text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpf_chains.artifact import Calibration
from mpf_chains.errors import InvalidInput

POOLED = "(pooled)"


def systems_of(
    calibrations: Mapping[str, Calibration], feature: str | None = None, entity: str = POOLED
) -> dict[str, Any]:
    """The validated systems of several calibrations, "normal" once.

    Args:
        calibrations: Label → calibration; a system is named "label: system" if several calibrations have it.
        feature: Which feature. Default the first.
        entity: Which entity. Default all of them pooled.

    Returns:
        System → its measurements.

    Raises:
        InvalidInput: If a calibration was not validated, or not on this feature or entity.
    """
    found: dict[str, Any] = {}
    for label, calibration in calibrations.items():
        systems = _of_entity(calibration, feature, entity)["systems"]
        for system in [name for name in ("normal", "sampled", "aggregated") if name in systems]:
            plain = system == "normal" or len(calibrations) == 1 or label == system
            found.setdefault(system if plain else f"{system} ({label})", systems[system])
    return found


def validation_table(calibrations: Mapping[str, Calibration], feature: str | None = None, entity: str = POOLED) -> str:
    """Held-out KL, calibration error and mean of every system, with intervals, beside the noise floor.

    Args:
        calibrations: Label → calibration.
        feature: Which feature. Default the first.
        entity: Which entity. Default all of them pooled.

    Returns:
        Lines of text. "aligned" is yes where the answers' scores are not distinguishable from the target's
        (randomisation test on the energy distance, p > 0.05).
    """
    record = _of_entity(next(iter(calibrations.values())), feature, entity)
    systems = systems_of(calibrations, feature, entity)
    wide = max(24, *(len(name) + 2 for name in systems))
    lines = [f"{'system':<{wide}}{'mean':<22}{'KL (nats)':<22}{'calibration error':<22}{'aligned':<12}"]
    lines.append(f"{'target':<{wide}}{record['target_mean']:<22.3f}{'0':<22}{'0':<22}")
    for name, measured in systems.items():
        cells = "".join(f"{_span(measured.get(key)):<22}" for key in ("mean", "kl", "calibration"))
        p = measured.get("p_aligned")
        verdict = "" if p is None else f"{'yes' if p > 0.05 else 'no'} (p={p:.3f})"
        missing = f"  {measured['missing']} missing" if measured["missing"] else ""
        lines.append(f"{name:<{wide}}{cells}{verdict}{missing}")
    floor = record["floor"]
    lines.append(f"{'noise floor of KL':<{wide}}{'':<22}{floor['mean']:.3f} (95 %: {floor['high']:.3f})")
    return "\n".join(lines)


def _of_entity(calibration: Calibration, feature: str | None, entity: str) -> dict[str, Any]:
    features = calibration.validation.get("features", {})
    name = feature or calibration.features[0]
    if not features.get(name, {}).get(entity, {}).get("systems"):
        raise InvalidInput(
            f"The calibration has no validation of feature {name!r} for {entity!r}; it knows "
            f"{ {key: list(value) for key, value in features.items()} }.",
            hint="Calibrate with validate=(...) and a benchmark that has a 'validation' split.",
        )
    record: dict[str, Any] = features[name][entity]
    return record


def _span(statistic: Mapping[str, float] | None) -> str:
    return "-" if statistic is None else "{value:.3f} [{low:.3f}, {high:.3f}]".format(**statistic)
