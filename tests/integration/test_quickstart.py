"""The quickstart as a user runs it: on the real small model, resumed, and on an API model over HTTP."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mpf_chains import Calibration

ROOT = Path(__file__).parents[2]
SMALL = ["--entities", "ETH Zurich", "--questions", "5", "--n", "2"]


def quickstart(out, *arguments, **environment):
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            str(ROOT / "examples" / "quickstart.py"),
            "--out",
            str(out),
            *SMALL,
            *arguments,
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def check(out, printed, stem):
    assert (out / f"{stem}.png").read_bytes().startswith(b"\x89PNG")
    for mode in ("sampled", "aggregated"):
        calibration = Calibration.load(out / f"{stem}-ours-{mode}.mpf.json")
        assert calibration.mode == mode and calibration.fits["ETH Zurich"]["gap"] <= 1e-8
        systems = calibration.validation["features"]["sentiment"]["ETH Zurich"]["systems"]
        assert set(systems) == {"normal", mode} and len(systems[mode]["scores"]) == 5
    assert "noise floor of KL" in printed and "The router, as " in printed


@pytest.mark.slow
@pytest.mark.real_model
def test_on_the_real_small_model_and_again_from_the_ledger(tmp_path):
    first = quickstart(tmp_path)
    check(tmp_path, first, "smollm2-university")
    assert "sampled: at most 35 calls to make, 0 in the ledger already" in first
    before = (tmp_path / "smollm2-university-ours-sampled.mpf.json").read_text()
    again = quickstart(tmp_path)
    assert "sampled: at most 5 calls to make, 25 in the ledger already" in again  # which 5 is for the weights to tell
    after = (tmp_path / "smollm2-university-ours-sampled.mpf.json").read_text()
    assert json.loads(before)["body"] == json.loads(after)["body"]


class _Chat(BaseHTTPRequestHandler):
    """As much of an OpenAI-compatible server as a chat call needs: its tone follows the system message."""

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(request)
        system = next((m["content"] for m in request["messages"] if m["role"] == "system"), "")
        text = (
            "It is excellent, wonderful and loved." if "optimist" in system else "It is poor, and many people suffer."
        )
        body = {
            "id": "1", "object": "chat.completion", "created": 0, "model": request["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
            "usage": {"prompt_tokens": 9, "completion_tokens": 7, "total_tokens": 16},
        }  # fmt: skip
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.mark.slow
def test_on_an_api_model_over_http(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Chat)
    server.requests = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        key = "canary-key-that-must-not-be-written"
        printed = quickstart(
            tmp_path, "--model", "openai:gpt-test",
            OPENAI_BASE_URL=f"http://127.0.0.1:{server.server_port}/v1", OPENAI_API_KEY=key,
        )  # fmt: skip
    finally:
        server.shutdown()
        server.server_close()
    check(tmp_path, printed, "openai-gpt-test-university")
    assert {request["model"] for request in server.requests} == {"gpt-test"}
    assert all("seed" in request for request in server.requests[:25])
    assert not any(key.encode() in path.read_bytes() for path in tmp_path.iterdir())
