"""`ExpertTrainer`: from two lists of texts to an expert pair of LoRA adapters on one small model."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.nn import functional
from tqdm import tqdm

from mpf_chains.errors import InvalidInput, MissingExtra
from mpf_chains.local.experts.adapter import record_base
from mpf_chains.local.experts.loading import load_model
from mpf_chains.local.experts.pair import ExpertPair
from mpf_chains.local.experts.tensors import read_tensors
from mpf_chains.local.experts.texts import pieces, split
from mpf_chains.local.fingerprint import fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_POSITIONS = 1024  # read at a time: their logits must fit into memory
_IGNORE = -100
_SETTINGS = (
    "rank", "scale", "targets", "epochs", "max_steps", "learning_rate", "batch", "block", "held_out",
    "evaluate_every", "patience", "kl_limit", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class HeldOut:
    """What an adapter does to texts that it was not trained on.

    Args:
        step: Training steps before.
        loss: Mean −ln p per token, in nats.
        kl: Mean KL divergence of the adapted model from the base, KL(base ‖ adapted), per token, in nats.
    """

    step: int
    loss: float
    kl: float


@dataclass(frozen=True)
class Training:
    """How one half of a pair was trained.

    Args:
        folder: The adapter.
        losses: Mean −ln p per token (nats) of each step's texts, before the step.
        held_out: Loss and distance on held-out texts, from before the first step on.
        best_step: Steps after which the adapter that was kept was reached. 0: none was better than the base.
        stopped: "steps" (all were made), "patience" (the held-out loss stopped falling) or "kl" (too far from the
            base).
    """

    folder: Path
    losses: tuple[float, ...]
    held_out: tuple[HeldOut, ...]
    best_step: int
    stopped: Literal["steps", "patience", "kl"]

    @property
    def best(self) -> HeldOut:
        """The held-out figures of the adapter that was kept."""
        return next(each for each in self.held_out if each.step == self.best_step)


@dataclass(frozen=True)
class TrainedPair:
    """A pair, and how its halves came about.

    Args:
        pair: Ready for an `ExpertEnsemble`.
        expert: Of the half that was trained on anti-biased texts.
        anti_expert: Of the half that was trained on biased texts.
    """

    pair: ExpertPair
    expert: Training
    anti_expert: Training


@dataclass(frozen=True)
class ExpertTrainer:
    """Trains pairs: an anti-expert on biased texts, an expert on anti-biased ones; both LoRA adapters on one model.

    Both halves start from the same random adapter and see their texts in the same order, so with counterparts in the
    same places they differ by what the texts differ in. Narrow texts make strong experts: of the states on the way,
    the one with the lowest held-out loss within ``kl_limit`` of the base is kept; then choose α with
    `mpf_chains.local.experts.strength.choose_alpha`.

    Source: arXiv 2412.01711, whose settings are not published; block 128 and AdamW with a linear schedule as DExperts
    (Liu et al. 2021, arXiv 2105.03023). A text is a row of its own here. Adapters learn at a higher rate than all
    weights do, where theirs is 5e-5.

    Args:
        model: The small model: hub id, folder, "smollm2", or loaded.
        tokenizer: A loaded model's. Default None, for models that are loaded here.
        rank: Rank of the adapters, at least 1. Default 8.
        scale: Factor of the low-rank product (peft's lora_alpha / r). Default 2.
        targets: Names of the linear modules to adapt, or "all-linear". None (default): peft's choice for the kind of
            model, mostly the query and value projections.
        epochs: Times that each text is read, at least 1. Default 3.
        max_steps: At most this many steps. None (default): as many as the epochs have.
        learning_rate: Of AdamW (no weight decay), falling linearly to 0. Default 3e-4.
        batch: Texts of a step. Default 32.
        block: Longest piece of a text that is read at once, in tokens. Default 128.
        held_out: Share of the texts that is kept for measuring, in (0, 1). Default 0.1.
        evaluate_every: Steps between measurements; the state is stored at each. Default 10.
        patience: Measurements without a lower held-out loss after which to stop. Default 3.
        kl_limit: Mean KL from the base (nats per token, held-out texts) above which to stop. Default 1.
        seed: Seeds the split, the order of the texts and the adapters. Default 0.
        device: Torch device of a model that is loaded here. None (default): "cuda" if there is one, else "cpu".
        progress: Whether to show a progress bar. Default True.

    Examples:
        >>> trainer = ExpertTrainer("smollm2", max_steps=40)
        >>> trained = trainer.train(["He fixes cars."], ["She fixes cars."], "gender")  # doctest: +SKIP
        >>> ensemble = ExpertEnsemble([trained.pair])  # doctest: +SKIP
    """

    model: Any
    tokenizer: Any = field(default=None, repr=False)
    rank: int = 8
    scale: float = 2.0
    targets: Sequence[str] | str | None = None
    epochs: int = 3
    max_steps: int | None = None
    learning_rate: float = 3e-4
    batch: int = 32
    block: int = 128
    held_out: float = 0.1
    evaluate_every: int = 10
    patience: int = 3
    kl_limit: float = 1.0
    seed: int = 0
    device: str | None = None
    progress: bool = True

    def train(
        self,
        biased: Sequence[str],
        anti_biased: Sequence[str],
        folder: str | os.PathLike[str],
        *,
        name: str = "experts",
    ) -> TrainedPair:
        """Train both halves, or go on where a run that was stopped had got to, or return what is finished.

        On a CPU a run that was stopped and went on gives what one in a single piece gives, to the last bit. While a
        loaded model is trained on, it must not be used otherwise; afterwards it is as before.

        Args:
            biased: Texts with the bias; at least 2, none blank.
            anti_biased: Texts against it; at least 2, none blank. See `texts_of_redditbias`.
            folder: Where to write; it comes to have ``expert`` and ``anti_expert``, each an adapter in peft's format
                with its base's fingerprint, and with training.json.
            name: Name of the pair. Default "experts".

        Raises:
            InvalidInput: If an argument is out of range, texts are missing or blank, the model has no such modules, a
                stored state is damaged, or the folder holds a run with other texts, settings or model.
            MissingExtra: If peft is not installed.
        """
        self._check()
        pair = ExpertPair(name, "expert", "anti_expert", self.model, tokenizer=self.tokenizer)
        if isinstance(pair.base, str):
            model, tokenizer = load_model(pair.base, device=self.device, dtype="float32")
        elif self.tokenizer is None or hasattr(self.model, "peft_config"):
            raise InvalidInput(
                "A loaded model needs `tokenizer=`, and must have no peft adapters in it.",
                hint="Give the plain model and its tokenizer.",
            )
        else:
            model, tokenizer = self.model, self.tokenizer
        halves = {"anti_expert": list(biased), "expert": list(anti_biased)}
        for half, texts in halves.items():
            if len(texts) < 2:
                raise InvalidInput(f"There are {len(texts)} texts for the {half}; at least 2 are needed.")
        done = {half: self._half(model, tokenizer, texts, Path(folder) / half) for half, texts in halves.items()}
        folders = {half: str(training.folder) for half, training in done.items()}
        pair = replace(pair, expert=folders["expert"], anti_expert=folders["anti_expert"])
        return TrainedPair(pair, **done)

    def _check(self) -> None:
        least = {"rank": 1, "epochs": 1, "max_steps": 1, "batch": 1, "block": 2, "evaluate_every": 1, "patience": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise InvalidInput(f"`{name}` is {value}; it must be at least {low}.")
        for name in ("scale", "learning_rate", "kl_limit"):
            if not getattr(self, name) > 0:
                raise InvalidInput(f"`{name}` is {getattr(self, name)}; it must be above 0.")
        if not 0 < self.held_out < 1:
            raise InvalidInput(f"`held_out` is {self.held_out}; it must lie between 0 and 1.")

    def _half(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], folder: Path
    ) -> Training:
        run = {"base": fingerprint(model), "texts": hashlib.sha256(json.dumps(texts).encode()).hexdigest()}
        settings = {key: getattr(self, key) for key in _SETTINGS}
        run |= {"settings": json.loads(json.dumps(settings, default=list))}
        if (folder / "training.json").is_file():
            return _finished(folder, run)
        longest = min(self.block, getattr(model.config, "max_position_embeddings", None) or self.block)
        read, held = (pieces(tokenizer, part, longest) for part in split(texts, self.held_out, self.seed))
        folder.mkdir(parents=True, exist_ok=True)
        with _adapted(model, self) as tuned:
            state = _State(tuned, self.learning_rate, folder / "checkpoint.safetensors", run)
            stopped = self._loop(tuned, state, read, held, folder.name)
            state.restore_best()
            tuned.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # peft's blank model card
        record_base(folder, model)
        training = Training(folder, tuple(state.losses), tuple(state.held_out), state.best_step, stopped)
        record = {**asdict(training), "folder": folder.name, "run": run}
        draft = folder / "training.draft"
        draft.write_text(json.dumps(record, indent=1), "utf-8")
        draft.replace(folder / "training.json")
        state.file.unlink()
        return training

    def _loop(
        self, tuned: Any, state: _State, read: Sequence[list[int]], held: Sequence[list[int]], half: str
    ) -> Literal["steps", "patience", "kl"]:
        per_epoch = -(-len(read) // self.batch)
        total = min(self.epochs * per_epoch, self.max_steps or self.epochs * per_epoch)
        if not state.held_out:
            state.measured(HeldOut(0, *_measure(tuned, held)), self.kl_limit)
        bar = tqdm(total=total, initial=len(state.losses), desc=half, unit="step", disable=not self.progress)
        with bar:
            while True:
                latest = state.held_out[-1]
                if latest.kl > self.kl_limit:
                    return "kl"
                if sum(each.step > state.best_step for each in state.held_out) >= self.patience:
                    return "patience"
                step = len(state.losses)
                if step == total:
                    return "steps"
                order = np.random.default_rng([self.seed, step // per_epoch]).permutation(len(read))
                first = step % per_epoch * self.batch
                rows = [read[i] for i in order[first : first + self.batch]]
                state.step(_backward(tuned, rows), self.learning_rate * (1 - step / total))
                bar.set_postfix(loss=f"{state.losses[-1]:.3f}", held_out=f"{latest.loss:.3f}", kl=f"{latest.kl:.3f}")
                bar.update()
                if (step + 1) % self.evaluate_every == 0 or step + 1 == total:
                    state.measured(HeldOut(step + 1, *_measure(tuned, held)), self.kl_limit)


class _State:
    """All that training has changed so far; stored in one safetensors file, which is replaced in one step."""

    def __init__(self, tuned: Any, learning_rate: float, file: Path, run: Mapping[str, Any]) -> None:
        self.file = file
        self._run = run
        self._parameters = {name: each for name, each in tuned.named_parameters() if each.requires_grad}
        self._optimizer = torch.optim.AdamW(self._parameters.values(), lr=learning_rate, weight_decay=0.0)
        self.losses: list[float] = []
        self.held_out: list[HeldOut] = []
        self.best_step = 0
        self._best = self._copy()
        if file.is_file():
            self._load()

    def step(self, loss: float, learning_rate: float) -> None:
        """Take a step along the gradients that are there."""
        if not np.isfinite(loss):
            raise InvalidInput(
                f"The training loss is {loss} at step {len(self.losses)}.", hint="Lower `learning_rate`."
            )
        torch.nn.utils.clip_grad_norm_(self._parameters.values(), 1.0)
        self._optimizer.param_groups[0]["lr"] = learning_rate
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.losses.append(loss)

    def measured(self, held_out: HeldOut, kl_limit: float) -> None:
        """Keep this state if it is the best one, and store everything."""
        lowest = min((each.loss for each in self.held_out if each.kl <= kl_limit), default=float("inf"))
        if held_out.loss < lowest and held_out.kl <= kl_limit:
            self.best_step, self._best = held_out.step, self._copy()
        self.held_out.append(held_out)
        self._save()

    def restore_best(self) -> None:
        """Put the best state back."""
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(self._best[name])

    def _copy(self) -> dict[str, torch.Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    def _save(self) -> None:
        from safetensors.torch import save_file

        tensors = {f"best.{name}": tensor for name, tensor in self._best.items()}
        for name, parameter in self._parameters.items():
            tensors[f"now.{name}"] = parameter.detach().clone()
            for key in ("exp_avg", "exp_avg_sq") if self.losses else ():
                tensors[f"{key}.{name}"] = self._optimizer.state[parameter][key]
        progress = {
            "run": self._run, "losses": self.losses, "best_step": self.best_step,
            "held_out": [asdict(each) for each in self.held_out],
        }  # fmt: skip
        draft = self.file.with_suffix(".draft")
        save_file(tensors, draft, metadata={"format": "pt", "progress": json.dumps(progress)})
        draft.replace(self.file)

    def _load(self) -> None:
        tensors, metadata = read_tensors(self.file)
        try:
            progress = json.loads(metadata["progress"])
            _check_run(self.file, progress["run"], self._run)
            self.losses, self.best_step = progress["losses"], progress["best_step"]
            self.held_out = [HeldOut(**each) for each in progress["held_out"]]
            self._best = {name: tensors[f"best.{name}"].to(old.device) for name, old in self._best.items()}
            with torch.no_grad():
                for name, parameter in self._parameters.items():
                    parameter.copy_(tensors[f"now.{name}"])
                    if self.losses:
                        moments = {key: tensors[f"{key}.{name}"].to(parameter) for key in ("exp_avg", "exp_avg_sq")}
                        self._optimizer.state[parameter] = {"step": torch.tensor(float(len(self.losses))), **moments}
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, InvalidInput):
                raise
            raise InvalidInput(
                f"{self.file} holds no state of this training: {error}.", hint="Delete it to start again."
            ) from error


@contextmanager
def _adapted(model: PreTrainedModel, trainer: ExpertTrainer) -> Iterator[Any]:
    """The model with a new adapter in it, of which only the adapter learns; without it again at the end."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingExtra("peft", "local") from error
    from transformers.pytorch_utils import Conv1D

    targets = trainer.targets if trainer.targets is None or isinstance(trainer.targets, str) else list(trainer.targets)
    config = LoraConfig(
        r=trainer.rank, lora_alpha=trainer.scale * trainer.rank, target_modules=targets, task_type="CAUSAL_LM",  # type: ignore[arg-type]
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )  # fmt: skip
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    was_training = model.training
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices):
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            torch.manual_seed(trainer.seed)
            tuned = get_peft_model(model, config)
    except ValueError as error:
        raise InvalidInput(f"No adapter can be put into {type(model).__name__}: {error}") from error
    try:
        tuned.eval()  # no dropout: what a step gives depends on the state and the texts alone
        yield tuned
    finally:
        tuned.unload()
        for parameter, learns in before:
            parameter.requires_grad_(learns)
        model.train(was_training)


