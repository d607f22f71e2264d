"""`PerspectiveMiddleware`: drawn perspectives inside an agent of `langchain.agents.create_agent`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, SystemMessage
from langchain_core.runnables import Runnable, RunnableConfig, ensure_config
from langchain_core.runnables.config import var_child_runnable_config

from mpf_chains.artifact import Calibration, Mode, WeightsLike
from mpf_chains.core.sampling import keyed_uniform
from mpf_chains.errors import InvalidInput, MissingExtra, NotSupportedError
from mpf_chains.fusion.aggregate import PerspectiveFusion
from mpf_chains.fusion.arguments import has_tools, temperature_of
from mpf_chains.fusion.base import PerspectiveRunnable
from mpf_chains.fusion.policy import Draw
from mpf_chains.fusion.request import Request, tagged
from mpf_chains.fusion.router import PerspectiveRouter
from mpf_chains.fusion.settings import FusionSettings, Settings
from mpf_chains.perspectives import Perspective, PerspectiveSet

try:
    from langchain.agents import AgentState
    from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
    from langchain.agents.middleware.types import PrivateStateAttr
    from langgraph.runtime import Runtime
    from typing_extensions import NotRequired
except ImportError as error:
    raise MissingExtra("langchain", "agents") from error

Scope = Literal["turn", "thread"]
_NO_CONFIG: RunnableConfig = {}


class PerspectiveState(AgentState[Any]):
    """The agent's state with what was drawn; private to the middleware, kept by a checkpointer."""

    mpf: NotRequired[Annotated[dict[str, Any], PrivateStateAttr]]


