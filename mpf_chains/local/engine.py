"""One loaded model, shared by every chat model that names it, and the calls that run on it."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

from mpf_chains.errors import GenerationError, InvalidInput, MissingExtra, MPFError
from mpf_chains.local.batching import Batcher
from mpf_chains.local.logprobs import Scored
from mpf_chains.local.messages import Turn
from mpf_chains.local.prompt import call_openings, render, write_prompt
from mpf_chains.local.sampling import Sampling
from mpf_chains.local.tools import NO_TOOLS, AnswerFormat, AnswerReader, Toolbox

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

T = TypeVar("T")
_PARTIAL = "\ufffd"  # the first bytes of a character whose other bytes are still to come


class Piece(NamedTuple):
    """Text of an answer that later tokens cannot change, and its tokens where they are scored."""

    text: str
    scored: Sequence[Scored] = ()


class Generation:
    """One call: a row of a batch while it is generated, then its outcome.

    Args:
        prompt: Token ids.
        sampling: How to choose tokens.
        max_tokens: At most this many new tokens, at least 1.
        stop: Texts that end the answer; they are not part of it.
        tokenizer: Decodes the new tokens.
        ends: Ids of the tokens that end an answer.
        on_piece: Called in the worker thread with each new piece of settled text. None (default) for no streaming.
        hidden: Ids of the tokens that are not part of the text. None (default): the tokenizer's special tokens.

    Attributes:
        future: Resolves to this generation when it is finished. Cancelling it takes the row out of its batch.
        tokens: The new token ids so far, an end token included.
        text: The answer so far.
        scored: The tokens of the text with their log-probabilities, where the sampling asks for them.
        ended: Whether the model ended it, by an end token.
        finish_reason: "stop" (end token or stop text) or "length".
    """

    def __init__(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        max_tokens: int,
        stop: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        ends: frozenset[int],
        on_piece: Callable[[Piece], None] | None = None,
        hidden: frozenset[int] | None = None,
    ) -> None:
        self.prompt = prompt
        self.sampling = sampling
        self.uniforms = sampling.uniforms(prompt, max_tokens)
        self.future: Future[Generation] = Future()
        self.tokens: list[int] = []
        self.text = ""
        self.scored: list[Scored] = []
        self.ended = False
        self.finish_reason: Literal["stop", "length"] = "length"
        self._max_tokens, self._stop, self._ends = max_tokens, stop, ends
        self._tokenizer, self._hidden = tokenizer, hidden
        self._on_piece, self._sent, self._sent_tokens = on_piece, 0, 0

    def note(self, logprob: float, top: list[tuple[int, float]]) -> None:
        """Hear of the next token's log-probability, and of the most probable tokens."""
        self._noted = (logprob, top)

    def push(self, token: int) -> bool:
        """Take the next token; True when no more are needed."""
        if self.future.cancelled():
            return True
        try:
            done = self._advance(token)
        except Exception as error:  # one row's failure must not reach the others of its batch
            self.fail(error)
            return True
        if done:
            self._resolve(lambda: self.future.set_result(self))
        return done

    def fail(self, error: BaseException) -> None:
        """End with an error."""
        self._resolve(lambda: self.future.set_exception(error))

    def _resolve(self, settle: Callable[[], None]) -> None:
        with suppress(InvalidStateError):  # cancelled in the meantime
            settle()

    def _advance(self, token: int) -> bool:
        self.tokens.append(token)
        scoring = self.sampling.top_logprobs is not None
        if scoring:
            self.scored.append(Scored(token, *self._noted, start=len(self.text.rstrip(_PARTIAL))))
        self.ended = token in self._ends
        stopped = self.ended
        done = stopped or len(self.tokens) >= self._max_tokens
        if done or self._stop or self._on_piece or scoring:
            text = self._decoded()
            cuts = [cut for cut in (text.find(stop) for stop in self._stop) if cut >= 0]
            stopped, done = stopped or bool(cuts), done or bool(cuts)
            self.text = text[: min(cuts)] if cuts else text
            if done:
                self.scored = [each for each in self.scored if each.start < len(self.text)]
            self._send(len(self.text) if done else self._settled())
        if stopped:
            self.finish_reason = "stop"
        return done

    def _decoded(self) -> str:
        if self._hidden is None:
            return str(self._tokenizer.decode(self.tokens, skip_special_tokens=True))
        return str(self._tokenizer.decode([token for token in self.tokens if token not in self._hidden]))

    def _settled(self) -> int:
        """Length of the text that later tokens can no longer change or cut off."""
        text = self.text.rstrip(_PARTIAL)
        held = [n for stop in self._stop for n in range(1, len(stop)) if text.endswith(stop[:n])]
        return len(text) - max(held, default=0)

    def _send(self, end: int) -> None:
        if self._on_piece and end > self._sent:
            scored = [each for each in self.scored[self._sent_tokens :] if each.start < end]
            self._on_piece(Piece(self.text[self._sent : end], scored))
            self._sent, self._sent_tokens = end, self._sent_tokens + len(scored)