def _parts(
    rows: Sequence[list[int]], device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Inputs, their mask and targets of some rows at a time, padded on the right, shape (rows, columns)."""
    count = max(1, _POSITIONS // max(map(len, rows)))
    for start in range(0, len(rows), count):
        part = rows[start : start + count]
        size = max(map(len, part)) - 1
        ids = torch.tensor([row[:-1] + [0] * (size + 1 - len(row)) for row in part], device=device)
        targets = torch.tensor([row[1:] + [_IGNORE] * (size + 1 - len(row)) for row in part], device=device)
        yield ids, (targets != _IGNORE).long(), targets


def _backward(tuned: Any, rows: Sequence[list[int]]) -> float:
    """Mean loss per token (nats); its gradients are there afterwards."""
    tokens = sum(len(row) - 1 for row in rows)
    total = 0.0
    for ids, mask, targets in _parts(rows, tuned.device):
        logits = tuned(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
        loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / tokens
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total


def _measure(tuned: Any, rows: Sequence[list[int]]) -> tuple[float, float]:
    """Mean loss and mean KL(base ‖ adapted) per token, in nats."""
    loss = kl = 0.0
    with torch.no_grad():
        for ids, mask, targets in _parts(rows, tuned.device):
            real = targets != _IGNORE
            after = tuned(input_ids=ids, attention_mask=mask, use_cache=False).logits[real].float().log_softmax(-1)
            with tuned.disable_adapter():
                before = tuned(input_ids=ids, attention_mask=mask, use_cache=False).logits[real].float().log_softmax(-1)
            loss += float(functional.nll_loss(after, targets[real], reduction="sum"))
            kl += float(functional.kl_div(after, before, reduction="sum", log_target=True))
    tokens = sum(len(row) - 1 for row in rows)
    return loss / tokens, max(0.0, kl / tokens)


def _finished(folder: Path, run: Mapping[str, Any]) -> Training:
    file = folder / "training.json"
    try:
        record = json.loads(file.read_text("utf-8"))
        _check_run(file, record["run"], run)
        held_out = tuple(HeldOut(**each) for each in record["held_out"])
        return Training(folder, tuple(record["losses"]), held_out, record["best_step"], record["stopped"])
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(f"{file} is no record of a training: {error}.", hint="Delete it to start again.") from error


def _check_run(file: Path, stored: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    settings, wanted = stored["settings"], run["settings"]
    differ = [key for key in wanted if settings.get(key) != wanted[key]]
    differ += [key for key in ("texts", "base") if stored[key] != run[key]]
    if differ:
        raise InvalidInput(
            f"{file} belongs to a training with other {', '.join(differ)}.",
            hint="Give another folder, or delete this one to start again.",
        )
