"""The decode loop: many rows through one causal language model, each leaving as soon as it is finished."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from mpf_chains.local.experts.models.cache import buffered, select
from mpf_chains.local.sampling import Sampling, nucleus, pick

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Openings = tuple[tuple[int, ...], ...]


class Row(Protocol):
    """One sequence being generated."""

    prompt: Sequence[int]
    sampling: Sampling
    uniforms: NDArray[np.float32]

    def push(self, token: int) -> bool:
        """Take the next token; True when the row needs no more."""
        ...

    def note(self, logprob: float, top: list[tuple[int, float]]) -> None:
        """Hear of the next token's log-probability before `push`; called only if ``sampling.top_logprobs`` is set."""
        ...

    def cycle(self, *, drafted: int, accepted: int, fallback: str | None) -> None:
        """Hear of a cycle of speculative decoding, before its tokens are pushed.

        Args:
            drafted: Drafts that the base model read for this row; 0: a lockstep cycle.
            accepted: Those of them that stay.
            fallback: Why nothing was drafted, though there was room. None: otherwise.
        """
        ...

    def fail(self, error: BaseException) -> None:
        """End with an error; `push` then says that the row needs no more."""
        ...


class ExplainedRow(Row, Protocol):
    """A row that can hear what experts made of its tokens."""

    def explain(self, token: int, base: torch.Tensor, contrasts: Mapping[str, torch.Tensor]) -> None:
        """Hear what experts made of the next token, before `push`; called only if ``sampling.explain`` is set.

        Args:
            token: Its id.
            base: The base model's logits, shape (vocabulary,).
            contrasts: z⁺ − z⁻ of the pairs that are read, by their names; same shape.
        """
        ...


class Source(Protocol):
    """Gives the logits of each row's next token, one token further at every step."""

    @property
    def base(self) -> torch.Tensor:
        """The base model's, shape (rows, vocabulary)."""
        ...

    @property
    def logits(self) -> torch.Tensor:
        """Those of the law that tokens are drawn from, before all settings of sampling; same shape."""
        ...

    def contrasts(self) -> Mapping[str, torch.Tensor]:
        """z⁺ − z⁻ of the expert pairs that are read, by their names; same shape each."""
        ...

    def keep(self, order: Sequence[int]) -> None:
        """Make row i what row ``order[i]`` is now."""
        ...

    def step(self, tokens: torch.Tensor) -> None:
        """Go on behind these tokens, shape (rows,)."""
        ...


def decode(model: PreTrainedModel, rows: Sequence[ExplainedRow], pad: int = 0, source: Source | None = None) -> int:
    """Generate until every row is finished.

    Prompts are padded on the left; equal prompts are read once; a finished row leaves the batch, and the cache, at
    once. Rows do not see each other: apart from rounding, each gets what it would get alone.

    Args:
        model: A causal language model whose keys and values are held in a ``DynamicCache``.
        rows: What to generate; ``push`` is called once per row and step, in the calling thread.
        pad: Any valid token id; padding is masked.
        source: Gives the logits. None (default): the model alone.

    Returns:
        Number of tokens of the longest row.
    """
    with torch.inference_mode():
        source = source or Alone(model, rows, pad)
        uniforms = torch.from_numpy(_stack([row.uniforms for row in rows])).to(model.device)
        live, laws = list(rows), [_after_nucleus(row.sampling) for row in rows]
        openings = [row.sampling.openings for row in live]
        steps = 1
        while True:
            tokens = _choose(source, live, laws, openings, uniforms[:, steps - 1])
            chosen = tokens.tolist()
            _explain(source, chosen, live)
            openings = [rests(each, token) for each, token in zip(openings, chosen, strict=True)]
            finished = [row.push(token) for row, token in zip(live, chosen, strict=True)]
            if any(finished):
                order = closed_up([i for i, done in enumerate(finished) if not done])
                if not order:
                    return steps
                live, laws = [live[i] for i in order], [laws[i] for i in order]
                openings = [openings[i] for i in order]
                index = torch.tensor(order, device=model.device)
                tokens, uniforms = tokens[index], uniforms[index]
                source.keep(order)
            source.step(tokens)
            steps += 1


class Alone:
    """The logits of a model by itself.

    Args:
        model: See `decode`.
        rows: Their prompts are read, equal ones once.
        pad: Any valid token id.

    Attributes:
        prompts: Of each row, which of the distinct prompts it has.
    """

    def __init__(self, model: PreTrainedModel, rows: Sequence[Row], pad: int) -> None:
        self._model = model
        self._accepted = inspect.signature(model.forward).parameters
        self._cache = DynamicCache(config=model.config)
        position = {prompt: i for i, prompt in enumerate({tuple(row.prompt): None for row in rows})}
        ids, mask = (each.to(model.device) for each in padded(list(position), pad))
        logits = self._read(ids, mask)
        self.prompts = [position[tuple(row.prompt)] for row in rows]
        index = torch.tensor(self.prompts, device=model.device)
        if self.prompts != list(range(len(position))):
            select(self._cache, self.prompts, groups=1, rows=len(position))
        buffered(self._cache)
        self.logits, self._mask = logits[index], mask[index]

    @property
    def base(self) -> torch.Tensor:  # noqa: D102 - described by the protocol
        return self.logits

    def contrasts(self) -> Mapping[str, torch.Tensor]:  # noqa: D102
        return {}

    def keep(self, order: Sequence[int]) -> None:  # noqa: D102
        self._mask = self._mask[torch.tensor(order, device=self._mask.device)]
        select(self._cache, order, groups=1, rows=len(order))

    def step(self, tokens: torch.Tensor) -> None:  # noqa: D102
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        self.logits = self._read(tokens[:, None], self._mask)

    def _read(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Logits after the last position, shape (rows, vocabulary)."""
        arguments: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in self._accepted else {}
        if "position_ids" in self._accepted:
            arguments["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        untyped: Any = self._model
        output = untyped(input_ids=ids, attention_mask=mask, past_key_values=self._cache, use_cache=True, **arguments)
        logits: torch.Tensor = output.logits[:, -1]
        return logits


def padded(texts: Sequence[Sequence[int]], pad: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts as one matrix of ids, padded on the left, and its mask, 1 for text; both of shape (texts, columns)."""
    longest = max(map(len, texts))
    ids = torch.tensor([[pad] * (longest - len(text)) + list(text) for text in texts])
    mask = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in texts])
    return ids, mask


