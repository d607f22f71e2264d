"""LangChain's standard unit tests for every chat model of the package."""

from __future__ import annotations

from typing import Any

from langchain_openai import ChatOpenAI
from langchain_tests.unit_tests import ChatModelUnitTests

from mpf_chains.fusion import ChatMPF
from mpf_chains.local import ChatTransformers, ExpertPair
from mpf_chains.perspectives import Perspective


class TestChatTransformers(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[ChatTransformers]:
        return ChatTransformers

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "smollm2"}


class TestChatTransformersWithExperts(TestChatTransformers):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        pair = ExpertPair("gender", "some/expert", "some/anti-expert", "smollm2")
        return {"model": "smollm2", "experts": [pair], "alphas": {"gender": 0.5}, "filter": "base_first"}


class _ChatMPFTests(ChatModelUnitTests):
    """Around a model with tools and structured output, so that no test passes by doing nothing."""

    mode: str

    @property
    def chat_model_class(self) -> type[ChatMPF]:
        return ChatMPF

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        params = super().standard_chat_model_params
        del params["api_key"]  # it belongs to the model inside
        return params

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": ChatOpenAI(model="gpt-4.1-mini", api_key="test"),
            "mode": self.mode,
            "perspectives": [Perspective("fan", "Praise it."), Perspective("critic", "Doubt it.")],
            "weights": {"fan": 0.5, "critic": 0.5},
        }


class TestChatMPFSampled(_ChatMPFTests):
    mode = "sampled"


class TestChatMPFAggregated(_ChatMPFTests):
    mode = "aggregated"
