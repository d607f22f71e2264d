"""A request on its way through a Runnable, and conversions between what models take and give."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.messages.utils import convert_to_messages
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import RunnableConfig, patch_config

from mpf_chains.errors import GenerationError, InvalidInput
from mpf_chains.fusion.policy import Draw
from mpf_chains.perspectives import Perspective

Limit = threading.Semaphore | asyncio.Semaphore


class Request(NamedTuple):
    """One request with its draws made.

    Args:
        draw: What was drawn.
        config: The caller's config; its run id is set.
        tools: Whether the call offers tools or asks for structured output.
        limit: Shared by the requests of one batch; held during every model call.
    """

    draw: Draw
    config: RunnableConfig
    tools: bool = False
    limit: Limit | None = None

    @property
    def alone(self) -> bool:
        """Whether one model call answers it."""
        return not self.draw.steered or len(set(self.draw.names)) == 1

    @property
    def perspective(self) -> Perspective | None:
        """What conditions the only call; None for the bare model."""
        return self.draw.perspectives[0] if self.draw.steered else None

    def child(self, config: RunnableConfig, call: int | str) -> RunnableConfig:
        """The config of an inner call: a nested router must not repeat this request's draw, so it gets its own key."""
        if "mpf_key" not in config.get("configurable", {}):
            return config
        return patch_config(config, configurable={"mpf_key": f"{self.draw.key}/{call}"})


class BatchItem(NamedTuple):
    """An item of a batch on its way to ``invoke``.

    Args:
        raw: The input.
        repeat: How many items before it have the same key.
        limit: Of the batch.
        request: If its draws were made already, or failed.
    """

    raw: LanguageModelInput
    repeat: int
    limit: Limit | None
    request: Request | Exception | None = None


@dataclass(frozen=True)
class RequestPlan:
    """What answering one request will take.

    Args:
        calls: Model calls, the merging call included; exact as long as none fails.
        merge: Whether one of them merges.
        perspectives: What will be drawn (in shadow mode: and only recorded); none where ``strength`` leaves it out.
        prompts: The conversation of every call but the merging one, as the model will see it.
        config: Pass it with the request, so that this is what is drawn.
    """

    calls: int
    merge: bool
    perspectives: tuple[str, ...]
    prompts: tuple[list[BaseMessage], ...]
    config: RunnableConfig


def to_messages(value: LanguageModelInput) -> list[BaseMessage]:
    """The conversation in anything that a chat model takes.

    Raises:
        InvalidInput: If it is something else.
    """
    if type(value) is list and all(isinstance(each, BaseMessage) for each in value):
        return value
    if isinstance(value, PromptValue):
        return value.to_messages()
    if isinstance(value, str):
        return [HumanMessage(value)]
    if isinstance(value, Sequence):
        return convert_to_messages(value)
    raise InvalidInput(f"The input is a {type(value).__name__}; give text, a prompt value or a list of messages.")


def to_message(reply: object) -> AIMessage:
    """A model's reply as a message: text of plain Runnables is wrapped.

    Raises:
        GenerationError: If it is neither text nor an AI message.
    """
    if isinstance(reply, str):
        return AIMessage(reply)
    if isinstance(reply, AIMessage):
        return reply
    raise GenerationError(
        f"The model returned a {type(reply).__name__}; it must return an AI message or text.",
        hint="Put parsers and structured output after the router or fusion, not inside it.",
    )


def to_chunk(reply: object) -> AIMessage:
    """Like :func:`to_message`, for a piece of a stream."""
    return AIMessageChunk(content=reply) if isinstance(reply, str) else to_message(reply)


def as_chunk(message: AIMessage) -> AIMessageChunk:
    """A whole message as the only chunk of a stream."""
    if isinstance(message, AIMessageChunk):
        return message
    return AIMessageChunk(**{**message.__dict__, "type": "AIMessageChunk", "chunk_position": "last"})


def tagged(message: AIMessage, record: dict[str, Any]) -> AIMessage:
    """A copy of the message with the record under ``response_metadata["mpf"]``; the model may share its messages."""
    return message.model_copy(update={"response_metadata": {**message.response_metadata, "mpf": record}})


def closed_after(pieces: AsyncIterator[Any]) -> AbstractAsyncContextManager[Any]:
    """Closes a stream when its consumer stops: a generator that is only left behind is closed some time later."""
    return aclosing(pieces) if hasattr(pieces, "aclose") else nullcontext(pieces)


def held(request: Request) -> Any:
    """Holds the batch's limit, if there is one, in a ``with`` or an ``async with``."""
    return request.limit or nullcontext()