class PerspectiveMiddleware(AgentMiddleware[PerspectiveState, Any, Any]):
    """Steers an agent: what is drawn when it starts holds for all its model calls, tool loops included.

    The perspective's instruction joins the system prompt of every model call; tools, structured output, streaming and
    other middleware work as before. Each answer's ``response_metadata["mpf"]`` says what was drawn. In mode
    "aggregated", model calls that offer no tools and ask for no structure are answered under all drawn perspectives
    and merged; only the merge is streamed, as it comes: should it fail half-way, or be no answer, the drawn answer that
    stands in for it follows. Calls with tools are never merged: one of the drawn perspectives answers them.

    The draw is part of the agent's state, hidden from its input and output; LangGraph shows it in the stream modes
    "updates" and "debug", as all that nodes write.

    Settings can be assigned while serving (``middleware.weights = Calibration.load("new.json")``), as in
    :class:`~mpf_chains.fusion.router.PerspectiveRouter`; runs that have begun keep what they drew.

    Args:
        weights, perspectives, entity, fallback, position, seed, sampler, strength, shadow: As for
            :class:`~mpf_chains.fusion.router.PerspectiveRouter`.
        mode: "sampled" or "aggregated". Default: the Calibration's, else "sampled".
        scope: "turn" (default) draws anew whenever the agent is invoked; "thread" keeps the first draw for the whole
            conversation, unless ``strength`` 0 or ``shadow`` turns steering off or the config names another entity.
            The thread's id is then the key of the draw, so that with sampler "iid" and the same weights a thread keeps
            its perspective even without a checkpointer.
        settings: n, merge_instruction, merge_model, on_error, when_tools and dedupe, as for
            :class:`~mpf_chains.fusion.aggregate.PerspectiveFusion`.

    Raises:
        WeightsError: If the weights are no distributions over the perspectives.
        InvalidInput: If another argument is wrong.

    Examples:
        >>> from langchain.agents import create_agent
        >>> from mpf_chains.testing import BiasedChatModel
        >>> steering = PerspectiveMiddleware(
        ...     perspectives=[Perspective("fan", "Praise it."), Perspective("critic", "Doubt it.")],
        ...     weights={"fan": 0.0, "critic": 1.0},
        ... )
        >>> model = BiasedChatModel(answers={"Praise": ["Great."], "Doubt": ["Risky."]})
        >>> agent = create_agent(model, middleware=[steering])
        >>> agent.invoke({"messages": [("human", "How is it?")]})["messages"][-1].text
        'Risky.'
    """

    state_schema = PerspectiveState

    def __init__(
        self,
        *,
        weights: WeightsLike,
        perspectives: PerspectiveSet | Sequence[Perspective] | None = None,
        mode: Mode | None = None,
        scope: Scope = "turn",
        **settings: Any,
    ) -> None:
        super().__init__()
        mode = mode or (weights.mode if isinstance(weights, Calibration) else "sampled")
        if mode not in ("sampled", "aggregated") or scope not in ("turn", "thread"):
            raise InvalidInput(
                f'`mode` is {mode!r} and `scope` is {scope!r}; they must be "sampled" or "aggregated", and "turn" or '
                f'"thread".'
            )
        kind = PerspectiveFusion if mode == "aggregated" else PerspectiveRouter
        if mode == "sampled":  # what is for the other mode is accepted, as by ChatMPF
            of_fusion = FusionSettings.model_fields.keys() - Settings.model_fields.keys()
            others = {name: settings.pop(name) for name in of_fusion & settings.keys()}
            PerspectiveFusion(model=_Handler(), perspectives=[Perspective("x")], weights={"x": 1.0}, **others)
        settings |= {"weights": weights, "perspectives": perspectives}
        engine: PerspectiveRunnable = kind(model=_Handler(), **settings)
        self.__dict__.update({"mode": mode, "scope": scope, "_engine": engine})

    def __getattr__(self, name: str) -> Any:
        engine = self.__dict__.get("_engine")
        if engine is None or name not in engine._assignable:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(engine, name)

    def __setattr__(self, name: str, value: Any) -> None:
        engine = self.__dict__.get("_engine")
        if engine is not None and name in engine._assignable:
            setattr(engine, name, value)
        elif engine is None or name.startswith("_") or name == "tools":  # the last is AgentMiddleware's
            super().__setattr__(name, value)
        else:
            raise InvalidInput(
                f"`{name}` cannot be assigned.",
                hint=f"What can is: {', '.join(sorted(engine._assignable - {'model'}))}; for another mode or scope "
                "make another middleware.",
            )

    def before_agent(
        self,
        state: PerspectiveState,
        runtime: Runtime[Any],  # noqa: ARG002
        config: RunnableConfig = _NO_CONFIG,  # given by LangGraph; on Python 3.10 async code has no other way to it
    ) -> dict[str, Any] | None:
        """Draw for the whole run, unless the thread has its draw already."""
        if self.scope == "thread" and self._holds(state.get("mpf"), config):
            return None
        return {"mpf": self._drawn(state["messages"], config)}

    async def abefore_agent(
        self, state: PerspectiveState, runtime: Runtime[Any], config: RunnableConfig = _NO_CONFIG
    ) -> dict[str, Any] | None:
        """Async twin of :meth:`before_agent`."""
        return self.before_agent(state, runtime, config)

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        """Answer one model call as drawn."""
        asked, messages = self._asked(request), _conversation(request)
        if asked.alone:
            return self._tagged(handler(self._conditioned(request, asked)), asked)
        engine = self._engine.model_copy(update={"model": _Handler(request, handler)})
        return ModelResponse(result=[engine._answer(messages, asked.config, request=asked, options={})])

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        """Async twin of :meth:`wrap_model_call`."""
        asked, messages = self._asked(request), _conversation(request)
        if asked.alone:
            return self._tagged(await handler(self._conditioned(request, asked)), asked)
        engine = self._engine.model_copy(update={"model": _Handler(request, handler)})
        return ModelResponse(result=[await engine._aanswer(messages, asked.config, request=asked, options={})])

    def _holds(self, stored: dict[str, Any] | None, config: RunnableConfig) -> bool:
        """Whether a thread's draw is in force: not if steering was off then or is off now, nor for another entity."""
        policy = self._engine._policy
        if stored is None or stored["shadow"] or not stored["perspectives"] or policy.shadow or policy.strength == 0:
            return False
        return ensure_config(config).get("configurable", {}).get("mpf_entity") in (None, stored["entity"])

    def _drawn(self, messages: Sequence[AnyMessage], config: RunnableConfig = _NO_CONFIG) -> dict[str, Any]:
        """A fresh draw, as plain data that any checkpointer stores."""
        configurable = ensure_config(config).get("configurable", {})
        thread = configurable.get("thread_id") if self.scope == "thread" else None
        policy = self._engine._policy
        key = policy.key(configurable) if thread is None else str(thread)
        draw = policy.draw(lambda: list(messages), configurable, key, getattr(self._engine, "n", 1))
        return {
            "key": draw.key,
            "entity": draw.entity,
            "perspectives": [
                {"name": each.name, "instruction": each.instruction, "arguments": dict(each.arguments)}
                for each in draw.perspectives
            ],
            "version": draw.version,
            "shadow": draw.shadow,
        }

    def _asked(self, request: ModelRequest[Any]) -> Request:
        """The model call with what was drawn for its run."""
        stored: Any = request.state.get("mpf")
        if stored is None:  # no hook ran
            stored = self._drawn(request.messages)
        draw = Draw(
            stored["key"],
            stored["entity"],
            tuple(Perspective(**each) for each in stored["perspectives"]),
            stored["version"],
            stored["shadow"],
        )
        offered = request.tools or request.response_format
        tools = bool(offered) or has_tools(request.model, request.model_settings)
        if tools and self.mode == "aggregated" and draw.perspectives:
            if self.when_tools == "raise":
                raise NotSupportedError(
                    "Answers that may call tools or must have a structure cannot be merged.",
                    hint='Use when_tools="sample", or mode="sampled".',
                )
            # Any of the drawn ones with equal odds: the first would not do, as quota samplers draw in a fixed order.
            chosen = int(keyed_uniform(draw.key, "tools") * len(draw.perspectives))
            draw = draw._replace(perspectives=(draw.perspectives[chosen],))
        return Request(draw, ensure_config(), tools and self.mode == "aggregated")

    def _conditioned(self, request: ModelRequest[Any], asked: Request) -> ModelRequest[Any]:
        perspective = asked.perspective
        if perspective is None:
            return request
        messages = perspective.condition(_conversation(request), self._engine.position)
        return _override(request, messages, perspective.arguments)

    def _tagged(self, response: ModelResponse[Any], asked: Request) -> ModelResponse[Any]:
        record = self._engine._record(asked)
        result = [tagged(each, record) if isinstance(each, AIMessage) else each for each in response.result]
        return replace(response, result=result)


