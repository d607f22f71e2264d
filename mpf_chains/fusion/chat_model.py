"""`ChatMPF`: the router or the fusion as a chat model, for places that are typed so."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.caches import BaseCache
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableBinding, RunnableConfig, RunnableWithFallbacks, ensure_config
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.retry import RunnableRetry
from langchain_core.tools import BaseTool
from pydantic import ConfigDict, Field

from mpf_chains.artifact import Calibration, Mode, WeightsLike
from mpf_chains.errors import InvalidInput, NotSupportedError
from mpf_chains.fusion.aggregate import PerspectiveFusion
from mpf_chains.fusion.arguments import has_tools, without_tools
from mpf_chains.fusion.base import DrawnBatches, PerspectiveRunnable
from mpf_chains.fusion.hooks import Retried, chat_model_of, is_chat_model, leaf_of, replaced, silent
from mpf_chains.fusion.mirror import Mirror
from mpf_chains.fusion.policy import Policy
from mpf_chains.fusion.request import Limit, Request, RequestPlan, as_chunk, closed_after
from mpf_chains.fusion.router import PerspectiveRouter
from mpf_chains.fusion.settings import FusionSettings, Settings

_OF_CALLS = ("temperature", "max_tokens", "timeout")
_TAKEN_OVER = ("callbacks", "tags", "metadata", "output_version")


class ChatMPF(FusionSettings, DrawnBatches, Mirror):
    """A chat model that answers under drawn perspectives: put it where the model was, and keep the rest.

    Tracing sees one LLM run per request; its usage is that of all calls. Callbacks, tags and metadata of the model
    inside are taken over. Streaming, tools and structured output are those of the model inside. What the answer's
    ``response_metadata["mpf"]`` holds is described at :class:`~mpf_chains.fusion.router.PerspectiveRouter` (mode
    "sampled") and :class:`~mpf_chains.fusion.aggregate.PerspectiveFusion` (mode "aggregated").

    Put retries and fallbacks inside, around the model: outside, each attempt draws anew (unless the config has an
    "mpf_key"), so that perspectives under which the model fails more often would be drawn less.

    Caching is off by default, or every repetition of a prompt would repeat one draw; the model inside keeps its own.

    Args:
        model: The chat model inside: also with bindings, retries, fallbacks or configurable parts.
        mode: "sampled" or "aggregated". Default: the Calibration's, else "sampled".
        weights, perspectives, entity, fallback, position, seed, sampler, strength, shadow: As for
            :class:`~mpf_chains.fusion.router.PerspectiveRouter`.
        n, merge_instruction, merge_model, on_error, when_tools, dedupe, delimiter: As for
            :class:`~mpf_chains.fusion.aggregate.PerspectiveFusion`; for mode "aggregated".
        temperature, max_tokens, timeout, stop: Passed to every call of the model inside. Default: its own.
        max_retries: How often a failing call is tried again, each after a longer pause; streams are not. Default 0.
        streaming: Whether `invoke` uses the streaming path too. Default: as the model inside.

    Raises:
        WeightsError: If the weights are no distributions over the perspectives.
        InvalidInput: If ``model`` is no chat model.

    Examples:
        >>> from mpf_chains.perspectives import Perspective
        >>> from mpf_chains.testing import BiasedChatModel
        >>> chat = ChatMPF(
        ...     model=BiasedChatModel(answers={"Praise": ["Great."], "Doubt": ["Risky."]}),
        ...     perspectives=[Perspective("fan", "Praise it."), Perspective("critic", "Doubt it.")],
        ...     weights={"fan": 0.0, "critic": 1.0},
        ... )
        >>> chat.invoke("How is it?").text
        'Risky.'
        >>> chat.strength = 0.0  # off, while serving
        >>> chat.invoke("How is it?").text
        'It depends.'
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    mode: Mode = "sampled"
    cache: BaseCache | bool | None = Field(default=False, exclude=True)
    max_retries: int = Field(default=0, ge=0)

    if TYPE_CHECKING:  # kept in __dict__, as in Settings
        _engine: PerspectiveRunnable
        _identity: dict[str, Any]
        _request: Request | None
        _origin: ChatMPF | None
        _seen: PerspectiveRunnable | None
        _has_tools: bool

    def __init__(self, *, model: Runnable[Any, Any], weights: WeightsLike, **fields: Any) -> None:
        if not isinstance(model, Runnable):
            raise InvalidInput(
                f"`model` is a {type(model).__name__}; ChatMPF needs a chat model.",
                hint="Make one from a name with langchain.chat_models.init_chat_model.",
            )
        if isinstance(weights, Calibration):
            fields.setdefault("mode", weights.mode)
        inner = chat_model_of(model)
        if inner is not None:
            for name in _TAKEN_OVER:
                fields[name] = fields.get(name) or getattr(inner, name)
        super().__init__(**fields, model=model, weights=weights)  # type: ignore[call-arg]

    @property
    def _mode(self) -> Mode:
        return self.mode

    def _settle(self, policy: Policy) -> None:
        model = silent(self.model)
        if self.max_retries:
            retry = RunnableRetry(bound=model, kwargs={}, config={}, max_attempt_number=self.max_retries + 1)
            model = Retried(model=model, retry=retry)
        kind = PerspectiveFusion if self.mode == "aggregated" else PerspectiveRouter
        names = (FusionSettings if self.mode == "aggregated" else Settings).model_fields
        fields = {"model": model, **{name: self.__dict__[name] for name in names}}
        if self.merge_model is not None and "merge_model" in names and is_chat_model(self.merge_model):
            fields["merge_model"] = silent(without_tools(self.merge_model))
        engine = kind(**fields)
        engine._settle(policy)
        identity = self._drawing(self.model, policy) | {name: getattr(self, name) for name in (*_OF_CALLS, "stop")}
        if self.mode == "aggregated":
            identity |= self._merging(self.model)
        state: dict[str, Any] = {
            "_policy": policy,
            "_engine": engine,
            "_identity": identity,
            "_inner": chat_model_of(self.model),
        }
        state["_of_calls"] = {name: getattr(self, name) for name in _OF_CALLS if getattr(self, name) is not None}
        state |= {"_has_tools": has_tools(self.model, {}), "_request": None, "_origin": None, "_seen": None}
        self.__dict__.update(state)
        _ = self._serialized, self._ls_params  # kept in __dict__ like the rest, and renewed with it

    def __repr_args__(self) -> Any:
        return [*self._engine.__repr_args__(), ("mode", self.mode), ("model_name", self.model_name)][1:]

    def _followed(self) -> ChatMPF:
        """This model, after taking over what was assigned to the one that it was made from."""
        if self._origin is not None:
            origin = self._origin._followed()
            if origin._engine is not self._seen:
                kept = {name: self.__dict__[name] for name in ("_origin", "_has_tools")}
                fresh = origin._changed({"model": self.model}).__dict__
                self.__dict__.update({**fresh, **kept, "_seen": origin._engine})
        return self

    @property
    def _identifying_params(self) -> dict[str, Any]:
        if self._request is None:
            return dict(self._identity)
        draw = self._request.draw  # part of a cache's key, should there be a cache
        return {**self._identity, "weights_version": draw.version, "entity": draw.entity, "perspective": draw.names}

    def plan(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> RequestPlan:  # noqa: A002
        """What :meth:`invoke` would do, without doing it: see :meth:`PerspectiveRunnable.plan`.

        Bound arguments are not seen here: pass them, such as ``tools=[...]``.
        """
        offered = {"tools": True} if self._has_tools else {}
        return self._followed()._engine.plan(input, config, **{**self._of_calls, **offered, **kwargs})

    @property
    def _fans_out(self) -> bool:
        return self._engine._fans_out

    # --- drawing: before the run starts, because hooks do not see the config ---

    def _prepare(
        self,
        raw: Any,
        config: RunnableConfig,
        options: Mapping[str, Any],
        repeat: int = 0,
        limit: Limit | None = None,
    ) -> Request:
        if self._has_tools:
            options = {**options, "tools": True}
        return self._engine._prepare(raw, config, options, repeat, limit)

    def _by_config(self, messages: list[BaseMessage], config: RunnableConfig, kwargs: dict[str, Any]) -> ChatMPF:
        """What :class:`~mpf_chains.fusion.hooks.Hooks` calls where this model is inside another one."""
        return self._begun(messages, config, kwargs)[0]

    def _frozen(self) -> Any:
        self._followed()
        return super()._frozen()

    def _begun(self, given: Any, config: RunnableConfig | None, options: Mapping[str, Any]) -> tuple[ChatMPF, Any, Any]:
        """This model for one request, with its draw and settings that no assignment changes; the input; the config."""
        serving: ChatMPF = self._frozen()
        raw, request = serving._taken(given, config, options)
        serving.__dict__["_request"] = request
        return serving, raw, request.config

    def invoke(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """Answer one request: see :meth:`PerspectiveRunnable.invoke`."""
        if self._request is not None:
            return super().invoke(input, config, stop=stop, **kwargs)
        serving, raw, config = self._begun(input, config, kwargs)
        return super(ChatMPF, serving).invoke(raw, config, stop=stop, **kwargs)

    async def ainvoke(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """Async twin of :meth:`invoke`."""
        if self._request is not None:
            return await super().ainvoke(input, config, stop=stop, **kwargs)
        serving, raw, config = self._begun(input, config, kwargs)
        return await super(ChatMPF, serving).ainvoke(raw, config, stop=stop, **kwargs)

    def stream(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        """Answer one request in chunks, exactly one of which carries ``response_metadata["mpf"]``."""
        if self._request is not None:
            yield from super().stream(input, config, stop=stop, **kwargs)
            return
        serving, raw, config = self._begun(input, config, kwargs)
        yield from serving.stream(raw, config, stop=stop, **kwargs)

    async def astream(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        """Async twin of :meth:`stream`."""
        serving = self
        if self._request is None:
            serving, input, config = self._begun(input, config, kwargs)  # noqa: A001
        async with closed_after(super(ChatMPF, serving).astream(input, config, stop=stop, **kwargs)) as chunks:
            async for chunk in chunks:
                yield chunk

    def stream_events(
        self,
        input: Any,  # noqa: A002
        config: RunnableConfig | None = None,
        *,
        version: Any = "v2",
        **kwargs: Any,
    ) -> Any:
        """As in every chat model."""
        if version != "v3" or self._request is not None:
            return super().stream_events(input, config, version=version, **kwargs)
        serving, raw, config = self._begun(input, config, kwargs)
        return serving.stream_events(raw, config, version=version, **kwargs)

    def astream_events(
        self,
        input: Any,  # noqa: A002
        config: RunnableConfig | None = None,
        *,
        version: Any = "v2",
        **kwargs: Any,
    ) -> Any:
        """As in every chat model."""
        if version != "v3" or self._request is not None:
            return super().astream_events(input, config, version=version, **kwargs)
        serving, raw, config = self._begun(input, config, kwargs)
        return serving.astream_events(raw, config, version=version, **kwargs)

    # --- hooks ---

    def _call(
        self, messages: list[BaseMessage], stop: list[str] | None, run_manager: Any, kwargs: dict[str, Any]
    ) -> tuple[PerspectiveRunnable, RunnableConfig, Request, dict[str, Any]]:
        engine = self._engine
        options = {**self._of_calls, **kwargs}
        if (stop := (self.stop or None) if stop is None else stop) is not None:
            options["stop"] = stop
        request = self._request
        if request is None:  # called by `generate`, which has no config
            run_id = None if run_manager is None else run_manager.run_id
            request = engine._prepare(messages, ensure_config({"run_id": run_id}), options)
        config: RunnableConfig = {**request.config, "callbacks": []}  # the run that there is, is this model's
        for name in ("run_id", "run_name"):
            config.pop(name, None)  # type: ignore[misc]
        return engine, config, request, options

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        engine, config, request, options = self._call(messages, stop, run_manager, kwargs)
        return _result(engine._answer(messages, config, request=request, options=options))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        engine, config, request, options = self._call(messages, stop, run_manager, kwargs)
        return _result(await engine._aanswer(messages, config, request=request, options=options))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        engine, config, request, options = self._call(messages, stop, run_manager, kwargs)
        for piece in engine._stream_answer(messages, config, request=request, options=options):
            yield _piece(piece, request)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        engine, config, request, options = self._call(messages, stop, run_manager, kwargs)
        async with closed_after(engine._astream_answer(messages, config, request=request, options=options)) as pieces:
            async for piece in pieces:
                yield _piece(piece, request)

    # --- tools and structured output: the model inside knows how ---

    def _around(self, part: Runnable[Any, Any]) -> ChatMPF:
        """This model with another one inside the same bindings and retries."""
        leaf = leaf_of(self.model)
        model = replaced(self.model, lambda inner: part if inner is leaf else None)
        changed: ChatMPF = self._changed({"model": model})
        changed.__dict__.update({"_origin": self, "_seen": self._engine})
        return changed

    def _changed(self, changes: Mapping[str, Any]) -> Any:
        if "model" in changes and self._inner is not None:  # what was taken over from the old one goes with it
            names = (*_TAKEN_OVER, "profile")
            own = [name for name in names if getattr(self, name) == getattr(self._inner, name)]
            changes = {**dict.fromkeys(own), **changes}
        return super()._changed(changes)

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Offer tools, in the way of the model inside.

        Args:
            tools: As for the model inside.
            kwargs: As for the model inside, such as ``tool_choice``.

        Returns:
            This model with the tools bound. Their calls pass through; answers that may call tools are not merged.
        """
        leaf: Any = leaf_of(self.model)
        if isinstance(leaf, RunnableWithFallbacks):
            return _with_each(leaf, lambda each: self._around(each).bind_tools(tools, **kwargs))
        bound = leaf.bind_tools(tools, **kwargs)
        if isinstance(bound, RunnableBindingBase) and bound.bound is leaf:
            return RunnableBinding(bound=self, kwargs=dict(bound.kwargs), config=bound.config)
        around = self._around(bound)
        around.__dict__["_has_tools"] = True
        return around

    def with_structured_output(
        self, schema: dict[str, Any] | type, *, include_raw: bool = False, **kwargs: Any
    ) -> Runnable[LanguageModelInput, Any]:
        """Answers as data, in the way of the model inside.

        Args:
            schema: As for the model inside.
            include_raw: As for the model inside.
            kwargs: As for the model inside.

        Returns:
            The chain of the model inside, with this model in it.

        Raises:
            NotSupportedError: If the model inside cannot be found in the chain that it makes.
        """
        leaf: Any = leaf_of(self.model)
        if isinstance(leaf, RunnableWithFallbacks):
            options = {"include_raw": include_raw, **kwargs}
            return _with_each(leaf, lambda each: self._around(each).with_structured_output(schema, **options))
        if self._inner is None:
            return super().with_structured_output(schema, include_raw=include_raw, **kwargs)
        chain = leaf.with_structured_output(schema, include_raw=include_raw, **kwargs)
        found: list[Any] = []

        def around(part: Runnable[Any, Any]) -> Runnable[Any, Any] | None:
            if not isinstance(part, BaseChatModel):
                return None
            found.append(part)
            return self if part is leaf else self._around(part)

        chain = replaced(chain, around)
        if not found:
            raise NotSupportedError(
                f"{type(leaf).__name__} makes structured output in a way that ChatMPF cannot enter.",
                hint="Use PerspectiveRouter for the answer and parse it in a second step.",
            )
        return chain


def _with_each(
    model: RunnableWithFallbacks[Any, Any], change: Callable[[Runnable[Any, Any]], Runnable[Any, Any]]
) -> Runnable[Any, Any]:
    """A model with fallbacks in which every one has been changed."""
    return model.model_copy(
        update={"runnable": change(model.runnable), "fallbacks": [change(each) for each in model.fallbacks]}
    )


def _result(message: AIMessage) -> ChatResult:
    usage = message.response_metadata["mpf"].get("usage")
    if usage:
        message.usage_metadata = usage
    return ChatResult(generations=[ChatGeneration(message=message)])


def _piece(message: AIMessage, request: Request) -> ChatGenerationChunk:
    chunk = as_chunk(message)
    if not request.alone:  # the last chunk counts all calls
        usage = chunk.response_metadata.get("mpf", {}).get("usage") or None
        chunk = chunk.model_copy(update={"usage_metadata": usage})
    return ChatGenerationChunk(message=chunk)
