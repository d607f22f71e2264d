"""`ExpertPair`: a small model in two versions whose difference says where a base model's logits should go."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mpf_chains.errors import InvalidInput


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
        if not self.name.strip():
            raise InvalidInput("An expert pair needs a name that is not blank.")
        if self.expert is None and self.anti_expert is None:
            raise InvalidInput(f"Pair {self.name!r} has neither an expert nor an anti-expert.")
        if self.base is None and (self.expert is None or self.anti_expert is None):
            missing = "expert" if self.expert is None else "anti-expert"
            raise InvalidInput(
                f"Pair {self.name!r} has no {missing} and no `base` to stand in for it.",
                hint="Give as `base` the untuned small model (not the large one that is corrected).",
            )
        if not abs(self.alpha) < float("inf"):
            raise InvalidInput(f"`alpha` of pair {self.name!r} is {self.alpha}; it must be a finite number.")
        for half in ("expert", "anti_expert", "base"):
            value = getattr(self, half)
            if isinstance(value, Path):
                object.__setattr__(self, half, str(value))
