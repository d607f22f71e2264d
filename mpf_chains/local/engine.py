"""One loaded model, shared by every chat model that names it, and the calls that run on it."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from mpf_chains.errors import GenerationError, InvalidInput, MissingExtra, MPFError, NotSupportedError
from mpf_chains.local.batching import Batcher
from mpf_chains.local.sampling import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

T = TypeVar("T")


class Generation:
    """One call: a row of a batch while it is generated, then its outcome.

    Args:
        prompt: Token ids.
        sampling: How to choose tokens.
        max_tokens: At most this many new tokens, at least 1.
        stop: Texts that end the answer; they are not part of it.
        tokenizer: Decodes the new tokens.
        ends: Ids of the tokens that end an answer.
        on_text: Called in the worker thread with each new piece of settled text. None (default) for no streaming.

    Attributes:
        future: Resolves to this generation when it is finished. Cancelling it takes the row out of its batch.
        tokens: The new token ids so far, an end token included.
        text: The answer so far.
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
        on_text: Callable[[str], None] | None = None,
    ) -> None:
        self.prompt = prompt
        self.sampling = sampling
        self.uniforms = sampling.uniforms(prompt, max_tokens)
        self.future: Future[Generation] = Future()
        self.tokens: list[int] = []
        self.text = ""
        self.finish_reason: Literal["stop", "length"] = "length"
        self._max_tokens, self._stop, self._ends = max_tokens, stop, ends
        self._tokenizer, self._on_text, self._sent = tokenizer, on_text, 0

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
        ended = token in self._ends
        done = ended or len(self.tokens) >= self._max_tokens
        if done or self._stop or self._on_text:
            text = str(self._tokenizer.decode(self.tokens, skip_special_tokens=True))
            cuts = [cut for cut in (text.find(stop) for stop in self._stop) if cut >= 0]
            ended, done = ended or bool(cuts), done or bool(cuts)
            self.text = text[: min(cuts)] if cuts else text
            self._send(len(self.text) if done else self._settled())
        if ended:
            self.finish_reason = "stop"
        return done

    def _settled(self) -> int:
        """Length of the text that later tokens can no longer change or cut off."""
        text = self.text.rstrip("\ufffd")  # the first bytes of a character whose other bytes are still to come
        held = [n for stop in self._stop for n in range(1, len(stop)) if text.endswith(stop[:n])]
        return len(text) - max(held, default=0)

    def _send(self, end: int) -> None:
        if self._on_text and end > self._sent:
            self._on_text(self.text[self._sent : end])
            self._sent = end


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
    """

    model: Any
    tokenizer: Any = None
    revision: str | None = None
    device: str | None = None
    dtype: str = "auto"
    token: str | None = field(default=None, repr=False)

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

    def prompt_ids(self, chat: Sequence[Mapping[str, str]]) -> list[int]:
        """The ids of a conversation as the chat template writes it, up to where the answer begins.

        Raises:
            InvalidInput: If the tokenizer has no chat template.
            NotSupportedError: If the chat template refuses the conversation.
        """
        _, tokenizer, _ = self.load()
        with self.lock:  # a fast tokenizer may not be used by two threads at once
            return _encode(tokenizer, chat)

    def start(
        self,
        chat: Sequence[Mapping[str, str]],
        sampling: Sampling,
        *,
        max_tokens: int,
        stop: Sequence[str],
        on_text: Callable[[str], None] | None = None,
    ) -> Generation:
        """Queue a call.

        Args:
            chat: Turns with "role" and "content".
            sampling: How to choose tokens.
            max_tokens: At most this many; fewer if the model's context ends before.
            stop: Texts that end the answer.
            on_text: See `Generation`.

        Returns:
            The call; wait for its ``future``.

        Raises:
            InvalidInput: If the prompt leaves no room in the model's context.
            NotSupportedError: If the chat template refuses the conversation.
        """
        model, tokenizer, ends = self.load()
        prompt = self.prompt_ids(chat)
        context = getattr(model.config, "max_position_embeddings", None)
        if context is not None and len(prompt) >= context:
            raise InvalidInput(
                f"The prompt has {len(prompt)} tokens; the model's context holds {context}, answer included.",
                hint="Shorten the prompt.",
            )
        room = max_tokens if context is None else min(max_tokens, context - len(prompt))
        generation = Generation(
            prompt, sampling, max_tokens=room, stop=stop, tokenizer=tokenizer, ends=ends, on_text=on_text
        )
        self._batcher.submit(generation)
        return generation

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


def _encode(tokenizer: PreTrainedTokenizerBase, chat: Sequence[Mapping[str, str]]) -> list[int]:
    from jinja2.exceptions import TemplateError

    if not tokenizer.chat_template:
        raise InvalidInput(
            "The tokenizer has no chat template, so messages cannot be written as a prompt.",
            hint="Use an instruction-tuned model, or set `tokenizer.chat_template`.",
        )
    try:
        encoded: Any = tokenizer.apply_chat_template(
            [dict(turn) for turn in chat], add_generation_prompt=True, return_dict=True
        )
    except TemplateError as error:
        roles = ", ".join(turn["role"] for turn in chat)
        raise NotSupportedError(f"The model's chat template refuses a conversation of {roles}: {error}.") from error
    return list(encoded["input_ids"])


def load_pretrained(
    source: Source, kind: Literal["causal", "masked"] = "causal"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a language model and its tokenizer: safetensors only, no code from the repository.

    Args:
        source: A source whose model is a name.
        kind: Of language model.

    Raises:
        MissingExtra: If torch or transformers is not installed.
        InvalidInput: If the model cannot be loaded.
    """
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer
    except ImportError as error:
        raise MissingExtra(error.name or "transformers", "local") from error
    from mpf_chains.local.smollm2 import smollm2_path

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
