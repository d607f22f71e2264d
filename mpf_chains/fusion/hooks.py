"""A chat model's own hooks as a Runnable that opens no run.

A chat model inside a chat model must not be traced as a second LLM run: its usage would be counted twice, and an LLM
run cannot have children. Nor must fallbacks and retries around it open runs that no tracer expects there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

from langchain_core.globals import get_llm_cache
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig, RunnableSequence, RunnableSerializable, ensure_config
from langchain_core.runnables import RunnableWithFallbacks as Fallbacks
from langchain_core.runnables.base import RunnableBindingBase, RunnableParallel
from langchain_core.runnables.configurable import DynamicRunnable
from langchain_core.runnables.passthrough import RunnableAssign
from langchain_core.runnables.retry import RunnableRetry
from pydantic import InstanceOf

from mpf_chains.errors import InvalidInput
from mpf_chains.fusion.arguments import temperature_of
from mpf_chains.fusion.request import as_chunk, closed_after


class Hooks(RunnableSerializable[list[BaseMessage], AIMessage]):
    """Calls a chat model without callbacks. Its cache, rate limiter and output version are in force."""

    model: InstanceOf[BaseChatModel]
    draws: bool = False

    @property
    def temperature(self) -> float | None:
        """The model's."""
        return temperature_of(self.model)

    def _ready(
        self, messages: list[BaseMessage], config: RunnableConfig | None, kwargs: dict[str, Any]
    ) -> BaseChatModel:
        """The model, which if it draws itself does so by the config; the arguments without what is for tracers."""
        for name in ("ls_structured_output_format", "structured_output_format"):
            kwargs.pop(name, None)
        if not self.draws:
            return self.model
        model: BaseChatModel = self.model._by_config(messages, ensure_config(config), kwargs)  # type: ignore[attr-defined]
        return model

    def invoke(
        self,
        input: list[BaseMessage],  # noqa: A002
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """The model's answer."""
        model = self._ready(input, config, kwargs)
        call = model._generate if _is_plain(model, kwargs, async_api=False) else model._generate_with_cache
        return _whole(call(input, stop=stop, **kwargs))

    async def ainvoke(
        self,
        input: list[BaseMessage],  # noqa: A002
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """Async twin of :meth:`invoke`."""
        model = self._ready(input, config, kwargs)
        call = model._agenerate if _is_plain(model, kwargs, async_api=True) else model._agenerate_with_cache
        return _whole(await call(input, stop=stop, **kwargs))

    def stream(
        self,
        input: list[BaseMessage],  # noqa: A002
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessage]:
        """The model's chunks; its whole answer if it does not stream."""
        model = self._ready(input, config, kwargs)
        if not model._should_stream(async_api=False, **{**kwargs, "stream": True}):
            yield as_chunk(self.invoke(input, config, stop=stop, **kwargs))
            return
        if model.rate_limiter:
            model.rate_limiter.acquire(blocking=True)
        for piece in model._stream(input, stop=stop, **kwargs):
            yield _message(piece)

    async def astream(
        self,
        input: list[BaseMessage],  # noqa: A002
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessage]:
        """Async twin of :meth:`stream`."""
        model = self._ready(input, config, kwargs)
        if not model._should_stream(async_api=True, **{**kwargs, "stream": True}):
            yield as_chunk(await self.ainvoke(input, config, stop=stop, **kwargs))
            return
        if model.rate_limiter:
            await model.rate_limiter.aacquire(blocking=True)
        async with closed_after(model._astream(input, stop=stop, **kwargs)) as pieces:
            async for piece in pieces:
                yield _message(piece)


class Retried(RunnableSerializable[list[BaseMessage], AIMessage]):
    """Does what a `RunnableRetry` does, but opens no run. As there, streams are not retried."""

    model: InstanceOf[Runnable[Any, Any]]
    retry: InstanceOf[RunnableRetry[Any, Any]]

    @property
    def temperature(self) -> float | None:
        """The model's."""
        return temperature_of(self.model)

    def invoke(self, input: list[BaseMessage], config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:  # noqa: A002
        """The first answer that does not fail."""
        retrying = self.retry._sync_retrying(reraise=True)
        answer: AIMessage = retrying(self.model.invoke, input, config, **{**self.retry.kwargs, **kwargs})
        return answer

    async def ainvoke(self, input: list[BaseMessage], config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:  # noqa: A002
        """Async twin of :meth:`invoke`."""
        retrying = self.retry._async_retrying(reraise=True)
        answer: AIMessage = await retrying(self.model.ainvoke, input, config, **{**self.retry.kwargs, **kwargs})
        return answer

    def stream(
        self,
        input: list[BaseMessage],  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessage]:
        """The model's chunks."""
        yield from self.model.stream(input, config, **{**self.retry.kwargs, **kwargs})

    async def astream(
        self,
        input: list[BaseMessage],  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessage]:
        """Async twin of :meth:`stream`."""
        async with closed_after(self.model.astream(input, config, **{**self.retry.kwargs, **kwargs})) as pieces:
            async for piece in pieces:
                yield piece


class FirstOf(RunnableSerializable[list[BaseMessage], AIMessage]):
    """Does what a `RunnableWithFallbacks` does, but opens no run. As there, a stream that has begun has no fallback."""

    models: list[InstanceOf[Runnable[Any, Any]]]
    handled: tuple[type[BaseException], ...]

    @property
    def temperature(self) -> float | None:
        """The first model's."""
        return temperature_of(self.models[0])

    def invoke(self, input: list[BaseMessage], config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:  # noqa: A002
        """The answer of the first model that does not fail."""
        failures = []
        for model in self.models:
            try:
                answer: AIMessage = model.invoke(input, config, **kwargs)
            except self.handled as error:
                failures.append(error)
            else:
                return answer
        raise failures[0]

    async def ainvoke(self, input: list[BaseMessage], config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:  # noqa: A002
        """Async twin of :meth:`invoke`."""
        failures = []
        for model in self.models:
            try:
                answer: AIMessage = await model.ainvoke(input, config, **kwargs)
            except self.handled as error:
                failures.append(error)
            else:
                return answer
        raise failures[0]

    def stream(
        self,
        input: list[BaseMessage],  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessage]:
        """The chunks of the first model that does not fail before its first chunk."""
        failures = []
        for model in self.models:
            pieces = model.stream(input, config, **kwargs)
            try:
                first = next(pieces)
            except self.handled as error:
                failures.append(error)
            else:
                yield first
                yield from pieces
                return
        raise failures[0]

    async def astream(
        self,
        input: list[BaseMessage],  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessage]:
        """Async twin of :meth:`stream`."""
        failures = []
        for model in self.models:
            pieces = model.astream(input, config, **kwargs)
            try:
                first = await anext(pieces)
            except self.handled as error:
                failures.append(error)
            else:
                async with closed_after(pieces):
                    yield first
                    async for piece in pieces:
                        yield piece
                return
        raise failures[0]


class Chosen(RunnableSerializable[list[BaseMessage], AIMessage]):
    """A model that the config chooses (``configurable_fields``, ``init_chat_model`` without a model)."""

    model: InstanceOf[Runnable[Any, Any]]

    def _of(self, config: RunnableConfig | None) -> tuple[Runnable[Any, Any], RunnableConfig]:
        config = ensure_config(config)
        if isinstance(self.model, DynamicRunnable):
            model, config = self.model.prepare(config)
        else:
            model = self.model._model(config)  # type: ignore[attr-defined]
        return silent(model), config

    def invoke(self, input: list[BaseMessage], config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:  # noqa: A002
        """The chosen model's answer."""
        model, config = self._of(config)
        answer: AIMessage = model.invoke(input, config, **kwargs)
        return answer

    async def ainvoke(self, input: list[BaseMessage], config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:  # noqa: A002
        """Async twin of :meth:`invoke`."""
        model, config = self._of(config)
        answer: AIMessage = await model.ainvoke(input, config, **kwargs)
        return answer

    def stream(
        self,
        input: list[BaseMessage],  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessage]:
        """The chosen model's chunks."""
        model, config = self._of(config)
        yield from model.stream(input, config, **kwargs)

    async def astream(
        self,
        input: list[BaseMessage],  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessage]:
        """Async twin of :meth:`stream`."""
        model, config = self._of(config)
        async with closed_after(model.astream(input, config, **kwargs)) as pieces:
            async for piece in pieces:
                yield piece


def silent(model: Runnable[Any, Any]) -> Runnable[Any, Any]:
    """The model with every chat model in it called through its hooks.

    Raises:
        InvalidInput: If it is no chat model, nor one with bindings, retries, fallbacks or configurable parts.
    """
    if isinstance(model, BaseChatModel):
        return Hooks(model=model, draws=hasattr(model, "_by_config"))
    if isinstance(model, RunnableRetry):
        return Retried(model=silent(model.bound), retry=model)
    if isinstance(model, RunnableBindingBase):
        return model.model_copy(update={"bound": silent(model.bound)})
    if isinstance(model, Fallbacks):
        return FirstOf(models=[silent(each) for each in model.runnables], handled=tuple(model.exceptions_to_handle))
    if isinstance(model, DynamicRunnable) or _is_configurable(model):
        return Chosen(model=model)
    raise InvalidInput(
        f"`model` is a {type(model).__name__}; ChatMPF needs a chat model, alone or with bindings, retries, fallbacks "
        f"or configurable parts.",
        hint="Around a whole chain, use PerspectiveRouter or PerspectiveFusion.",
    )


def is_chat_model(model: object) -> bool:
    """Whether :func:`silent` takes it."""
    if isinstance(model, RunnableBindingBase):
        return is_chat_model(model.bound)
    return isinstance(model, BaseChatModel | Fallbacks | DynamicRunnable) or _is_configurable(model)


def leaf_of(model: Runnable[Any, Any]) -> Runnable[Any, Any]:
    """What bindings and retries are around."""
    return leaf_of(model.bound) if isinstance(model, RunnableBindingBase) else model


def chat_model_of(model: Runnable[Any, Any]) -> BaseChatModel | None:
    """The chat model that answers first, or None where the config chooses it."""
    model = leaf_of(model)
    if isinstance(model, Fallbacks):
        return chat_model_of(model.runnable)
    if isinstance(model, DynamicRunnable):
        return chat_model_of(model.default)
    return model if isinstance(model, BaseChatModel) else None


def replaced(
    chain: Runnable[Any, Any],
    replacement: Callable[[Runnable[Any, Any]], Runnable[Any, Any] | None],
) -> Runnable[Any, Any]:
    """A copy of a chain in which parts have others in their place.

    Args:
        chain: Built from LangChain's sequences, parallels, bindings and fallbacks.
        replacement: Part → what takes its place, or None to look inside it.
    """
    new = replacement(chain)
    if new is not None:
        return new
    if isinstance(chain, RunnableSequence):
        return RunnableSequence(*(replaced(step, replacement) for step in chain.steps), name=chain.name)
    if isinstance(chain, RunnableAssign):
        return RunnableAssign(mapper=replaced(chain.mapper, replacement))  # type: ignore[arg-type]
    if isinstance(chain, RunnableParallel):
        steps: Mapping[str, Any] = chain.steps__
        return RunnableParallel({name: replaced(step, replacement) for name, step in steps.items()})
    if isinstance(chain, RunnableBindingBase):
        return chain.model_copy(update={"bound": replaced(chain.bound, replacement)})
    if isinstance(chain, Fallbacks):
        update = {
            "runnable": replaced(chain.runnable, replacement),
            "fallbacks": [replaced(each, replacement) for each in chain.fallbacks],
        }
        return chain.model_copy(update=update)
    return chain


def _is_configurable(model: object) -> bool:
    """Whether it is what ``init_chat_model`` returns for a model that the config chooses: langchain's own, private."""
    return callable(getattr(type(model), "_model", None)) and hasattr(model, "_queued_declarative_operations")


def _is_plain(model: BaseChatModel, kwargs: dict[str, Any], *, async_api: bool) -> bool:
    """Whether a call is nothing but the hook, so that the detour, which costs twice as much, can be saved."""
    uncached = model.cache is False or (model.cache is None and get_llm_cache() is None)
    usual = model.rate_limiter is None and model.output_version != "v1"
    return uncached and usual and not model._should_stream(async_api=async_api, **kwargs)


def _whole(result: ChatResult) -> AIMessage:
    """The answer of a call, with what the provider says about the call in its metadata."""
    message = _message(result.generations[0])
    if not result.llm_output or len(result.generations) > 1:
        return message
    metadata = {**result.llm_output, **message.response_metadata}
    return message.model_copy(update={"response_metadata": metadata})


def _message(generation: Any) -> AIMessage:
    """A generation's message with the generation's own information in its metadata."""
    message: BaseMessage = generation.message
    if not isinstance(message, AIMessage):
        raise InvalidInput(f"The chat model returned a {type(message).__name__}; it must return an AI message.")
    if not generation.generation_info:
        return message
    if isinstance(generation, ChatGenerationChunk) and not isinstance(message, AIMessageChunk):
        message = as_chunk(message)
    metadata = {**generation.generation_info, **message.response_metadata}
    return message.model_copy(update={"response_metadata": metadata})
