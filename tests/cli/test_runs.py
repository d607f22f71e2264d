"""Runs from a shell: planned, made, interrupted, resumed, refused."""

import json
import os
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest

from mpf_chains import Benchmark, Calibration
from mpf_chains.evaluation import Evaluation
from mpf_chains.runtime import Ledger
from tests.cli.conftest import started

SMALL = ("university", "--entity", "ETH Zurich", "--per-entity", "6")


def body(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())["body"]


def test_a_dry_run_makes_no_call_and_says_how_many_the_run_makes(mpf, server, tmp_path):
    words = ("calibrate", *SMALL, "--model", server.spec, "--model-arg", "max_tokens=10")
    planned = mpf(*words, "--dry-run", "--json", "--price-in", 1, "--price-out", 10)
    assert planned.exit_code == 0
    plan = json.loads(planned.stdout)
    assert not server.asked
    assert list(tmp_path.iterdir()) == []
    done = mpf(*words, "--out", "eth.mpf.json", "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert len(server.asked) == plan["calls"] == result["answers"]["distinct"] == 6 * 5 + 2 * 6
    assert {asked["model"] for asked in server.asked} == {"tiny"}
    assert plan["output_tokens"] == plan["calls"] * 10
    assert plan["cost"] == pytest.approx((plan["input_tokens"] + 10 * plan["output_tokens"]) / 1e6)
    assert not plan["input_tokens_counted"]
    found = Calibration.load("eth.mpf.json")
    assert result["weights"] == found.weights
    assert result["validation"]["sentiment"]["ETH Zurich"]["systems"].keys() == {"normal", "sampled"}
    with Ledger("eth.sqlite") as ledger:
        assert len(ledger) == plan["calls"]
    again = json.loads(mpf(*words, "--out", "eth.mpf.json", "--dry-run", "--json").stdout)
    assert (again["done"], again["calls"]) == (30, 6), "which are drawn for held-out questions depends on the weights"


@pytest.mark.slow
def test_a_used_up_budget_and_an_interruption_end_in_the_same_file_as_a_run_without_them(mpf, server, tmp_path):
    whole = mpf("calibrate", *SMALL, "--model", server.spec, "--out", "whole.mpf.json")
    assert whole.exit_code == 0, whole.output
    asked = len(server.asked)
    server.asked.clear()

    first = mpf("calibrate", *SMALL, "--model", server.spec, "--out", "a b.mpf.json", "--max-calls", 7)
    assert first.exit_code == 3
    assert len(server.asked) == 7
    assert "mpf resume 'a b.sqlite'" in first.stderr
    assert first.stdout == ""

    process: Any = None
    server.before = lambda count: os.kill(process.pid, signal.SIGINT) if count == 7 + 9 else None
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    process = started("resume", "../a b.sqlite", "--max-calls", 1000, folder=elsewhere)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    go_on = shlex.split(stderr.strip().splitlines()[-1].partition("with: mpf ")[2])
    assert go_on == ["resume", str(tmp_path / "a b.sqlite")]

    last = mpf(*go_on, "--json")
    assert last.exit_code == 0, last.output
    assert json.loads(last.stdout)["calibration"] == "a b.mpf.json"
    assert asked <= len(server.asked) <= asked + 8, "nothing finished is asked again; what was in flight is"
    assert body(tmp_path / "a b.mpf.json") == body(tmp_path / "whole.mpf.json")


def test_what_is_recorded_of_a_run_is_private_and_no_run_goes_on_with_something_else(mpf, server, tmp_path):
    rows = Benchmark.builtin("university", ["ETH Zurich"]).select(per_entity=6)
    rows.write("rows.jsonl")
    begun = mpf("calibrate", "rows.jsonl", "--model", server.spec, "--out", "x.mpf.json", "--max-calls", 1)
    assert begun.exit_code == 3
    assert (tmp_path / "x.sqlite.run.json").stat().st_mode & 0o777 == 0o600
    rows.select(per_entity=5).write("rows.jsonl")
    asked = len(server.asked)
    refused = mpf("resume", "x.sqlite")
    assert refused.exit_code == 1
    assert f"the benchmark was {rows.digest}" in refused.stderr
    rows.write("rows.jsonl")
    other = mpf("resume", "x.sqlite", "--model", f"{server.url}#other")
    assert other.exit_code == 1
    assert "the model was" in other.stderr
    assert len(server.asked) == asked
    Path("x.sqlite.run.json").write_text('{"argv": ["calib')
    assert mpf("resume", "x.sqlite").exit_code == 1
    Path("x.sqlite.run.json").unlink()
    missing = mpf("resume", "x.sqlite")
    assert missing.exit_code == 1
    assert "run that command again with --ledger x.sqlite" in missing.stderr
    assert len(server.asked) == asked


def test_a_target_table_is_put_to_a_server(mpf, server, tmp_path):
    (tmp_path / "targets.csv").write_text("job,old,young\nnurse,0.25,0.75\nchef,0.5,0.5\n")
    server.says = lambda messages: "Young." if "nurse" in messages[-1][1] else "Who knows?"
    words = ("evaluate", "targets", "targets.csv", "--attribute", "age", "--model", server.spec, "--draws", 2, "--json")
    done = mpf(*words)
    assert done.exit_code == 0, done.output
    assert len(server.asked) == 2 * 3 * 2 and "the age of a nurse" in server.asked[0]["messages"][0]["content"]
    measured = json.loads(done.stdout)["measured"]
    assert measured["target_mae"]["value"] == pytest.approx((0.25 + 0.5) / 2) and measured["expressed"]["value"] == 0.5


def test_bare_and_calibrated_are_evaluated_compared_and_reported(mpf, server, tmp_path):
    assert mpf("calibrate", *SMALL, "--model", server.spec, "--out", "eth.mpf.json").exit_code == 0
    words = ("evaluate", "rows", "university", "--entity", "ETH Zurich", "--model", server.spec, "--limit", 10)
    assert mpf(*words, "--out", "bare.json", "--max-calls", 4).exit_code == 3
    server.asked.clear()
    bare = mpf("resume", "bare.sqlite", "--max-calls", 6, "--json")
    assert bare.exit_code == 0, bare.output
    assert len(server.asked) == 6
    assert json.loads(bare.stdout)["measured"].keys() == Evaluation.load("bare.json").measured.keys()

    fused = (*words, "--calibration", "eth.mpf.json", "--mode", "aggregated", "--n", 3)
    server.asked.clear()
    plan = json.loads(mpf(*fused, "--dry-run", "--json").stdout)
    assert not server.asked
    done = mpf(*fused, "--out", "after.json", "--compare", "bare.json", "--metric", "mean_score", "--json")
    assert done.exit_code == 0, done.output
    assert (plan["remaining"], plan["model_calls"]) == (10, len(server.asked))
    assert json.loads(done.stdout)["comparison"].keys() == {"sentiment/mean_score"}
    assert "warning: ChatMPF answers in aggregated mode" in done.stderr

    made = mpf(
        "report", "r.html", "--calibration", "eth.mpf.json", "--evaluation", "bare.json", "--evaluation", "after.json",
        "--ledger", "eth.sqlite", "--benchmark", "university",
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    page = (tmp_path / "r.html").read_text()
    assert "optimist" in page
    assert "mean_score" in page or "Mean" in page
    assert mpf("report", "r.html").exit_code == 2


def test_a_trigger_goes_before_every_prompt_and_is_another_system(mpf, server):
    words = ("evaluate", "rows", "university", "--model", server.spec, "--limit", 8, "--ledger", "kept.sqlite")
    bare = mpf(*words)
    assert bare.exit_code == 0, bare.output
    plain = [asked["messages"][-1]["content"] for asked in server.asked]
    server.asked.clear()
    led = (*words, "--trigger", "Be fair. ")
    assert json.loads(mpf(*led, "--dry-run", "--json").stdout)["model_calls"] == len(plain)
    done = mpf(*led, "--json")
    assert done.exit_code == 0, done.output
    assert sorted(asked["messages"][-1]["content"] for asked in server.asked) == sorted(f"Be fair. {q}" for q in plain)
    assert json.loads(done.stdout)["label"].endswith(" + trigger 'Be fair. '")
    assert mpf(*words, "--trigger", " ").exit_code == 1
    assert "hellinger" in mpf("evaluate", "--help").stdout and "openings" in mpf("evaluate", "--help").stdout


def test_a_benchmark_is_built_from_a_text_and_shown(mpf, server, tmp_path):
    facts = ["libraries open late", "libraries are full", "libraries lend tools", "libraries host talks"]
    (tmp_path / "t.txt").write_text(" ".join(f"The {fact} at Xaviria." for fact in facts))
    server.says = lambda messages: f"Is it true of Xaviria that {next(f for f in facts if f in messages[-1][1])}?"
    words = (
        "benchmark", "build", "t.txt", "--model", server.spec, "--entity", "Yale", "--entity", "EPFL", "--plain",
        "--fictional", "Xaviria", "--keyword", "libraries", "--validation", 0.25,
    )  # fmt: skip
    plan = json.loads(mpf(*words, "--dry-run", "--json").stdout)
    assert not server.asked
    assert (plan["least"], plan["remaining"]) == (4, 12)
    assert mpf(*words, "--out", "built.jsonl", "--max-calls", 2).exit_code == 3
    built = mpf("resume", "built.sqlite", "--max-calls", 2, "--json")
    assert built.exit_code == 0, built.output
    assert len(server.asked) == 4
    assert json.loads(built.stdout)["rows"] == 8
    shown = json.loads(mpf("benchmark", "show", "built.jsonl", "--json").stdout)
    assert shown["entities"] == {name: {"decomposition": 3, "validation": 1} for name in ("Yale", "EPFL")}
    assert shown["digest"] == Benchmark.read("built.jsonl").digest
    assert "Yale" in mpf("benchmark", "show", "built.jsonl").stdout


@pytest.mark.real_model
@pytest.mark.slow
def test_a_local_model_is_scored_by_likelihood(mpf, tmp_path):
    pairs = "".join(f'{n},"He is {a}.","She is {a}.",stereo,gender,[],[],[]\n' for n, a in enumerate(["kind", "wise"]))
    header = ",sent_more,sent_less,stereo_antistereo,bias_type,annotations,anon_writer,anon_annotators\n"
    (tmp_path / "pairs.csv").write_text(header + pairs)
    words = ("evaluate", "crows_pairs", "pairs.csv", "--model", "transformers:smollm2")
    assert json.loads(mpf(*words, "--dry-run", "--json").stdout)["texts"] == 4
    done = mpf(*words, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["method"] == "likelihood"
