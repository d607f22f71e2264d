"""`ChatTransformers`: any causal language model of transformers as a LangChain chat model, with real batching."""

from __future__ import annotations

import asyncio
import os
import queue
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING, Annotated, Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import get_config_list
from langchain_core.tools import BaseTool
from pydantic import AliasChoices, BeforeValidator, ConfigDict, Field, InstanceOf, PrivateAttr, SecretStr

from mpf_chains.core.sampling import QuotaSampler
from mpf_chains.errors import GenerationError, NotSupportedError
from mpf_chains.local.answers import Answer
from mpf_chains.local.call import SAMPLING, STEERING, Call, as_texts, chosen_strengths
from mpf_chains.local.engine import Engine, Source
from mpf_chains.local.experts.pair import ExpertPair
from mpf_chains.local.experts.shared import SharedExperts
from mpf_chains.local.fingerprint import weights_of
from mpf_chains.local.generation import Generation, Piece
from mpf_chains.local.messages import chat_turns, raw_text
from mpf_chains.local.sampling import Filter
from mpf_chains.local.steering.adapter import SteeringAdapter
from mpf_chains.local.steering.choice import Draw
from mpf_chains.local.steering.shared import SharedSteering, Steering
from mpf_chains.local.text_scoring import TextScoring
from mpf_chains.local.tools import Toolbox

if TYPE_CHECKING:
    from mpf_chains.local.experts.ensemble import ExpertEnsemble

_ANY_TOOL = {"name": "look_up", "description": "Look a word up.", "parameters": {"type": "object", "properties": {}}}
_WEIGHTS = ("model", "tokenizer", "revision", "gguf_file", "dtype", "quantization", "experts", "steering")
_LOADING = frozenset({*_WEIGHTS, "device", "max_batch_size", "api_key"})


