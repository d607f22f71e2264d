"""Log-likelihoods of texts: what is to be scored, split into spans and packed into rows that share prefixes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mpf_chains.errors import InvalidInput
from mpf_chains.local.correction import Correction

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from mpf_chains.local.engine import Engine
    from mpf_chains.local.experts.ensemble import ExpertEnsemble
    from mpf_chains.local.packed import PackedModel
    from mpf_chains.local.steering.shared import SharedSteering

T = TypeVar("T")
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
    engine: Engine,
    texts: Sequence[tuple[str, str]],
    window: int | None = None,
    ensemble: ExpertEnsemble | None = None,
    alphas: Sequence[float] | None = None,
    steering: SharedSteering | None = None,
) -> Iterator[tuple[int, Scores]]:
    """See `ChatTransformers.log_likelihoods`. Checks and splits the texts at once, computes when iterated.

    With experts: of the log-softmax of z + Σₐ αₐ (z⁺ₐ − z⁻ₐ) at every position, over the tokens of the vocabulary.
    No filter takes part: likelihoods are those before any sampler's temperature or truncation. Pairs whose α is 0 are
    not read, and if all are the result is that without experts.

    Args:
        engine: The base model's.
        texts: (context, continuation) pairs.
        window: Tokens read at once, at most, in texts without a context. Default: the smallest context of the models.
        ensemble: Expert pairs. Default: none.
        alphas: Their strengths, in order. Default: their own.
        steering: An adapter whose low-rank changes the base model has. Default: none.
    """
    model, tokenizer, _ = engine.load()
    if window is not None and window < 2:
        raise InvalidInput(f"`window` is {window}; it must be at least 2 tokens.")
    correction = Correction.of(engine, ensemble, alphas, steering)
    context = correction.context(model)
    at_once = min((limit for limit in (context, window) if limit is not None), default=None)
    with engine.lock:  # a fast tokenizer may not be used by two threads at once
        pairs = encode(tokenizer, texts)
    spans: list[Span] = []
    for index, (before, targets) in enumerate(pairs):
        if texts[index][0].strip():
            spans.append(single(index, before, targets, context, correction.who))
        else:
            spans += windows(index, before, targets, at_once)
    return _scores(engine, correction, spans)


def next_token_log_probabilities(
    engine: Engine,
    prompts: Sequence[str],
    ensemble: ExpertEnsemble | None = None,
    alphas: Sequence[float] | None = None,
    steering: SharedSteering | None = None,
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Natural log-probability of each token of the vocabulary behind raw prompts.

    Raw text: no chat template, no sampling settings, and whitespace at the end of a prompt stays there. An empty
    prompt, and what goes before the others, is as in `log_likelihoods`, and so are experts. Checks and splits the
    prompts at once, computes when iterated.

    Args:
        engine: The base model's.
        prompts: Texts; those that begin alike are computed once where they do.
        ensemble: Expert pairs. Default: none.
        alphas: Their strengths, in order. Default: their own.
        steering: An adapter whose low-rank changes the base model has. Default: none.

    Returns:
        Iterator of (index, log-probabilities), shape (vocabulary,), in nats, at most 0; every index once, in the order
        in which batches finish. Their exponentials add up to 1, less what a model without experts gives to the
        padding that it may have behind its vocabulary.

    Raises:
        InvalidInput: At once, before anything is computed, if a prompt is too long, or empty where the tokenizer has
            neither BOS nor EOS. The message names the index.
        GenerationError: While iterating, if the model fails.
    """
    model, tokenizer, _ = engine.load()
    correction = Correction.of(engine, ensemble, alphas, steering)
    context = correction.context(model)
    with engine.lock:
        opening, read = Opening.of(tokenizer), raw(tokenizer, prompts)
    spans = []
    for index, tokens in enumerate(read):
        ids = opening.put(tokens, f"Prompt {index} has no token")
        if context is not None and len(ids) > context:
            raise InvalidInput(
                f"Prompt {index} has {len(ids)} tokens; {correction.who} at most {context}.", hint="Shorten it."
            )
        spans.append(Span(index, ids, [0]))
    return _next_tokens(engine, correction, spans)


