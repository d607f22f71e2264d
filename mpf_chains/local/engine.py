"""One loaded model, shared by every chat model that names it, and the calls that run on it."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from mpf_chains.errors import GenerationError, InvalidInput, MissingExtra, MPFError
from mpf_chains.local.batching import Batcher
from mpf_chains.local.generation import ActiveExperts, Generation, Group, Piece
from mpf_chains.local.messages import Turn
from mpf_chains.local.prompt import call_openings, render, write_prompt
from mpf_chains.local.sampling import Sampling
from mpf_chains.local.tools import NO_TOOLS, AnswerFormat, AnswerReader, Toolbox

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from mpf_chains.local.experts.shared import SharedExperts
    from mpf_chains.local.steering.shared import SharedSteering, Steering

T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """Where a model comes from. Two are equal if they give the same model in the same place.

    Args:
        model: Hub id, local folder, GGUF file, "smollm2", or a loaded model.
        tokenizer: The loaded tokenizer; needed with a loaded model only.
        revision: Branch, tag or commit on the hub. None (default): the main branch.
        device: Torch device. None (default): "cuda" if there is one, else "cpu".
        dtype: Name of a torch dtype ("float32", "bfloat16", ...). Default "auto", the checkpoint's own.
        token: Access token for the hub. None (default): the one stored on this machine, if any.
        quantization: See `mpf_chains.local.quantization`. Default: none.
        files: What identifies the files of a local folder, which can be trained on under one name. Default: none.
        gguf_file: Name of a GGUF file in the repository or folder, to be read in place of safetensors. Default: none.
    """

    model: Any
    tokenizer: Any = None
    revision: str | None = None
    device: str | None = None
    dtype: str = "auto"
    token: str | None = field(default=None, repr=False)
    quantization: Literal["int8"] | None = None
    files: str | None = None
    gguf_file: str | None = None

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
        experts: The expert pairs beside the model, as long as somebody holds them; see `SharedExperts.of`.
        steering: The steering adapters on the model, likewise; see `SharedSteering.of`.
        lock: Held while the model is loaded and while its tokenizer is used.
    """

    _shared: ClassVar[weakref.WeakValueDictionary[tuple[Source, int], Engine]] = weakref.WeakValueDictionary()
    _sharing = threading.Lock()

    def __init__(self, source: Source, max_batch_size: int) -> None:
        self.source = source
        self.batches: deque[int] = deque(maxlen=1000)
        self.experts: weakref.WeakValueDictionary[Any, SharedExperts] = weakref.WeakValueDictionary()
        self.steering: weakref.WeakValueDictionary[Any, SharedSteering] = weakref.WeakValueDictionary()
        self.lock = threading.RLock()
        self._loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase, frozenset[int]] | None = None
        self._batcher: Batcher[Generation | Task[Any]] = Batcher(
            self._run, fail=_fail, size=_size, max_batch_size=max_batch_size
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

    def raw_ids(self, text: str) -> list[int]:
        """The ids of a text that is to be continued: as it stands, behind what the tokenizer puts before texts."""
        from mpf_chains.local.likelihood import Opening

        _, tokenizer, _ = self.load()
        with self.lock:
            ids = tokenizer.encode(text, add_special_tokens=False)
            return Opening.of(tokenizer).put(ids, "The prompt is empty")

    def start(
        self,
        chat: Sequence[Turn] | str,
        sampling: Sampling,
        *,
        max_tokens: int,
        stop: Sequence[str],
        on_piece: Callable[[Piece], None] | None = None,
        tools: Toolbox = NO_TOOLS,
        active: ActiveExperts | None = None,
        steering: Steering | None = None,
    ) -> tuple[Generation, AnswerReader | None]:
        """Queue a call.

        Args:
            chat: As `chat_turns` makes it, or a text to be continued, without tools.
            sampling: How to choose tokens.
            max_tokens: At most this many; fewer if the model's context ends before, or that of an expert.
            stop: Texts that end the answer.
            on_piece: See `Generation`.
            tools: What the model may call.
            active: What experts do to it, by the strengths of ``sampling``. None (default): there are none.
            steering: How it is steered. None (default): it is not.

        Returns:
            The call; wait for its ``future``. And what takes its text apart, if there are tools.

        Raises:
            InvalidInput: If the prompt leaves no room in the model's context or an expert's, experts cannot be loaded,
                or a steering adapter does not fit the model.
            NotSupportedError: If the chat template refuses the conversation or the tools.
        """
        model, tokenizer, ends = self.load()
        prompt = self.raw_ids(chat) if isinstance(chat, str) else self.prompt_ids(chat, tools.definitions)
        contexts = {"model's": getattr(model.config, "max_position_embeddings", None)}
        if steering is not None:
            steering.shared.load()
        if active is not None:
            sampling = active.experts.effective(sampling)
            if sampling.alphas:
                contexts["experts'"] = active.experts.context
        read = len(prompt) + (steering is not None)
        room = min([max_tokens, *(_room(read, who, context) for who, context in contexts.items() if context)])
        reader, hidden = None, None
        if tools.definitions and not isinstance(chat, str):
            with self.lock:
                form = AnswerFormat.of(tokenizer, tools.definitions)
                reader = AnswerReader(form, tools.definitions, render(tokenizer, chat, tools.definitions))
                hidden = form.hidden(tokenizer, ends)
                openings = call_openings(tokenizer, chat, tools.definitions, tools.forced)
            sampling = replace(sampling, openings=openings)
        generation = Generation(
            prompt, sampling, max_tokens=room, stop=stop, tokenizer=tokenizer, ends=ends, on_piece=on_piece,
            hidden=hidden, active=active, steering=steering,
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
        groups: dict[Group, list[Generation]] = {}
        for generation in wanted:
            groups.setdefault(generation.group, []).append(generation)
        pad = min(ends, default=0)
        for (experts, speculative, steering), rows in groups.items():
            try:
                alone = None if steering is None else steering.begin(model, rows, pad)
                if experts is None:
                    decode(model, rows, pad, alone)
                else:
                    experts.decode(rows, pad, speculative=speculative, alone=alone)
            except BaseException as error:  # the other groups go on
                _fail(rows, error)


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
        if isinstance(error, MPFError):
            item.fail(error)
            continue
        failure = GenerationError(f"The local model failed: {type(error).__name__}: {error}.")
        failure.__cause__ = error
        item.fail(failure)


def _size(item: Generation | Task[Any]) -> tuple[int, ...]:
    """Items near each other by this go well into one batch: the same experts and steering, then the same length."""
    group = item.group if isinstance(item, Generation) else Group()
    return *(0 if each is None else id(each) for each in (group.experts, group.steering)), len(item.prompt)


def _room(prompt: int, who: str, context: int) -> int:
    if prompt >= context:
        raise InvalidInput(
            f"The prompt has {prompt} tokens; the {who} context holds {context}, answer included.",
            hint="Shorten the prompt.",
        )
    return context - prompt


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
    if source.quantization:
        from mpf_chains.local.quantization import quantize, require_torchao

        require_torchao()
    name = source.model
    folder, file = _place(source)
    device = source.device or ("cuda" if torch.cuda.is_available() else "cpu")
    safe = {"revision": source.revision or "main", "token": source.token, "trust_remote_code": False, **file}
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
            + (", a GGUF file, or 'smollm2'." if kind == "causal" else "."),
        ) from error
    return model, tokenizer


def _place(source: Source) -> tuple[str, dict[str, str]]:
    """The folder or id to load from, and which GGUF file there, if it is one."""
    from mpf_chains.local.smollm2 import smollm2_path

    name, file = source.model, source.gguf_file
    if name == "smollm2":
        return str(smollm2_path()), {}
    if file is None and name.endswith(".gguf"):
        name, file = str(Path(name).parent), Path(name).name
    if file is None:
        check_place(name)
        return name, {}
    if (source.gguf_file is None or Path(name).is_dir()) and not (Path(name) / file).is_file():
        raise InvalidInput(f"There is no file {str(Path(name) / file)!r}.", hint="Give the path of a GGUF file.")
    try:
        import gguf  # noqa: F401 - transformers' own error would not name our extra
    except ImportError as error:
        raise MissingExtra("gguf", "local") from error
    return name, {"gguf_file": file}


def check_place(name: str) -> None:
    """Whether a folder is there, if the name can only be one: hub ids have at most one slash, in their middle.

    Raises:
        InvalidInput: If not.
    """
    if (name.startswith(("/", ".", "~")) or "\\" in name or name.count("/") > 1) and not Path(name).exists():
        raise InvalidInput(
            f"The folder {name!r} does not exist.", hint="Give one that does, or the id of a model on the hub."
        )


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
