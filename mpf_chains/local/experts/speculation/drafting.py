"""How many tokens to draft, from what was measured; and drafts that cost nothing, from the text itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

_PRIOR = (3.2, 4.0)  # accepted of so many drafts, before any is seen
_MEMORY = 0.9  # what an earlier cycle's drafts weigh, cycle by cycle
_SAMPLES = 5  # timings of which the shortest counts: other work on the machine only adds to them
_ENOUGH = 3  # timings before a longer one than expected is believed
_STALE = 40  # cycles after which a timing that was not repeated is forgotten
_FIRST = 2  # tokens of the first drafts, before anything is timed
_MORE, _LESS = 0.02, 0.15  # share of a pass that a position more costs, or one less saves, until tried: hopeful


class Timings:
    """Seconds that a pass of a model takes, by the number of positions it reads.

    Times grow in steps and are disturbed, so each number has its own: the shortest of the last ones. A number that
    was seldom timed is not taken to be slower than its neighbours say; so one disturbed pass does not rule it out.

    Examples:
        >>> timings = Timings()
        >>> for seconds in (1.2, 1.0, 1.1):
        ...     timings.note(1, seconds)
        >>> timings.note(3, 9.0)
        >>> timings.seconds(1), round(timings.seconds(3), 2), round(timings.seconds(5), 2)
        (1.0, 1.04, 1.08)
    """

    def __init__(self) -> None:
        self._samples: dict[int, deque[float]] = {}
        self._last: dict[int, int] = {}
        self._clock = 0

    def __bool__(self) -> bool:
        return bool(self._samples)

    def note(self, positions: int, seconds: float) -> None:
        """Hear of a pass."""
        self._clock += 1
        self._samples.setdefault(positions, deque(maxlen=_SAMPLES)).append(seconds)
        self._last[positions] = self._clock
        for each in [n for n, last in self._last.items() if n > min(self._last) and self._clock - last > _STALE]:
            del self._samples[each], self._last[each]

    def seconds(self, positions: int) -> float:
        """What a pass would take; something must have been timed."""
        samples = self._samples.get(positions, ())
        known = min(samples, default=float("inf"))
        others = {n: each for n, each in self._samples.items() if n != positions}
        if len(samples) >= _ENOUGH or not others:
            return known
        believed = {n: each for n, each in others.items() if len(each) >= _ENOUGH} or others
        return min(known, _expected({n: min(each) for n, each in believed.items()}, positions))


def _expected(timed: dict[int, float], positions: int) -> float:
    """Between timed numbers; beyond them a guess that makes it worth a try."""
    fewest, most = min(timed), max(timed)
    if positions > most:
        return timed[most] * (1 + _MORE * (positions - most))
    if positions < fewest:
        return timed[fewest] * max(1 - _LESS * (fewest - positions), 0.5)
    below, above = max(n for n in timed if n < positions), min(n for n in timed if n > positions)
    share = (positions - below) / (above - below)
    return (1 - share) * timed[below] + share * timed[above]


class DraftLength:
    """Chooses the draft length that gives most tokens per second, from measured acceptance and measured times.

    With acceptance β per draft a cycle of k drafts gives (1 − β^(k+1)) / (1 − β) tokens. Source: Leviathan et al.
    2023, arXiv 2211.17192, equation 1; theirs has one cost ratio, here passes over each number of positions are timed,
    since times grow in steps. Length 0 is lockstep: one base and one small step for each token.

    Args:
        longest: The longest draft.

    Examples:
        >>> pace = DraftLength(8)
        >>> pace.note(rows=1, columns=1, verifying=1.0, drafting=[0.1], accepted=9, drafted=10)
        >>> pace.choose(rows=1) > 2
        True
        >>> for _ in range(30):
        ...     pace.note(rows=1, columns=1, verifying=1.0, drafting=[1.5], accepted=0, drafted=10)
        >>> pace.choose(rows=1), pace.verdict
        (0, 'Drafts do not pay: 1 % of them are accepted, and one takes 1.50 of a step of the base model.')
    """

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self.verdict: str | None = None
        self.base, self.small = Timings(), Timings()
        self._accepted, self._drafted = _PRIOR

    def note(
        self,
        *,
        rows: int,
        columns: int,
        verifying: float | None,
        drafting: Sequence[float],
        accepted: int,
        drafted: int,
    ) -> None:
        """Hear of a cycle.

        Args:
            rows: Sequences that were drafted for.
            columns: That the base model read, all rows alike.
            verifying: Seconds it took. None: not representative.
            drafting: Seconds of each step of the small model.
            accepted: Drafts accepted.
            drafted: Drafts that were accepted or rejected; those behind a rejected one do not count.
        """
        self._accepted = _MEMORY * self._accepted + accepted
        self._drafted = _MEMORY * self._drafted + drafted
        for seconds in drafting:
            self.small.note(rows, seconds)
        if verifying is not None:
            self.base.note(rows * columns, verifying)

    @property
    def acceptance(self) -> float:
        """Share of drafts that are accepted, those of the last cycles above all."""
        return min(self._accepted / self._drafted, 0.995)

    def choose(self, rows: int) -> int:
        """The best length; a short one as long as no pass of the base model was timed.

        Args:
            rows: Sequences that are drafted for at once.
        """
        self.verdict = None
        if not self.base:
            return min(_FIRST, self.longest)
        speeds = [self._tokens(k) / self._seconds(k, rows) for k in range(self.longest + 1)]
        best = max(range(len(speeds)), key=speeds.__getitem__)
        if best == 0:
            price = f", and one takes {self.cost(rows):.2f} of a step of the base model" if self.small else ""
            self.verdict = f"Drafts do not pay: {self.acceptance:.0%} of them are accepted{price}.".replace("%", " %")
        return best

    def cost(self, rows: int) -> float:
        """A step of the small model in steps of the base model; 0 as long as none was timed."""
        return self.small.seconds(rows) / self.base.seconds(rows) if self.small else 0.0

    def _tokens(self, k: int) -> float:
        return (1 - self.acceptance ** (k + 1)) / (1 - self.acceptance)

    def _seconds(self, k: int, rows: int) -> float:
        """The token after the last draft takes one small step more, if some row gets there."""
        more: float = 1 - (1 - self.acceptance**k) ** rows
        small = self.small.seconds(rows) if self.small else 0.0
        return (k + more) * small + self.base.seconds(rows * (k + 1))


class PromptLookup:
    """A growing text, and what followed its last tokens where they stood before: of the longest match the latest.

    Source: Saxena 2023, prompt lookup decoding. Each token is indexed once, whatever the length of the text.

    Args:
        text: Token ids.
        longest: Tokens that a match has at most. Default 3.

    Examples:
        >>> text = PromptLookup([5, 6, 7, 8, 1, 6, 7])
        >>> text.draft(3)
        [8, 1, 6]
        >>> text.extend([9, 6])
        >>> text.draft(2)
        [7, 9]
        >>> PromptLookup([5, 6]).draft(3)
        []
    """

    def __init__(self, text: Sequence[int], *, longest: int = 3) -> None:
        self._text: list[int] = []
        self._behind: dict[tuple[int, ...], int] = {}  # where the latest match ends that something follows
        self._sizes = range(longest, 0, -1)
        self.extend(text)

    def extend(self, tokens: Sequence[int]) -> None:
        """Put tokens behind the text."""
        for token in tokens:
            end = len(self._text)
            self._behind |= {tuple(self._text[end - size :]): end for size in self._sizes if size <= end}
            self._text.append(token)

    def draft(self, count: int) -> list[int]:
        """What may follow now, at most so many tokens; nothing if the last token is new."""
        matches = (self._behind.get(tuple(self._text[-size:])) for size in self._sizes if size <= len(self._text))
        start = next((each for each in matches if each is not None), len(self._text))
        return self._text[start : start + count]
