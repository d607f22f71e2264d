"""A calibration file is data from strangers: it is refused with a clear error, or it is exactly what was saved."""

import hashlib
import json
import os
import re

import pytest

from mpf_chains import artifact
from mpf_chains.artifact import Calibration
from mpf_chains.errors import ArtifactError, WeightsError
from mpf_chains.perspectives import Perspective, PerspectiveSet

SECRET = {"lc": 1, "type": "secret", "id": ["OPENAI_API_KEY"]}


def calibration(entity="france", **fields):
    return Calibration(
        **{
            "perspectives": PerspectiveSet([Perspective("fan", "Praise it."), Perspective("critic", "Doubt it.")]),
            "mode": "sampled",
            "features": ("sentiment",),
            "weights": {entity: {"fan": 0.5, "critic": 0.5}},
            "pooled": {"fan": 0.5, "critic": 0.5},
            **fields,
        }
    )


@pytest.fixture
def path(tmp_path):
    calibration().save(tmp_path / "a.mpf.json")
    return tmp_path / "a.mpf.json"


def rewrite(path, change, *, sign=True):
    """Change the document, and make its hash right again as an attacker would."""
    document = json.loads(path.read_text("utf-8"))
    change(document)
    if sign:
        body = json.dumps(document["body"], sort_keys=True, separators=(",", ":"))
        document["sha256"] = hashlib.sha256(body.encode()).hexdigest()
    path.write_text(json.dumps(document), "utf-8")


def test_an_altered_file_is_refused(path):
    rewrite(path, lambda document: document["body"]["pooled"].update(fan=1.0, critic=0.0), sign=False)
    with pytest.raises(ArtifactError, match="altered or damaged"):
        Calibration.load(path)


def test_a_newer_schema_is_refused_with_what_to_do(path):
    rewrite(path, lambda document: document.update(schema=2))
    with pytest.raises(ArtifactError, match=r"schema 2; this version of mpf-chains reads up to 1\. Upgrade"):
        Calibration.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda body: body["weights"]["france"].update(fan=0.9), "for entity 'france' sum to 1.4"),
        (lambda body: body["weights"]["france"].update(fan=-0.5, critic=1.5), "must lie in"),
        (lambda body: body["weights"]["france"].update(fan=True, critic=False), "must be a finite number"),
        (lambda body: body["weights"]["france"].update(fan="0.5"), "must be a finite number"),
        (lambda body: body["weights"]["france"].pop("fan"), "leave out"),
        (lambda body: body["weights"]["france"].update(clerk=0.0), "unknown perspective 'clerk'"),
        (lambda body: body.update(weights=[]), "no valid calibration"),
        (lambda body: body.update(features=[1]), "`features` must be names"),
        (lambda body: body.update(extra=1), "'extra' is missing or unknown"),
        (lambda body: body.pop("mode"), "'mode' is missing or unknown"),
        (lambda body: body.update(level="x"), "no valid calibration"),
        (lambda body: body.update(perspectives=[]), "at least one perspective"),
        (lambda body: body["perspectives"][0].update(run="x"), "no valid calibration"),
        (lambda body: body["perspectives"][0].update(name=3), "no valid calibration"),
        (lambda body: body.update(intervals={"france": {"fan": 3}}), "no valid calibration"),
    ],
)
def test_a_signed_file_with_wrong_content_is_refused(path, change, message):
    rewrite(path, lambda document: change(document["body"]))
    with pytest.raises(ArtifactError, match=message) as caught:
        Calibration.load(path)
    assert "sum to" not in message or isinstance(caught.value.__cause__, WeightsError)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no valid JSON"),
        (b"[1, 2]", "holds a list"),
        (b'{"schema": NaN}', "NaN is not allowed"),
        (b'{"schema": -Infinity}', "-Infinity is not allowed"),
        (b'{"schema": 1e999}', "1e999 is not allowed"),
        (b'{"schema": 1, "schema": 1}', "a key occurs twice"),
        (b'{"schema": ' + b"9" * 10_000 + b"}", "no valid JSON"),
        (b'{"schema": true}', "its `schema` is True"),
        (b'{"body": {}}', "its `schema` is None"),
        (b'{"schema": 1, "body": 3, "sha256": ""}', "altered or damaged"),
        (b"[" * 200_000, "nested deeper than 32 levels"),
        (b'{"a":' * 200_000, "nested deeper than 32 levels"),
        (b'"' + b'\\"' * 100_000 + b"[" * 50, "no valid JSON"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b"\xef\xbb\xbf{}", "no valid JSON"),
        (b"\x80\x04\x95", "not UTF-8"),
    ],
    ids=lambda value: repr(value[:24]) if isinstance(value, bytes) else "",
)
def test_a_damaged_file_is_refused(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=re.escape(message)):
        Calibration.load(tmp_path / "a.json")


@pytest.mark.parametrize("end", [1, 50, -2])
def test_a_truncated_file_is_refused(path, end):
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(ArtifactError):
        Calibration.load(path)


def test_what_is_no_file_is_refused(tmp_path, path, monkeypatch):
    with pytest.raises(ArtifactError, match="could not be read"):
        Calibration.load(tmp_path / "missing.json")
    with pytest.raises(ArtifactError, match="not a regular file"):
        Calibration.load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArtifactError, match="not a regular file"):
        Calibration.load(tmp_path / "pipe")
    monkeypatch.setattr(artifact, "MAX_BYTES", 100)
    with pytest.raises(ArtifactError, match="a calibration has at most 100"):
        Calibration.load(path)


def test_saving_does_not_follow_a_symbolic_link(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    link = tmp_path / "a.json"
    link.symlink_to(victim)
    with pytest.raises(ArtifactError, match="symbolic link"):
        calibration().save(link)
    assert victim.read_text() == "precious"


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    deep = {"x": 0}
    for _ in range(40):
        deep = {"x": deep}
    with pytest.raises(ArtifactError, match="nested deeper"):
        calibration(diagnostics=deep).save(tmp_path / "a.json")
    with pytest.raises(ArtifactError, match="could not be written"):
        calibration(entity="lone \ud800 surrogate").save(tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "entity", ["../../etc/passwd", "/root/x", "a\x00b", "{0.__class__}", "", "x" * 5000, "\u202eevil"]
)
def test_entity_names_are_plain_data(tmp_path, entity):
    folder = tmp_path / "inner"
    folder.mkdir()
    made = calibration(entity=entity)
    made.save(folder / "a.json")
    assert Calibration.load(folder / "a.json") == made
    assert [entry.name for entry in tmp_path.iterdir()] == ["inner"]
    assert [entry.name for entry in folder.iterdir()] == ["a.json"]


def test_serialised_objects_round_trip_as_plain_data(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary")
    made = calibration(diagnostics={"answer": json.dumps(SECRET), "row": SECRET}, provenance=SECRET)
    made.save(tmp_path / "a.json")
    loaded = Calibration.load(tmp_path / "a.json")
    assert loaded.provenance == loaded.diagnostics["row"] == SECRET
    assert "sk-canary" not in (tmp_path / "a.json").read_text("utf-8")
