import json
import math
import os
import pickle
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpf_chains.artifact import Calibration, Weights
from mpf_chains.errors import ArtifactError, InvalidInput, WeightsError
from mpf_chains.perspectives import Perspective, PerspectiveSet

PAIR = PerspectiveSet([Perspective("fan", "Praise it."), Perspective("critic", "Doubt it.", {"temperature": 0.5})])


def calibration(**fields):
    return Calibration(
        **{
            "perspectives": PAIR,
            "mode": "sampled",
            "features": ("sentiment",),
            "weights": {"ETH Zürich": {"fan": 0.3, "critic": 0.7}},
            "pooled": {"fan": 0.1 + 0.2, "critic": 1 - (0.1 + 0.2)},
            "intervals": {"ETH Zürich": {"fan": (0.2, 0.4), "critic": (0.6, 0.8)}},
            "pooled_intervals": {"fan": (0.25, 0.35)},
            "fits": {"ETH Zürich": {"objective": 0.12, "gap": 1e-10, "status": "optimal"}},
            "validation": {"router": {"ETH Zürich": {"kl": 0.08, "floor": 0.05}}},
            "diagnostics": {"pareto": [[0.1, 0.2], [0.3, None]]},
            "provenance": {"model": "fake", "calls": 100, "seed": 0},
            **fields,
        }
    )


# Weights


def test_weights_take_every_form_and_keep_the_perspectives_order():
    flat = Weights.of({"critic": 0.75, "fan": 0.25}, PAIR)
    assert list(flat.lookup("anything")) == ["fan", "critic"]
    assert Weights.of(flat, PAIR) is flat
    nested = Weights.of({"france": {"critic": 1, "fan": 0}}, PAIR)
    assert nested.lookup("france") == {"fan": 0.0, "critic": 1.0}
    assert nested.pooled is None
    made = calibration()
    held = Weights.of(made, PAIR)
    assert (held.by_entity, held.pooled, held.version) == (made.weights, made.pooled, made.version)
    reversed_set = PerspectiveSet(list(PAIR)[::-1])
    assert list(Weights.of(held, reversed_set).lookup("ETH Zürich")) == ["critic", "fan"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"france": {"fan": 0.4, "critic": 0.43}}, r"for entity 'france' sum to 0.83; they must sum to 1 \(tolerance"),
        ({"fan": 0.4, "critic": 0.43}, r"`weights` sum to 0.83.*Weights.normalised\(weights\)"),
        ({"fan": -0.5, "critic": 1.5}, r"give 'fan' the weight -0.5; it must lie in \[0, 1\]"),
        ({"fan": 1.5, "critic": 0}, r"the weight 1.5"),
        ({"fan": math.nan, "critic": 1}, "nan; it must be a finite number"),
        ({"fan": math.inf, "critic": 1}, "inf; it must be a finite number"),
        ({"fan": True, "critic": 0.0}, "True; it must be"),
        ({"fan": "1.0", "critic": 0.0}, "'1.0'; it must be"),
        ({"fan": None, "critic": 1.0}, "None; it must be"),
        ({"fan": 1.0}, "leave out the perspective 'critic'. Write 0.0"),
        ({"fan": 1.0, "critic": 0.0, "clerk": 0.0}, "unknown perspective 'clerk'; known: fan, critic"),
        ({"france": {"fan": 1.0, "critic": 0.0}, "spain": 1.0}, "unknown perspective 'france'"),
        ({3: {"fan": 1.0, "critic": 0.0}}, "the entity 3; entities must be strings"),
        ({"france": {}}, "for entity 'france' leave out"),
        ({}, "empty"),
        ([0.5, 0.5], "are a list; give a Calibration"),
        (None, "are a NoneType"),
    ],
)
def test_weights_that_are_no_distribution_are_refused(value, message):
    with pytest.raises(WeightsError, match=message):
        Weights.of(value, PAIR)


def test_lookup_is_explicit_about_unknown_entities():
    made = Weights.of(calibration(), PAIR)
    with pytest.raises(WeightsError, match="no weights for entity 'Oxford'; `weights` know: 'ETH Zürich'"):
        made.lookup("Oxford")
    assert made.lookup("Oxford", "pooled") == calibration().pooled
    assert made.lookup(None, "uniform") == {"fan": 0.5, "critic": 0.5}
    with pytest.raises(WeightsError, match="no pooled row"):
        Weights.of({"france": {"fan": 1, "critic": 0}}, PAIR).lookup("spain", "pooled")


@given(st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=2))
def test_normalised_weights_are_accepted(values):
    row = dict(zip(PAIR.names, values, strict=True))
    flat = Weights.of(Weights.normalised(row), PAIR).lookup(None)
    assert Weights.of(Weights.normalised({"france": row}), PAIR).lookup("france") == flat
    assert sum(flat.values()) == pytest.approx(1)


@pytest.mark.parametrize("row", [{"fan": 0, "critic": 0}, {"fan": -1, "critic": 2}, {"fan": math.nan}, {}])
def test_what_cannot_be_normalised_is_refused(row):
    with pytest.raises(WeightsError):
        Weights.normalised(row)


