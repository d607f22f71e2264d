"""What is written beside a ledger about the run that fills it, so that `mpf resume` needs nothing but the ledger."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import mpf_chains
from mpf_chains.errors import InvalidInput

SCHEMA: Final = 1
_NOT_KEPT: Final = frozenset({"--json"})


@dataclass(frozen=True)
class RunRecord:
    """The last run that a ledger was used for, in the file `<ledger>.run.json`, readable by its owner only.

    Args:
        argv: The arguments of `mpf`, as typed; keys are never among them, since no option takes one.
        folder: Where it was started, relative to the ledger's folder: relative paths in `argv` start there.
        pins: What must be the same when it is resumed, by name.
        library: The version that wrote this.
        schema: Version of this layout.
    """

    argv: tuple[str, ...]
    folder: str
    pins: Mapping[str, Any]
    library: str = f"mpf-chains {mpf_chains.__version__}"
    schema: int = SCHEMA

    @classmethod
    def of(cls, ledger: Path, argv: Sequence[str], pins: Mapping[str, Any]) -> RunRecord:
        """The record of a run that starts here and now."""
        kept = tuple(word for word in argv if word not in _NOT_KEPT)
        return cls(kept, os.path.relpath(Path.cwd(), ledger.absolute().parent), dict(pins))

    def save(self, ledger: Path) -> None:
        """Write it beside the ledger; a kill at any moment leaves the old one or the new one, whole."""
        path = record_path(ledger)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
        try:
            with os.fdopen(
                os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="utf-8"
            ) as file:
                json.dump(asdict(self), file, indent=2, ensure_ascii=False, allow_nan=False)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, ledger: Path) -> RunRecord:
        """Read what is beside a ledger.

        Raises:
            InvalidInput: If there is nothing, or nothing that can be used.
        """
        path = record_path(ledger)
        if not path.exists():
            raise InvalidInput(
                f"There is no {path}, so it is not known which run fills {ledger}.",
                hint="Give the ledger of an interrupted `mpf calibrate` or `mpf evaluate`, or run that command again "
                f"with --ledger {ledger}: answers in it are not asked for again.",
            )
        try:
            found = json.loads(path.read_text("utf-8"))
            words = all(isinstance(word, str) for word in found["argv"])
            if found["schema"] != SCHEMA or not words or not isinstance(found["pins"], dict):
                raise ValueError("it has another layout")
            return cls(tuple(found["argv"]), str(found["folder"]), found["pins"], str(found["library"]))
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInput(
                f"{path} cannot be used: {error}.", hint="Run the command that it belongs to again, with its options."
            ) from error

    def place(self, ledger: Path) -> Path:
        """The folder to resume in.

        Raises:
            InvalidInput: If it is gone.
        """
        folder = (ledger.absolute().parent / self.folder).resolve()
        if not folder.is_dir():
            raise InvalidInput(f"The run was started in {folder}, which is gone; its paths start there.")
        return folder

    def check(self, pins: Mapping[str, Any]) -> None:
        """Refuse to go on with something else than what was begun.

        Raises:
            InvalidInput: Naming what has changed.
        """
        changed = [name for name in {**self.pins, **pins} if self.pins.get(name) != pins.get(name)]
        if changed:
            raise InvalidInput(
                "; ".join(f"the {name} was {self.pins.get(name)} and is {pins.get(name)}" for name in changed)
                + ". The run cannot go on with that.",
                hint="Put it back, or start a new run with the command and its options; the same ledger may be used.",
            )


def record_path(ledger: Path) -> Path:
    """Where the record of a ledger's run is."""
    return ledger.with_name(f"{ledger.name}.run.json")
