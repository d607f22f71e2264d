"""The texts under way in speculative decoding: a matrix of tokens in which rejected drafts are hidden."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from mpf_chains.local.decoding import Row, closed_up, padded


class Grid:
    """Rows of tokens of which some columns are padding, at the left or where a draft was rejected.

    All rows get their next token in the same column. So if one row keeps three drafts and another one, the latter has
    two hidden columns before its next token.

    Args:
        rows: What to generate; each has its own stream of three random numbers for each of its places.
        ends: Tokens that end texts, as far as is known; nothing is drafted behind them.

    Attributes:
        live: Indices of rows that have not ended; `ids`, `mask` and all that is given or returned are of these.
        tokens: New tokens of all rows.
    """

    def __init__(self, rows: Sequence[Row], ends: frozenset[int] = frozenset()) -> None:
        self.live = list(range(len(rows)))
        self.tokens: list[list[int]] = [[] for _ in rows]
        self._rows, self._drafted = rows, 0
        self._ends = torch.tensor(sorted(ends), dtype=torch.long)
        self.ids, self._mask = _padded([list(row.prompt) for row in rows])
        self._most = [len(row.uniforms) for row in rows]
        self._uniforms = torch.zeros(len(rows), max(self._most), 3)
        for row, places, most in zip(rows, self._uniforms, self._most, strict=True):
            places[:most] = torch.from_numpy(row.sampling.uniforms(row.prompt, 3 * most)).reshape(most, 3)

    @property
    def mask(self) -> torch.Tensor | None:
        """1 for text, 0 for padding, shape of `ids`; None: no padding."""
        return None if bool(self._mask.all()) else self._mask.long()

    @property
    def rows(self) -> list[Row]:
        """The rows that have not ended."""
        return [self._rows[row] for row in self.live]

    def room(self, context: int | None, wanted: int) -> int:
        """How many of the drafts that are wanted fit the limit of tokens and the context.

        Takes the hidden columns out when there are as many as the context is long (then all is read again).
        """
        wanted = min(wanted, max(self._most[row] - len(self.tokens[row]) for row in self.live) - 1)
        if context is None:
            return wanted
        longest = int(self._mask.sum(1).max())
        if self.ids.shape[1] + wanted > longest + context:
            self.ids, self._mask = _padded(self.texts())
        return max(0, min(wanted, context - longest))

    def uniforms(self, first: int, count: int) -> torch.Tensor:
        """Random numbers of the next places, shape (rows, count, 3); those behind the limit of tokens mean nothing."""
        done = torch.tensor([len(self.tokens[row]) for row in self.live])
        places = (done[:, None] + torch.arange(first, first + count)).clamp(max=self._uniforms.shape[1] - 1)
        return self._uniforms[torch.tensor(self.live)[:, None], places]

    def append(self, drafts: torch.Tensor) -> None:
        """Put drafts behind the texts, shape (rows, columns)."""
        self.ids = torch.cat([self.ids, drafts], dim=1)
        self._mask = torch.cat([self._mask, torch.ones_like(drafts, dtype=torch.bool)], dim=1)
        self._drafted += drafts.shape[1]

    def all_ended(self) -> bool:
        """Whether each row has an end token among its drafts."""
        return bool(torch.isin(self.ids[:, -self._drafted :], self._ends).any(1).all())

    def until_end(self, tokens: Sequence[int]) -> list[int]:
        """The tokens up to the first end token."""
        ends = set(self._ends.tolist())
        return list(tokens[: next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))])

    def texts(self) -> list[list[int]]:
        """The rows without padding."""
        return [ids[mask].tolist() for ids, mask in zip(self.ids, self._mask, strict=True)]

    def take(self, tokens: torch.Tensor, kept: Sequence[int], before: Callable[[int, list[int]], None]) -> list[int]:
        """End a cycle: keep some drafts of each row, put its next token behind them, and hand them to the rows.

        Args:
            tokens: What was settled on, shape (rows, drafts + 1).
            kept: Of each row how many of its drafts are kept.
            before: Called with each column, and the rows that get a token in it, before they get it.

        Returns:
            Of each row how many tokens it got: fewer than it keeps if it has ended before.
        """
        start = self.ids.shape[1] - self._drafted
        settled, taken = tokens.tolist(), [0] * len(self.live)
        going = list(range(len(self.live)))
        for column in range(tokens.shape[1]):
            here = [i for i in going if column <= kept[i]]
            if here:
                before(column, here)
            ended = {i for i in here if self._push(self.live[i], settled[i][column])}
            going = [i for i in going if i not in ended]
            for i in here:
                taken[i] += 1
        going = closed_up(going)
        index = torch.tensor(going, dtype=torch.long)
        count = torch.tensor(kept, dtype=torch.long)[index]
        columns = start + int(count.max() if going else 0)
        last = tokens[index].gather(1, count[:, None])
        visible = self._mask[index, :columns] & (torch.arange(columns) < start + count[:, None])
        self.ids = torch.cat([self.ids[index, :columns], last], dim=1)
        self._mask = torch.cat([visible, torch.ones_like(last, dtype=torch.bool)], dim=1)
        self.live, self._drafted = [self.live[i] for i in going], 0
        return taken

    def _push(self, row: int, token: int) -> bool:
        self.tokens[row].append(token)
        done = self._rows[row].push(token)
        return done or len(self.tokens[row]) >= self._most[row]


def _padded(texts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = padded(texts)
    return ids, mask.bool()
