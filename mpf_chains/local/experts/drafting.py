"""How many tokens to draft, from what was measured; and drafts that cost nothing, from the text itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median

_PRIOR = (3.2, 4.0)  # accepted of so many drafts, before any is seen
_MEMORY = 0.9  # what an earlier cycle's drafts weigh, cycle by cycle
_SAMPLES = 5  # timings of which the median counts
_STALE = 40  # cycles after which a timing that was not repeated is forgotten
_PER_COLUMN = 0.05  # base steps that one more column is taken to cost before it is tried; a low guess, so that it is


class DraftLength:
    """Chooses the draft length that gives most tokens per second, from measured acceptance and measured times.

    With acceptance β per draft a cycle of k drafts gives (1 − β^(k+1)) / (1 − β) tokens. Source: Leviathan et al.
    2023, arXiv 2211.17192, equation 1; theirs has one cost ratio, here the time of each number of columns is measured,
    since it grows in steps. Length 0 is lockstep: one base and one small step for each token.

    Args:
        longest: The longest draft.

    Examples:
        >>> pace = DraftLength(8)
        >>> pace.note(columns=1, verifying=1.0, drafting=[0.1], accepted=9, drafted=10)
        >>> pace.choose(rows=1) > 2
        True
        >>> for _ in range(30):
        ...     pace.note(columns=1, verifying=1.0, drafting=[1.5], accepted=0, drafted=10)
        >>> pace.choose(rows=1), pace.verdict
        (0, 'Drafts do not pay: 1 % of them are accepted, and one takes 1.50 of a step of the base model.')
    """

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self.verdict: str | None = None
        self._accepted, self._drafted = _PRIOR
        self._cycle = 0
        self._verifying: dict[int, deque[float]] = {}
        self._last: dict[int, int] = {}
        self._drafting: deque[float] = deque(maxlen=_SAMPLES)

    def note(
        self, *, columns: int, verifying: float | None, drafting: Sequence[float], accepted: int, drafted: int
    ) -> None:
        """Hear of a cycle.

        Args:
            columns: That the base model read, all rows alike.
            verifying: Seconds it took. None: not representative.
            drafting: Seconds of each step of the small model.
            accepted: Drafts accepted.
            drafted: Drafts that were accepted or rejected; those behind a rejected one do not count.
        """
        self._cycle += 1
        self._accepted = _MEMORY * self._accepted + accepted
        self._drafted = _MEMORY * self._drafted + drafted
        self._drafting.extend(drafting)
        if verifying is not None:
            self._verifying.setdefault(columns, deque(maxlen=_SAMPLES)).append(verifying)
            self._last[columns] = self._cycle
        for each in [n for n, last in self._last.items() if n > 1 and self._cycle - last > _STALE]:
            del self._verifying[each], self._last[each]

    @property
    def acceptance(self) -> float:
        """Share of drafts that are accepted, those of the last cycles above all."""
        return min(self._accepted / self._drafted, 0.995)

    def choose(self, rows: int) -> int:
        """The best length; 0 as long as no step of one column was timed.

        Args:
            rows: Sequences that are drafted for at once.
        """
        self.verdict = None
        if 1 not in self._verifying:
            return 0
        speeds = [self._tokens(k) / self._seconds(k, rows) for k in range(self.longest + 1)]
        best = max(range(len(speeds)), key=speeds.__getitem__)
        if best == 0:
            cost = self._small / self._base(1)
            price = f", and one takes {cost:.2f} of a step of the base model" if self._drafting else ""
            self.verdict = f"Drafts do not pay: {self.acceptance:.0%} of them are accepted{price}.".replace("%", " %")
        return best

    @property
    def _small(self) -> float:
        return median(self._drafting) if self._drafting else 0.0

    def _tokens(self, k: int) -> float:
        return (1 - self.acceptance ** (k + 1)) / (1 - self.acceptance)

    def _seconds(self, k: int, rows: int) -> float:
        """The token after the last draft takes one small step more, if some row gets there."""
        more: float = 1 - (1 - self.acceptance**k) ** rows
        return (k + more) * self._small + self._base(k + 1)

    def _base(self, columns: int) -> float:
        """Seconds for so many columns: measured, between measured ones, or guessed from the next smaller one."""
        timed = {n: median(seconds) for n, seconds in self._verifying.items()}
        if columns in timed:
            return timed[columns]
        below = max(n for n in timed if n < columns)
        above = min((n for n in timed if n > columns), default=None)
        if above is None:
            return timed[below] + (columns - below) * _PER_COLUMN * timed[1]
        share = (columns - below) / (above - below)
        return (1 - share) * timed[below] + share * timed[above]


def looked_up(text: Sequence[int], count: int, *, longest: int = 3) -> list[int]:
    """What followed the text's last tokens where they stood before: of the longest match the latest.

    Source: Saxena 2023, prompt lookup decoding.

    Args:
        text: Token ids.
        count: How many tokens at most.
        longest: Tokens that a match has at most. Default 3.

    Examples:
        >>> looked_up([5, 6, 7, 8, 1, 6, 7], 3)
        [8, 1, 6]
        >>> looked_up([5, 6], 3)
        []
    """
    text = list(text)
    for length in range(min(longest, len(text) - 1), 0, -1):
        tail = text[-length:]
        for start in range(len(text) - length - 1, -1, -1):
            if text[start : start + length] == tail:
                return text[start + length : start + length + count]
    return []
