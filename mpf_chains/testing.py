"""Fake chat models for tests: no network, no waiting, the same answers in every run.

>>> from mpf_chains import testing
>>> testing.BiasedChatModel().invoke([("system", "You are a realist."), ("human", "Q?")]).text != ""
True
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, SystemMessage, ToolCallChunk
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import Field, PrivateAttr, SkipValidation

ANSWERS: Mapping[str, Sequence[str]] = {
    "an optimist": ("It is excellent, and people love it.", "A wonderful place with great success."),
    "a realist": ("It has about ten thousand members.", "Some parts work well and some do not."),
    "an empathetic": ("People there feel hopeful, though some are tired.", "Many are proud to belong."),
    "a cautious": ("There are risks, and caution is wise.", "It is uncertain whether this lasts."),
    "a harsh critic": ("It is a terrible failure with awful flaws.", "The results are poor and weak."),
}
"""Default answers of :class:`BiasedChatModel`, for the built-in perspectives "mpf"."""


class _ScriptedChatModel(BaseChatModel):
    """A chat model that answers `_reply(messages)`, whole or word by word."""

    temperature: float | None = None
    model_name: str = "fake"

    @property
    def _llm_type(self) -> str:
        return "mpf-testing"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model_name": self.model_name, "temperature": self.temperature}

    def _reply(self, messages: Sequence[BaseMessage]) -> str | AIMessage:
        raise NotImplementedError

    def _message(self, messages: Sequence[BaseMessage]) -> AIMessage:
        reply = self._reply(messages)
        message = reply if isinstance(reply, AIMessage) else AIMessage(reply)
        read, written = sum(len(m.text.split()) for m in messages), len(message.text.split())
        usage = UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)
        metadata = {"model_name": self.model_name, **message.response_metadata}
        return message.model_copy(update={"usage_metadata": usage, "response_metadata": metadata})

    def bind_tools(
        self, tools: Sequence[Any], *, tool_choice: Any = None, **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Offer tools; whether they are called is up to the script."""
        choice = {} if tool_choice is None else {"tool_choice": tool_choice}
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], **choice, **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,  # noqa: ARG002
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._message(messages))])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> ChatResult:
        return self._generate(messages, stop, None, **kwargs)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,  # noqa: ARG002
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,  # noqa: ARG002
    ) -> Iterator[ChatGenerationChunk]:
        for chunk in _words(self._message(messages)):
            if run_manager is not None:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,  # noqa: ARG002
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,  # noqa: ARG002
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in _words(self._message(messages)):
            if run_manager is not None:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk


class BiasedChatModel(_ScriptedChatModel):
    """Answers in the tone of the instruction it finds in the system message.

    The answer is one of those planted for the first key found there, chosen by a hash of seed and prompt: equal
    prompts get equal answers. Without such a key, planted answers that occur in the prompt are repeated, each once
    (so a merging call gives a merge); else the default.

    Args:
        answers: Part of an instruction → answers. Default: answers for the built-in perspectives "mpf".
        default: Answer when nothing else applies. Default "It depends."
        seed: Changes the choice. Default 0.
        temperature: What the model says its temperature is. Default None (unknown).
        model_name: Reported in response metadata. Default "fake".
    """

    answers: Mapping[str, Sequence[str]] = Field(default_factory=lambda: ANSWERS)
    default: str = "It depends."
    seed: int = 0

    @property
    def _identifying_params(self) -> dict[str, Any]:
        planted = {part: list(answers) for part, answers in self.answers.items()}
        return {**super()._identifying_params, "seed": self.seed, "answers": planted}

    def _reply(self, messages: Sequence[BaseMessage]) -> str:
        system = "\n".join(message.text for message in messages if isinstance(message, SystemMessage))
        prompt = "\n".join(f"{message.type}: {message.text}" for message in messages)
        for part, answers in self.answers.items():
            if part in system:
                digest = hashlib.sha256(f"{self.seed}\n{prompt}".encode()).digest()
                return answers[int.from_bytes(digest[:8], "big") % len(answers)]
        seen = [answer for answers in self.answers.values() for answer in answers if answer in prompt]
        return " ".join(sorted(seen, key=prompt.index)) or self.default


class FaultyChatModel(_ScriptedChatModel):
    """Follows a script of answers and exceptions, one per call.

    Args:
        script: What each call gives, in order: text, an AIMessage, or an exception to raise. Default none.
        failing: Part of a prompt → exception raised by every call whose prompt has it; such calls do not use up the
            script. Default none.
        default: Answer once the script is used up. Default "ok".
    """

    script: SkipValidation[Sequence[str | AIMessage | Exception]] = ()
    failing: SkipValidation[Mapping[str, Exception]] = Field(default_factory=dict)
    default: str = "ok"
    _left: deque[str | AIMessage | Exception] = PrivateAttr(default_factory=deque)

    def model_post_init(self, context: Any, /) -> None:
        """Start the script."""
        super().model_post_init(context)
        self._left = deque(self.script)

    def _reply(self, messages: Sequence[BaseMessage]) -> str | AIMessage:
        prompt = "\n".join(message.text for message in messages)
        for part, error in self.failing.items():
            if part in prompt:
                raise error
        try:
            step = self._left.popleft()  # atomic, so threads share one script
        except IndexError:
            return self.default
        if isinstance(step, Exception):
            raise step
        return step


def _words(message: AIMessage) -> Iterator[ChatGenerationChunk]:
    """The message in pieces; the last one carries tool calls, usage and metadata."""
    for word in re.findall(r"\s*\S+|\s+$", message.text):
        yield ChatGenerationChunk(message=AIMessageChunk(content=word))
    calls = [
        ToolCallChunk(name=call["name"], args=json.dumps(call["args"]), id=call["id"], index=index)
        for index, call in enumerate(message.tool_calls)
    ]
    last = AIMessageChunk(
        content="",
        tool_call_chunks=calls,
        usage_metadata=message.usage_metadata,
        response_metadata=message.response_metadata,
        chunk_position="last",
    )
    yield ChatGenerationChunk(message=last)
