"""What `mpf` is like to use: help, exit codes, completion, models by name, no secrets."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

import mpf_chains.cli
from mpf_chains.cli.models import SERVER_KEY, chat_model, parse_arguments
from mpf_chains.errors import InvalidInput, MissingExtra
from tests.cli.conftest import started

HEAVY = ("torch", "transformers", "langchain_openai", "langchain_core", "numpy", "scipy")


def test_help_is_light(tmp_path):
    program = (
        "import sys, time; start = time.process_time(); sys.argv = ['mpf', '--help']\n"
        "from mpf_chains.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        f"heavy = [name for name in {HEAVY} if name in sys.modules]\n"
        "sys.stderr.write(f'{heavy} {time.process_time() - start < 1}')"
    )
    process = started(folder=tmp_path, code=program)
    stdout, stderr = process.communicate(timeout=60)
    assert stderr == "[] True"
    for command in ("benchmark", "train", "choose-alpha", "explain", "calibrate", "resume", "evaluate", "report"):
        assert command in stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--version"], 0, mpf_chains.__version__),
        (["frobnicate"], 2, "No such command"),
        (["calibrate", "university"], 2, "--model"),
        (["calibrate", "university", "--model", "http://127.0.0.1:9/v1#m"], 2, "--out is needed"),
        (["calibrate", "university", "--model", "openai:m", "--dry-run", "--max-cost", "1"], 2, "--price-in"),
        (["calibrate", "university", "--model", "openai:m", "--dry-run", "--price-in", "1"], 2, "together"),
        (["calibrate", "university", "--model", "openai:m", "--dry-run", "--mode", "odd"], 2, "'odd'"),
        (["calibrate", "nowhere.jsonl", "--model", "openai:m", "--dry-run"], 1, "those are university, university-hr"),
        (["calibrate", "university", "--model", "odd", "--dry-run"], 1, "transformers:smollm2"),
        (["calibrate", "university", "--model", "odd:m", "--dry-run"], 1, "'odd'"),
        (["calibrate", "university", "--model", "openai:m", "--out", "no/where.mpf.json"], 1, "does not exist"),
        (["calibrate", "university", "--model", "openai:m", "--out", "x.mpf.json"], 1, "export OPENAI_API_KEY"),
        (["calibrate", "university", "--model", "openai:m", "--dry-run", "--perspectives", "odd"], 1, "mpf, gender"),
        (["calibrate", "university", "--model", "openai:m", "--dry-run", "--perspectives", "no.json"], 1, "NAME"),
        (["calibrate", "university", "--model", "openai:m", "--dry-run", "--feature", "odd"], 1, "sentiment"),
        (["calibrate", "university", "--model", "openai:m", "--dry-run", "--validate", "odd"], 1, "aggregated"),
        (["calibrate", "university", "--model", "transformers:x", "--model-arg", "odd=1", "--dry-run"], 1, "top_k"),
        (["evaluate", "odd", "x", "--model", "openai:m"], 1, "crows_pairs"),
        (["evaluate", "bbq", "nowhere", "--model", "openai:m", "--dry-run"], 1, "nowhere"),
        (["evaluate", "rows", "university", "--model", "openai:m", "--mode", "sampled"], 2, "--calibration"),
        (["evaluate", "rows", "university", "--model", "openai:m", "--attribute", "age"], 2, "--attribute belongs to"),
        (["resume", "nowhere.sqlite"], 2, "does not exist"),
        (["benchmark", "show", "nowhere.jsonl"], 1, "nowhere.jsonl"),
    ],
)  # fmt: skip
def test_every_failure_has_its_exit_code_and_a_sentence(mpf, tmp_path, words, code, said):
    done = mpf(*words)
    assert done.exit_code == code, done.output
    assert said in " ".join(done.output.split())
    assert "Traceback" not in done.output
    assert code == 0 or done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_key_goes_to_its_server_and_nowhere_else(mpf, server, tmp_path, monkeypatch):
    monkeypatch.setenv(SERVER_KEY, "canary-of-the-server")
    monkeypatch.setenv("OPENAI_API_KEY", "canary-of-openai")
    words = ("calibrate", "university", "--entity", "ETH Zurich", "--per-entity", 6, "--out", "x.mpf.json")
    done = mpf("--debug", *words, "--model", server.spec, "--json")
    assert done.exit_code == 0, done.output
    assert server.keys == {"Bearer canary-of-the-server"}
    server.status = 401
    failed = mpf("--debug", *words, "--model", f"{server.url}#other")
    assert failed.exit_code == 1
    assert "Traceback" in failed.stderr
    assert "Once that is put right: mpf resume x.sqlite" in failed.stderr
    for secret, words_of_refusal in (
        ("api_key=canary", "from the environment"),
        ('model_kwargs={"x": {"token": "canary"}}', "from the environment"),
        ('default_headers={"Authorization": "canary"}', "how to connect"),
        ("base_url=https://me:canary@host/v1", "how to connect"),
        ("anything=https://me:canary@host/v1", "is an address"),
    ):
        refused = mpf(*words, "--model", server.spec, "--model-arg", secret)
        assert refused.exit_code == 1
        assert words_of_refusal in refused.stderr
        assert "canary" not in refused.output
    in_address = mpf(*words, "--model", server.spec.replace("http://", "http://me:canary@"))
    assert in_address.exit_code == 1
    assert "canary" not in done.output + failed.output + in_address.output
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert len(written) > 10_000
    assert b"canary" not in written


def test_an_unforeseen_error_is_told_in_a_line(mpf, server, monkeypatch):
    monkeypatch.setattr("mpf_chains.calibration.MPFCalibrator.plan", lambda *_: 1 / 0)
    words = ("calibrate", "university", "--model", server.spec, "--dry-run")
    short, long = mpf(*words), mpf("--debug", *words)
    assert short.exit_code == long.exit_code == 1
    assert "error: ZeroDivisionError" in short.stderr
    assert "Traceback" not in short.stderr
    assert "Traceback" in long.stderr


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("evaluate cro", "crows_pairs"),
        ("evaluate rows x --metric stereoset_s", "stereoset_ss"),
        ("evaluate targets x --metric exp", "expressed"),
        ("calibrate univ", "university-hr"),
        ("calibrate university --feature se", "sentiment"),
        ("calibrate university --perspectives ra", "race"),
        ("calibrate university --model transf", "transformers:smollm2"),
        ("res", "resume"),
    ],
)
def test_the_shell_completes(mpf, typed, offered):
    words = f"mpf {typed}"
    environment = {"_MPF_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    assert offered in mpf(env=environment).stdout.split()


def test_the_completion_script_is_printed(tmp_path):
    process = started(folder=tmp_path, _MPF_COMPLETE="source_bash")
    stdout, _ = process.communicate(timeout=60)
    assert "_MPF_COMPLETE=complete_bash" in stdout


def test_without_typer_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setattr(mpf_chains.cli, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as end:
        mpf_chains.cli.main()
    assert end.value.code == 1
    assert "pip install 'mpf-chains[cli]'" in capsys.readouterr().err


@contextmanager
def listing(*names):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps({"object": "list", "data": [{"id": name} for name in names]}).encode()
            self.send_response(200 if self.path == "/v1/models" else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


def test_the_only_model_of_a_server_needs_no_name():
    with listing("alone") as url:
        assert chat_model(url, {"temperature": 0.5}).model_name == "alone"
    with listing("one", "two") as url, pytest.raises(InvalidInput, match=r"one, two.*#NAME"):
        chat_model(url)
    with pytest.raises(InvalidInput, match="does not tell"):
        chat_model("http://127.0.0.1:9/v1")


def test_a_spec_names_a_model_of_its_provider(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    assert chat_model("openai:gpt-x", parse_arguments(["max_tokens=7"])).max_tokens == 7
    local = chat_model("transformers:smollm2", parse_arguments(["dtype=bfloat16", "temperature=0"]))
    assert (local.model, local.dtype, local.temperature) == ("smollm2", "bfloat16", 0)
    monkeypatch.setitem(__import__("sys").modules, "langchain_openai", None)
    with pytest.raises(MissingExtra, match=r"mpf-chains\[openai\]"):
        chat_model("openai:gpt-x")
    for wrong in ("temperature", "=1", "a b=1"):
        with pytest.raises(InvalidInput, match="NAME=VALUE"):
            parse_arguments([wrong])
