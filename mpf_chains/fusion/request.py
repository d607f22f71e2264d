"""What the router and the fusion share: their fields, how a request is keyed and drawn, and batches."""

from __future__ import annotations

import asyncio
import threading
import warnings
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, AnyMessage, BaseMessage, HumanMessage
from langchain_core.messages.utils import convert_to_messages
from langchain_core.prompt_values import ChatPromptValueConcrete, PromptValue, StringPromptValue
from langchain_core.runnables import Runnable, RunnableConfig, RunnableSerializable, ensure_config, patch_config
from langchain_core.runnables.config import get_config_list
from langchain_core.utils.uuid import uuid7
from pydantic import ConfigDict, Field, InstanceOf

from mpf_chains.artifact import Calibration, Fallback, Mode, Weights, WeightsLike
from mpf_chains.core.sampling import IIDSampler, QuotaSampler, Sampler
from mpf_chains.errors import DataWarning, GenerationError, InvalidInput, WeightsError
from mpf_chains.perspectives import Perspective, PerspectiveSet, Position

Limit = threading.Semaphore | asyncio.Semaphore


@dataclass(frozen=True)
class Request:
    """One request with its draws made.

    Args:
        key: What the draws depend on besides seed, entity and index.
        entity: Whose weights were used, or None.
        draws: The drawn perspectives' names.
        config: The caller's config; its run id is set.
        limit: Shared by the requests of one batch; held during every model call.
    """

    key: str
    entity: str | None
    draws: tuple[str, ...]
    config: RunnableConfig
    limit: Limit | None = None

    def child(self, config: RunnableConfig, call: int | str) -> RunnableConfig:
        """The config of an inner call: a nested router must not repeat this request's draw, so it gets its own key."""
        if "mpf_key" not in config.get("configurable", {}):
            return config
        return patch_config(config, configurable={"mpf_key": f"{self.key}/{call}"})


@dataclass(frozen=True)
class _Planned:
    """An item of a batch on its way to ``invoke``: its draws are made already, or failed."""

    raw: LanguageModelInput
    request: Request | Exception


