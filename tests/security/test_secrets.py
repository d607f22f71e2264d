"""A canary key goes to the provider and nowhere else: not into traces, logs, ledgers, artefacts or reprs."""

import json
import logging
import pickle
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from langchain_core.load import dumps
from langchain_core.tracers.base import BaseTracer
from langchain_openai import ChatOpenAI

from mpf_chains import Benchmark, ChatMPF, MPFCalibrator, Perspective, PerspectiveFusion, PerspectiveRouter
from mpf_chains.errors import MPFError, MPFWarning
from mpf_chains.reporting import validation_table

PAIR = [Perspective("fan", "Praise it."), Perspective("critic", "Doubt it.")]
EVEN = {"fan": 0.5, "critic": 0.5}


class Endpoint(BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint that knows the canary."""

    protocol_version = "HTTP/1.1"
    status = 200

    def do_POST(self):
        assert self.headers["Authorization"] == "Bearer canary-key"
        assert self.headers["X-Gateway"] == "canary-header"
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        message = {"role": "assistant", "content": f"It is good, and {len(asked['messages'])} of them say so."}
        body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
        body["choices"] = [{"index": 0, "finish_reason": "stop", "message": message}]
        if self.status != 200:
            body = {"error": {"message": "Incorrect API key provided: canary-key", "code": "invalid_api_key"}}
        data = json.dumps(body).encode()
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


class Everything(BaseTracer):
    """Keeps whole runs, as a tracing backend would."""

    def __init__(self):
        super().__init__()
        self.runs = []

    def _persist_run(self, run):
        self.runs.append(run.model_dump_json(exclude={"child_runs"}) + dumps(run.serialized) + dumps(run.extra))

    def _end_trace(self, run):
        super()._end_trace(run)
        self.runs.append(str(run.serialized) + str(run.extra) + str(run.inputs) + str(run.outputs) + str(run.error))


@pytest.fixture
def model():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield ChatOpenAI(
        base_url=f"http://127.0.0.1:{server.server_port}/v1",
        api_key="canary-key",
        default_headers={"X-Gateway": "canary-header"},
        model="m",
        max_retries=0,
    )
    server.shutdown()
    server.server_close()


def test_the_key_stays_out_of_everything_that_is_written(model, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    theirs, ours = Everything(), Everything()
    settings = {"model": model, "perspectives": PAIR, "weights": EVEN}
    runnables = [
        PerspectiveRouter(**settings),
        PerspectiveFusion(**settings, n=2, sampler="quota"),
        ChatMPF(**settings),
        ChatMPF(**settings, mode="aggregated", n=2, sampler="quota"),
    ]
    tracers = [theirs, theirs, ours, ours]
    answers = [each.invoke("Q?", {"callbacks": [tracer]}) for each, tracer in zip(runnables, tracers, strict=True)]
    benchmark = Benchmark.builtin("university", ["ETH Zurich"]).select(per_entity=4)
    calibrator = MPFCalibrator(
        model=model, perspectives=PAIR, feature="sentiment", ledger=tmp_path / "run.sqlite", progress=False
    )
    with pytest.warns(MPFWarning):  # four questions are few
        calibration = calibrator.invoke(benchmark, {"callbacks": [theirs]})
    calibration.save(tmp_path / "made.mpf.json")
    written = b"".join(path.read_bytes() for path in sorted(tmp_path.iterdir()))
    texts = [*ours.runs, *map(repr, runnables), *map(str, answers), caplog.text, validation_table({"a": calibration})]
    texts += [dumps(each) for each in (*runnables, *answers)]
    assert len(ours.runs) >= 2 <= len(theirs.runs)
    assert len(written) > 10_000
    for text in (*texts, written.decode("latin-1")):
        assert "canary" not in text
    assert b"canary" not in pickle.dumps(answers)
    assert not any("canary-key" in run for run in theirs.runs)  # ChatOpenAI itself shows its headers to tracers


def test_a_provider_that_repeats_the_key_in_its_error(model, monkeypatch):
    monkeypatch.setattr(Endpoint, "status", 401)
    fusion = PerspectiveFusion(model=model, perspectives=PAIR, weights=EVEN, n=2, sampler="quota")
    with pytest.raises(MPFError) as caught:
        fusion.invoke("Q?")
    assert "canary" not in str(caught.value)
    assert "AuthenticationError" in str(caught.value)
