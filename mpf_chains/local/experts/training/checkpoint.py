"""The state of a training: stored in one file that is replaced in one step, so that a kill loses a few steps only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mpf_chains.errors import InvalidInput
from mpf_chains.local.experts.files.manifest import HeldOut, check_run, damaged, finite, writing
from mpf_chains.local.experts.files.tensors import read_tensors

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Checkpoint:
    """All that training has changed so far: parameters, AdamW's moments, the best state, what was measured.

    Args:
        parameters: Those that learn, by name.
        learning_rate: Of the first step.
        file: Where to store it (safetensors); if it is there, its state is taken.
        run: What identifies the run; a stored state must be of the same.

    Attributes:
        losses: Of the steps so far.
        held_out: Measurements so far.
        best_step: Steps before the best of them.

    Raises:
        InvalidInput: If a stored state is damaged or of another run.
    """

    def __init__(
        self, parameters: Mapping[str, torch.nn.Parameter], learning_rate: float, file: Path, run: Mapping[str, Any]
    ) -> None:
        self.file = file
        self._run = run
        self._parameters = dict(parameters)
        self._optimizer = torch.optim.AdamW(self._parameters.values(), lr=learning_rate, weight_decay=0.0)
        self.losses: list[float] = []
        self.held_out: list[HeldOut] = []
        self.best_step = 0
        self._best = self._copy()
        if file.is_file():
            self._load()

    def step(self, loss: float, learning_rate: float) -> None:
        """Take a step along the gradients that are there.

        Args:
            loss: Of the texts that they come from.
            learning_rate: Of this step.

        Raises:
            InvalidInput: If loss or gradients are not finite.
        """
        norm = torch.nn.utils.clip_grad_norm_(self._parameters.values(), 1.0)
        self._check(loss, float(norm), what="training loss or its gradient")
        self._optimizer.param_groups[0]["lr"] = learning_rate
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.losses.append(loss)

    def measured(self, held_out: HeldOut, kl_limit: float) -> None:
        """Keep this state if it is the best one, and store everything.

        Args:
            held_out: What was measured after the last step.
            kl_limit: States beyond it are not the best.

        Raises:
            InvalidInput: If it is not finite, or the file cannot be written.
        """
        self._check(held_out.loss, held_out.kl, what="loss on held-out texts or its distance from the base")
        lowest = min((each.loss for each in self.held_out if each.kl <= kl_limit), default=float("inf"))
        if held_out.loss < lowest and held_out.kl <= kl_limit:
            self.best_step, self._best = held_out.step, self._copy()
        self.held_out.append(held_out)
        with writing(self.file.parent):
            self._save()

    def restore_best(self) -> None:
        """Put the best state back."""
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(self._best[name])

    def _check(self, *numbers: float, what: str) -> None:
        if not finite(*numbers):
            raise InvalidInput(
                f"The {what} is no finite number after {len(self.losses)} steps ({', '.join(map(str, numbers))}).",
                hint="Lower `learning_rate`." if self.losses else "The model itself gives such logits.",
            )

    def _copy(self) -> dict[str, torch.Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    def _save(self) -> None:
        from safetensors.torch import save_file

        tensors = {f"now.{name}": parameter.detach() for name, parameter in self._parameters.items()}
        if self.best_step != len(self.losses):
            tensors |= {f"best.{name}": tensor for name, tensor in self._best.items()}
        for name, parameter in self._parameters.items() if self.losses else ():
            tensors |= {f"{key}.{name}": self._optimizer.state[parameter][key] for key in _MOMENTS}
        progress = {
            "run": self._run, "losses": self.losses, "best_step": self.best_step,
            "held_out": [asdict(each) for each in self.held_out],
        }  # fmt: skip
        draft = self.file.with_suffix(".draft")
        try:
            plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
            save_file(plain, draft, metadata={"format": "pt", "progress": json.dumps(progress)})
            draft.replace(self.file)
        finally:
            draft.unlink(missing_ok=True)

    def _load(self) -> None:
        tensors, metadata = read_tensors(self.file)
        with damaged(self.file, "no state of this training"), torch.no_grad():
            progress = json.loads(metadata["progress"])
            check_run(self.file, progress["run"], self._run)
            self.losses, self.best_step = progress["losses"], progress["best_step"]
            self.held_out = [HeldOut(**each) for each in progress["held_out"]]
            best = "now" if self.best_step == len(self.losses) else "best"
            for name, parameter in self._parameters.items():
                self._best[name].copy_(tensors[f"{best}.{name}"])
                parameter.copy_(tensors[f"now.{name}"])
                if self.losses:
                    moments = {key: tensors[f"{key}.{name}"].to(parameter) for key in _MOMENTS}
                    self._optimizer.state[parameter] = {"step": torch.tensor(float(len(self.losses))), **moments}