class PerspectiveRunnable(RunnableSerializable[LanguageModelInput, AIMessage]):
    """Base of :class:`PerspectiveRouter` and :class:`PerspectiveFusion`: see there."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    _mode: ClassVar[Mode]

    model: InstanceOf[Runnable[Any, Any]]
    perspectives: InstanceOf[PerspectiveSet]
    weights: InstanceOf[Weights]
    entity: str | Callable[[Any], str | None] | None = None
    fallback: Fallback = "error"
    position: Position = "before"
    seed: int | None = None
    sampler: InstanceOf[Sampler] = Field(default_factory=IIDSampler)

    def __init__(
        self,
        *,
        model: Runnable[Any, Any],
        weights: WeightsLike,
        perspectives: PerspectiveSet | Sequence[Perspective] | None = None,
        sampler: Literal["iid", "quota"] | Sampler = "iid",
        seed: int | None = None,
        **fields: Any,
    ) -> None:
        # Here and not in validators, so that callers get our errors and not pydantic's wrapping of them.
        if perspectives is None:
            if not isinstance(weights, Calibration):
                raise InvalidInput("`perspectives` are missing; only a Calibration as `weights` brings its own.")
            perspectives = weights.perspectives
        if not isinstance(perspectives, PerspectiveSet):
            perspectives = PerspectiveSet(perspectives)
        checked = Weights.of(weights, perspectives)
        if isinstance(weights, Calibration) and weights.mode != self._mode:
            warnings.warn(
                f"{type(self).__name__} answers in {self._mode} mode; its weights were calibrated for "
                f'{weights.mode} mode and may do worse. Calibrate with mode="{self._mode}".',
                DataWarning,
                stacklevel=2,
            )
        if fields.get("fallback") == "pooled" and checked.pooled is None:
            raise WeightsError('fallback="pooled" needs pooled weights, and `weights` have none.')
        fields |= {"model": model, "perspectives": perspectives, "weights": checked}
        fields |= {"seed": seed, "sampler": _resolve(sampler, seed)}
        super().__init__(**fields)

    @property
    def InputType(self) -> Any:  # noqa: N802
        """What a chat model takes."""
        return str | StringPromptValue | ChatPromptValueConcrete | list[AnyMessage]

    @property
    def OutputType(self) -> type[AIMessage]:  # noqa: N802
        """A message."""
        return AIMessage

    @property
    def _draws(self) -> int:
        """How many perspectives a request draws."""
        return 1

    @abstractmethod
    def _answer(self, raw: Any, config: RunnableConfig, *, request: Request, options: dict[str, Any]) -> AIMessage: ...

    @abstractmethod
    async def _aanswer(
        self, raw: Any, config: RunnableConfig, *, request: Request, options: dict[str, Any]
    ) -> AIMessage: ...

    @abstractmethod
    def _stream_answer(
        self, inputs: Iterator[Any], config: RunnableConfig, *, request: Request, options: dict[str, Any]
    ) -> Iterator[AIMessage]: ...

    @abstractmethod
    def _astream_answer(
        self, inputs: AsyncIterator[Any], config: RunnableConfig, *, request: Request, options: dict[str, Any]
    ) -> AsyncIterator[AIMessage]: ...

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
        raw, request = self._taken(input, config)
        return self._call_with_config(self._answer, raw, request.config, request=request, options=kwargs)  # type: ignore[arg-type]

    async def ainvoke(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """Async twin of :meth:`invoke`."""
        raw, request = self._taken(input, config)
        return await self._acall_with_config(
            self._aanswer,  # type: ignore[arg-type]
            raw,
            request.config,
            request=request,
            options=kwargs,
        )

    def stream(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessage]:
        """Answer one request in chunks, exactly one of which carries ``response_metadata["mpf"]``."""
        raw, request = self._taken(input, config)
        yield from self._transform_stream_with_config(
            iter([raw]),
            self._stream_answer,  # type: ignore[arg-type]
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
        raw, request = self._taken(input, config)

        async def inputs() -> AsyncIterator[LanguageModelInput]:
            yield raw

        async for chunk in self._atransform_stream_with_config(
            inputs(),
            self._astream_answer,  # type: ignore[arg-type]
            request.config,
            request=request,
            options=kwargs,
        ):
            yield chunk

    def batch(self, inputs: list[Any], config: Any = None, *, return_exceptions: bool = False, **kwargs: Any) -> Any:
        """Answer many requests in threads. All draws are made first, in order, in the calling thread.

        ``max_concurrency`` in the config bounds the model calls in flight over the whole batch. Items that share
        one "mpf_key" get different draws: the key of the second is ``"<key>#1"``, and so on.
        """
        planned, configs = self._plan(inputs, config, threading.Semaphore)
        return super().batch(planned, configs, return_exceptions=return_exceptions, **kwargs)

    async def abatch(
        self, inputs: list[Any], config: Any = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> Any:
        """Async twin of :meth:`batch`."""
        planned, configs = self._plan(inputs, config, asyncio.Semaphore)
        return await super().abatch(planned, configs, return_exceptions=return_exceptions, **kwargs)

    def batch_as_completed(
        self, inputs: Sequence[Any], config: Any = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> Iterator[tuple[int, Any]]:
        """Like :meth:`batch`, yielding (index, answer) as they come."""
        planned, configs = self._plan(inputs, config, threading.Semaphore)
        flag: Any = return_exceptions
        yield from super().batch_as_completed(planned, configs, return_exceptions=flag, **kwargs)

    async def abatch_as_completed(
        self, inputs: Sequence[Any], config: Any = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> AsyncIterator[tuple[int, Any]]:
        """Async twin of :meth:`batch_as_completed`."""
        planned, configs = self._plan(inputs, config, asyncio.Semaphore)
        flag: Any = return_exceptions
        async for item in super().abatch_as_completed(planned, configs, return_exceptions=flag, **kwargs):
            yield item

    def _taken(self, given: Any, config: RunnableConfig | None) -> tuple[LanguageModelInput, Request]:
        """The input and its request: drawn now, or by the batch it came in."""
        if not isinstance(given, _Planned):
            return given, self._request(given, ensure_config(config))
        if isinstance(given.request, Exception):
            raise given.request
        return given.raw, given.request

    def _plan(
        self, inputs: Sequence[Any], config: Any, semaphore: Callable[[int], Limit]
    ) -> tuple[list[Any], list[RunnableConfig]]:
        configs = get_config_list(config, len(inputs))
        most = configs[0].get("max_concurrency") if configs else None
        limit = semaphore(most) if most else None
        seen: dict[object, int] = {}
        planned = []
        for item, own in zip(inputs, configs, strict=True):
            key = own.get("configurable", {}).get("mpf_key")
            seen[key] = seen.get(key, -1) + 1
            try:
                planned.append(_Planned(item, self._request(item, own, seen[key], limit)))
            except Exception as error:  # belongs to this item, not to the batch
                planned.append(_Planned(item, error))
        return planned, configs

    def _request(self, raw: Any, config: RunnableConfig, repeat: int = 0, limit: Limit | None = None) -> Request:
        configurable = config.get("configurable", {})
        config["run_id"] = run_id = config.get("run_id") or uuid7()
        key = str(run_id)
        if configurable.get("mpf_key") is not None:
            key = f"{configurable['mpf_key']}#{repeat}" if repeat else str(configurable["mpf_key"])
        entity = configurable.get("mpf_entity")
        if entity is None:
            entity = self.entity(raw) if callable(self.entity) else self.entity
        if entity is not None and not isinstance(entity, str):
            raise InvalidInput(f"The entity is {entity!r}; it must be text or None.")
        weights = self.weights.lookup(entity, self.fallback)
        group = entity or ""
        if isinstance(self.sampler, QuotaSampler) and self.seed not in (None, self.sampler.seed):
            group = f"{group} (seed {self.seed})"  # one sampler keeps the counts of every configured seed
        draws = tuple(self.sampler.draw(weights, key=key, index=index, entity=group) for index in range(self._draws))
        return Request(key, entity, draws, config, limit)

    def _record(self, mode: str, request: Request, drawn: dict[str, Any]) -> dict[str, Any]:
        return {
            "mode": mode,
            **drawn,
            "entity": request.entity,
            "key": request.key,
            "weights_version": self.weights.version,
        }


def to_messages(value: LanguageModelInput) -> list[BaseMessage]:
    """The conversation in anything that a chat model takes.

    Raises:
        InvalidInput: If it is something else.
    """
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


def tagged(message: AIMessage, record: dict[str, Any]) -> AIMessage:
    """A copy of the message with the record under ``response_metadata["mpf"]``; the model may share its messages."""
    return message.model_copy(update={"response_metadata": {**message.response_metadata, "mpf": record}})


def _resolve(sampler: str | Sampler, seed: int | None) -> Sampler:
    if sampler == "iid" or (isinstance(sampler, IIDSampler) and seed is not None):
        return IIDSampler(seed or 0)
    if sampler == "quota":
        return QuotaSampler(seed or 0)
    if isinstance(sampler, str) or not isinstance(sampler, Sampler):
        raise InvalidInput(f'`sampler` is {sampler!r}; it must be "iid", "quota" or an object with a draw method.')
    if seed is not None and not isinstance(sampler, QuotaSampler):
        raise InvalidInput("`seed` is for the named samplers; a sampler of your own brings its seed.")
    return sampler
