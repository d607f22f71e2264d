"""Log-likelihoods of texts: what is to be scored, split into spans and packed into rows that share prefixes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mpf_chains.errors import InvalidInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mpf_chains.local.engine import Engine

Scores = NDArray[np.float64]
_IN_FLIGHT = 2  # batches queued at the engine: one runs while the next is made


@dataclass(frozen=True)
class Span:
    """Tokens read in one go, and which of their successors are scored.

    Args:
        text: Index of the text it belongs to.
        ids: Tokens read, at least 1.
        targets: Tokens scored, at least 1: the successors of the last ``len(targets)`` of ``ids``.
        begin: How many tokens of the text other spans score before these. Default 0.
    """

    text: int
    ids: Sequence[int]
    targets: Sequence[int]
    begin: int = 0


class Row:
    """Spans side by side as a tree: what several of them begin with is there, and is read, once.

    Args:
        span: The first one.

    Attributes:
        spans: All of them.
        tokens: Token id of each node.
        parents: Node before each node; -1 for none.
        places: For each span the nodes whose successors are its targets.
    """

    def __init__(self, span: Span) -> None:
        self.spans: list[Span] = []
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.places: list[list[int]] = []
        self._path: list[int] = []  # nodes of the last span
        self.add(span)

    @property
    def is_chain(self) -> bool:
        """Whether it holds one sequence without branches."""
        return len(self.spans) == 1

    def shared(self, span: Span) -> int:
        """How many first tokens a span has in common with the last one."""
        return common(self.spans[-1].ids, span.ids)

    def add(self, span: Span) -> None:
        """Put a span in; its tokens beyond what it shares with the last one become new nodes."""
        shared = self.shared(span) if self.spans else 0
        path = self._path[:shared]
        for token in span.ids[shared:]:
            self.parents.append(path[-1] if path else -1)
            path.append(len(self.tokens))
            self.tokens.append(token)
        self._path = path
        self.spans.append(span)
        self.places.append(path[-len(span.targets) :])


@dataclass(frozen=True)
class Limits:
    """How rows and batches are made.

    Args:
        row: Nodes of a row that spans share, or twice the span's length where that is more.
        tree: Nodes of a row that spans share at most; it needs a mask of this number squared.
        reach: Spans longer than this many tokens get rows, and batches, of their own. None: no such length.
        batch: Positions of a batch, padding included; a longer row is a batch of its own.
        share: Whether spans share rows at all.
    """

    row: int = 128
    tree: int = 4096
    reach: int | None = None
    batch: int = 1024
    share: bool = True

    def far(self, length: int) -> bool:
        """Whether a span is too long to share anything."""
        return self.reach is not None and length > self.reach


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the longest common prefix.

    Examples:
        >>> common([1, 2, 3], [1, 2, 4, 5])
        2
    """
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def log_likelihoods(
    engine: Engine, texts: Sequence[tuple[str, str]], window: int | None = None
) -> Iterator[tuple[int, Scores]]:
    """See `ChatTransformers.log_likelihoods`. Checks and splits the texts at once, computes when iterated."""
    model, tokenizer, _ = engine.load()
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if window is not None and window < 2:
        raise InvalidInput(f"`window` is {window}; it must be at least 2 tokens.")
    at_once = min((limit for limit in (context, window) if limit is not None), default=None)
    with engine.lock:  # a fast tokenizer may not be used by two threads at once
        pairs = encode(tokenizer, texts)
    spans: list[Span] = []
    for index, (before, targets) in enumerate(pairs):
        if texts[index][0].strip():
            spans.append(single(index, before, targets, context))
        else:
            spans += windows(index, before, targets, at_once)
    return _score(engine, spans)