def test_weights_are_immutable_and_pickle():
    source = {"france": {"fan": np.float64(1.0), "critic": np.int64(0)}}
    weights = Weights.of(source, PAIR)
    source["france"]["fan"] = 0.0
    with pytest.raises(TypeError):
        weights.by_entity["france"]["fan"] = 0.0
    assert type(weights.lookup("france")["fan"]) is float
    assert pickle.loads(pickle.dumps(weights)) == weights
    assert len({weights, Weights.of({"france": {"critic": 0.0, "fan": 1.0}}, PAIR)}) == 1


# Calibration


def test_what_is_saved_is_loaded(tmp_path):
    made, path = calibration(), tmp_path / "eth.mpf.json"
    made.save(path)
    loaded = Calibration.load(path)
    assert loaded == made
    assert loaded.perspectives["critic"].arguments == {"temperature": 0.5}
    assert loaded.intervals["ETH Zürich"]["fan"] == (0.2, 0.4)
    assert pickle.loads(pickle.dumps(loaded)) == made
    assert [entry.name for entry in tmp_path.iterdir()] == ["eth.mpf.json"]


def test_files_are_readable_and_equal_but_for_the_time(tmp_path):
    for name, created in (("a", "2026-01-01T00:00:00+00:00"), ("b", "2027-01-01T00:00:00+00:00")):
        calibration(created=created).save(tmp_path / name)
    first, second = ((tmp_path / name).read_text("utf-8").splitlines() for name in "ab")
    assert [line for line in first if line not in second] == ['  "created": "2026-01-01T00:00:00+00:00",']
    assert '      "ETH Zürich": {' in first
    calibration(created="2027-01-01T00:00:00+00:00").save(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_version_changes_with_what_changes_answers():
    made = calibration()
    assert made.version == calibration(created="x", validation={}, intervals={}, provenance={"calls": 3}).version
    changed = [
        calibration(mode="aggregated"),
        calibration(weights={"ETH Zürich": {"fan": 0.7, "critic": 0.3}}),
        calibration(pooled={"fan": 1, "critic": 0}),
        calibration(perspectives=PerspectiveSet([PAIR["fan"], Perspective("critic", "Doubt all.")])),
    ]
    assert len({made.version, *(other.version for other in changed)}) == 5
    assert len(made.version) == 12


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"weights": {"x": {"fan": 1.0, "critic": 0.5}}}, WeightsError, "for entity 'x' sum to 1.5"),
        ({"mode": "mixed"}, InvalidInput, "`mode` is 'mixed'"),
        ({"level": 95}, InvalidInput, "`level` is 95"),
        ({"intervals": {"Oxford": {}}}, InvalidInput, "'Oxford', which has no weights"),
        ({"intervals": {"ETH Zürich": {"clerk": (0, 1)}}}, InvalidInput, "'clerk'"),
        ({"intervals": {"ETH Zürich": {"fan": (0.5, 0.4)}}}, InvalidInput, "two finite numbers"),
        ({"diagnostics": {"x": math.nan}}, InvalidInput, "`diagnostics` must hold JSON"),
        ({"provenance": {"model": object()}}, InvalidInput, "`provenance` must hold JSON"),
    ],
)
def test_a_calibration_is_checked(fields, error, message):
    with pytest.raises(error, match=message):
        calibration(**fields)


def test_summary_and_notebook_view():
    made = calibration(weights={"<b>x</b>": {"fan": 0.3, "critic": 0.7}}, intervals={}, fits={})
    assert "<b>x</b>" in made.summary()
    assert "fan 0.300 [0.250, 0.350]" in made.summary()
    assert "&lt;b&gt;x" in made._repr_html_()


def test_a_file_that_cannot_be_written_says_so(tmp_path):
    with pytest.raises(ArtifactError, match="could not be written: No such file or directory"):
        calibration().save(tmp_path / "missing" / "a.json")
    with pytest.raises(ArtifactError, match="could not be written"):
        calibration().save(tmp_path)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from mpf_chains.artifact import Calibration
target, newer, moment = sys.argv[1:]
kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
replace = Path.replace
if moment == "written":
    os.fsync = kill
elif moment == "before rename":
    Path.replace = kill
else:
    Path.replace = lambda *paths: (replace(*paths), kill())
Calibration.load(newer).save(target)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
@pytest.mark.parametrize("moment", ["written", "before rename", "after rename"])
def test_a_kill_leaves_the_old_file_or_the_new_one(tmp_path, moment):
    old, new = calibration(), calibration(mode="aggregated")
    target, newer = tmp_path / "a.json", tmp_path / "new.json"
    old.save(target)
    new.save(newer)
    done = subprocess.run([sys.executable, "-c", KILLED, str(target), str(newer), moment], check=False)
    assert done.returncode == -signal.SIGKILL
    assert Calibration.load(target) == (new if moment == "after rename" else old)
    new.save(target)  # what was left behind is not in the way
    assert Calibration.load(target) == new


def test_the_file_mode_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        calibration().save(tmp_path / "a.json")
    finally:
        os.umask(before)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o640


def test_no_timestamp_is_needed_to_be_json(tmp_path):
    calibration().save(tmp_path / "a.json")
    document = json.loads((tmp_path / "a.json").read_text("utf-8"))
    assert sorted(document) == ["body", "created", "schema", "sha256"]
