"""The texts under way in speculative decoding: a matrix of tokens in which rejected drafts are hidden."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mpf_chains.errors import InvalidInput
from mpf_chains.local.experts.padding import checked_mask


class Grid:
    """Rows of tokens of which some columns are padding, at the left or where a draft was rejected.

    All rows get their next token in the same column. So if one row keeps three drafts and another one, the latter has
    two hidden columns before its next token.

    Args:
        input_ids: Prompts, padded on the left, shape (rows, columns).
        attention_mask: 1 for text, 0 for padding, same shape. None: no padding.
        max_new_tokens: After which a row ends.
        ends: Tokens after which a row ends.
        seed: Of the random numbers. None: from torch's own generator.

    Attributes:
        live: Rows that have not ended; `ids` and `mask` are of these.
        tokens: New tokens of all rows.

    Raises:
        InvalidInput: If there is no prompt, or the mask does not go with it.
    """

    def __init__(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        max_new_tokens: int,
        ends: frozenset[int],
        seed: int | None,
    ) -> None:
        if input_ids.ndim != 2 or not input_ids.numel():
            raise InvalidInput(
                f"`input_ids` has shape {tuple(input_ids.shape)}; it must be (rows, columns), at least one of each."
            )
        self.ids = input_ids.cpu()
        mask = torch.ones_like(self.ids) if attention_mask is None else checked_mask(attention_mask, self.ids)
        if len(mask) != len(self.ids):
            raise InvalidInput(f"The `attention_mask` has {len(mask)} rows; there are {len(self.ids)} prompts.")
        self._mask = mask.bool()
        self.live = list(range(len(self.ids)))
        self.tokens: list[list[int]] = [[] for _ in self.live]
        self._most, self._ends, self._drafted = max_new_tokens, ends, 0
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        self._uniforms = torch.rand(len(self.live), max_new_tokens, 3, generator=generator, dtype=torch.float64)

    @property
    def mask(self) -> torch.Tensor | None:
        """1 for text, 0 for padding, shape of `ids`; None: no padding."""
        return None if bool(self._mask.all()) else self._mask.long()

    def room(self, context: int | None, wanted: int) -> int:
        """How many of the drafts that are wanted fit the limit of tokens and the context.

        Takes the hidden columns out if they are in the way (then everything is read again).
        """
        most = max(self._most - len(self.tokens[row]) for row in self.live) - 1
        wanted = min(wanted, most)
        if context is None:
            return wanted
        if self.ids.shape[1] + wanted > context:
            self._compact()
        return max(0, min(wanted, context - self.ids.shape[1]))

    def uniforms(self, first: int, count: int) -> torch.Tensor:
        """Random numbers of the next places, shape (rows, count, 3); those behind the limit of tokens mean nothing."""
        done = torch.tensor([len(self.tokens[row]) for row in self.live])
        places = (done[:, None] + torch.arange(first, first + count)).clamp(max=self._most - 1)
        return self._uniforms[torch.tensor(self.live)[:, None], places]

    def append(self, drafts: torch.Tensor) -> None:
        """Put drafts behind the texts, shape (rows, columns)."""
        self.ids = torch.cat([self.ids, drafts], dim=1)
        self._mask = torch.cat([self._mask, torch.ones_like(drafts, dtype=torch.bool)], dim=1)
        self._drafted += drafts.shape[1]

    def all_ended(self, drafts: int) -> bool:
        """Whether each row has an end token among its last so many drafts."""
        ends = torch.tensor(sorted(self._ends), dtype=torch.long)
        return bool(torch.isin(self.ids[:, -drafts:], ends).any(1).all())

    def until_end(self, tokens: Sequence[int]) -> list[int]:
        """The tokens up to the first end token."""
        stop = next((i + 1 for i, token in enumerate(tokens) if token in self._ends), len(tokens))
        return list(tokens[:stop])

    def texts(self) -> list[list[int]]:
        """The rows without padding."""
        return [ids[mask].tolist() for ids, mask in zip(self.ids, self._mask, strict=True)]

    def take(self, tokens: torch.Tensor, kept: Sequence[int]) -> list[int]:
        """End a cycle: keep some drafts of each row, and put its next token behind them.

        Args:
            tokens: What was settled on, shape (rows, drafts + 1).
            kept: Of each row how many of its drafts are kept.

        Returns:
            Of each row how many tokens it got.
        """
        start = self.ids.shape[1] - self._drafted
        taken, going = [], []
        for i, (row, settled) in enumerate(zip(self.live, tokens.tolist(), strict=True)):
            new = self.until_end(settled[: kept[i] + 1])[: self._most - len(self.tokens[row])]
            self.tokens[row] += new
            taken.append(len(new))
            if new[-1] not in self._ends and len(self.tokens[row]) < self._most:
                going.append(i)
        index = torch.tensor(going, dtype=torch.long)
        count = torch.tensor(kept, dtype=torch.long)[index]
        columns = start + int(count.max() if going else 0)
        last = tokens[index].gather(1, count[:, None])
        places = torch.arange(columns)
        visible = self._mask[index, :columns] & (places < start + count[:, None])
        self.ids = torch.cat([self.ids[index, :columns], last], dim=1)
        self._mask = torch.cat([visible, torch.ones_like(last, dtype=torch.bool)], dim=1)
        self.live, self._drafted = [self.live[i] for i in going], 0
        return taken

    def _compact(self) -> None:
        texts = self.texts()
        longest = max(map(len, texts))
        if longest < self.ids.shape[1]:
            rows = [[0] * (longest - len(text)) + text for text in texts]
            lengths = torch.tensor([len(text) for text in texts])
            self.ids = torch.tensor(rows)
            self._mask = torch.arange(longest) >= longest - lengths[:, None]