class ChatTransformers(TextScoring, BaseChatModel):
    """A causal language model of transformers as a chat model.

    Constructing it is cheap: the weights are loaded by the first call, once, and shared by all instances that name
    the same model, revision, device, dtype and max_batch_size. Calls made at the same time (by `ainvoke`, `abatch`,
    `batch`, streams, threads) are collected for some milliseconds and generated together. Each call has its own
    random stream, so what it returns does not depend, up to rounding, on what it was batched with.

    Every field from `max_tokens` to `context` can also be given per call or with `bind`, and so can tools (see
    `bind_tools`); other call arguments raise `NotSupportedError`. What decides which weights are loaded, where and for
    how many calls at once cannot be assigned anew: ``model_copy(update=...)`` makes a model that has it otherwise.

    **Experts** move the law of the next token: z̃ = z + Σ α (z⁺ − z⁻), see `mpf_chains.local.experts.ExpertPair`. They
    are loaded by the first call, once for all instances that name the same ones, on the model's device and in its
    dtype. Calls of one batch may have different strengths; those whose strengths are all 0 get exactly what the model
    gives alone. Those that nothing moves, those that drafts are used for and those explained are generated one group
    after another, each to its end. ``response_metadata["experts"]`` has the strengths, the filter, and how it was
    decoded ("decoding").

    **Steering** lets answers begin with the token of a class, so that many of them have the shares of a target; see
    `mpf_chains.local.steering.SteeringAdapter`. The token stands between prompt and answer in the model's memory only:
    the answer's text, log-probabilities, ``max_tokens``, stop texts and usage (of the prompt, too) are without it.
    Temperature, top_k and top_p are of the text, and not of the draw of the class. Experts correct what comes behind
    the token, and read the text without it; nothing is drafted then. Tools can be offered: a call comes behind the
    token. Equal prompts of one batch are read once, whatever their classes. Calls with and without steering, or with
    other adapters, may meet in one batch, and are generated one group after another; those without get exactly what
    the model gives alone. ``response_metadata["steering"]`` has "class", "draw", "context", "from" ("target", "model",
    or "given" by ``steer``) and the "shares" drawn from. Every call has a class of its own, and so has each of an
    agent's, and one that merges answers (``merge_model=`` can be a model without steering); ``steer`` fixes it.

    Args:
        model: Hub id, local folder, GGUF file, "smollm2" (see `mpf_chains.local.smollm2`), or a loaded model.
        tokenizer: Its loaded tokenizer, with a loaded model. Default: the one stored with the model.
        revision: Branch, tag or commit on the hub. Default: the main branch.
        gguf_file: Name of a GGUF file in the repository or folder ``model``. Default: its safetensors are read.
        device: Torch device. Default: "cuda" if there is one, else "cpu". A loaded model stays where it is.
        dtype: Name of a torch dtype. Default "auto", the checkpoint's own.
        max_batch_size: Calls generated together, at most. Default 32.
        max_tokens: New tokens per answer, at most; `max_new_tokens` is another name for it. Default 256.
        temperature: 0 is greedy. Default 1, the model's own distribution.
        top_k: Draw from the k most probable tokens. Default: all.
        top_p: Then from the smallest set with this probability. Default 1: all.
        seed: The same seed and prompt give the same answer. Default: a fresh one at every call.
        stop: Text, or several, that end an answer; they are not part of it.
        logprobs: Give the log-probability of each token of an answer in ``response_metadata["logprobs"]``, in OpenAI's
            form: natural logarithms under the model's own distribution (as experts have corrected it, if they are at
            work), before temperature, top_k and top_p. An end token, and what a stop text cut off, are not part of the
            answer. Costs nothing when it is off, the default.
        top_logprobs: With logprobs, also the most probable tokens of each place, so many. Default: none of them.
        timeout: Seconds that one call may take, waiting for its batch included; in a stream, to its last token.
            Default: no limit.
        raw: Continue the one user's message as it stands, without a chat template; not with steering. Default False.
        alphas: Strength of each expert pair by name. Pairs that are not named keep what they had. Default: the pairs'
            own.
        filter: "last" (default): top_p is of the law that experts have corrected. "base_first": the model's own
            nucleus of top_p comes first, then experts, temperature and top_k work within it.
        explain: Give in ``response_metadata["experts"]["tokens"]`` what experts changed about each token of an answer,
            as `mpf_chains.local.experts.ExplainedToken.as_dict` gives it. At most 12 pairs. Default False.
        steer: The class that answers are steered to. Default: it is drawn.
        draw: How a class is drawn. "model" (default): with the probabilities that the model itself gives the classes'
            tokens at this prompt. "target": from the target of the context. Both are independent draws, which the seed
            and the prompt decide if there is a seed. "quota": from the target in such an order that after any number
            of answers each class had its share of them, up to one answer; without a target for the context from the
            model's own shares ("from": "model"), added up for each context, or each prompt without one. Which class a
            call gets depends on those before it, then; calls that fail or are cancelled may count.
        context: What the answer is about, by its name in the adapter's targets, upper and lower case alike; others have
            no target, and "quota" warns of near misses. Default: the one of these names that is a whole word, or
            its plural, of the user's last message; of the message before it if that names none, and so on. A message
            that names several has none.
        experts: `ExpertPair`, or several. Default: none.
        steering: `SteeringAdapter`, or the folder of one, which is read at once. Default: none.
        quotas: Counts quota draws. Default: one of its own, which copies by ``model_copy`` and configurable fields
            share. Give several models one for them to count together.
        speculative: Whether the experts' small model may draft tokens that the model only verifies, which is faster
            where they agree; texts then stream in bursts. The law is the same, but with a seed another text is drawn
            than without drafts (and than with ``explain=True``, for which nothing is drafted). Default True.
        max_retries: Accepted because all chat models have it; there is no network to retry.
        api_key: Access token for gated models of the hub. Default: the one that huggingface-hub has stored.
        cache: As in all chat models, but a steered one takes no global cache unless it is given here: that would
            freeze the class that was drawn first.
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
    gguf_file: str | None = None
    device: str | None = None
    dtype: str = "auto"
    max_batch_size: int = Field(default=32, ge=1)
    max_tokens: int = Field(default=256, ge=1, validation_alias=AliasChoices("max_tokens", "max_new_tokens"))
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int | None = None
    stop: Annotated[list[str] | None, BeforeValidator(as_texts)] = Field(
        default=None, validation_alias=AliasChoices("stop", "stop_sequences")
    )
    logprobs: bool = False
    top_logprobs: int | None = None
    timeout: float | None = None
    raw: bool = False
    alphas: Mapping[str, float] | None = None
    filter: Filter = "last"
    explain: bool = False
    steer: str | None = None
    draw: Draw = "model"
    context: str | None = None
    experts: Sequence[ExpertPair] | ExpertPair = ()
    steering: InstanceOf[SteeringAdapter] | str | os.PathLike[str] | None = Field(default=None, repr=False)
    quotas: InstanceOf[QuotaSampler] | None = Field(default=None, repr=False, exclude=True)
    speculative: bool = True
    max_retries: int = 0
    api_key: SecretStr | None = Field(default=None, exclude=True, repr=False)
    streaming: bool = False
    quantization: Literal["int8"] | None = None

    _engine: Engine = PrivateAttr()
    _shared: SharedExperts | None = PrivateAttr(default=None)
    _steering: SharedSteering | None = PrivateAttr(default=None)

    def model_post_init(self, context: Any, /) -> None:
        """Find or make the engine; loads nothing."""
        super().model_post_init(context)
        self._check()
        self._join()

    def _check(self) -> None:
        if isinstance(self.steering, str | os.PathLike):
            self.__dict__["steering"] = SteeringAdapter.load(self.steering)
        if self.quotas is None and self.steering is not None:
            self.__dict__["quotas"] = QuotaSampler(secrets.randbits(32) if self.seed is None else self.seed)
        if "cache" not in self.model_fields_set:
            self.__dict__["cache"] = None if self.steering is None else False
        Call.of(self, {})
        if (self.quantization or self.gguf_file) and not isinstance(self.model, str):
            name = "quantization" if self.quantization else "gguf_file"
            raise NotSupportedError(
                f"`{name}` is for models that are loaded by their name; this one is loaded already.",
                hint="Give its folder.",
            )

    def _join(self) -> None:
        token = self.api_key.get_secret_value() if self.api_key else None
        files = weights_of(self.model) if isinstance(self.model, str) else None
        source = Source(
            self.model, self.tokenizer, self.revision, self.device, self.dtype, token, self.quantization, files,
            self.gguf_file,
        )  # fmt: skip
        self._engine = Engine.of(source, self.max_batch_size)
        self._shared = SharedExperts.of(self._engine, self._pairs) if self._pairs else None
        adapter = self.steering
        self._steering = SharedSteering.of(self._engine, adapter) if isinstance(adapter, SteeringAdapter) else None

    @property
    def _pairs(self) -> tuple[ExpertPair, ...]:
        return (self.experts,) if isinstance(self.experts, ExpertPair) else tuple(self.experts)

    def __getstate__(self) -> dict[Any, Any]:
        return {**super().__getstate__(), "__pydantic_private__": None}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        self.__pydantic_private__ = {}
        self._join()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _LOADING:
            raise NotSupportedError(
                f"`{name}` decides what a chat model loads and stays as it is.",
                hint=f"Use `model_copy(update={{'{name}': ...}})`.",
            )
        if name in type(self).model_fields and name not in BaseChatModel.model_fields:
            value = getattr(self.model_copy(update={name: value}), name)
        super().__setattr__(name, value)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> ChatTransformers:  # noqa: ARG002
        """The same model with some fields changed, which are checked as in construction; shares what both load.

        Args:
            update: New values by the names of fields. Default: none.
            deep: Accepted because all models have it; weights are never copied.

        Raises:
            ValueError: If a field is unknown or a value makes no sense.
        """
        copied = super().model_copy()
        for name, value in (update or {}).items():
            self.__pydantic_validator__.validate_assignment(copied, name, value)
        copied._check()
        if not _LOADING.isdisjoint(update or ()):
            copied._join()
        return copied

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
        names = ("revision", "dtype", "max_tokens", *SAMPLING, "stop")
        named = {"model": self.model_name, **{name: getattr(self, name) for name in names}}
        usual = {"quantization": None, "gguf_file": None, "raw": False, "filter": "last", "explain": False}
        for name, value in {**usual, "logprobs": False, "top_logprobs": None}.items():
            if getattr(self, name) != value:
                named[name] = getattr(self, name)
        if self._shared is not None:
            named |= {"experts": self._shared.contents, "alphas": chosen_strengths(self)}
        if isinstance(self.steering, SteeringAdapter):
            steering = {name: getattr(self, name) for name in STEERING}
            named["steering"] = {"adapter": self.steering.digest, **steering}
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
        turns = chat_turns(messages)
        if self.raw:
            return len(self._engine.raw_ids(raw_text(turns)))
        return len(self._engine.prompt_ids(turns, Toolbox.of(tools).definitions))

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

    def _experts_and(self, alphas: Mapping[str, float] | None) -> tuple[ExpertEnsemble | None, list[float]]:
        """The loaded experts, and their strengths in their order."""
        chosen = list(chosen_strengths(self, alphas).values())
        return (self._shared.load() if self._shared else None), chosen

    def _start(
        self,
        messages: Sequence[BaseMessage],
        stop: list[str] | None,
        arguments: dict[str, Any],
        on_piece: Callable[[Piece], None] | None = None,
    ) -> tuple[Future[Generation], Answer, float | None]:
        """Queue a call; returns what it will resolve to, what makes messages of it, and the seconds it may take."""
        call = Call.of(self, arguments, stop)
        turns = chat_turns(messages)
        steering = None
        if call.choice is not None and self._steering is not None:
            said = [str(message.text) for message in reversed(messages) if isinstance(message, HumanMessage)]
            steering = Steering(self._steering, call.choice.about(said))
        generation, reader = self._engine.start(
            raw_text(turns) if call.raw else turns, call.sampling, max_tokens=call.max_tokens, stop=call.stop,
            on_piece=on_piece, tools=call.tools, active=call.active, steering=steering,
        )  # fmt: skip
        _, tokenizer, _ = self._engine.load()
        return generation.future, Answer(self.model_name, tokenizer, reader, call.sampling), call.timeout

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
        for each in (self._engine, self._shared, self._steering):
            if each is not None and not each.loaded:
                await asyncio.to_thread(each.load)


def _next(pieces: queue.Queue[Piece | Future[Generation]], deadline: float | None) -> Piece | Future[Generation] | None:
    try:
        return pieces.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
    except queue.Empty:
        return None


def _too_slow(timeout: float | None) -> GenerationError:
    return GenerationError(f"No answer within the timeout of {timeout} s.", retryable=True)
