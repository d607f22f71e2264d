"""`Speculated`: what speculative decoding has generated, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Draft = Literal["small", "prompt_lookup"]


@dataclass(frozen=True)
class Speculated:
    """Generated tokens, and how they came about.

    Args:
        tokens: Of each row, with the end token if it came, without padding.
        draft: What drafted; None: nothing was to.
        lengths: Tokens drafted per row, cycle by cycle; 0: a lockstep cycle.
        drafted: Drafts that the base model read, all rows together.
        accepted: Those of them that are part of the text.
        rejected: Drafts that were replaced; those behind them were not looked at.
        row_cycles: Cycles that rows were in, added up.
        fallback: Why the last lockstep cycle drafted nothing though there was room. None: none did.
    """

    tokens: list[list[int]]
    draft: Draft | None
    lengths: tuple[int, ...]
    drafted: int
    accepted: int
    rejected: int
    row_cycles: int
    fallback: str | None

    @property
    def cycles(self) -> int:
        """Passes of the base model."""
        return len(self.lengths)

    @property
    def lockstep(self) -> int:
        """Cycles without a draft."""
        return self.lengths.count(0)

    @property
    def tokens_per_cycle(self) -> float:
        """Tokens that a row got in a cycle, on average; at least 1."""
        return sum(map(len, self.tokens)) / self.row_cycles

    @property
    def acceptance(self) -> float:
        """Share of drafts that stayed, of those that were looked at; NaN without any."""
        seen = self.accepted + self.rejected
        return self.accepted / seen if seen else float("nan")
