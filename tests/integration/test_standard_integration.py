"""LangChain's standard integration tests against SmolLM2-135M: in this process, and behind a real HTTP server.

What they skip, and why (`pytest -ra` prints it, too):

- tool calling, tool choice, tool results in the history, agent loop, structured output, JSON mode: SmolLM2 was not
  trained for them, and its chat template ignores tools. Those of `tests/contracts/test_standard_unit.py` run, and
  `tests/local/test_tools.py` has them with models that are made to call.
- images, PDF files, audio, Anthropic's blocks for them: SmolLM2 takes text only.
- `model=` per call, except over HTTP: an instance of ChatTransformers has one set of weights.
- time of a stream from a recording: nothing is recorded; the server is real.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

from mpf_chains.fusion import ChatMPF
from mpf_chains.local import ChatTransformers, ExpertPair, smollm2_path
from mpf_chains.perspectives import Perspective

_STARTING_SECONDS = 60


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of `transformers serve`, which loads whatever model a request names."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", "--host", "127.0.0.1", "--port", port]
    with log.open("w") as output:
        process = subprocess.Popen([*command, "--device", "cpu"], stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + _STARTING_SECONDS
        while True:
            try:
                urlopen(f"http://127.0.0.1:{port}/health").close()
                break
            except URLError:
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"`transformers serve` did not start:\n{log.read_text()}")
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same weights under a second name."""
    link = tmp_path_factory.mktemp("models") / "twin"
    link.symlink_to(smollm2_path())
    return str(link)


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two small random LoRA adapters on SmolLM2, in peft's format."""
    import torch
    from safetensors.torch import save_file

    size = json.loads((smollm2_path() / "config.json").read_text())
    width, layers = size["hidden_size"], size["num_hidden_layers"]
    generator = torch.Generator().manual_seed(0)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "target_modules": ["q_proj"]}
    folders = []
    for half in ("expert", "anti_expert"):
        name = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
        shapes = {"A": (4, width), "B": (width, 4)}
        tensors = {
            name.format(i, letter): 0.02 * torch.randn(shape, generator=generator)
            for i in range(layers)
            for letter, shape in shapes.items()
        }
        folders.append(tmp_path_factory.mktemp(half))
        save_file(tensors, folders[-1] / "adapter_model.safetensors", metadata={"format": "pt"})
        (folders[-1] / "adapter_config.json").write_text(json.dumps(config))
    return folders


@pytest.mark.slow
@pytest.mark.real_model
class SmolLM2Tests(ChatModelIntegrationTests):
    """What the suites have in common: a model that was trained for plain conversation."""

    has_tool_calling: ClassVar[bool] = False
    has_structured_output: ClassVar[bool] = False
    supports_model_override: ClassVar[bool] = False


class TestChatTransformers(SmolLM2Tests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatTransformers

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "smollm2", "temperature": 0, "max_tokens": 6}


class ExpertTests(TestChatTransformers):
    """The same with experts."""

    alpha: ClassVar[float] = 0.5
    on_base: ClassVar[bool]

    @pytest.fixture(autouse=True)
    def _pair(self, adapters: list[Path], twin: str) -> None:
        small = "smollm2" if self.on_base else twin
        self.pair = ExpertPair("gender", *adapters, small, alpha=self.alpha)

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {**super().chat_model_params, "experts": self.pair}

    def test_the_experts_are_at_work(self, model: ChatTransformers) -> None:
        told = model.invoke("Who are you?").response_metadata["experts"]
        assert told["alphas"] == {"gender": self.alpha}
        assert told["decoding"]["way"] == ("lockstep" if self.on_base else "speculative")


class TestExpertsOnTheModelItself(ExpertTests):
    on_base = True


class TestExpertsOnASmallModel(ExpertTests):
    on_base = False


class ChatMPFTests(SmolLM2Tests):
    mode: ClassVar[str]

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatMPF

    @property
    def inside(self) -> BaseChatModel:
        return ChatTransformers(model="smollm2", temperature=0)

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": self.inside,
            "mode": self.mode,
            "perspectives": [
                Perspective("cheerful", "You are a cheerful assistant."),
                Perspective("curt", "You are a curt assistant."),
            ],
            "weights": {"cheerful": 0.5, "curt": 0.5},
            "sampler": "quota",  # with n = 2, both perspectives answer every request, so that there is a merge
            "n": 2,
            "merge_instruction": "Write one reply from the drafts.",  # short, for a small machine
            "max_tokens": 6,
        }

    def test_it_takes_the_calls_that_were_planned(self, model: ChatMPF) -> None:
        plan = model.plan("Hello")
        answer = model.invoke("Hello", plan.config)
        assert plan.calls == (3 if self.mode == "aggregated" else 1)
        assert answer.response_metadata["mpf"].get("calls", 1) == plan.calls
        assert answer.usage_metadata is not None
        assert answer.usage_metadata["output_tokens"] <= 6 * plan.calls


class TestChatMPFSampled(ChatMPFTests):
    mode = "sampled"


class TestChatMPFAggregated(ChatMPFTests):
    mode = "aggregated"


class OverHTTP(ChatMPFTests):
    supports_model_override = True

    @pytest.fixture(autouse=True)
    def _serve(self, server: str, twin: str) -> None:
        self.server, self.twin = server, twin

    @property
    def inside(self) -> BaseChatModel:
        # transformers 5.20, the last for Python 3.10, ignores the limit under the name that OpenAI has given it
        limit = {"max_tokens": 6}
        return ChatOpenAI(
            model=str(smollm2_path()), base_url=self.server, api_key="none", temperature=0, extra_body=limit
        )

    @property
    def model_override_value(self) -> str:
        return self.twin


class TestChatMPFSampledOverHTTP(OverHTTP):
    mode = "sampled"


class TestChatMPFAggregatedOverHTTP(OverHTTP):
    mode = "aggregated"
