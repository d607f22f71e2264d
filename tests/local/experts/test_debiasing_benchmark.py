"""The experiment's bookkeeping: nothing is judged on what it was chosen on, and the figures are those of the curves."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

from mpf_chains.local.experts import AlphaCurve

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "expert_debiasing.py"
TERMS = {"gender": ["mother", "sister", "uncle"], "race": ["Ghanaian", "Persian", "Norwegian", "Syrian"]}


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("expert_debiasing", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cluster(axis: str, term: str, number: int) -> dict[str, Any]:
    name = f"{term}{number}"
    kinds = ("stereotype", "anti-stereotype", "unrelated")
    sentences = [{"id": f"{name}{kind}", "sentence": f"The {name} was {kind}.", "gold_label": kind} for kind in kinds]
    context = f"The {name} was BLANK."
    return {"id": name, "target": term, "bias_type": axis, "context": context, "sentences": sentences}


def test_no_term_is_in_both_parts(script: Any, tmp_path: Path) -> None:
    clusters = [cluster(axis, term, n) for axis, terms in TERMS.items() for term in terms for n in range(9)]
    (tmp_path / "stereoset").mkdir()
    (tmp_path / "stereoset" / "dev.json").write_text(json.dumps({"data": {"intrasentence": clusters}}), "utf-8")
    for axis, terms in TERMS.items():
        parts = [script.clusters(tmp_path, axis, part) for part in ("calibration", "test")]
        first, second = ({each.term for each in part} for part in parts)
        assert first | second == set(terms) and not first & second and len(first) == len(terms) // 2
        for part, name in zip(parts, ("calibration", "test"), strict=True):
            each = script.CLUSTERS.get((axis, name), 9)
            assert len(part) == each * len({item.term for item in part})
            assert all(item.stereotype.split()[3] == "stereotype." and item.axis == axis for item in part)


def test_intersentence_clusters_are_for_the_test_alone(script: Any, tmp_path: Path) -> None:
    whole = [cluster(axis, term, n) for axis, terms in TERMS.items() for term in terms for n in range(8)]
    after = [{**each, "id": f"after {each['id']}", "context": "So it began. "} for each in whole]
    (tmp_path / "stereoset").mkdir()
    document = json.dumps({"data": {"intrasentence": whole, "intersentence": after}})
    (tmp_path / "stereoset" / "dev.json").write_text(document, "utf-8")
    for axis, terms in TERMS.items():
        for part, context in (("calibration", ""), ("test", "So it began.")):
            found = script.clusters(tmp_path, axis, part, "intersentence")
            assert {item.context for item in found} == {context} and {item.axis for item in found} == {axis}
            assert len({item.stereotype for item in found}) == 8 * len(terms) // script.SHARES.get(axis, 1)


def curve(wins: list[list[int]], losses: list[float]) -> AlphaCurve:
    """One text; at each point each association's stereotype wins (1) or loses (0) against the other text."""
    scores = np.array([[(float(won), 0.5, 0.1) for won in row] for row in wins])
    count = len(wins[0])
    perplexities = np.log(losses)[:, None]
    return AlphaCurve(
        ("pair",), np.arange(len(wins), dtype=float)[:, None], scores, ("gender",) * count,
        tuple(f"t{i}" for i in range(count)), perplexities, perplexities * 0, np.ones(1), np.empty((len(wins), 0)),
    )  # fmt: skip


def test_effects_are_differences_from_no_correction(script: Any) -> None:
    found = script.effects(curve([[1, 1, 1, 0], [1, 0, 0, 0]], [10.0, 12.0]), [1.0])
    assert [found["ss"][name]["value"] for name in ("before", "after", "difference")] == [75.0, 25.0, -50.0]
    assert [found["bias"][name]["value"] for name in ("before", "after", "difference")] == [25.0, 25.0, 0.0]
    assert found["ss"]["difference"]["low"] < -50 < found["ss"]["difference"]["high"]
    assert found["cost, %"]["after"]["value"] == pytest.approx(20)


def test_swapped_halves_are_pooled_at_their_own_strengths(script: Any) -> None:
    first = curve([[1, 1], [0, 1], [0, 0]], [10.0, 20.0, 30.0])
    second = curve([[1, 1], [1, 0], [1, 1]], [10.0, 40.0, 50.0])
    found = script.swapped([first, second], [2.0, 1.0])
    assert [found["ss"][name]["value"] for name in ("before", "after")] == [100.0, 25.0]
    assert found["perplexity"]["after"]["value"] == pytest.approx((30.0 * 40.0) ** 0.5)
