"""`ExpertPair`: a small model in two versions whose difference says where a base model's logits should go."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

from mpf_chains.errors import InvalidInput
from mpf_chains.local.experts.files.manifest import read_pair


@dataclass(frozen=True)
class ExpertPair:
    """An expert and an anti-expert, whose logits differ by what a base model's logits are to be moved by.

    z̃ = z_base + α (z_expert − z_anti): the expert is a small model tuned on text against a bias, the anti-expert the
    same one tuned on text with it. Source: arXiv 2412.01711, after DExperts (Liu et al. 2021, arXiv 2105.03023, eq. 1).

    Constructing a pair loads nothing.

    Args:
        name: What it works on ("gender"); unique among the pairs that are used together.
        expert: Folder of a LoRA adapter (peft's format) on ``base``; or a full causal language model: hub id, folder,
            or loaded. None (default): the untuned ``base``.
        anti_expert: The same for the other half.
        base: The small model that the halves were tuned from: hub id, folder, "smollm2", or loaded. Needed if a half
            is an adapter or missing.
        alpha: Strength α. Default 1. With 0 the pair does nothing; a negative one turns it round.
        tokenizer: Loaded tokenizer of those small models that are loaded themselves; needed if there is one. The others
            have their own stored with them.

    Raises:
        InvalidInput: If the name is blank, both halves are missing, ``base`` is but is needed, or α is not finite.

    Examples:
        >>> ExpertPair("gender", expert="gender/expert", base="smollm2", alpha=0.5).alpha
        0.5
    """

    name: str
    expert: Any = None
    anti_expert: Any = None
    base: Any = None
    alpha: float = 1.0
    tokenizer: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise InvalidInput("An expert pair needs a name that is not blank.")
        if self.expert is None and self.anti_expert is None:
            raise InvalidInput(f"Pair {self.name!r} has neither an expert nor an anti-expert.")
        if self.base is None and (self.expert is None or self.anti_expert is None):
            missing = "expert" if self.expert is None else "anti-expert"
            raise InvalidInput(
                f"Pair {self.name!r} has no {missing} and no `base` to stand in for it.",
                hint="Give as `base` the untuned small model (not the large one that is corrected).",
            )
        if not isinstance(self.alpha, Real) or not abs(self.alpha) < float("inf"):
            raise InvalidInput(f"`alpha` of pair {self.name!r} is {self.alpha!r}; it must be a finite number.")
        for half in ("expert", "anti_expert", "base"):
            value = getattr(self, half)
            if isinstance(value, Path):
                object.__setattr__(self, half, str(value))

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        *,
        name: str | None = None,
        base: Any = None,
        tokenizer: Any = None,
        alpha: float = 1.0,
    ) -> ExpertPair:
        """The pair that `ExpertTrainer.train` left in a folder. Its models are loaded when they are used.

        Args:
            folder: Has pair.json, ``expert`` and ``anti_expert``.
            name: What to call it. None (default): what it was called in training.
            base: As in `ExpertPair`. None (default): the model that was trained, by its name; that it has the same
                weights still is checked when it is loaded.
            tokenizer: As in `ExpertPair`.
            alpha: As in `ExpertPair`.

        Raises:
            InvalidInput: If the folder holds no pair, training is not finished, or the base of adapters has no name and
                is not given.

        Examples:
            >>> ExpertPair.load("no/such/folder")
            Traceback (most recent call last):
            ...
            mpf_chains.errors.InvalidInput: no/such/folder has no pair.json, so it is no folder of a trained pair. ...
        """
        place = Path(folder)
        called, recorded = read_pair(place)
        base = recorded if base is None else base
        if base is None and (place / "expert/adapter_config.json").is_file():
            raise InvalidInput(
                f"{place / 'pair.json'} does not say how to load the small model: it was loaded already in training.",
                hint="Give it, as `base` and `tokenizer`.",
            )
        halves = {half: str(place / half) for half in ("expert", "anti_expert")}
        return cls(called if name is None else name, **halves, base=base, alpha=alpha, tokenizer=tokenizer)