class _Handler(Runnable[list[BaseMessage], AIMessage]):
    """The rest of the agent's model call as a Runnable, which fusion calls several times."""

    def __init__(self, request: ModelRequest[Any] | None = None, handler: Callable[..., Any] | None = None) -> None:
        self._request: Any = request
        self._handler: Any = handler

    @property
    def temperature(self) -> float | None:
        """What the agent's model runs at: equal draws at 0 are asked for once."""
        settings = {} if self._request is None else self._request.model_settings
        model = None if self._request is None else self._request.model
        found: float | None = settings.get("temperature", temperature_of(model))
        return found

    def invoke(self, input: list[BaseMessage], config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:  # noqa: A002
        """Call the model; its callbacks are those of the config."""
        token = var_child_runnable_config.set(config)
        try:
            return _message(self._handler(_override(self._request, input, kwargs)))
        finally:
            var_child_runnable_config.reset(token)

    async def ainvoke(self, input: list[BaseMessage], config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:  # noqa: A002
        """Async twin of :meth:`invoke`."""
        token = var_child_runnable_config.set(config)
        try:
            return _message(await self._handler(_override(self._request, input, kwargs)))
        finally:
            var_child_runnable_config.reset(token)


def _conversation(request: ModelRequest[Any]) -> list[BaseMessage]:
    return [*([request.system_message] if request.system_message else []), *request.messages]


def _override(
    request: ModelRequest[Any], messages: list[BaseMessage], settings: Mapping[str, Any]
) -> ModelRequest[Any]:
    system = messages[0] if messages and isinstance(messages[0], SystemMessage) else None
    rest: Any = messages[1:] if system else messages
    return request.override(system_message=system, messages=rest, model_settings={**request.model_settings, **settings})


def _message(response: ModelResponse[Any]) -> AIMessage:
    return next(each for each in response.result if isinstance(each, AIMessage))
