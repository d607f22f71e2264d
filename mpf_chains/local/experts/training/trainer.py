"""`ExpertTrainer`: from two lists of texts to an expert pair: LoRA adapters on one small model, or two full models."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.nn import functional
from tqdm import tqdm

import mpf_chains
from mpf_chains.errors import DataWarning, InvalidInput
from mpf_chains.local.experts.files.loading import load_model
from mpf_chains.local.experts.files.manifest import (
    HALF,
    HeldOut,
    Training,
    read_training,
    write_pair,
    write_training,
    writing,
)
from mpf_chains.local.experts.pair import ExpertPair
from mpf_chains.local.experts.training.checkpoint import Checkpoint
from mpf_chains.local.experts.training.texts import checked, held_out, pieces
from mpf_chains.local.experts.training.tuning import Tuned, adapters_in, copy_of
from mpf_chains.local.fingerprint import fingerprint
from mpf_chains.local.sampling import as_number, is_whole
from mpf_chains.local.smollm2 import smollm2_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["ExpertTrainer", "HeldOut", "TrainedPair", "Training"]

_POSITIONS = 384  # read at a time on a CPU, where padding costs more than short products; elsewhere more
_FACTOR = 6
_IGNORE = -100
_SETTINGS = (
    "rank", "scale", "targets", "epochs", "max_steps", "learning_rate", "batch", "block", "held_out",
    "evaluate_every", "patience", "kl_limit", "seed",
)  # fmt: skip
_STATE = "checkpoint.safetensors"


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
    """Trains pairs: an anti-expert on biased texts, an expert on anti-biased ones.

    Both halves start from the same model and the same random adapter and see their texts in the same order, so with
    counterparts in the same places they differ by what the texts differ in. Narrow texts make strong experts: of the
    states on the way, the one with the lowest held-out loss within ``kl_limit`` of the base is kept; then choose α with
    `mpf_chains.local.experts.choose_alpha`.

    Source: arXiv 2412.01711, whose settings are not published; block 128 and AdamW with a linear schedule as DExperts
    (Liu et al. 2021, arXiv 2105.03023). A text is a row of its own here. Adapters learn at a higher rate than all
    weights do, for which 5e-5 is theirs.

    Args:
        model: The small model: hub id, folder, "smollm2", or loaded.
        tokenizer: A loaded model's. Default None, for models that are loaded here.
        rank: Rank of the adapters, at least 1. Default 8. None: no adapters; each half is a full model, which needs
            about six times the model's memory while it learns, and four times its size on the disk.
        scale: Factor of the low-rank product (peft's lora_alpha / r). Default 2.
        targets: Names of the linear modules to adapt, or "all-linear". None (default): peft's choice for the kind of
            model, mostly the query and value projections.
        epochs: Times that each text is read, at least 1. Default 3.
        max_steps: At most this many steps. None (default): as many as the epochs have.
        learning_rate: Of AdamW (no weight decay), falling linearly to 0. None (default): 3e-4 for adapters, 5e-5 for
            full models.
        batch: Texts of a step. Default 32.
        block: Longest piece of a text that is read at once, in tokens. Default 128.
        held_out: Share of the texts that is kept for measuring, in (0, 1). Default 0.1. Texts that are there several
            times are on one side.
        evaluate_every: Steps between measurements; the state is stored at each. Default 10.
        patience: Measurements without a lower held-out loss after which to stop. Default 3.
        kl_limit: Mean KL from the base (nats per token, held-out texts) above which to stop. Default 1.
        seed: At least 0; seeds the split, the order of the texts and the adapters. Default 0.
        device: Torch device of a model that is loaded here. None (default): "cuda" if there is one, else "cpu".
        progress: Whether to show a progress bar. Default True.

    Examples:
        >>> trainer = ExpertTrainer("smollm2", max_steps=40)
        >>> trained = trainer.train(["He fixes cars."], ["She fixes cars."], "gender")  # doctest: +SKIP
        >>> ensemble = ExpertEnsemble([trained.pair])  # doctest: +SKIP
    """

    model: Any
    tokenizer: Any = field(default=None, repr=False)
    rank: int | None = 8
    scale: float = 2.0
    targets: Sequence[str] | str | None = None
    epochs: int = 3
    max_steps: int | None = None
    learning_rate: float | None = None
    batch: int = 32
    block: int = 128
    held_out: float = 0.1
    evaluate_every: int = 10
    patience: int = 3
    kl_limit: float = 1.0
    seed: int = 0
    device: str | None = None
    progress: bool = True

    @property
    def rate(self) -> float:
        """The learning rate of the first step."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 5e-5 if self.rank is None else 3e-4

    def train(
        self,
        biased: Sequence[str],
        anti_biased: Sequence[str],
        folder: str | os.PathLike[str],
        *,
        name: str = "experts",
    ) -> TrainedPair:
        """Train both halves, or go on where a run that was stopped had got to, or return what is finished.

        A run that was stopped (Ctrl-C, a kill, a full disk) is gone on with by the same call, which repeats at most
        the steps since the last measurement. On a CPU it gives what one in a single piece gives, to the last bit. While
        a loaded model is trained on, it must not be used otherwise; afterwards it is as before.

        Args:
            biased: Texts with the bias; at least 2 different ones, none blank.
            anti_biased: Texts against it, likewise. See `texts_of_redditbias`. If they are as many as the biased ones,
                those in the same places are taken for counterparts, and held out together.
            folder: Where to write; it comes to have ``expert`` and ``anti_expert``, each an adapter in peft's format,
                or a model in that of transformers, with its base's fingerprint and training.json; and pair.json, with
                which `ExpertPair.load` needs nothing else. Only one process may train into a folder at a time.
            name: Name of the pair. Default "experts".

        Raises:
            InvalidInput: If an argument is out of range, texts are missing, blank or all the same, the model has no
                such modules, the loss is no longer finite, the folder cannot be written, a stored state is damaged, or
                the folder holds a run with other texts, settings or model.
            MissingExtra: If peft is not installed.

        Warns:
            DataWarning: If nothing better than the untrained model was found for a half.
        """
        self._check()
        pair = ExpertPair(name, "expert", "anti_expert", self.model, tokenizer=self.tokenizer)
        halves = {"anti_expert": checked(biased, "anti_expert"), "expert": checked(anti_biased, "expert")}
        held = self._held_out(halves)
        if isinstance(pair.base, str):
            model, tokenizer = load_model(pair.base, device=self.device, dtype="float32")
        elif self.tokenizer is None or hasattr(self.model, "peft_config"):
            raise InvalidInput(
                "A loaded model needs `tokenizer=`, and must have no peft adapters in it.",
                hint="Give the plain model and its tokenizer.",
            )
        else:
            model, tokenizer = self.model, self.tokenizer
        settings = {key: getattr(self, key) for key in _SETTINGS} | {"learning_rate": self.rate}
        run = {"base": fingerprint(model), "settings": json.loads(json.dumps(settings, default=list))}
        runs = {half: {**run, "texts": _digest(texts)} for half, texts in halves.items()}
        done = {
            half: self._half(model, tokenizer, texts, held[half], Path(folder) / half, runs[half])
            for half, texts in halves.items()
        }
        for half, training in done.items():
            if not training.best_step:
                warnings.warn(_unlearned(half, training), DataWarning, stacklevel=2)
        folders = {half: str(training.folder) for half, training in done.items()}
        pair = replace(pair, expert=folders["expert"], anti_expert=folders["anti_expert"])
        with writing(Path(folder)):
            write_pair(Path(folder), {
                "name": name, "library": f"mpf-chains {mpf_chains.__version__}",
                "base": {"model": _name_of(pair.base), "fingerprint": run["base"]},
                "kind": "full" if self.rank is None else "lora", "settings": run["settings"],
                **{half: _summary(done[half], len(texts), runs[half]["texts"]) for half, texts in halves.items()},
            })  # fmt: skip
        return TrainedPair(pair, **done)

    def _check(self) -> None:
        least = {"epochs": 1, "batch": 1, "block": 2, "evaluate_every": 1, "patience": 1, "seed": 0}
        least |= {name: 1 for name in ("rank", "max_steps") if getattr(self, name) is not None}
        for name, low in least.items():
            if not is_whole(getattr(self, name), least=low):
                raise InvalidInput(f"`{name}` is {getattr(self, name)!r}; it must be a whole number from {low}.")
        for name, value in (("scale", self.scale), ("learning_rate", self.rate), ("kl_limit", self.kl_limit)):
            if not as_number(value) > 0:
                raise InvalidInput(f"`{name}` is {value!r}; it must be a number above 0.")
        if self.rate > 1:
            raise InvalidInput(f"`learning_rate` is {self.rate}; it must be at most 1.")
        if not 0 < as_number(self.held_out) < 1:
            raise InvalidInput(f"`held_out` is {self.held_out!r}; it must lie between 0 and 1.")
        if self.rank is None and self.targets is not None:
            raise InvalidInput("`targets` are modules with adapters, and with `rank` None there are none.")

    def _held_out(self, halves: Mapping[str, Sequence[str]]) -> dict[str, frozenset[int]]:
        """Indices of the texts of each half that are not trained on."""
        if len(set(map(len, halves.values()))) == 1:
            rows = list(zip(*halves.values(), strict=True))
            return dict.fromkeys(halves, held_out(rows, self.held_out, self.seed))
        return {half: held_out([(text,) for text in texts], self.held_out, self.seed) for half, texts in halves.items()}

    def _half(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        texts: Sequence[str],
        held: frozenset[int],
        folder: Path,
        run: Mapping[str, Any],
    ) -> Training:
        if (folder / HALF).is_file():
            (folder / _STATE).unlink(missing_ok=True)  # where a kill came between the two
            return read_training(folder, run)
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or self.block
        cut = list(enumerate(pieces(tokenizer, texts, min(self.block, context), folder.name)))
        read = [piece for i, of_text in cut if i not in held for piece in of_text]
        measured = [piece for i, of_text in cut if i in held for piece in of_text]
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        learning = (
            copy_of(model, tokenizer)
            if self.rank is None
            else adapters_in(model, self.rank, self.scale, self.targets, self.seed)
        )
        with learning as tuned:
            state = Checkpoint(tuned.parameters, self.rate, folder / _STATE, run)
            stopped = self._loop(tuned, state, read, measured, folder.name)
            state.restore_best()
            training = Training(folder, tuple(state.losses), tuple(state.held_out), state.best_step, stopped)
            with writing(folder):
                tuned.save(folder)
                write_training(training, run)
                state.file.unlink()
        return training

    def _loop(
        self, tuned: Tuned, state: Checkpoint, read: Sequence[list[int]], held: Sequence[list[int]], half: str
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
                state.step(_backward(tuned, rows), self.rate * (1 - step / total))
                bar.set_postfix(loss=f"{state.losses[-1]:.3f}", held_out=f"{latest.loss:.3f}", kl=f"{latest.kl:.3f}")
                bar.update()
                if (step + 1) % self.evaluate_every == 0 or step + 1 == total:
                    state.measured(HeldOut(step + 1, *_measure(tuned, held)), self.kl_limit)


def _parts(
    rows: Sequence[list[int]], device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Inputs, their mask and targets of some rows at a time, padded on the right, shape (rows, columns)."""
    most = _POSITIONS * (1 if device.type == "cpu" else _FACTOR)
    waiting = sorted(rows, key=len)  # like lengths together
    while waiting:
        count = max(1, most // len(waiting[-1]))
        waiting, part = waiting[:-count], waiting[-count:]
        size = len(part[-1]) - 1
        ids = torch.tensor([row[:-1] + [0] * (size + 1 - len(row)) for row in part], device=device)
        targets = torch.tensor([row[1:] + [_IGNORE] * (size + 1 - len(row)) for row in part], device=device)
        yield ids, (targets != _IGNORE).long(), targets


def _backward(tuned: Tuned, rows: Sequence[list[int]]) -> float:
    """Mean loss per token (nats); its gradients are there afterwards."""
    tokens = sum(len(row) - 1 for row in rows)
    total = 0.0
    for ids, mask, targets in _parts(rows, tuned.model.device):
        logits = tuned.logits(ids, mask).float()
        loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / tokens
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total


def _measure(tuned: Tuned, rows: Sequence[list[int]]) -> tuple[float, float]:
    """Mean loss and mean KL(base ‖ trained) per token, in nats."""
    loss = kl = 0.0
    with torch.no_grad():
        for ids, mask, targets in _parts(rows, tuned.model.device):
            real = targets != _IGNORE
            after = tuned.logits(ids, mask)[real].float().log_softmax(-1)
            before = tuned.logits_before(ids, mask)[real].float().log_softmax(-1)
            loss += float(functional.nll_loss(after, targets[real], reduction="sum"))
            kl += float(functional.kl_div(after, before, reduction="sum", log_target=True))
    tokens = sum(len(row) - 1 for row in rows)
    return loss / tokens, max(0.0, kl / tokens)


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def _summary(training: Training, texts: int, digest: str) -> dict[str, Any]:
    return {
        "texts": texts, "sha256": digest, "steps": len(training.losses), "stopped": training.stopped,
        "before": asdict(training.held_out[0]), "kept": asdict(training.best),
    }  # fmt: skip


def _unlearned(half: str, training: Training) -> str:
    return (
        f"The {half} that was kept is the model as it was: in {len(training.losses)} steps no state had a lower loss "
        f"on held-out texts than {training.held_out[0].loss:.3f} within `kl_limit`. Change `learning_rate`, or give "
        "more steps or texts."
    )


def _name_of(model: Any) -> str | None:
    """By what name a model can be loaded again; None where it has none."""
    name = model if isinstance(model, str) else getattr(model.config, "name_or_path", "")
    if not name or name == "smollm2" or not Path(name).is_dir():
        return name or None
    folder = Path(name).resolve()
    if folder.name.startswith("smollm2-") and folder == smollm2_path().resolve():
        return "smollm2"
    return str(folder)
