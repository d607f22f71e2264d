"""Calibrations and evaluations written by hand, for reports."""

from mpf_chains import Calibration, Perspective, PerspectiveSet

NAMES = ("optimist", "critic")


def measured(kl, p, mean, spread=0.05):
    return {
        "kl": {"value": kl, "low": kl - spread, "high": kl + spread},
        "calibration": {"value": 0.3, "low": 0.25, "high": 0.35},
        "mean": {"value": mean, "low": mean - spread, "high": mean + spread},
        "p_aligned": p,
        "missing": 0,
        "scores": [mean - 0.1, mean, mean, mean + 0.1] * 10,
    }


def made(before=(0.6, 0.001, 0.7), after=(0.2, 0.4, 0.5), *, entities=("ETH Zurich", "Oxford"), names=NAMES, **fields):
    """A calibration whose held-out answers had these (KL, p, mean), the same for every entity."""
    weights = {entity: dict(zip(names, (0.25, 0.75), strict=True)) for entity in entities}
    spans = {entity: dict(zip(names, ((0.0, 0.5), (0.5, 1.0)), strict=True)) for entity in entities}
    record = {
        "systems": {
            **({"normal": measured(*before)} if before else {}),
            **({"sampled": measured(*after)} if after else {}),
        },
        "floor": {"mean": 0.15, "high": 0.3},
        "target": [0.4, 0.5, 0.5, 0.6] * 10,
        "target_mean": 0.5,
    }
    fit = {
        "kl": [0.1], "calibration": [0.2], "status": "optimal", "identifiable": True, "uncovered": 0.0,
        "questions": 40, "floor": [{"mean": 0.1, "high": 0.2}], "warnings": [], "gap": 0.0, "objective": 0.2,
    }  # fmt: skip
    front = [{"kl_share": s, "kl": [0.12 - 0.04 * s], "calibration": [0.19 + 0.03 * s]} for s in (0.0, 0.5, 1.0)]
    options = {
        "perspectives": PerspectiveSet([Perspective(name, f"Answer as a {name}.") for name in names]),
        "mode": "sampled",
        "features": ("sentiment",),
        "weights": weights,
        "pooled": dict(zip(names, (0.5, 0.5), strict=True)),
        "intervals": spans,
        "level": 0.9,
        "fits": dict.fromkeys(entities, fit),
        "validation": {
            "questions": 80,
            "features": {"sentiment": dict.fromkeys((*entities, "(pooled)"), record)},
        } if before or after else {},
        "diagnostics": {"by_entity": {"(pooled)": {"pareto": front}}, "pooled_fit": fit, "notes": []},
        "provenance": {
            "library": "mpf-chains 0.0",
            "model": 'Chat {"model":"small"}',
            "benchmark": {"name": "university"},
        },
        "created": "2026-01-02T03:04:05+00:00",
        **fields,
    }  # fmt: skip
    return Calibration(**options)


def evaluation(label="as it is", value=58.0, low=56.0, high=60.0, **fields):
    score = {
        "title": "Stereotype score", "ideal": 50.0, "unit": "%", "better": "closer", "value": value, "low": low,
        "high": high, "level": 0.9, "n": 2106, "floor": {"mean": 50.8, "limit": 51.8},
        "parts": {"gender": {"value": 61.0, "low": 55.0, "high": 67.0, "level": 0.9, "n": 255}},
    }  # fmt: skip
    perplexity = {
        "title": "Perplexity", "ideal": None, "unit": "", "better": "lower", "value": 23.0, "low": 22.0, "high": None,
        "level": 0.9, "n": 2106,
    }  # fmt: skip
    return {
        "schema": 1, "label": label, "model": "small", "method": "likelihood",
        "benchmark": {"name": "stereoset", "digest": "d", "items": 2106, "source": "s"}, "settings": {"seed": 0},
        "measured": {"stereotype_score": score, "perplexity": perplexity}, "missing": 0, "notes": [], "usage": {},
        "library": "mpf-chains 0.0", "created": "2026-01-03T00:00:00+00:00", **fields,
    }  # fmt: skip