def _score(engine: Engine, spans: Sequence[Span]) -> Iterator[tuple[int, Scores]]:
    from mpf_chains.local.scoring import limits, score

    if not spans:
        return
    sizes: dict[int, int] = {}
    for span in spans:
        sizes[span.text] = max(sizes.get(span.text, 0), span.begin + len(span.targets))
    scores = {text: np.full(size, np.nan) for text, size in sizes.items()}
    queued: deque[tuple[Sequence[Row], Future[list[Scores]]]] = deque()
    try:
        bounds = engine.submit(limits).result()
        waiting = batches(pack(spans, bounds), bounds)
        while True:
            while len(queued) < _IN_FLIGHT and (batch := next(waiting, None)) is not None:
                queued.append((batch, engine.submit(partial(score, rows=batch))))
            if not queued:
                return
            rows, future = queued[0]
            done = future.result()
            queued.popleft()
            for span, found in zip((span for row in rows for span in row.spans), done, strict=True):
                scores[span.text][span.begin : span.begin + len(found)] = found
                sizes[span.text] -= len(found)
                if not sizes[span.text]:
                    yield span.text, scores.pop(span.text)
    finally:
        for _, future in queued:
            future.cancel()


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
    """Token ids of what is given and of what is scored, as lm-evaluation-harness (0.4.13) splits them.

    Args:
        tokenizer: The model's.
        texts: (context, continuation) pairs.

    Returns:
        For each pair the ids given, at least 1, and the ids scored, at least 1.

    Raises:
        InvalidInput: If a continuation is blank or has no token of its own, or the tokenizer has neither a BOS nor
            an EOS token and a context is empty.
    """
    contexts, wholes = [], []
    for index, (context, continuation) in enumerate(texts):
        if not continuation.strip():
            raise InvalidInput(f"The continuation of text {index} is {continuation!r}; there is nothing to score.")
        contexts.append(context.rstrip())
        wholes.append(context + continuation)
    settings: dict[str, Any] = {"add_special_tokens": False, "return_attention_mask": False}
    read = tokenizer(contexts, **settings)["input_ids"] if texts else []
    full = tokenizer(wholes, **settings)["input_ids"] if texts else []
    bos = tokenizer.bos_token_id
    prefix = tokenizer.eos_token_id if bos is None else bos
    begins = [bos] if bos is not None and list(tokenizer.encode(""))[:1] == [bos] else []
    pairs = []
    for index, (given, tokens) in enumerate(zip(read, full, strict=True)):
        before, targets = list(given), list(tokens[len(given) :])
        if not before:
            if prefix is None:
                raise InvalidInput(
                    f"Text {index} has no context, and the tokenizer no BOS or EOS token to put in its place.",
                    hint="Give a context.",
                )
            before, targets = [prefix], targets[1:] if targets[:1] == [prefix] else targets
        elif before[: len(begins)] != begins:
            before = begins + before
        if not targets:
            raise InvalidInput(
                f"The continuation of text {index}, {texts[index][1]!r}, has no token of its own: it merges with the "
                "end of the context.",
                hint="Split the text elsewhere, before a space for example.",
            )
        pairs.append((before, targets))
    return pairs


def single(text: int, before: Sequence[int], targets: Sequence[int], context: int | None) -> Span:
    """The span that scores a continuation given its context; its last token is not read.

    Args:
        text: Index of the text.
        before: Tokens given.
        targets: Tokens scored.
        context: Tokens that the model can read. None: any number.

    Raises:
        InvalidInput: If the model cannot read them.
    """
    ids = [*before, *targets[:-1]]
    if context is not None and len(ids) > context:
        raise InvalidInput(
            f"Text {text} has {len(before)} tokens of context and {len(targets)} of continuation; the model reads at "
            f"most {context}, and the continuation's last token is not read.",
            hint="Shorten the context. A text without a context may be longer: it is scored in windows.",
        )
    return Span(text, ids, targets)


def windows(text: int, before: Sequence[int], targets: Sequence[int], longest: int | None) -> Iterator[Span]:
    """Spans of at most ``longest`` tokens that score each target once.

    The first window scores all its tokens, each later one those of its last half. So a token has at least
    ``longest // 2`` tokens before it, or all there are.

    Args:
        text: Index of the text.
        before: The one token given.
        targets: Tokens scored.
        longest: Tokens read at once. None: any number.

    Examples:
        >>> [(list(span.ids), list(span.targets)) for span in windows(0, [0], range(1, 8), 4)]
        [([0, 1, 2, 3], [1, 2, 3, 4]), ([2, 3, 4, 5], [5, 6]), ([3, 4, 5, 6], [7])]
    """
    tokens = [*before, *targets]
    length = len(tokens) - 1
    longest = length if longest is None else longest
    end = 0
    while end < length:
        start, end = end, min(end + (longest // 2 if end else longest), length)
        yield Span(text, tokens[max(0, end - longest) : end], tokens[start + 1 : end + 1], start)


def pack(spans: Iterable[Span], limits: Limits) -> list[Row]:
    """Rows of spans, neighbours in token order side by side, so that common prefixes meet."""
    rows: list[Row] = []
    for span in sorted(spans, key=lambda span: list(span.ids)):
        length = len(span.ids)
        row = rows[-1] if rows else None
        if row and limits.share and not limits.far(max(length, len(row.spans[0].ids))):
            room = min(max(limits.row, 2 * length), limits.tree)
            scored = sum(map(len, row.places)) + len(span.targets)
            if len(row.tokens) + length - row.shared(span) <= room and scored <= limits.batch:
                row.add(span)
                continue
        rows.append(Row(span))
    return rows


def batches(rows: Sequence[Row], limits: Limits) -> Iterator[list[Row]]:
    """Rows of similar length that are read together: either chains or trees, the longest first."""
    batch: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.is_chain, -len(row.tokens))):
        fits = batch and (len(batch) + 1) * len(batch[0].tokens) <= limits.batch
        if batch and (not fits or limits.far(len(batch[0].tokens)) or batch[0].is_chain != row.is_chain):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
