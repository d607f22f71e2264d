"""What learns in a training: adapters in a model, or a copy of all of it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mpf_chains.errors import InvalidInput, MissingExtra
from mpf_chains.local.engine import no_progress_bars
from mpf_chains.local.experts.files.adapter import in_and_out, write_base
from mpf_chains.local.fingerprint import fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_COARSE = {"torch.int8", "torch.float16", "torch.bfloat16"}


@dataclass(frozen=True, eq=False)
class Tuned:
    """A model that learns, and the one it started from.

    Args:
        model: Gives the logits of what was learned.
        original: Gives, inside, a model with the logits from before.
        save: Writes what was learned into a folder.
    """

    model: Any
    original: Callable[[], AbstractContextManager[Any]]
    save: Callable[[Path], None]

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """What learns, by name."""
        return {name: each for name, each in self.model.named_parameters() if each.requires_grad}

    def logits(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Logits, shape (rows, columns, vocabulary)."""
        logits: torch.Tensor = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return logits

    def logits_before(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Those of the model that it started from."""
        with self.original() as model:
            logits: torch.Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return logits


@contextmanager
def adapters_in(
    model: PreTrainedModel, rank: int, scale: float, targets: Sequence[str] | str | None, seed: int
) -> Iterator[Tuned]:
    """The model with a new LoRA adapter in it, of which only the adapter learns; as it was before at the end.

    There is no dropout: what a step gives depends on the state and the texts alone.

    Args:
        model: A causal language model.
        rank: See `ExpertTrainer`.
        scale: See `ExpertTrainer`.
        targets: See `ExpertTrainer`.
        seed: Seeds the adapter.

    Raises:
        InvalidInput: If the model has no such modules, or some of them are not linear.
        MissingExtra: If peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingExtra("peft", "local") from error
    from transformers.pytorch_utils import Conv1D

    config = LoraConfig(
        r=rank, lora_alpha=scale * rank, task_type="CAUSAL_LM",  # type: ignore[arg-type]
        target_modules=targets if targets is None or isinstance(targets, str) else list(targets),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )  # fmt: skip
    base = fingerprint(model)
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    was_training = model.training
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        try:
            with warnings.catch_warnings(), torch.random.fork_rng(devices):
                warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
                torch.manual_seed(seed)
                tuned: Any = get_peft_model(model, config)
        except ValueError as error:
            raise InvalidInput(f"No adapter can be put into {type(model).__name__}: {error}") from error
        _check_linear(model)
        tuned.eval()

        @contextmanager
        def original() -> Iterator[Any]:
            with tuned.disable_adapter():
                yield tuned

        def save(folder: Path) -> None:
            tuned.save_pretrained(str(folder), save_embedding_layers=False)
            (folder / "README.md").unlink(missing_ok=True)  # peft's blank model card
            write_base(folder, base)

        yield Tuned(tuned, original, save)
    finally:
        _unwrap(model)
        for parameter, learns in before:
            parameter.requires_grad_(learns)
        model.train(was_training)


@contextmanager
def copy_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[Tuned]:
    """A copy of the model, all of which learns. There is no dropout.

    Args:
        model: A causal language model in float32.
        tokenizer: Its tokenizer, which is saved with the copy.

    Raises:
        InvalidInput: If it is in another dtype.
    """
    coarse = {str(each.dtype) for each in (*model.parameters(), *model.buffers())} & _COARSE
    if coarse:
        raise InvalidInput(
            f"All weights are to learn (`rank` is None), and {type(model).__name__} has some in "
            f"{', '.join(sorted(coarse))}, in which small steps are lost.",
            hint="Load the model in float32, or train adapters.",
        )
    base = fingerprint(model)
    original: Any = model
    own: Any = copy.deepcopy(model)
    own.requires_grad_(requires_grad=True)
    own.eval()
    was_training = model.training

    def save(folder: Path) -> None:
        with no_progress_bars():
            own.save_pretrained(str(folder), max_shard_size="1TB")  # one file, which says what it was trained from
            tokenizer.save_pretrained(str(folder))
        write_base(folder, base)

    try:
        original.eval()
        yield Tuned(own, lambda: nullcontext(original), save)
    finally:
        original.train(was_training)


def _check_linear(model: PreTrainedModel) -> None:
    """Whether adapters sit on linear modules only: others cannot be read as rows of one batch."""
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and in_and_out(module.get_base_layer()) is None:
            kind = type(module.get_base_layer()).__name__
            raise InvalidInput(f"`targets` has {name!r}, a {kind}; adapters work on linear modules only.")


def _unwrap(model: PreTrainedModel) -> None:
    """Take every adapter out, also where peft stopped halfway."""
    from peft.tuners.lora import LoraLayer

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLayer):
                setattr(parent, name, child.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
