"""A process that has used the model ends cleanly, whatever its worker thread is doing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ASK = """
from mpf_chains.local import ChatTransformers
model = ChatTransformers(model="smollm2", dtype="bfloat16", max_new_tokens=4)
print(len(model.invoke("Hello").text) > 0)
"""


@pytest.mark.slow
@pytest.mark.real_model
def test_leaving_right_after_an_answer_is_no_crash():
    """The worker is still inside torch then; unless it is waited for, most of such exits abort the process."""
    root = Path(__file__).parents[2]
    for _ in range(4):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", ASK],
            env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr[-2000:]
