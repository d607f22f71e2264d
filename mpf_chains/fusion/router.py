"""One perspective per request, drawn by weight."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import RunnableConfig

from mpf_chains.fusion.request import PerspectiveRunnable, Request, tagged, to_chunk, to_message, to_messages


class PerspectiveRouter(PerspectiveRunnable):
    """Answers each request under one perspective, drawn with the calibrated weights ("sampled" mode).

    One model call per request, so latency and cost are those of the model. Whatever the model gives passes through:
    tool calls, usage, chunks as they come.

    The draw is a function of (seed, entity, key). The key is ``config["configurable"]["mpf_key"]``, else the run id,
    else a fresh one. The answer's ``response_metadata["mpf"]`` (in a stream: that of the first chunk) holds mode,
    perspective, entity, key and weights_version.

    Args:
        model: A chat model, or any Runnable from messages to a message or text.
        weights: A Calibration, perspective → weight, or entity → perspective → weight.
        perspectives: What to draw from. Default: the Calibration's own.
        entity: Whose weights to use: a name, or a function of the input that returns one.
            ``config["configurable"]["mpf_entity"]`` comes first. Default None.
        fallback: For an entity without weights: "error" (default), "pooled" or "uniform".
        position: Where the instruction joins an existing system message: "before" (default), "after", "replace".
        seed: Of the draws. Default 0, or that of a given sampler.
        sampler: "iid" (default; independent by key), "quota" (realised counts stay within one of n · weight), or an
            object with their ``draw``.

    Raises:
        WeightsError: If the weights are no distributions over the perspectives.

    Examples:
        >>> from mpf_chains.perspectives import Perspective
        >>> from mpf_chains.testing import BiasedChatModel
        >>> model = BiasedChatModel(answers={"Praise": ["Great."], "Doubt": ["Risky."]})
        >>> router = PerspectiveRouter(
        ...     model=model,
        ...     perspectives=[Perspective("fan", "Praise it."), Perspective("critic", "Doubt it.")],
        ...     weights={"fan": 0.0, "critic": 1.0},
        ... )
        >>> answer = router.invoke("How is it?", {"configurable": {"mpf_key": "request-1"}})
        >>> answer.text, answer.response_metadata["mpf"]["perspective"]
        ('Risky.', 'critic')
    """

    _mode = "sampled"
    __init__ = PerspectiveRunnable.__init__  # or type checkers take the fields for the arguments

    def _answer(self, raw: Any, config: RunnableConfig, *, request: Request, options: dict[str, Any]) -> AIMessage:
        messages, settings, record = self._call(raw, request, options)
        return tagged(to_message(self.model.invoke(messages, request.child(config, 0), **settings)), record)

    async def _aanswer(
        self, raw: Any, config: RunnableConfig, *, request: Request, options: dict[str, Any]
    ) -> AIMessage:
        messages, settings, record = self._call(raw, request, options)
        return tagged(to_message(await self.model.ainvoke(messages, request.child(config, 0), **settings)), record)

    def _stream_answer(
        self, inputs: Iterator[Any], config: RunnableConfig, *, request: Request, options: dict[str, Any]
    ) -> Iterator[AIMessage]:
        messages, settings, record = self._call(next(inputs), request, options)
        first = True
        for piece in self.model.stream(messages, request.child(config, 0), **settings):
            yield tagged(to_chunk(piece), record) if first else to_chunk(piece)
            first = False

    async def _astream_answer(
        self, inputs: AsyncIterator[Any], config: RunnableConfig, *, request: Request, options: dict[str, Any]
    ) -> AsyncIterator[AIMessage]:
        messages, settings, record = self._call(await anext(inputs), request, options)
        first = True
        async for piece in self.model.astream(messages, request.child(config, 0), **settings):
            yield tagged(to_chunk(piece), record) if first else to_chunk(piece)
            first = False

    def _call(
        self, raw: Any, request: Request, options: dict[str, Any]
    ) -> tuple[list[BaseMessage], dict[str, Any], dict[str, Any]]:
        """Messages, keyword arguments and record of the one model call."""
        perspective = self.perspectives[request.draws[0]]
        messages = perspective.condition(to_messages(raw), self.position)
        record = self._record("sampled", request, {"perspective": perspective.name})
        return messages, {**options, **perspective.arguments}, record
