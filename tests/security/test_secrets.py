"""A canary key goes to the provider and nowhere else: not into traces, logs, ledgers, artefacts or reprs."""

import logging
import pickle

import pytest
from langchain_core.load import dumps
from langchain_core.tracers.base import BaseTracer
from langchain_openai import ChatOpenAI

from mpf_chains import Benchmark, ChatMPF, MPFCalibrator, Perspective, PerspectiveFusion, PerspectiveRouter
from mpf_chains.errors import MPFError, MPFWarning
from mpf_chains.reporting import validation_table
from tests.loopback import serving

PAIR = [Perspective("fan", "Praise it."), Perspective("critic", "Doubt it.")]
EVEN = {"fan": 0.5, "critic": 0.5}


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
def status():
    """What the provider answers with; a test may change it."""
    return [200]


@pytest.fixture
def model(status):
    def answer(asked, headers):
        assert headers["Authorization"] == "Bearer canary-key"
        assert headers["X-Gateway"] == "canary-header"
        if status[0] != 200:
            return status[0], {"message": "Incorrect API key provided: canary-key", "code": "invalid_api_key"}
        return 200, {"content": f"It is good, and {len(asked['messages'])} of them say so."}

    with serving(answer) as url:
        headers = {"X-Gateway": "canary-header"}
        yield ChatOpenAI(base_url=url, api_key="canary-key", default_headers=headers, model="m", max_retries=0)


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


def test_a_provider_that_repeats_the_key_in_its_error(model, status):
    status[0] = 401
    fusion = PerspectiveFusion(model=model, perspectives=PAIR, weights=EVEN, n=2, sampler="quota")
    with pytest.raises(MPFError) as caught:
        fusion.invoke("Q?")
    assert "canary" not in str(caught.value)
    assert "AuthenticationError" in str(caught.value)
