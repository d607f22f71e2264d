"""Several drawn perspectives per request, merged into one answer."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import add_usage
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import get_executor_for_config

from mpf_chains.artifact import Mode, WeightsLike
from mpf_chains.core.sampling import keyed_uniform
from mpf_chains.errors import GenerationError, NotSupportedError
from mpf_chains.fusion.arguments import has_tools, plain_arguments, temperature_of, without_tools
from mpf_chains.fusion.base import PerspectiveRunnable
from mpf_chains.fusion.merge import cleaned, merge_messages, shows_markers
from mpf_chains.fusion.request import Request, closed_after, held, tagged, to_chunk, to_message, to_messages
from mpf_chains.fusion.settings import FusionSettings


@dataclass(frozen=True)
class _Call:
    """One planned call: it stands for `times` draws of its perspective."""

    perspective: str
    times: int
    messages: list[BaseMessage]
    settings: dict[str, Any]


@dataclass
class _Verdict:
    """What became of the calls: the answer, or the messages of the merge that still has to be made."""

    record: dict[str, Any]
    answer: AIMessage
    merge: list[BaseMessage] = field(default_factory=list)

    def count(self, reply: AIMessage | None) -> None:
        """Add a call, and its usage, to the record."""
        self.record["calls"] += 1
        if reply is not None and reply.usage_metadata is not None:
            self.record["usage"] = dict(add_usage(self.record["usage"] or None, reply.usage_metadata))

    def conclude(self, merged: AIMessage | Exception | None) -> AIMessage:
        """The final answer, given what the merging call returned."""
        self.count(merged if isinstance(merged, AIMessage) else None)
        if not isinstance(merged, AIMessage) or not _written(merged):
            self.record["merge_failed"] = _reason(merged)
        elif shows_markers(merged.text, self.merge):
            self.record["merge_failed"] = "markers"
        else:
            return tagged(_toolless(merged), self.record)
        return tagged(self.answer, self.record)


class _Streamed:
    """A merge coming in pieces, held back until it has text that is no marker: till then it can still be replaced."""

    def __init__(self, merge: list[BaseMessage]) -> None:
        self.full: AIMessage | None = None
        self.begun = False  # whether the user has seen a part of it
        self._merge = merge
        self._held: list[AIMessage] = []

    def feed(self, piece: object) -> list[AIMessage]:
        """Take one piece; return what can be passed on."""
        chunk = _toolless(to_chunk(piece))
        if isinstance(chunk, AIMessageChunk):
            chunk.chunk_position = None  # the record comes last
        full: AIMessage = chunk if self.full is None else self.full + chunk  # type: ignore[assignment]
        self.full = full
        self._held.append(chunk)
        if not self.begun:
            self.begun = isinstance(chunk, AIMessageChunk) and _written(full) and self._is_no_marker(full)
        if not self.begun:
            return []
        ready, self._held = self._held, []
        return ready

    def _is_no_marker(self, full: AIMessage) -> bool:
        text = cleaned(full.text)
        return not text.startswith("[") or (len(text) > 40 and not shows_markers(text, self._merge))

    def end(self, verdict: _Verdict, failure: Exception | None) -> AIMessage:
        """What closes the stream: an empty chunk with the record, or the whole answer if nothing was passed on."""
        if not self.begun or self.full is None:
            return verdict.conclude(failure or self.full)
        verdict.count(self.full)
        metadata = {"mpf": verdict.record}
        return AIMessageChunk(content="", id=self.full.id, response_metadata=metadata, chunk_position="last")


class PerspectiveFusion(FusionSettings, PerspectiveRunnable):
    """Answers each request under n drawn perspectives and merges their answers ("aggregated" mode).

    The n calls run at the same time (bounded by ``max_concurrency``), then one merging call writes the answer: n + 1
    calls, and the latency of two. Fewer where they would change little: where only one perspective was drawn it is
    called once and its answer is the answer; at temperature 0 a perspective drawn twice is called once.
    :meth:`plan` tells the number beforehand. ``stream`` yields the answer as it is written.

    Tool calls are never merged. Where tools are offered or a structure is asked for, one drawn perspective answers
    (see ``when_tools``); should answers hold tool calls all the same, one of these is returned unchanged. Answers
    without text (or only "None") are never merged. ``response_metadata["mpf"]`` holds mode, perspectives, entity, key,
    weights_version, calls, and where it applies usage (of all calls), failed, merge_failed (the kind of the failure),
    shadow and instead_of. In a stream it is on the last chunk, or on the first where one call answers.

    Handlers that feed a user's stream (``astream_events``, LangGraph's messages mode) do not see the n calls; all
    other callbacks do, tagged "mpf:candidate". Such handlers watch the merging call itself, so that of a merge that
    fails they have shown what it wrote; ``stream`` holds back what is no answer.

    Args:
        model, weights, perspectives, entity, fallback, position, seed, sampler, strength, shadow: As for
            :class:`~mpf_chains.fusion.router.PerspectiveRouter`.
        n: How many perspectives to draw, with repetition. At least 1. Default 5.
        merge_instruction: What the merging call is told. Default :data:`~mpf_chains.fusion.merge.MERGE_INSTRUCTION`.
        merge_model: What merges. Default: the same model; tools bound to it are taken off.
        on_error: "renormalise" (default) merges what succeeded and records the rest under ``failed``; "raise" raises
            the first failure.
        when_tools: "sample" (default) answers requests with tools or structured output under one drawn perspective,
            "raise" refuses them with a NotSupportedError.
        dedupe: Whether a perspective drawn several times is called once. Default None: if the temperature is 0.
        delimiter: Makes the code on the marker lines of the merging call. Default: random for every call.

    Raises:
        WeightsError: If the weights are no distributions over the perspectives.

    Examples:
        >>> from mpf_chains.perspectives import Perspective
        >>> from mpf_chains.testing import BiasedChatModel
        >>> model = BiasedChatModel(answers={"Praise": ["Great."], "Doubt": ["Risky."]})
        >>> fusion = PerspectiveFusion(
        ...     model=model,
        ...     perspectives=[Perspective("fan", "Praise it."), Perspective("critic", "Doubt it.")],
        ...     weights={"fan": 0.5, "critic": 0.5},
        ...     sampler="quota",
        ...     n=2,
        ... )
        >>> answer = fusion.invoke("How is it?")
        >>> sorted(answer.text.split()), answer.response_metadata["mpf"]["calls"]
        (['Great.', 'Risky.'], 3)
    """

    def __init__(self, *, model: Runnable[Any, Any], weights: WeightsLike, **fields: Any) -> None:
        super().__init__(**fields, model=model, weights=weights)  # type: ignore[call-arg]

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return self._drawing(self.model, self._policy) | self._merging(self.model)

    @property
    def _mode(self) -> Mode:
        return "aggregated"

    def _draws(self, options: Mapping[str, Any]) -> tuple[int, bool]:
        if not has_tools(self.model, options):
            return self.n, False
        if self.when_tools == "raise":
            raise NotSupportedError(
                "Answers that may call tools or must have a structure cannot be merged.",
                hint='Use when_tools="sample" to answer such requests under one drawn perspective.',
            )
        return 1, True

    def _prompts(
        self, request: Request, messages: list[BaseMessage], options: dict[str, Any]
    ) -> tuple[tuple[list[BaseMessage], ...], bool]:
        if request.alone:
            return super()._prompts(request, messages, options)
        return tuple(call.messages for call in self._calls(messages, request, options)), True

    def _record(self, request: Request) -> dict[str, Any]:
        if request.tools:
            return {**super()._record(request), "instead_of": "aggregated"}
        return request.draw.record("aggregated", calls=1)

    @property
    def _fans_out(self) -> bool:
        return True

    @property
    def _merger(self) -> Runnable[Any, Any]:
        return without_tools(self.merge_model or self.model)

    def _answer(self, raw: Any, config: RunnableConfig, *, request: Request, options: dict[str, Any]) -> AIMessage:
        if request.alone:
            return super()._answer(raw, config, request=request, options=options)
        messages = to_messages(raw)
        calls = self._calls(messages, request, options)
        verdict = self._judge(messages, request, calls, self._fan_out(calls, request, config))
        if not verdict.merge:
            return tagged(verdict.answer, verdict.record)
        try:
            with held(request):
                reply = self._merger.invoke(verdict.merge, request.child(config, "merge"), **plain_arguments(options))
            merged: AIMessage | Exception = to_message(reply)
        except Exception as error:
            merged = error
        return verdict.conclude(merged)

    async def _aanswer(
        self, raw: Any, config: RunnableConfig, *, request: Request, options: dict[str, Any]
    ) -> AIMessage:
        if request.alone:
            return await super()._aanswer(raw, config, request=request, options=options)
        messages = to_messages(raw)
        calls = self._calls(messages, request, options)
        verdict = self._judge(messages, request, calls, await self._afan_out(calls, request, config))
        if not verdict.merge:
            return tagged(verdict.answer, verdict.record)
        try:
            async with held(request):
                reply = await self._merger.ainvoke(
                    verdict.merge, request.child(config, "merge"), **plain_arguments(options)
                )
            merged: AIMessage | Exception = to_message(reply)
        except Exception as error:
            merged = error
        return verdict.conclude(merged)

    def _stream_answer(
        self, raw: Any, config: RunnableConfig, *, request: Request, options: dict[str, Any]
    ) -> Iterator[AIMessage]:
        if request.alone:
            yield from super()._stream_answer(raw, config, request=request, options=options)
            return
        messages = to_messages(raw)
        calls = self._calls(messages, request, options)
        verdict = self._judge(messages, request, calls, self._fan_out(calls, request, config))
        if not verdict.merge:
            yield tagged(verdict.answer, verdict.record)
            return
        merge, failure = _Streamed(verdict.merge), None
        try:
            for piece in self._merger.stream(verdict.merge, request.child(config, "merge"), **plain_arguments(options)):
                yield from merge.feed(piece)
        except Exception as error:
            if merge.begun:
                raise
            failure = error
        yield merge.end(verdict, failure)

    async def _astream_answer(
        self, raw: Any, config: RunnableConfig, *, request: Request, options: dict[str, Any]
    ) -> AsyncIterator[AIMessage]:
        if request.alone:
            async with closed_after(super()._astream_answer(raw, config, request=request, options=options)) as alone:
                async for piece in alone:
                    yield piece
            return
        messages = to_messages(raw)
        calls = self._calls(messages, request, options)
        verdict = self._judge(messages, request, calls, await self._afan_out(calls, request, config))
        if not verdict.merge:
            yield tagged(verdict.answer, verdict.record)
            return
        merge, failure = _Streamed(verdict.merge), None
        try:
            pieces = self._merger.astream(verdict.merge, request.child(config, "merge"), **plain_arguments(options))
            async with closed_after(pieces):
                async for piece in pieces:
                    for chunk in merge.feed(piece):
                        yield chunk
        except Exception as error:
            if merge.begun:
                raise
            failure = error
        yield merge.end(verdict, failure)

    def _calls(self, messages: Sequence[BaseMessage], request: Request, options: dict[str, Any]) -> list[_Call]:
        """The calls to make, in the order drawn."""
        default = options.get("temperature", temperature_of(self.model))
        calls: list[_Call] = []
        drawn = {perspective.name: perspective for perspective in request.draw.perspectives}
        for name, count in Counter(request.draw.names).items():
            perspective = drawn[name]
            settings = {**options, **perspective.arguments}
            once = settings.get("temperature", default) == 0 if self.dedupe is None else self.dedupe
            call = _Call(name, count if once else 1, perspective.condition(messages, self.position), settings)
            calls += [call] * (1 if once else count)
        return calls

    def _fan_out(self, calls: Sequence[_Call], request: Request, config: RunnableConfig) -> list[AIMessage | Exception]:
        def ask(number: int) -> AIMessage | Exception:
            call = calls[number]
            try:
                with held(request):
                    reply = self.model.invoke(call.messages, _quiet(request.child(config, number)), **call.settings)
                return to_message(reply)
            except Exception as error:
                return error

        if len(calls) == 1:
            return [ask(0)]
        most = config.get("max_concurrency") or len(calls)
        with get_executor_for_config({**config, "max_concurrency": most}) as executor:
            return list(executor.map(ask, range(len(calls))))

    async def _afan_out(
        self, calls: Sequence[_Call], request: Request, config: RunnableConfig
    ) -> list[AIMessage | Exception]:
        own = asyncio.Semaphore(config.get("max_concurrency") or len(calls))

        async def ask(number: int) -> AIMessage | Exception:
            call = calls[number]
            try:
                async with own, held(request):
                    reply = await self.model.ainvoke(
                        call.messages, _quiet(request.child(config, number)), **call.settings
                    )
                return to_message(reply)
            except Exception as error:
                return error

        return await asyncio.gather(*(ask(number) for number in range(len(calls))))

    def _judge(
        self,
        messages: Sequence[BaseMessage],
        request: Request,
        calls: Sequence[_Call],
        replies: Sequence[AIMessage | Exception],
    ) -> _Verdict:
        """Sort out failures, then return the one answer there is or set up the merge."""
        usable = [(call, reply) for call, reply in zip(calls, replies, strict=True) if _usable(reply)]
        failed = [
            {"perspective": call.perspective, "draws": call.times, "error": _reason(reply)}
            for call, reply in zip(calls, replies, strict=True)
            if not _usable(reply)
        ]
        if failed and (self.on_error == "raise" or not usable):
            errors = [reply for reply in replies if isinstance(reply, Exception)]
            if errors and self.on_error == "raise":
                raise errors[0]
            names = ", ".join(f"{entry['perspective']}: {entry['error']}" for entry in failed)
            raise GenerationError(
                f"{len(failed)} of {len(calls)} perspectives gave no answer to merge ({names}).",
                hint="Try again, or look at the first failure above.",
                retryable=True,
            ) from (errors[0] if errors else None)
        record = self._record(request)
        record |= {"calls": 0, "usage": {}, **({"failed": failed} if failed else {})}
        callers = [(call, reply) for call, reply in usable if reply.tool_calls]
        answers = [reply for call, reply in callers or usable for _ in range(call.times)]
        # One of the draws with equal odds: the first would not do, as quota samplers draw in a fixed order.
        chosen = answers[int(keyed_uniform(request.draw.key, "one") * len(answers))]
        verdict = _Verdict(record, chosen)
        for reply in replies:
            verdict.count(reply if isinstance(reply, AIMessage) else None)
        if not callers and len({call.perspective for call, _ in usable}) > 1:
            texts = [answer.text for answer in answers]
            verdict.merge = merge_messages(messages, texts, self.merge_instruction, self.delimiter())
        return verdict


def _written(reply: AIMessage) -> bool:
    return cleaned(reply.text) not in ("", "None")


def _usable(reply: AIMessage | Exception) -> TypeGuard[AIMessage]:
    return isinstance(reply, AIMessage) and (bool(reply.tool_calls) or _written(reply))


def _reason(reply: AIMessage | Exception | None) -> str:
    # The kind only: messages of provider errors may hold keys and prompts.
    return type(reply).__name__ if isinstance(reply, Exception) else "empty"


def _toolless(reply: AIMessage) -> AIMessage:
    """A merging call is offered no tools; should it name some all the same, they are dropped."""
    update: dict[str, Any] = {"tool_calls": [], "invalid_tool_calls": []}
    if isinstance(reply, AIMessageChunk):
        update["tool_call_chunks"] = []
    return reply.model_copy(update={**update, "additional_kwargs": plain_arguments(reply.additional_kwargs)})


def _quiet(config: RunnableConfig) -> RunnableConfig:
    """The config with handlers that feed a user's stream taken out, so that only the merge is streamed."""
    manager: Any = config.get("callbacks")
    if not isinstance(manager, BaseCallbackManager):
        return config
    manager = manager.copy()
    for handler in manager.handlers.copy():
        markers = {base.__name__ for base in type(handler).__mro__}
        if hasattr(handler, "tap_output_iter") or "_V2StreamingCallbackHandler" in markers:
            manager.remove_handler(handler)
    manager.add_tags(["mpf:candidate"], inherit=False)
    return {**config, "callbacks": manager}
