"""What the router and the fusion share: every way to call a Runnable, and the call under one perspective."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage
from langchain_core.prompt_values import ChatPromptValueConcrete, StringPromptValue
from langchain_core.runnables import Runnable, RunnableConfig, RunnableSerializable, ensure_config
from langchain_core.runnables.config import get_config_list
from langchain_core.utils.uuid import uuid7
from pydantic import ConfigDict, InstanceOf

from mpf_chains.fusion.request import (
    BatchItem,
    Limit,
    Request,
    RequestPlan,
    closed_after,
    held,
    tagged,
    to_chunk,
    to_message,
    to_messages,
)
from mpf_chains.fusion.settings import Settings


class DrawnBatches(Runnable[LanguageModelInput, AIMessage]):
    """The four ways to call a Runnable on many inputs, with the draws made in the inputs' order.

    ``max_concurrency`` in the config bounds the model calls in flight over the whole batch. Items that share one
    "mpf_key" get different draws: the key of the second is ``"<key>#1"``, and so on. (Not where the Runnable was made
    by ``configurable_fields`` and the config sets a field: LangChain then calls it once per item.)
    """

    def _frozen(self) -> Any:
        raise NotImplementedError

    @property
    def _fans_out(self) -> bool:
        """Whether one request may make several calls at a time."""
        return False

    def _prepare(
        self,
        raw: Any,
        config: RunnableConfig,
        options: Mapping[str, Any],
        repeat: int = 0,
        limit: Limit | None = None,
    ) -> Request:
        raise NotImplementedError

    def _taken(
        self, given: Any, config: RunnableConfig | None, options: Mapping[str, Any]
    ) -> tuple[LanguageModelInput, Request]:
        """The input and its request: drawn now, or by the batch it came in."""
        if not isinstance(given, BatchItem):
            return given, self._prepare(given, ensure_config(config), options)
        if given.request is None:
            return given.raw, self._prepare(given.raw, ensure_config(config), options, given.repeat, given.limit)
        if isinstance(given.request, Exception):
            raise given.request
        return given.raw, given.request

    def _items(self, inputs: Sequence[Any], config: Any, semaphore: Callable[[int], Limit]) -> list[Any]:
        """The items of a batch. In one event loop they draw when they start, which is in order."""
        several = config if isinstance(config, Sequence) else [config] if inputs else []
        configs = [ensure_config(each) for each in several]
        keys = [each.get("configurable", {}).get("mpf_key") for each in configs]
        most = configs[0].get("max_concurrency") if configs and self._fans_out else None
        if most is None and keys.count(None) == len(keys):
            return list(inputs)  # nothing to tell
        limit = semaphore(most) if most else None
        seen: Counter[object] = Counter()
        items = []
        for number, raw in enumerate(inputs):
            key = keys[min(number, len(keys) - 1)]
            items.append(BatchItem(raw, seen[key], limit))
            seen[key] += 1
        return items

    def _drawn_items(
        self, inputs: Sequence[Any], config: Any, options: Mapping[str, Any]
    ) -> tuple[list[Any], list[RunnableConfig]]:
        """The items of a batch with all draws made: threads would make them in another order each time."""
        configs = get_config_list(config, len(inputs))
        items = []
        for given, own in zip(self._items(inputs, configs, threading.Semaphore), configs, strict=True):
            item = given if isinstance(given, BatchItem) else BatchItem(given, 0, None)
            request: Request | Exception
            try:
                request = self._prepare(item.raw, own, options, item.repeat, item.limit)
            except Exception as error:  # belongs to this item, not to the batch
                request = error
            items.append(item._replace(request=request))
        return items, configs

    def batch(self, inputs: list[Any], config: Any = None, *, return_exceptions: bool = False, **kwargs: Any) -> Any:
        """Answer many requests in threads."""
        serving = self._frozen()
        items, configs = serving._drawn_items(inputs, config, kwargs)
        return super(DrawnBatches, serving).batch(items, configs, return_exceptions=return_exceptions, **kwargs)

    async def abatch(
        self, inputs: list[Any], config: Any = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> Any:
        """Async twin of :meth:`batch`."""
        serving = self._frozen()
        items = serving._items(inputs, config, asyncio.Semaphore)
        return await super(DrawnBatches, serving).abatch(items, config, return_exceptions=return_exceptions, **kwargs)

    def batch_as_completed(
        self, inputs: Sequence[Any], config: Any = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> Iterator[tuple[int, Any]]:
        """Like :meth:`batch`, yielding (index, answer) as they come."""
        serving = self._frozen()
        items, configs = serving._drawn_items(inputs, config, kwargs)
        flag: Any = return_exceptions
        yield from super(DrawnBatches, serving).batch_as_completed(items, configs, return_exceptions=flag, **kwargs)

    async def abatch_as_completed(
        self, inputs: Sequence[Any], config: Any = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> AsyncIterator[tuple[int, Any]]:
        """Async twin of :meth:`batch_as_completed`."""
        serving = self._frozen()
        items = serving._items(inputs, config, asyncio.Semaphore)
        flag: Any = return_exceptions
        async for item in super(DrawnBatches, serving).abatch_as_completed(
            items, config, return_exceptions=flag, **kwargs
        ):
            yield item


class PerspectiveRunnable(Settings, DrawnBatches, RunnableSerializable[LanguageModelInput, AIMessage]):
    """Base of :class:`PerspectiveRouter` and :class:`PerspectiveFusion`: see there."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    model: InstanceOf[Runnable[Any, Any]]

    def __repr_args__(self) -> Any:
        # Tracers store it, and the model inside may hold headers and keys: its class is enough.
        version = self.weights.version
        return [("model", type(self.model).__name__), ("perspectives", self.perspectives.names), ("weights", version)]

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """What decides answers, as chat models say it: names this Runnable in ledgers."""
        return self._drawing(self.model, self._policy)

    @property
    def InputType(self) -> Any:  # noqa: N802
        """What a chat model takes."""
        return str | StringPromptValue | ChatPromptValueConcrete | list[AnyMessage]

    @property
    def OutputType(self) -> type[AIMessage]:  # noqa: N802
        """A message."""
        return AIMessage

    def plan(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> RequestPlan:  # noqa: A002
        """What :meth:`invoke` would do, without doing it; nothing is counted by a quota sampler.

        Args:
            input: As for :meth:`invoke`.
            config: As for :meth:`invoke`.
            kwargs: As for :meth:`invoke`.

        Returns:
            The calls it takes, the perspectives, the prompts, and the config to pass on so that the same ones are
            drawn.
        """
        rehearsal = self.model_copy()
        rehearsal._settle(self._policy.rehearsed())
        config = ensure_config(config)
        request = rehearsal._prepare(input, config, kwargs)
        prompts, merge = self._prompts(request, to_messages(input), kwargs)
        return RequestPlan(len(prompts) + merge, merge, tuple(request.draw.names), prompts, config)

    def _prompts(
        self, request: Request, messages: list[BaseMessage], options: dict[str, Any]
    ) -> tuple[tuple[list[BaseMessage], ...], bool]:
        """The conversations that answer a request, and whether their answers are merged."""
        return (self._conditioned(messages, request, options)[0],), False

    def _draws(self, options: Mapping[str, Any]) -> tuple[int, bool]:  # noqa: ARG002
        """How many perspectives a request draws, and whether that is so because it has tools."""
        return 1, False

    def _record(self, request: Request) -> dict[str, Any]:
        """What is known of a request that one call answers."""
        return request.draw.record("sampled")

    def _prepare(
        self,
        raw: Any,
        config: RunnableConfig,
        options: Mapping[str, Any],
        repeat: int = 0,
        limit: Limit | None = None,
    ) -> Request:
        configurable = config.get("configurable", {})
        config["run_id"] = run_id = config.get("run_id") or uuid7()
        policy = self._policy
        key = policy.key(configurable, run_id)
        if repeat and "mpf_key" in configurable:
            key = f"{key}#{repeat}"
        n, tools = self._draws(options)
        return Request(policy.draw(lambda: to_messages(raw), configurable, key, n), config, tools, limit)

    def invoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:  # noqa: A002
        """Answer one request.

        Args:
            input: Text, a prompt value or a list of messages.
            config: As for any Runnable. ``configurable`` may hold "mpf_key" and "mpf_entity".
            kwargs: Passed to the model call.

        Returns:
            The answer, with ``response_metadata["mpf"]``.

        Raises:
            WeightsError: If there are no weights for the entity and ``fallback`` is "error".
        """
        serving = self._frozen()
        raw, request = serving._taken(input, config, kwargs)
        answer: AIMessage = serving._call_with_config(
            serving._answer, raw, request.config, request=request, options=kwargs
        )
        return answer

    async def ainvoke(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """Async twin of :meth:`invoke`."""
        serving = self._frozen()
        raw, request = serving._taken(input, config, kwargs)
        answer: AIMessage = await serving._acall_with_config(
            serving._aanswer, raw, request.config, request=request, options=kwargs
        )
        return answer

    def stream(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessage]:
        """Answer one request in chunks, exactly one of which carries ``response_metadata["mpf"]``."""
        serving = self._frozen()
        raw, request = serving._taken(input, config, kwargs)
        yield from serving._transform_stream_with_config(
            iter([raw]),
            serving._stream_inputs,
            request.config,
            request=request,
            options=kwargs,
        )

    async def astream(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessage]:
        """Async twin of :meth:`stream`."""
        serving = self._frozen()
        raw, request = serving._taken(input, config, kwargs)

        async def inputs() -> AsyncIterator[LanguageModelInput]:
            yield raw

        chunks = serving._atransform_stream_with_config(
            inputs(),
            serving._astream_inputs,
            request.config,
            request=request,
            options=kwargs,
        )
        async with closed_after(chunks):
            async for chunk in chunks:
                yield chunk

    def _answer(self, raw: Any, config: RunnableConfig, *, request: Request, options: dict[str, Any]) -> AIMessage:
        messages, settings = self._conditioned(raw, request, options)
        with held(request):
            reply = self.model.invoke(messages, request.child(config, 0), **settings)
        return tagged(to_message(reply), self._record(request))

    async def _aanswer(
        self, raw: Any, config: RunnableConfig, *, request: Request, options: dict[str, Any]
    ) -> AIMessage:
        messages, settings = self._conditioned(raw, request, options)
        async with held(request):
            reply = await self.model.ainvoke(messages, request.child(config, 0), **settings)
        return tagged(to_message(reply), self._record(request))

    def _stream_answer(
        self, raw: Any, config: RunnableConfig, *, request: Request, options: dict[str, Any]
    ) -> Iterator[AIMessage]:
        messages, settings = self._conditioned(raw, request, options)
        first = True
        for piece in self.model.stream(messages, request.child(config, 0), **settings):
            yield tagged(to_chunk(piece), self._record(request)) if first else to_chunk(piece)
            first = False

    async def _astream_answer(
        self, raw: Any, config: RunnableConfig, *, request: Request, options: dict[str, Any]
    ) -> AsyncIterator[AIMessage]:
        messages, settings = self._conditioned(raw, request, options)
        first = True
        async with closed_after(self.model.astream(messages, request.child(config, 0), **settings)) as pieces:
            async for piece in pieces:
                yield tagged(to_chunk(piece), self._record(request)) if first else to_chunk(piece)
                first = False

    def _stream_inputs(
        self, inputs: Iterator[Any], config: RunnableConfig, *, request: Request, options: dict[str, Any]
    ) -> Iterator[AIMessage]:
        yield from self._stream_answer(next(inputs), config, request=request, options=options)

    async def _astream_inputs(
        self, inputs: AsyncIterator[Any], config: RunnableConfig, *, request: Request, options: dict[str, Any]
    ) -> AsyncIterator[AIMessage]:
        pieces = self._astream_answer(await anext(inputs), config, request=request, options=options)
        async with closed_after(pieces):
            async for piece in pieces:
                yield piece

    def _conditioned(
        self, raw: Any, request: Request, options: dict[str, Any]
    ) -> tuple[list[BaseMessage], dict[str, Any]]:
        """Messages and keyword arguments of the only call."""
        messages, perspective = to_messages(raw), request.perspective
        if perspective is None:
            return messages, options
        return perspective.condition(messages, self.position), {**options, **perspective.arguments}
