"""`ChatTransformers`: any causal language model of transformers as a LangChain chat model, with real batching."""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, Literal

import numpy as np
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import get_config_list
from langchain_core.tools import BaseTool
from numpy.typing import NDArray
from pydantic import AliasChoices, ConfigDict, Field, PrivateAttr, SecretStr

from mpf_chains.errors import GenerationError, InvalidInput, NotSupportedError
from mpf_chains.local.answers import Answer
from mpf_chains.local.engine import Engine, Generation, Piece, Source
from mpf_chains.local.fingerprint import weights_of
from mpf_chains.local.messages import chat_turns
from mpf_chains.local.sampling import Sampling
from mpf_chains.local.tools import Toolbox

_ANY_TOOL = {"name": "look_up", "description": "Look a word up.", "parameters": {"type": "object", "properties": {}}}
_SAMPLING = ("temperature", "top_k", "top_p", "seed")
_CALL = ("max_tokens", *_SAMPLING, "stop", "logprobs", "top_logprobs", "timeout", "tools", "tool_choice")


class ChatTransformers(BaseChatModel):
    """A causal language model of transformers as a chat model.

    Constructing it is cheap: the weights are loaded by the first call, once, and shared by all instances that name
    the same model, revision, device, dtype and max_batch_size. Calls made at the same time (by `ainvoke`, `abatch`,
    `batch`, streams, threads) are collected for some milliseconds and generated together. Each call has its own
    random stream, so what it returns does not depend, up to rounding, on what it was batched with.

    Every field from `max_tokens` to `timeout` can also be given per call or with `bind`, and so can tools (see
    `bind_tools`); other call arguments raise `NotSupportedError`.

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
        logprobs: Give the log-probability of each token of an answer in ``response_metadata["logprobs"]``, in OpenAI's
            form: natural logarithms under the model's own distribution, before temperature, top_k and top_p. An end
            token, and what a stop text cut off, are not part of the answer. Costs nothing when it is off, the default.
        top_logprobs: With logprobs, also the most probable tokens of each place, so many. Default: none of them.
        timeout: Seconds that one call may take, waiting for its batch included; in a stream, to its last token.
            Default: no limit.
        max_retries: Accepted because all chat models have it; there is no network to retry.
        api_key: Access token for gated models of the hub. Default: the one that huggingface-hub has stored.
        streaming: Whether `invoke` uses the streaming path.
        quantization: "int8" rounds the weights of a named model when it is loaded (extra: int8). Pays in memory, and in
            time on a CPU with ``dtype="bfloat16"`` and few calls at once; see `mpf_chains.local.quantization`.
            Default: none.

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
    logprobs: bool = False
    top_logprobs: int | None = None
    timeout: float | None = None
    max_retries: int = 0
    api_key: SecretStr | None = Field(default=None, exclude=True, repr=False)
    streaming: bool = False
    quantization: Literal["int8"] | None = None

    _engine: Engine = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Find or make the engine; loads nothing."""
        super().model_post_init(context)
        self._sampling({})
        if self.quantization and not isinstance(self.model, str):
            raise NotSupportedError(
                "`quantization` is for models that are loaded by their name; this one is loaded already.",
                hint="Quantise it before, or give its folder.",
            )
        self._join()

    def _join(self) -> None:
        token = self.api_key.get_secret_value() if self.api_key else None
        files = weights_of(self.model) if isinstance(self.model, str) else None
        source = Source(
            self.model, self.tokenizer, self.revision, self.device, self.dtype, token, self.quantization, files
        )
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
        if self.quantization:
            named["quantization"] = self.quantization
        source = self._engine.source  # a loaded model may have been trained since
        weights = source.files if isinstance(self.model, str) else weights_of(self.model)
        return named if weights is None else {**named, "weights": weights}

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
        return len(self._engine.prompt_ids(chat_turns(messages), Toolbox.of(tools).definitions))

    def takes_tools(self) -> bool:
        """Whether its chat template writes tools into the prompt; loads the model the first time."""
        try:
            self.get_num_tokens_from_messages([HumanMessage("?")], [_ANY_TOOL])
        except NotSupportedError:
            return False
        return True

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Offer tools to the model, as its chat template writes them; calls come back as ``tool_calls``.

        Calls are read as the tokenizer declares it (``response_template``), or in the forms of Hermes and Qwen, Llama 3
        and Mistral. What is no valid JSON becomes an ``invalid_tool_calls`` entry, with all that was written as a JSON
        string. In a stream, text comes at once and a call when it is complete. The names of tools and their arguments
        are the model's: nothing checks them against the tools.

        ``with_structured_output`` uses this, with one tool that is forced, whatever its ``method``.

        Args:
            tools: Functions, LangChain's tools, pydantic models or JSON schemas.
            tool_choice: None (default) or "auto": the model decides. "none": it is not shown the tools. "any" or
                "required": it must call one of them; a name: this one. A forced answer begins with the call, as the
                chat template would write it, up to the arguments, which the model writes freely.
            **kwargs: Other call arguments.

        Raises:
            InvalidInput: If the choice is none of these.
            NotSupportedError: At the call, if the chat template ignores tools or it is not known how calls look.

        Examples:
            >>> def add(a: int, b: int) -> int:
            ...     "The sum."
            >>> calculator = ChatTransformers(model="smollm2").bind_tools([add], tool_choice="any")
            >>> calculator.kwargs["tools"][0]["function"]["name"]
            'add'
        """
        definitions = list(Toolbox.of(tools).definitions)
        Toolbox.of(definitions, tool_choice)
        chosen = {} if tool_choice is None else {"tool_choice": tool_choice}
        return self.bind(tools=definitions, **chosen, **kwargs)

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

    def _sampling(self, arguments: dict[str, Any]) -> Sampling:
        """Takes out of the arguments what decides how tokens are chosen and scored."""
        asked = "top_logprobs" in arguments or not arguments
        logprobs = arguments.pop("logprobs", self.logprobs)
        top = arguments.pop("top_logprobs", self.top_logprobs)
        if asked and top is not None and not logprobs:
            raise InvalidInput(f"`top_logprobs` is {top}, but `logprobs` is off.", hint="Set `logprobs=True`.")
        return Sampling(
            **{name: arguments.pop(name, getattr(self, name)) for name in _SAMPLING},
            top_logprobs=(top or 0) if logprobs else None,
        )

    def _start(
        self,
        messages: Sequence[BaseMessage],
        stop: list[str] | None,
        arguments: dict[str, Any],
        on_piece: Callable[[Piece], None] | None = None,
    ) -> tuple[Future[Generation], Answer, float | None]:
        """Queue a call; returns what it will resolve to, what makes messages of it, and the seconds it may take."""
        arguments = {key: value for key, value in arguments.items() if key not in {"stream", "run_manager"}}
        length = arguments.pop("max_tokens", arguments.pop("max_new_tokens", self.max_tokens))
        timeout = arguments.pop("timeout", self.timeout)
        tools = Toolbox.of(arguments.pop("tools", None), arguments.pop("tool_choice", None))
        sampling = self._sampling(arguments)
        if arguments:
            raise NotSupportedError(
                f"ChatTransformers does not know the call argument(s) {', '.join(sorted(arguments))}.",
                hint=f"It takes {', '.join(_CALL)}.",
            )
        if length < 1:
            raise InvalidInput(f"`max_tokens` is {length}; it must be at least 1.")
        stops = [text for text in (stop if stop is not None else self.stop) or () if text]
        turns = chat_turns(messages)
        generation, reader = self._engine.start(
            turns, sampling, max_tokens=length, stop=stops, on_piece=on_piece, tools=tools
        )
        _, tokenizer, _ = self._engine.load()
        answer = Answer(self.model_name, tokenizer, reader, sampling.top_logprobs is not None)
        return generation.future, answer, timeout

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> ChatResult:
        future, answer, timeout = self._start(messages, stop, kwargs)
        try:
            return answer.whole(future.result(timeout))
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
        future, answer, timeout = self._start(messages, stop, kwargs)
        try:
            return answer.whole(await asyncio.wait_for(asyncio.wrap_future(future), timeout))
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
        pieces: queue.Queue[Piece | Future[Generation]] = queue.Queue()
        future, answer, timeout = self._start(messages, stop, kwargs, pieces.put)
        future.add_done_callback(pieces.put)
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            while isinstance(piece := _next(pieces, deadline), Piece):
                yield from answer.piece(piece)
            if piece is None:
                raise _too_slow(timeout)
            yield from answer.end(future.result())
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
        pieces: asyncio.Queue[Piece | Future[Generation] | None] = asyncio.Queue()  # None: out of time

        def put(piece: Piece | Future[Generation]) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        future, answer, timeout = self._start(messages, stop, kwargs, put)
        future.add_done_callback(put)
        alarm = None if timeout is None else loop.call_later(timeout, pieces.put_nowait, None)
        try:
            while isinstance(piece := await pieces.get(), Piece):
                for chunk in answer.piece(piece):
                    yield chunk
            if piece is None:
                raise _too_slow(timeout)
            for chunk in answer.end(future.result()):
                yield chunk
        finally:
            future.cancel()
            if alarm is not None:
                alarm.cancel()

    async def _aload(self) -> None:
        if not self._engine.loaded:
            await asyncio.to_thread(self._engine.load)


def _next(pieces: queue.Queue[Piece | Future[Generation]], deadline: float | None) -> Piece | Future[Generation] | None:
    try:
        return pieces.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
    except queue.Empty:
        return None


def _too_slow(timeout: float | None) -> GenerationError:
    return GenerationError(f"No answer within the timeout of {timeout} s.", retryable=True)