def _scores(engine: Engine, correction: Correction, spans: Sequence[Span]) -> Iterator[tuple[int, Scores]]:
    from mpf_chains.local.scoring import score

    sizes: dict[int, int] = {}
    for span in spans:
        sizes[span.text] = max(sizes.get(span.text, 0), span.begin + len(span.targets))
    scores = {text: np.full(size, np.nan) for text, size in sizes.items()}
    for span, found in _batchwise(engine, correction, spans, score):
        scores[span.text][span.begin : span.begin + len(found)] = found
        sizes[span.text] -= len(found)
        if not sizes[span.text]:
            yield span.text, scores.pop(span.text)


def _next_tokens(
    engine: Engine, correction: Correction, spans: Sequence[Span]
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    from mpf_chains.local.scoring import next_tokens

    for span, found in _batchwise(engine, correction, spans, partial(next_tokens, size=correction.size)):
        yield span.text, found


def _batchwise(
    engine: Engine,
    correction: Correction,
    spans: Sequence[Span],
    work: Callable[[PackedModel, Sequence[Row]], list[T]],
) -> Iterator[tuple[Span, T]]:
    """What some work finds for each span, batch by batch; the engine does it, in turn with other work."""
    from mpf_chains.local.scoring import limits

    if not spans:
        return
    queued: deque[tuple[Sequence[Row], Future[list[T]]]] = deque()

    def run(rows: Sequence[Row], _: PreTrainedModel) -> list[T]:
        with correction.on():
            return work(reader, rows)

    try:
        reader = engine.submit(correction.reader).result()
        bounds = engine.submit(lambda _: limits(reader)).result()
        waiting = batches(pack(spans, bounds), bounds)
        while True:
            while len(queued) < _IN_FLIGHT and (batch := next(waiting, None)) is not None:
                queued.append((batch, engine.submit(partial(run, batch))))
            if not queued:
                return
            rows, future = queued[0]
            done = future.result()
            queued.popleft()
            yield from zip((span for row in rows for span in row.spans), done, strict=True)
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
    opening = Opening.of(tokenizer)
    pairs = []
    for index, (given, tokens) in enumerate(zip(raw(tokenizer, contexts), raw(tokenizer, wholes), strict=True)):
        before, targets = opening.put(given, f"Text {index} has no context"), list(tokens[len(given) :])
        if not given and targets[:1] == before:
            targets = targets[1:]
        if not targets:
            raise InvalidInput(
                f"The continuation of text {index}, {texts[index][1]!r}, has no token of its own: it merges with the "
                "end of the context.",
                hint="Split the text elsewhere, before a space for example.",
            )
        pairs.append((before, targets))
    return pairs


def raw(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts, with none added."""
    settings: dict[str, Any] = {"add_special_tokens": False, "return_attention_mask": False}
    return [list(ids) for ids in tokenizer(list(texts), **settings)["input_ids"]] if texts else []


@dataclass(frozen=True)
class Opening:
    """What comes before a text.

    Args:
        begins: Tokens that the tokenizer puts there by default: its BOS, or none.
        alone: What stands for an empty text: BOS, else EOS. None: there is neither.
    """

    begins: Sequence[int]
    alone: int | None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Opening:
        """That of a tokenizer."""
        bos: Any = tokenizer.bos_token_id
        begins = [bos] if bos is not None and list(tokenizer.encode(""))[:1] == [bos] else []
        return cls(begins, tokenizer.eos_token_id if bos is None else bos)

    def put(self, ids: Sequence[int], what: str) -> list[int]:
        """A text's tokens with what comes before them, at least 1.

        Args:
            ids: The text's own tokens.
            what: "Text 3 is empty", for the message.

        Raises:
            InvalidInput: If there is none, and nothing that stands for an empty text.
        """
        if ids:
            return list(ids) if list(ids[: len(self.begins)]) == self.begins else [*self.begins, *ids]
        if self.alone is None:
            raise InvalidInput(
                f"{what}, and the tokenizer no BOS or EOS token to put in its place.", hint="Give it some text."
            )
        return [self.alone]


def single(
    text: int, before: Sequence[int], targets: Sequence[int], context: int | None, who: str = "the model reads"
) -> Span:
    """The span that scores a continuation given its context; its last token is not read.

    Args:
        text: Index of the text.
        before: Tokens given.
        targets: Tokens scored.
        context: Tokens that the model can read. None: any number.
        who: Who reads them, for the message.

    Raises:
        InvalidInput: If the model cannot read them.
    """
    ids = [*before, *targets[:-1]]
    if context is not None and len(ids) > context:
        raise InvalidInput(
            f"Text {text} has {len(before)} tokens of context and {len(targets)} of continuation; {who} at most "
            f"{context}, and the continuation's last token is not read.",
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
