"""`ChatTransformers`: any causal language model of transformers as a LangChain chat model, with real batching."""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

import numpy as np
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ChatMessage, ToolMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import get_config_list
from numpy.typing import NDArray
from pydantic import AliasChoices, ConfigDict, Field, PrivateAttr, SecretStr

from mpf_chains.errors import GenerationError, InvalidInput, NotSupportedError
from mpf_chains.local.engine import Engine, Generation, Source
from mpf_chains.local.fingerprint import fingerprint
from mpf_chains.local.sampling import Sampling

_ROLES = {"system": "system", "human": "user", "ai": "assistant"}
_SAMPLING = ("temperature", "top_k", "top_p", "seed")


class ChatTransformers(BaseChatModel):
    """A causal language model of transformers as a chat model.

    Constructing it is cheap: the weights are loaded by the first call, once, and shared by all instances that name
    the same model, revision, device, dtype and max_batch_size. Calls made at the same time (by `ainvoke`, `abatch`,
    `batch`, streams, threads) are collected for some milliseconds and generated together. Each call has its own
    random stream, so what it returns does not depend, up to rounding, on what it was batched with.

    Every field from `max_tokens` to `timeout` can also be given per call or with `bind`; other call arguments, tools
    included, raise `NotSupportedError`.

    Args:
        model: Hub id, local folder, "smollm2" (see `mpf_chains.local.smollm2`), or a loaded model.
        tokenizer: Its loaded tokenizer, with a loaded model. Default: the one stored with the model.
        revision: Branch, tag or commit on the hub. Default: the main branch.
        device: Torch device. Default: "cuda" if there is one, else "cpu". A loaded model stays where it is.
        dtype: Name of a torch dtype. Default "auto", the checkpoint's own.
        max_batch_size: Calls generated together, at most. Default 32.
        max_tokens: New tokens per answer, at most; `max_new_tokens` is another name for it. Default 256.
        temperature: 0 is greedy. Default 1, the model's own distribution.
        top_k: Draw from the k most probable tokens. Default: all.
        top_p: Then from the smallest set with this probability. Default 1: all.
        seed: The same seed and prompt give the same answer. Default: a fresh one at every call.
        stop: Texts that end an answer; they are not part of it.
        timeout: Seconds that one call may take, waiting for its batch included; in a stream, to its last token.
            Default: no limit.
        max_retries: Accepted because all chat models have it; there is no network to retry.
        api_key: Access token for gated models of the hub. Default: the one that huggingface-hub has stored.
        streaming: Whether `invoke` uses the streaming path.

    Examples:
        >>> model = ChatTransformers(model="smollm2", temperature=0.7, top_k=50, max_tokens=60, seed=1)
        >>> model.bind(seed=2).kwargs
        {'seed': 2}
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", populate_by_name=True)

    model: Any
    tokenizer: Any = Field(default=None, repr=False)
    revision: str | None = None
    device: str | None = None
    dtype: str = "auto"
    max_batch_size: int = Field(default=32, ge=1)
    max_tokens: int = Field(default=256, ge=1, validation_alias=AliasChoices("max_tokens", "max_new_tokens"))
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int | None = None
    stop: list[str] | None = Field(default=None, validation_alias=AliasChoices("stop", "stop_sequences"))
    timeout: float | None = None
    max_retries: int = 0
    api_key: SecretStr | None = Field(default=None, exclude=True, repr=False)
    streaming: bool = False

    _engine: Engine = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Find or make the engine; loads nothing."""
        super().model_post_init(context)
        Sampling(**{name: getattr(self, name) for name in _SAMPLING})
        self._join()

    def _join(self) -> None:
        token = self.api_key.get_secret_value() if self.api_key else None
        source = Source(self.model, self.tokenizer, self.revision, self.device, self.dtype, token)
        self._engine = Engine.of(source, self.max_batch_size)

    def __getstate__(self) -> dict[Any, Any]:
        return {**super().__getstate__(), "__pydantic_private__": None}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        self.__pydantic_private__ = {}
        self._join()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> ChatTransformers:
        return self.model_copy()

    @property
    def model_name(self) -> str:
        """The hub id or folder."""
        return self._engine.source.name

    @property
    def _llm_type(self) -> str:
        return "mpf-transformers"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        names = ("revision", "dtype", "max_tokens", *_SAMPLING, "stop")
        named = {"model": self.model_name, **{name: getattr(self, name) for name in names}}
        if isinstance(self.model, str):
            return named
        return {**named, "weights": fingerprint(self.model)}  # it may have been trained since it was loaded

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop or self.stop, **kwargs)
        params["ls_provider"] = "transformers"
        params.setdefault("ls_model_name", self.model_name)
        return params

    def get_token_ids(self, text: str) -> list[int]:
        """As the model's own tokenizer splits it, without special tokens; loads the model the first time."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return self._engine.token_ids(text)

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Tokens of the whole prompt as the chat template writes it; loads the model the first time."""
        if tools:
            raise NotSupportedError("ChatTransformers does not support tools yet, so it cannot count their tokens.")
        return len(self._engine.prompt_ids(chat_turns(messages)))

    def log_likelihoods(
        self, texts: Sequence[tuple[str, str]], *, window: int | None = None
    ) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """Natural log-probability of each token of a continuation given everything before it.

        Raw text: no chat template, no sampling settings. A pair is split into tokens as lm-evaluation-harness 0.4.13
        does it: whitespace at the end of the context moves to the continuation; the continuation's tokens are those
        that ``context + continuation`` has beyond ``context``. An empty context stands for the tokenizer's BOS token,
        or EOS where it has none (if the continuation begins with that token, it is not doubled and has no score). A
        BOS goes before other contexts if the tokenizer puts it there by default; other special tokens are not added.

        Texts that begin alike are computed once where they do, so pass all the texts in one call. The log-softmax is
        taken in float32 at least, whatever the model's dtype. How texts are batched changes results by rounding only:
        of SmolLM2 in float32 by 1e-5, of single tokens by 1e-4; ``dtype="float64"`` gives them to 1e-9. May be called
        while other threads generate: batches run in turn. Closing the iterator ends the work.

        Args:
            texts: (context, continuation) pairs; continuations must not be blank. A pair with a context must fit the
                model's context; without one it may have any length (see ``window``).
            window: Tokens read at once, at most, in texts without a context; at least 2. Default: the model's
                context. A longer text is scored in windows: the first scores all its tokens, each later one those of
                its last half, so that every token has at least ``window // 2`` tokens before it, or all there are.

        Returns:
            Iterator of (index, log-probabilities), shape (tokens,), each at most 0, in nats; every index once, in the
            order in which batches finish. ``dict(...)`` gives all.

        Raises:
            InvalidInput: At once, before anything is computed, if a continuation is blank or has no token of its own,
                or a pair with a context is too long. The message names the index.
            GenerationError: While iterating, if the model fails.

        Examples:
            >>> model = ChatTransformers(model="smollm2")
            >>> texts = [("The sky is", " blue."), ("The sky is", " sad.")]
            >>> scores = dict(model.log_likelihoods(texts))  # doctest: +SKIP
            >>> bool(scores[0].sum() > scores[1].sum())  # doctest: +SKIP
            True
        """
        from mpf_chains.local.likelihood import log_likelihoods

        return log_likelihoods(self._engine, texts, window)

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """As in every Runnable, but with enough threads to fill a batch where the config does not limit them."""
        configs = get_config_list(config, len(inputs))
        for each in configs:
            each.setdefault("max_concurrency", self.max_batch_size)
        return super().batch(inputs, configs, return_exceptions=return_exceptions, **kwargs)

    def _start(
        self, messages: Sequence[BaseMessage], stop: list[str] | None, arguments: dict[str, Any], on_text: Any = None
    ) -> tuple[Future[Generation], float | None]:
        """Queue a call; returns what it will resolve to, and how many seconds it may take."""
        arguments = {key: value for key, value in arguments.items() if key not in {"stream", "run_manager"}}
        length = arguments.pop("max_tokens", arguments.pop("max_new_tokens", self.max_tokens))
        timeout = arguments.pop("timeout", self.timeout)
        sampling = Sampling(**{name: arguments.pop(name, getattr(self, name)) for name in _SAMPLING})
        if arguments:
            raise NotSupportedError(
                f"ChatTransformers does not know the call argument(s) {', '.join(sorted(arguments))}.",
                hint=f"It takes max_tokens, {', '.join(_SAMPLING)}, stop, timeout.",
            )
        if length < 1:
            raise InvalidInput(f"`max_tokens` is {length}; it must be at least 1.")
        stops = [text for text in (stop if stop is not None else self.stop) or () if text]
        turns = chat_turns(messages)
        generation = self._engine.start(turns, sampling, max_tokens=length, stop=stops, on_text=on_text)
        return generation.future, timeout

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> ChatResult:
        future, timeout = self._start(messages, stop, kwargs)
        try:
            return self._result(future.result(timeout))
        except FutureTimeoutError as error:
            raise _too_slow(timeout) from error
        finally:
            future.cancel()  # on an error or Ctrl-C: leave the batch. Does nothing to a finished call.

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> ChatResult:
        await self._aload()
        future, timeout = self._start(messages, stop, kwargs)
        try:
            return self._result(await asyncio.wait_for(asyncio.wrap_future(future), timeout))
        except (TimeoutError, asyncio.TimeoutError) as error:
            raise _too_slow(timeout) from error
        finally:
            future.cancel()

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        pieces: queue.Queue[str | Future[Generation]] = queue.Queue()
        future, timeout = self._start(messages, stop, kwargs, pieces.put)
        future.add_done_callback(pieces.put)
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            while isinstance(piece := _next(pieces, deadline), str):
                yield _chunk(piece)
            if piece is None:
                raise _too_slow(timeout)
            yield self._last_chunk(future.result())
        finally:
            future.cancel()  # a closed stream ends its generation

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        await self._aload()
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[str | Future[Generation] | None] = asyncio.Queue()  # None: out of time

        def put(piece: str | Future[Generation]) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        future, timeout = self._start(messages, stop, kwargs, put)
        future.add_done_callback(put)
        alarm = None if timeout is None else loop.call_later(timeout, pieces.put_nowait, None)
        try:
            while isinstance(piece := await pieces.get(), str):
                yield _chunk(piece)
            if piece is None:
                raise _too_slow(timeout)
            yield self._last_chunk(future.result())
        finally:
            future.cancel()
            if alarm is not None:
                alarm.cancel()

    async def _aload(self) -> None:
        if not self._engine.loaded:
            await asyncio.to_thread(self._engine.load)

    def _metadata(self, generation: Generation) -> dict[str, Any]:
        return {"model_name": self.model_name, "finish_reason": generation.finish_reason}

    def _result(self, generation: Generation) -> ChatResult:
        message = AIMessage(
            generation.text, response_metadata=self._metadata(generation), usage_metadata=_usage(generation)
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _last_chunk(self, generation: Generation) -> ChatGenerationChunk:
        return ChatGenerationChunk(
            message=AIMessageChunk(
                content="",
                response_metadata=self._metadata(generation),
                usage_metadata=_usage(generation),
                chunk_position="last",
            )
        )


def chat_turns(messages: Sequence[BaseMessage]) -> list[dict[str, str]]:
    r"""Messages as the turns of a chat template; consecutive ones of one role become one, a blank line between.

    Args:
        messages: At least one; text only.

    Raises:
        InvalidInput: If there is none.
        NotSupportedError: If one has tool calls or anything but text, or is a tool's result.

    Examples:
        >>> from langchain_core.messages import HumanMessage
        >>> chat_turns([HumanMessage("Hi."), HumanMessage("How are you?")])
        [{'role': 'user', 'content': 'Hi.\n\nHow are you?'}]
    """
    if not messages:
        raise InvalidInput("There are no messages to answer.")
    turns: list[dict[str, str]] = []
    for message in messages:
        role, text = _role(message), _text(message)
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += f"\n\n{text}"
        else:
            turns.append({"role": role, "content": text})
    return turns


def _role(message: BaseMessage) -> str:
    if isinstance(message, ToolMessage) or (isinstance(message, AIMessage) and message.tool_calls):
        raise NotSupportedError("ChatTransformers does not support tools yet, and this conversation has tool messages.")
    if isinstance(message, ChatMessage):
        return message.role
    role = _ROLES.get(message.type.removesuffix("MessageChunk").lower())
    if role is None:
        raise NotSupportedError(f"A message of type {message.type!r} has no role in a chat template.")
    return role


def _text(message: BaseMessage) -> str:
    if isinstance(message.content, list):
        for block in message.content:
            kind = "text" if isinstance(block, str) else block.get("type")
            if kind != "text":
                raise NotSupportedError(f"ChatTransformers takes text only; a message has a block of type {kind!r}.")
    return str(message.text)


def _next(pieces: queue.Queue[str | Future[Generation]], deadline: float | None) -> str | Future[Generation] | None:
    try:
        return pieces.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
    except queue.Empty:
        return None


def _too_slow(timeout: float | None) -> GenerationError:
    return GenerationError(f"No answer within the timeout of {timeout} s.", retryable=True)


def _chunk(text: str) -> ChatGenerationChunk:
    return ChatGenerationChunk(message=AIMessageChunk(content=text))


def _usage(generation: Generation) -> UsageMetadata:
    read, written = len(generation.prompt), len(generation.tokens)
    return UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)