def _choose(
    source: Source,
    rows: Sequence[Row],
    laws: Sequence[Sampling],
    openings: Sequence[Openings],
    uniforms: torch.Tensor,
) -> torch.Tensor:
    """The next token of each row, shape (rows,); rows that want to hear how probable theirs was are told."""
    inside = _nuclei(source, rows, openings)
    logits = source.base if inside is not None and _settled(inside, rows) else source.logits
    allowed = within(logits, openings) if any(openings) else logits
    if inside is not None:
        allowed = allowed.masked_fill(~inside, float("-inf"))
    tokens = pick(allowed, laws, uniforms)
    note(logits, tokens, rows)
    return tokens


def _after_nucleus(row: Sampling) -> Sampling:
    """What is left to be done once a token is in the base model's nucleus."""
    return replace(row, top_p=1.0) if row.filter == "base_first" else row


def _nuclei(source: Source, rows: Sequence[Row], openings: Sequence[Openings]) -> torch.Tensor | None:
    """Which tokens are in the base model's nucleus, of rows that it comes first for; all are of the other rows.

    Shape (rows, vocabulary). None: there are no such rows.
    """
    first = [row.sampling.filter == "base_first" for row in rows]
    shares = {i: row.sampling.top_p for i, row in enumerate(rows) if first[i] and row.sampling.top_p < 1}
    if not shares:
        return None
    index = torch.tensor(list(shares), device=source.base.device)
    inside = torch.ones_like(source.base, dtype=torch.bool)
    inside[index] = nucleus(within(source.base, openings)[index], list(shares.values()))
    return inside


def _settled(inside: torch.Tensor, rows: Sequence[Row]) -> bool:
    """Whether nothing is left to choose, and nobody asks how probable it was: then experts need not read."""
    return all(row.sampling.top_logprobs is None for row in rows) and bool((inside.sum(-1) == 1).all())


def _explain(source: Source, tokens: Sequence[int], rows: Sequence[ExplainedRow]) -> None:
    """Tell the rows that want it what experts made of their tokens."""
    wanted = [i for i, row in enumerate(rows) if row.sampling.explain]
    if wanted:
        contrasts = source.contrasts()
        for i in wanted:
            rows[i].explain(tokens[i], source.base[i], {name: each[i] for name, each in contrasts.items()})


def within(logits: torch.Tensor, openings: Sequence[Openings]) -> torch.Tensor:
    """Logits in which a row that has openings left has only their first tokens."""
    within = logits.clone()
    for row, each in enumerate(openings):
        if each:
            first = torch.tensor([opening[0] for opening in each], device=logits.device)
            within[row] = float("-inf")
            within[row, first] = logits[row, first]
    return within


def rests(openings: Openings, token: int) -> Openings:
    """What of the openings is left after this token; nothing once one of them is complete.

    Examples:
        >>> rests(((5, 6, 7), (5, 8), (9,)), 5)
        ((6, 7), (8,))
    """
    rests = tuple(opening[1:] for opening in openings if opening[0] == token)
    return rests if all(rests) else ()


def note(logits: torch.Tensor, tokens: torch.Tensor, rows: Sequence[Row]) -> None:
    """Tell the rows that want it how probable their tokens were."""
    wanted = {i: k for i, row in enumerate(rows) if (k := row.sampling.top_logprobs) is not None}
    if not wanted:
        return
    index = torch.tensor(list(wanted), device=logits.device)
    scores = logits[index]
    scores = (scores if scores.dtype == torch.float64 else scores.float()).log_softmax(-1)
    chosen = scores.gather(1, tokens[index, None])[:, 0].tolist()
    values, ids = scores.topk(min(max(wanted.values()), scores.shape[-1]))
    for i, logprob, top, names in zip(wanted, chosen, values.tolist(), ids.tolist(), strict=True):
        rows[i].note(logprob, list(zip(names, top, strict=True))[: wanted[i]])


def closed_up(going: Sequence[int]) -> list[int]:
    """Rows that stay, the last of them moved into the gaps: few rows of caches have to be copied.

    Examples:
        >>> closed_up([0, 2, 3])
        [0, 3, 2]
    """
    tail = [i for i in going if i >= len(going)]
    staying = set(going)
    return [i if i in staying else tail.pop() for i in range(len(going))]


def _stack(streams: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Streams of different lengths as one array; what lies after a stream's end is never read."""
    stacked = np.zeros((len(streams), max(map(len, streams))), dtype=np.float32)
    for row, stream in zip(stacked, streams, strict=True):
        row[: len(stream)] = stream
    return stacked
