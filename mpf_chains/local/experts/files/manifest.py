"""What trained pairs say of themselves: ``training.json`` in each half's folder, ``pair.json`` in the pair's."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mpf_chains.errors import InvalidInput

PAIR, HALF = "pair.json", "training.json"
_FORMAT = 1
_LARGEST = 2**26  # bytes


@dataclass(frozen=True)
class HeldOut:
    """What training did to texts that it does not read.

    Args:
        step: Training steps before.
        loss: Mean −ln p per token, in nats.
        kl: Mean KL divergence of the trained model from the base, KL(base ‖ trained), per token, in nats.
    """

    step: int
    loss: float
    kl: float


@dataclass(frozen=True)
class Training:
    """How one half of a pair was trained.

    Args:
        folder: The adapter or model.
        losses: Mean −ln p per token (nats) of each step's texts, before the step.
        held_out: Loss and distance on held-out texts, from before the first step on.
        best_step: Steps after which the state that was kept was reached. 0: none was better than the base.
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
        """The held-out figures of the state that was kept."""
        return next(each for each in self.held_out if each.step == self.best_step)


def write_training(training: Training, run: Mapping[str, Any]) -> None:
    """Write a half's record; that it is there means that the half is complete.

    Args:
        training: What is recorded.
        run: What identifies the run: settings, texts, base.
    """
    write_json(training.folder / HALF, {**asdict(training), "folder": training.folder.name, "run": run})


def read_training(folder: Path, run: Mapping[str, Any]) -> Training:
    """Read a half's record.

    Args:
        folder: Its folder.
        run: What it must be the record of.

    Raises:
        InvalidInput: If it is damaged or of another run.
    """
    record = read_json(folder / HALF)
    with damaged(folder / HALF, "no record of a training"):
        check_run(folder / HALF, record["run"], run)
        held_out = tuple(HeldOut(**each) for each in record["held_out"])
        training = Training(folder, tuple(record["losses"]), held_out, record["best_step"], record["stopped"])
        if training.best.step != training.best_step:
            raise ValueError(training.best_step)
        return training


def check_run(file: Path, stored: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    """Whether what is stored is of this run.

    Args:
        file: Where it is stored.
        stored: What identifies that run.
        run: What identifies this one.

    Raises:
        InvalidInput: If they differ; says in what.
    """
    settings, wanted = stored["settings"], run["settings"]
    differ = [key for key in wanted if settings.get(key) != wanted[key]]
    differ += [key for key in ("texts", "base") if stored[key] != run[key]]
    if differ:
        raise InvalidInput(
            f"{file} belongs to a training with other {', '.join(differ)}.",
            hint="Give another folder, or delete this one to start again.",
        )


def write_pair(folder: Path, content: Mapping[str, Any]) -> None:
    """Write a pair's record.

    Args:
        folder: Has a folder for each half.
        content: At least ``name`` and ``base``, which has ``model`` (its name, or None) and ``fingerprint``.
    """
    write_json(folder / PAIR, {"format": _FORMAT, **content})


def read_pair(folder: Path) -> tuple[str, str | None]:
    """Read a pair's record.

    Args:
        folder: Has it.

    Returns:
        The pair's name, and that of its base, None where that has none.

    Raises:
        InvalidInput: If there is none, or it is damaged or too new.
    """
    file = folder / PAIR
    if not file.is_file():
        raise InvalidInput(
            f"{folder} has no {PAIR}, so it is no folder of a trained pair.",
            hint="Give the folder that `ExpertTrainer.train` was given; if training was stopped, let it finish first.",
        )
    record = read_json(file)
    with damaged(file, "no record of a pair"):
        if record["format"] != _FORMAT:
            raise InvalidInput(
                f"{file} has format {record['format']!r}; this version reads format {_FORMAT}.",
                hint="Update mpf_chains.",
            )
        name, base = record["name"], record["base"]["model"]
        if not isinstance(name, str) or not isinstance(base, str | None):
            raise ValueError("`name` and `base.model` must be texts")
        return name, base


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a file in one step: it is there completely or not at all."""
    draft = file.with_suffix(".draft")
    draft.write_text(json.dumps(content, indent=1, allow_nan=False), "utf-8")
    draft.replace(file)


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InvalidInput: If the file cannot be read, or is something else.
    """
    with damaged(file, "no record"):
        if file.stat().st_size > _LARGEST:
            raise ValueError(f"it has {file.stat().st_size} bytes")
        record = json.loads(file.read_text("utf-8"), parse_constant=_refuse)
        if not isinstance(record, dict):
            raise TypeError(f"a {type(record).__name__}, where a JSON object must be")
        return record


@contextmanager
def damaged(file: Path, what: str) -> Iterator[None]:
    """Turn what a wrong content leads to into an error that names the file."""
    try:
        yield
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RuntimeError, RecursionError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(
            f"{file} is {what}: {type(error).__name__}: {error}.", hint="Delete it to start again."
        ) from error


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what a full disk or a folder that is read-only leads to into an error that says how to go on.

    Args:
        folder: Where something is written.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise InvalidInput(
            f"{folder} cannot be written: {error}.",
            hint="Make room, or give another folder; what is stored there stays, and training goes on from it.",
        ) from error


def finite(*numbers: float) -> bool:
    """Whether none is NaN or infinite."""
    return all(map(math.isfinite, numbers))


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number of JSON")
