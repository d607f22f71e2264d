"""LangChain's standard unit tests for chat models."""

from typing import Any

import pytest
from langchain_tests.unit_tests import ChatModelUnitTests

from mpf_chains.local import ChatTransformers


class TestChatTransformersStandard(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[ChatTransformers]:
        return ChatTransformers

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "smollm2"}


def test_importing_and_constructing_loads_no_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from mpf_chains.local import ChatTransformers; ChatTransformers(model='smollm2'); "
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_misspelt_fields_are_refused() -> None:
    with pytest.raises(ValueError, match="temprature"):
        ChatTransformers(model="smollm2", temprature=1)
