"""`SteeringTrainer`: from rows with the right and the wrong steering token to an adapter that is steered by it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from mpf_chains.errors import InvalidInput
from mpf_chains.local.experts.files.loading import load_model
from mpf_chains.local.experts.files.manifest import HALF, HeldOut, Training, read_training, write_training, writing
from mpf_chains.local.experts.training.checkpoint import Checkpoint
from mpf_chains.local.fingerprint import fingerprint
from mpf_chains.local.steering.adapter import SteeringAdapter
from mpf_chains.local.steering.tokens import SteeringTokens
from mpf_chains.local.steering.training.data import SteeringData, SteeringRow
from mpf_chains.local.steering.training.learner import Ids, Learner, learning
from mpf_chains.local.steering.training.losses import dpo, kl_to_target, kto

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Loss = Literal["kl+kto", "kl", "kto", "sft", "dpo"]
_LOSSES = ("kl+kto", "kl", "kto", "sft", "dpo")
_SETTINGS = (
    "rank", "scale", "modules", "sft_steps", "steps", "learning_rate", "batch", "beta", "sft_weight",
    "plain_opening", "longest", "held_out", "evaluate_every", "seed",
)  # fmt: skip
_STATE = "checkpoint.safetensors"


@dataclass(frozen=True)
class TrainedSteering:
    """An adapter, and how it came about.

    Args:
        adapter: What was kept.
        sft: The first stage. None: it was left out (``sft_steps`` 0).
        tuned: The second stage. None: the loss was "sft", which has only the first.
    """

    adapter: SteeringAdapter
    sft: Training | None
    tuned: Training | None


@dataclass(frozen=True)
class SteeringTrainer:
    """Trains a model to give target shares of a class's token, and the answers that the token announces.

    Stage 1 is supervised (SFT): mean −log p per token of steering token, answer and end token, over desirable rows;
    without the answer's first token if that is plain.
    Stage 2 starts from there, and that is also its frozen reference. Its losses:

    - "kl+kto": the sum of both, with equal weights.
    - "kl": KL(target ‖ tokens) at the first position, over the whole vocabulary (`losses.kl_to_target`).
    - "kto": on summed log-probabilities of responses (`losses.kto`). Undesirable rows have a token of one class
      and an answer of another; each prompt with the response of the nearest row before it about another context is a
      mismatched pair (of the row before it, where a batch is about one context).
    - "dpo": of each desirable row against the undesirable one beside it (`losses.dpo`).
    - "sft": none; stage 1 is all.

    After it, `refit` sets the output rows to the optimum of the KL part alone, in seconds.

    Source: arXiv 2604.05756.

    Args:
        model: Hub id, folder, "smollm2", or a loaded model in float32.
        tokenizer: A loaded model's. Default None, for models that are loaded here.
        loss: Of stage 2. Default "kl+kto".
        rank: Rank of the low-rank changes, at least 1. Default 8. None: only the tokens' rows learn, which makes an
            adapter of some kilobytes; existing tokens then cannot announce anything.
        scale: Factor of the low-rank products (peft's lora_alpha / r). Default 2.
        modules: Names of the linear modules that are changed. None (default): peft's choice for the kind of model,
            mostly the query and value projections.
        sft_steps: Of stage 1, at least 0. Default 40.
        steps: Of stage 2, at least 1. Default 80.
        learning_rate: Of AdamW (no weight decay), falling linearly to 0 in each stage. Default 1e-3.
        batch: Rows of a step; with DPO, pairs. Default 8.
        beta: Of KTO and DPO. Default 0.1.
        sft_weight: Weight of the supervised loss of the desirable rows in stage 2. Default 0, as in the paper; 0.3
            keeps a small model's answers fluent, 1 its stories.
        plain_opening: Whether the answer's first token is left to the model without the steering token: not learned
            here, and drawn so by the adapter (see `SteeringAdapter`). It keeps stories fluent, whose openings
            rows would otherwise bend most. Needs new tokens; not for answers of a single word. Default False.
        longest: Tokens of an answer that are learned from, at least 1; a longer answer is learned without its end. Of
            stories some 24 are enough for their class, in a fraction of the time. None (default): all.
        held_out: Share of the contexts that is kept for measuring, in (0, 1); of 4 and more KTO keeps at least 2.
            Default 0.1.
        evaluate_every: Steps between measurements; the state is stored at each. Default 20.
        seed: Seeds the split, the order of the rows and the low-rank changes. Default 0.
        device: Torch device of a model that is loaded here. None (default): "cuda" if there is one, else "cpu".
        progress: Whether to show a progress bar. Default True.

    Examples:
        >>> trainer = SteeringTrainer("smollm2", loss="kl+kto", sft_weight=0.3)
        >>> trained = trainer.train(data, SteeringTokens("gender", ("female", "male")), "gender")  # doctest: +SKIP
    """

    model: Any
    tokenizer: Any = field(default=None, repr=False)
    loss: Loss = "kl+kto"
    rank: int | None = 8
    scale: float = 2.0
    modules: Sequence[str] | str | None = None
    sft_steps: int = 40
    steps: int = 80
    learning_rate: float = 1e-3
    batch: int = 8
    beta: float = 0.1
    sft_weight: float = 0.0
    plain_opening: bool = False
    longest: int | None = None
    held_out: float = 0.1
    evaluate_every: int = 20
    seed: int = 0
    device: str | None = None
    progress: bool = True

    def train(self, data: SteeringData, tokens: SteeringTokens, folder: str | os.PathLike[str]) -> TrainedSteering:
        """Train, or go on where a run that was stopped had got to, or return what is finished.

        A run that was stopped is gone on with by the same call, which repeats at most the steps since the last
        measurement; on a CPU it gives what one in a single piece gives, to the last bit. While a loaded model is
        trained on, it must not be used otherwise; afterwards it is as before.

        Args:
            data: What to train on. With ``progress`` its preview is shown first.
            tokens: Those of the targets' classes.
            folder: Where to write; it comes to have the adapter (`SteeringAdapter.load`), training.json, and in ``sft``
                the same of the first stage.

        Raises:
            InvalidInput: If an argument is out of range, a steering token is no single token, rows do not fit the loss
                or the model's context, the loss is no longer finite, the folder cannot be written, a stored state is
                damaged, or the folder holds a run with other rows, settings or model.
            MissingExtra: If peft is not installed.
        """
        self._check(data)
        model, tokenizer = self._load()
        fresh = SteeringAdapter.fresh(model, tokenizer, tokens, data.targets, plain_opening=self.plain_opening)
        settings: dict[str, Any] = {name: getattr(self, name) for name in _SETTINGS}
        settings["modules"] = None if self.modules is None else list(self.modules)
        settings["tokens"] = fresh.digest
        run: dict[str, Any] = {"base": fingerprint(model), "texts": data.digest, "settings": settings}
        read, measured = data.held_out(self.held_out, self.seed, least=2 if "kto" in self.loss else 1)
        if "kto" in self.loss and min(len(read.rows), len(measured.rows)) < 2:
            raise InvalidInput(
                f"There are {len(read.rows)} rows to train on and {len(measured.rows)} to measure with; KTO needs 2 of "
                "each, for a row alone has no reference point.",
                hint="Give more rows per context, or change `held_out`.",
            )
        if self.progress:
            tqdm.write(str(data))
        path, sft, tuned = Path(folder), None, None
        start, first = fresh, path if self.loss == "sft" else path / "sft"
        if self.sft_steps:
            sft = self._stage("sft", self.sft_steps, model, tokenizer, start, read, measured, first, run)
            start = SteeringAdapter.load(first)
        if self.loss != "sft":
            run = {**run, "settings": {**settings, "loss": self.loss}}
            tuned = self._stage(self.loss, self.steps, model, tokenizer, start, read, measured, path, run)
        return TrainedSteering(SteeringAdapter.load(path), sft, tuned)

    def _load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        if isinstance(self.model, str):
            return load_model(self.model, device=self.device, dtype="float32")
        if self.tokenizer is None or hasattr(self.model, "peft_config"):
            raise InvalidInput(
                "A loaded model needs `tokenizer=`, and must have no peft adapters in it.",
                hint="Give the plain model and its tokenizer.",
            )
        return self.model, self.tokenizer

    def _check(self, data: SteeringData) -> None:
        if self.loss not in _LOSSES:
            raise InvalidInput(f"`loss` is {self.loss!r}; it must be one of {', '.join(map(repr, _LOSSES))}.")
        least = {"rank": 1, "sft_steps": self.loss == "sft", "steps": 1, "evaluate_every": 1, "longest": 1}
        least["batch"] = 2 if "kto" in self.loss else 1
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                why = " (KTO has no reference point for a row alone)" if (name, low) == ("batch", 2) else ""
                raise InvalidInput(f"`{name}` is {value}; it must be at least {int(low)}{why}.")
        for name, high in (("scale", np.inf), ("learning_rate", 1.0), ("beta", np.inf), ("held_out", 1.0)):
            if not 0 < getattr(self, name) < high:
                raise InvalidInput(f"`{name}` is {getattr(self, name)}; it must lie between 0 and {high}.")
        if not self.sft_weight >= 0:
            raise InvalidInput(f"`sft_weight` is {self.sft_weight}; it must be 0 or more.")
        if self.loss == "dpo":
            _pairs(data.rows)

    def _stage(
        self,
        loss: Loss,
        steps: int,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        start: SteeringAdapter,
        read: SteeringData,
        measured: SteeringData,
        folder: Path,
        run: Mapping[str, Any],
    ) -> Training:
        if (folder / HALF).is_file():
            (folder / _STATE).unlink(missing_ok=True)  # where a kill came between the two
            return read_training(folder, run)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        how: dict[str, Any] = {"rank": self.rank, "scale": self.scale, "targets": self.modules, "seed": self.seed}
        how["longest"] = self.longest
        with learning(model, tokenizer, start, **how) as learner:
            stage = _Stage(self, loss, learner)
            batches = [stage.items(part) for part in (read, measured)]
            state = Checkpoint(learner.parameters, self.learning_rate, folder / _STATE, run)
            _loop(self, stage, state, steps, *batches)
            state.restore_best()
            adapter = learner.adapter
        training = Training(folder, tuple(state.losses), tuple(state.held_out), state.best_step, "steps")
        with writing(folder):
            adapter.save(folder)
            write_training(training, run)
            state.file.unlink()
        return training


@dataclass(frozen=True)
class _Item:
    """A row to learn from; with DPO the better one of a pair.

    Args:
        ids: The row.
        desirable: Whether it is.
        context: What it is about.
        target: Shares of the classes in its context.
        worse: With DPO the other one.
    """

    ids: Ids
    desirable: bool
    context: str
    target: Sequence[float]
    worse: Ids | None = None


class _Stage:
    """One stage's loss.

    Args:
        trainer: Its settings.
        loss: Which.
        learner: What learns; as it is now, it is the frozen reference.
    """

    def __init__(self, trainer: SteeringTrainer, loss: Loss, learner: Learner) -> None:
        self._trainer, self._loss, self._learner = trainer, loss, learner
        self._reference = learner.state()

    def items(self, data: SteeringData) -> list[_Item]:
        """What the loss reads of some rows."""
        ids, targets = self._learner.ids, {name: list(data.targets[name].values()) for name in data.targets.contexts}
        if self._loss == "dpo":
            pairs = _pairs(data.rows)
            return [_Item(ids(one), True, one.context, targets[one.context], ids(other)) for one, other in pairs]
        wanted = [row for row in data.rows if row.desirable or "kto" in self._loss]
        return [_Item(ids(row), row.desirable, row.context, targets[row.context]) for row in wanted]

    def value(self, items: Sequence[_Item]) -> torch.Tensor:
        """The loss of a batch, with a gradient where one is wanted."""
        rows, device = [item.ids for item in items], self._learner.parameters["output_rows"].device
        desirable = torch.tensor([item.desirable for item in items], device=device)
        policy, classes = self._learner.read(rows)
        loss = policy.new_zeros(())
        if "kl" in self._loss:
            target = torch.tensor([item.target for item in items], device=device, dtype=classes.dtype)
            loss = loss + kl_to_target(classes, target, desirable)
        if "kto" in self._loss:
            mismatched = [rows[i]._replace(prompt=row.prompt) for row, i in zip(rows, _others(items), strict=True)]
            with torch.no_grad():
                moved = self._learner.read(mismatched).responses
            with self._learner.as_of(self._reference):
                reference, unmoved = (self._learner.read(each).responses for each in (rows, mismatched))
            loss = loss + kto(policy, reference, desirable, moved, unmoved, beta=self._trainer.beta).loss
        if self._loss == "dpo":
            others = [item.worse for item in items if item.worse is not None]
            rejected = self._learner.read(others).responses
            with self._learner.as_of(self._reference):
                reference, unmoved = (self._learner.read(each).responses for each in (rows, others))
            loss = loss + dpo(policy, rejected, reference, unmoved, beta=self._trainer.beta)
        weight = 1.0 if self._loss == "sft" else self._trainer.sft_weight
        if weight:
            tokens = sum(len(item.ids.response) - item.ids.given for item in items if item.desirable)
            loss = loss - weight * policy.masked_fill(~desirable, 0.0).sum() / max(1, tokens)
        return loss


def _loop(
    trainer: SteeringTrainer, stage: _Stage, state: Checkpoint, steps: int, read: Sequence[_Item], held: Sequence[_Item]
) -> None:
    mixed = np.random.default_rng(trainer.seed).permutation(len(held))
    held = [held[i] for i in mixed]  # so that batches are about several contexts

    def measure(step: int) -> None:
        batches = _batches(len(held), trainer.batch)
        with torch.no_grad():
            losses = [float(stage.value([held[i] for i in batch])) * len(batch) for batch in batches]
        state.measured(HeldOut(step, sum(losses) / len(held), 0.0), float("inf"))

    if not state.held_out:
        measure(0)
    batches = _batches(len(read), trainer.batch)
    bar = tqdm(
        total=steps, initial=len(state.losses), desc=state.file.parent.name, unit="step", disable=not trainer.progress
    )
    with bar:
        while (step := len(state.losses)) < steps:
            order = np.random.default_rng([trainer.seed, step // len(batches)]).permutation(len(read))
            loss = stage.value([read[order[i]] for i in batches[step % len(batches)]])
            loss.backward()  # type: ignore[no-untyped-call]
            state.step(float(loss.detach()), trainer.learning_rate * (1 - step / steps))
            bar.set_postfix(loss=f"{state.losses[-1]:.3f}", held_out=f"{state.held_out[-1].loss:.3f}")
            bar.update()
            if (step + 1) % trainer.evaluate_every == 0 or step + 1 == steps:
                measure(step + 1)


def _others(items: Sequence[_Item]) -> list[int]:
    """For each row the nearest one before it, in a circle, about another context; if there is none, the one before."""
    found = []
    for i, item in enumerate(items):
        before = [(i - back) % len(items) for back in range(1, len(items))]
        found.append(next((j for j in before if items[j].context != item.context), before[0]))
    return found


def _batches(count: int, size: int) -> list[range]:
    """Numbers of rows, as many at a time; one that would be left alone goes with those before it.

    Examples:
        >>> _batches(5, 2)
        [range(0, 2), range(2, 5)]
    """
    starts = list(range(0, count, size))
    if len(starts) > 1 and count - starts[-1] == 1:
        starts.pop()
    return [range(start, end) for start, end in zip(starts, [*starts[1:], count], strict=True)]


def _pairs(rows: Sequence[SteeringRow]) -> list[tuple[SteeringRow, SteeringRow]]:
    """Each desirable row with the undesirable one that follows it and has the same prompt and token."""
    pairs = [
        (one, other)
        for one, other in pairwise(rows)
        if one.desirable and not other.desirable and (one.prompt, one.token) == (other.prompt, other.token)
    ]
    if len(pairs) < sum(row.desirable for row in rows):
        raise InvalidInput(
            f"DPO needs an undesirable row beside each desirable one; {len(pairs)} have one.",
            hint="Build the data with `mismatched=True`.",
        )
    return pairs