@dataclass(frozen=True)
class Source:
    """Where a model comes from. Two are equal if they give the same model in the same place.

    Args:
        model: Hub id, local folder, "smollm2", or a loaded model.
        tokenizer: The loaded tokenizer; needed with a loaded model only.
        revision: Branch, tag or commit on the hub. None (default): the main branch.
        device: Torch device. None (default): "cuda" if there is one, else "cpu".
        dtype: Name of a torch dtype ("float32", "bfloat16", ...). Default "auto", the checkpoint's own.
        token: Access token for the hub. None (default): the one stored on this machine, if any.
        quantization: See `mpf_chains.local.quantization`. Default: none.
        files: What identifies the files of a local folder, which can be trained on under one name. Default: none.
    """

    model: Any
    tokenizer: Any = None
    revision: str | None = None
    device: str | None = None
    dtype: str = "auto"
    token: str | None = field(default=None, repr=False)
    quantization: Literal["int8"] | None = None
    files: str | None = None

    @property
    def name(self) -> str:
        """The hub id or folder; of a loaded model what its config says, else its class."""
        if isinstance(self.model, str):
            return self.model
        return str(getattr(self.model.config, "name_or_path", "") or type(self.model).__name__)


class Engine:
    """A model and its tokenizer, loaded on first use, and the batcher in front of them.

    Use `Engine.of`, which gives every caller of the same model the same engine.

    Args:
        source: What to load.
        max_batch_size: Rows generated together.

    Attributes:
        batches: Sizes of the last batches of calls, newest last.
        lock: Held while the model is loaded and while its tokenizer is used.
    """

    _shared: ClassVar[weakref.WeakValueDictionary[tuple[Source, int], Engine]] = weakref.WeakValueDictionary()
    _sharing = threading.Lock()

    def __init__(self, source: Source, max_batch_size: int) -> None:
        self.source = source
        self.batches: deque[int] = deque(maxlen=1000)
        self.lock = threading.RLock()
        self._loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase, frozenset[int]] | None = None
        self._batcher: Batcher[Generation | Task[Any]] = Batcher(
            self._run, fail=_fail, size=lambda item: len(item.prompt), max_batch_size=max_batch_size
        )

    @classmethod
    def of(cls, source: Source, max_batch_size: int = 32) -> Engine:
        """The engine for this source: an existing one if somebody holds it, else a new one. Loads nothing."""
        with cls._sharing:
            engine = cls._shared.get((source, max_batch_size))
            if engine is None:
                engine = cls._shared[source, max_batch_size] = cls(source, max_batch_size)
            return engine

    @property
    def loaded(self) -> bool:
        """Whether the weights are in memory."""
        return self._loaded is not None

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, frozenset[int]]:
        """The model, its tokenizer and the ids that end an answer; loads them the first time.

        Raises:
            MissingExtra: If torch or transformers is not installed.
            InvalidInput: If the model cannot be loaded.
        """
        with self.lock:
            if self._loaded is None:
                model, tokenizer = self.source.model, self.source.tokenizer
                if isinstance(model, str):
                    model, stored = load_pretrained(self.source)
                    tokenizer = stored if tokenizer is None else tokenizer
                elif tokenizer is None:
                    raise InvalidInput("A loaded model needs its tokenizer.", hint="Pass `tokenizer=`.")
                model.eval()
                self._loaded = (model, tokenizer, _end_tokens(model, tokenizer))
            return self._loaded

    def token_ids(self, text: str) -> list[int]:
        """The ids of a text's tokens, with none added."""
        _, tokenizer, _ = self.load()
        with self.lock:  # a fast tokenizer may not be used by two threads at once
            return list(tokenizer.encode(text, add_special_tokens=False))

    def prompt_ids(self, chat: Sequence[Turn], tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        """The ids of a conversation; see `write_prompt`."""
        _, tokenizer, _ = self.load()
        with self.lock:  # a fast tokenizer may not be used by two threads at once
            return write_prompt(tokenizer, chat, tools)

    def start(
        self,
        chat: Sequence[Turn],
        sampling: Sampling,
        *,
        max_tokens: int,
        stop: Sequence[str],
        on_piece: Callable[[Piece], None] | None = None,
        tools: Toolbox = NO_TOOLS,
    ) -> tuple[Generation, AnswerReader | None]:
        """Queue a call.

        Args:
            chat: As `chat_turns` makes it.
            sampling: How to choose tokens.
            max_tokens: At most this many; fewer if the model's context ends before.
            stop: Texts that end the answer.
            on_piece: See `Generation`.
            tools: What the model may call.

        Returns:
            The call; wait for its ``future``. And what takes its text apart, if there are tools.

        Raises:
            InvalidInput: If the prompt leaves no room in the model's context.
            NotSupportedError: If the chat template refuses the conversation or the tools.
        """
        model, tokenizer, ends = self.load()
        prompt = self.prompt_ids(chat, tools.definitions)
        context = getattr(model.config, "max_position_embeddings", None)
        if context is not None and len(prompt) >= context:
            raise InvalidInput(
                f"The prompt has {len(prompt)} tokens; the model's context holds {context}, answer included.",
                hint="Shorten the prompt.",
            )
        room = max_tokens if context is None else min(max_tokens, context - len(prompt))
        reader, hidden = None, None
        if tools.definitions:
            with self.lock:
                form = AnswerFormat.of(tokenizer, tools.definitions)
                reader = AnswerReader(form, tools.definitions, render(tokenizer, chat, tools.definitions))
                hidden = form.hidden(tokenizer, ends)
                openings = call_openings(tokenizer, chat, tools.definitions, tools.forced)
            sampling = replace(sampling, openings=openings)
        generation = Generation(
            prompt, sampling, max_tokens=room, stop=stop, tokenizer=tokenizer, ends=ends, on_piece=on_piece,
            hidden=hidden,
        )  # fmt: skip
        self._batcher.submit(generation)
        return generation, reader

    def submit(self, work: Callable[[PreTrainedModel], T]) -> Future[T]:
        """Queue anything else that uses the model; it runs alone, in its turn among the calls.

        Args:
            work: Called with the model, in the worker thread.

        Returns:
            What it will return. Cancelling it before its turn leaves it out.
        """
        task = Task(work)
        self._batcher.submit(task)
        return task.future

    def _run(self, batch: list[Generation | Task[Any]]) -> None:
        from mpf_chains.local.decoding import decode

        model, _, ends = self.load()
        for task in batch:
            if isinstance(task, Task):
                task.run(model)
        calls = [item for item in batch if isinstance(item, Generation)]
        wanted = [generation for generation in calls if not generation.future.cancelled()]
        if calls:
            self.batches.append(len(wanted))
        if wanted:
            decode(model, wanted, pad=min(ends, default=0))


class Task(Generic[T]):
    """Something that is done with the model between batches of calls.

    Args:
        work: Called with the model.

    Attributes:
        future: Resolves to what ``work`` returns.
        prompt: Nothing; it makes a task the shortest item of a batch.
    """

    prompt: Sequence[int] = ()

    def __init__(self, work: Callable[[PreTrainedModel], T]) -> None:
        self.future: Future[T] = Future()
        self._work = work

    def run(self, model: PreTrainedModel) -> None:
        """Do it, unless it was cancelled."""
        if self.future.set_running_or_notify_cancel():
            try:
                self.future.set_result(self._work(model))
            except BaseException as error:  # its failure must not reach the calls
                _fail([self], error)

    def fail(self, error: BaseException) -> None:
        """End with an error."""
        with suppress(InvalidStateError):  # cancelled or done
            self.future.set_exception(error)


def _fail(batch: Sequence[Generation | Task[Any]], error: BaseException) -> None:
    for item in batch:
        failure = GenerationError(f"The local model failed: {type(error).__name__}: {error}.")
        failure.__cause__ = error
        item.fail(failure)


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(int(i) for i in [*ids, tokenizer.eos_token_id] if i is not None)


def load_pretrained(
    source: Source, kind: Literal["causal", "masked"] = "causal"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a language model and its tokenizer: safetensors only, no code from the repository.

    Args:
        source: A source whose model is a name.
        kind: Of language model.

    Raises:
        MissingExtra: If torch or transformers is not installed, or torchao where the source asks for it.
        InvalidInput: If the model cannot be loaded.
    """
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer
    except ImportError as error:
        raise MissingExtra(error.name or "transformers", "local") from error
    from mpf_chains.local.smollm2 import smollm2_path

    if source.quantization:
        from mpf_chains.local.quantization import quantize, require_torchao

        require_torchao()
    name = source.model
    folder = str(smollm2_path()) if name == "smollm2" else name
    device = source.device or ("cuda" if torch.cuda.is_available() else "cpu")
    safe = {"revision": source.revision or "main", "token": source.token, "trust_remote_code": False}
    try:
        with no_progress_bars():
            tokenizer = AutoTokenizer.from_pretrained(folder, **safe)
            loader: Any = AutoModelForCausalLM if kind == "causal" else AutoModelForMaskedLM
            model: Any = loader.from_pretrained(folder, dtype=source.dtype, use_safetensors=True, **safe)
        model.to(device)
        if source.quantization:
            quantize(model)
    except MPFError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise InvalidInput(
            f"The model {name!r} could not be loaded: {error}",
            hint=f"Give the id of a {kind} language model on the hub, or a local folder"
            + (", or 'smollm2'." if kind == "causal" else "."),
        ) from error
    return model, tokenizer


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep transformers from drawing its bars for loading weights."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()
