"""Expert pairs from options such as ``--expert gender=pairs/gender@3``."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mpf_chains.errors import InvalidInput

if TYPE_CHECKING:
    from mpf_chains.local import ExpertPair

FORM: Final = "NAME=FOLDER[@ALPHA], such as gender=pairs/gender@3"
_HALVES: Final = ("expert", "anti_expert")
_ADAPTER: Final = "adapter_config.json"
_UNFINISHED: Final = "checkpoint.safetensors"


class Given(NamedTuple):
    """An option, taken apart.

    Args:
        name: Of the pair.
        folder: With the halves in it.
        alpha: Strength; None: not said.
    """

    name: str
    folder: Path
    alpha: float | None


def parse_expert(text: str) -> Given:
    """Read NAME=FOLDER[@ALPHA]; an "@" that no number follows belongs to the folder.

    Raises:
        InvalidInput: If it has another form.

    Examples:
        >>> parse_expert("gender=pairs/gender@2.5"), parse_expert("race=p@q").folder.name
        (Given(name='gender', folder=PosixPath('pairs/gender'), alpha=2.5), 'p@q')
    """
    name, equals, place = text.partition("=")
    folder, at, strength = place.rpartition("@")
    alpha: float | None = None
    if at:
        try:
            alpha = float(strength)
        except ValueError:
            folder = place
    else:
        folder = place
    if not equals or not name.strip() or not folder or (alpha is not None and not math.isfinite(alpha)):
        raise InvalidInput(f"--expert is {text!r}; it must be {FORM}.")
    return Given(name.strip(), Path(folder), alpha)


def expert_pairs(options: Sequence[str], base: str | None = None) -> list[ExpertPair]:
    """The pairs that options name; loads no model.

    Args:
        options: Each of the form `FORM`. A folder is one that `mpf train experts` made, or has at least one of
            ``expert`` and ``anti_expert``; the untuned small model stands in for the other one.
        base: The small model that adapters belong to. None (default): what each folder says.

    Raises:
        InvalidInput: If a form is wrong, a folder holds no half of a pair, or a base is needed and not known.
    """
    from mpf_chains.local import ExpertPair

    pairs = []
    for text in options:
        given = parse_expert(text)
        alpha = 1.0 if given.alpha is None else given.alpha
        halves = {half: given.folder / half for half in _HALVES if (given.folder / half).is_dir()}
        if (given.folder / "pair.json").is_file() or any((place / _UNFINISHED).is_file() for place in halves.values()):
            pairs.append(ExpertPair.load(given.folder, name=given.name, base=base, alpha=alpha))
            continue
        if not halves:
            there = "is an adapter itself" if (given.folder / _ADAPTER).is_file() else "has neither of them"
            raise InvalidInput(
                f"--expert {text}: {given.folder} {there if given.folder.is_dir() else 'does not exist'}; it must be a "
                f"folder with {' and '.join(_HALVES)}, or one of them.",
                hint="`mpf train experts` makes such folders.",
            )
        small = base or next(filter(None, map(_base, halves.values())), None)
        if small is None and (len(halves) < 2 or any((half / _ADAPTER).is_file() for half in halves.values())):
            raise InvalidInput(
                f"--expert {text}: it is not written in {given.folder} which small model its adapters belong to.",
                hint="Say it with --expert-base, such as --expert-base smollm2.",
            )
        expert, anti_expert = (str(halves[half]) if half in halves else None for half in _HALVES)
        pairs.append(ExpertPair(given.name, expert, anti_expert, small, alpha))
    return pairs


def _base(half: Path) -> str | None:
    """The model that peft has written down beside an adapter."""
    name = _read(half / _ADAPTER).get("base_model_name_or_path")
    return name if isinstance(name, str) else None


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):  # whoever loads the adapter says what is wrong with it
        return {}
    return found if isinstance(found, dict) else {}
