"""One call on its way through the decode loop: its tokens, its text, and what was noted about them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, Protocol, TypeVar

from mpf_chains.local.logprobs import Scored
from mpf_chains.local.sampling import Sampling

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from mpf_chains.local.experts.shared import SharedExperts
    from mpf_chains.local.steering.shared import SharedSteering, Steering

_PARTIAL = "\ufffd"  # the first bytes of a character whose other bytes are still to come
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # a byte as a token; an invalid one spoils the bytes right before it, too
_CLEANED = " .?!,'nmtsver"  # what `clean_up_tokenization_spaces` looks for is made of these
_WINDOW = 32  # tokens that are decoded again before the text's beginning is settled
_MARGIN = 8  # tokens and characters around a settled place; no decoder and no clean-up looks that far


class Explained(NamedTuple):
    """What experts changed about a token of an answer.

    Args:
        record: An `mpf_chains.local.experts.ExplainedToken` as plain data, with a contribution of every pair.
        start: Where in the answer's text its own begins.
    """

    record: Mapping[str, Any]
    start: int


class Piece(NamedTuple):
    """Text of an answer that later tokens cannot change, and what was noted about its tokens, where that is wanted."""

    text: str
    scored: Sequence[Scored] = ()
    explained: Sequence[Explained] = ()


@dataclass(frozen=True)
class ActiveExperts:
    """The experts of a call.

    Args:
        experts: The pairs.
        alphas: Strength of each pair by name, in their order.
        speculative: Whether drafts may be used.
    """

    experts: SharedExperts
    alphas: Mapping[str, float]
    speculative: bool = True


class Group(NamedTuple):
    """What rows share that are generated together.

    Args:
        experts: Those that move them. None: no experts do.
        speculative: Whether drafts may be used.
        steering: What steers them. None: nothing does.
    """

    experts: SharedExperts | None = None
    speculative: bool = False
    steering: SharedSteering | None = None


class _Placed(Protocol):
    @property
    def start(self) -> int: ...


N = TypeVar("N", bound=_Placed)


@dataclass
class _Notes(Generic[N]):
    """Notes on tokens, in order, some of which were handed out."""

    all: list[N] = field(default_factory=list)
    handed_out: int = 0

    def cut(self, end: int) -> None:
        """Drop those on tokens that begin at this place of the text or behind it."""
        self.all = [each for each in self.all if each.start < end]

    def next(self, end: int) -> list[N]:
        """Those on tokens before this place that were not handed out."""
        new = [each for each in self.all[self.handed_out :] if each.start < end]
        self.handed_out += len(new)
        return new


class _Text:
    """What tokens say: always the decoding of all of them, with a bounded number of them decoded at each.

    The text is `head`, which is settled, and `tail`, the decoding of the tokens behind it. Decoders treat what comes
    first in their own way (a leading space), so that some settled tokens are decoded along and their text, the lead,
    is taken off. If a decoding does not begin with it, the tokenizer is not one that adds text to text: from then on
    all tokens are decoded at each.

    Args:
        tokenizer: Decodes.
        hidden: Ids of the tokens that are no part of the text. None: the tokenizer's special tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, hidden: frozenset[int] | None) -> None:
        self.head, self.tail = "", ""
        self._tokenizer, self._hidden = tokenizer, hidden
        self._special = frozenset(tokenizer.all_special_ids) if hidden is None else hidden
        self._cleans = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))
        self._tokens: list[int] = []
        self._first, self._lead, self._whole = 0, "", False
        self._places: list[tuple[int, int]] = []  # (tokens, characters of the tail): nothing reaches across them
        self._in_bytes, self._certain = False, 0

    def __len__(self) -> int:
        return len(self.head) + len(self.tail)

    def __str__(self) -> str:
        return self.head + self.tail

    @property
    def whole_characters(self) -> int:
        """Length without a character at the end whose other bytes are still to come."""
        return len(self.head) + len(self.tail.rstrip(_PARTIAL))

    @property
    def settled(self) -> int:
        """Length of the text that later tokens can no longer change."""
        return max(0, min(self._certain, self.whole_characters) - (_MARGIN if self._cleans else 0))

    def between(self, start: int, end: int) -> str:
        """The text from one place to another."""
        settled = len(self.head)
        if start < settled:
            return (self.head[start:] + self.tail)[: end - start]
        return self.tail[start - settled : end - settled]

    def find(self, stops: Sequence[str]) -> int | None:
        """Where the first of these texts begins that does not lie in the head."""
        starts = [max(0, len(self.head) - len(stop) + 1) for stop in stops]
        found = [(start, self.between(start, len(self)).find(stop)) for start, stop in zip(starts, stops, strict=True)]
        return min((start + at for start, at in found if at >= 0), default=None)

    def push(self, token: int) -> None:
        """Add a token."""
        if self._unseen(token):
            return
        if len(self._tokens) - self._first > _WINDOW and not self._whole:
            self._shift()  # before: all of the text so far was searched for stop texts
        self._tokens.append(token)
        window = self._decode(self._tokens[self._first :])
        if window.startswith(self._lead):
            self.tail = window[len(self._lead) :]
        else:
            self._start_over(self._decode(self._tokens))
        is_byte = _BYTE.fullmatch(str(self._tokenizer.convert_ids_to_tokens(token))) is not None
        self._in_bytes = is_byte or (self._in_bytes and not self._decode([token]))
        if not self._in_bytes:
            self._certain = self.whole_characters
            if not self.tail.endswith((_PARTIAL, *(_CLEANED if self._cleans else ""))):
                self._places.append((len(self._tokens), len(self.tail)))

    def finish(self, tokens: list[int]) -> None:
        """Make sure that this is the text of these tokens, which are all, pushed or not."""
        text = self._decode(tokens)
        if text != str(self):
            self._start_over(text)

    def _start_over(self, text: str) -> None:
        self.head, self.tail = "", text
        self._first, self._lead, self._whole = 0, "", True

    def _unseen(self, token: int) -> bool:
        return token in self._special and not self._decode([token])

    def _decode(self, tokens: list[int]) -> str:
        if self._hidden is None:
            return str(self._tokenizer.decode(tokens, skip_special_tokens=True))
        return str(self._tokenizer.decode([token for token in tokens if token not in self._hidden]))

    def _shift(self) -> None:
        right = self._place_before(len(self._tokens), len(self.tail))
        left = right and self._place_before(*right)
        if not right or not left:
            return
        (first, _), (end, length) = left, right
        lead, window = self._decode(self._tokens[first:end]), self._decode(self._tokens[first:])
        if window.startswith(lead) and window[len(lead) :] == self.tail[length:]:
            self.head, self.tail = self.head + self.tail[:length], self.tail[length:]
            self._first, self._lead = first, lead
            self._places = [(tokens, place - length) for tokens, place in self._places if tokens >= end]

    def _place_before(self, tokens: int, length: int) -> tuple[int, int] | None:
        far = (each for each in reversed(self._places) if tokens - each[0] >= _MARGIN and length - each[1] >= _MARGIN)
        return next(far, None)


class Generation:
    """One call: a row of a batch while it is generated, then its outcome.

    Args:
        prompt: Token ids.
        sampling: How to choose tokens.
        max_tokens: At most this many new tokens, at least 1.
        stop: Texts that end the answer; they are not part of it.
        tokenizer: Decodes the new tokens.
        ends: Ids of the tokens that end an answer.
        on_piece: Called in the worker thread with each new piece of settled text. None (default) for no streaming.
        hidden: Ids of the tokens that are not part of the text. None (default): the tokenizer's special tokens.
        active: What experts do to it. None (default): there are none.
        steering: How it is steered. None (default): it is not.

    Attributes:
        future: Resolves to this generation when it is finished. Cancelling it takes the row out of its batch.
        tokens: The new token ids so far, an end token included.
        ended: Whether the model ended it, by an end token.
        finish_reason: "stop" (end token or stop text) or "length".
        decoding: How it was decoded: "way" is "base" (no expert moves anything), or what
            `mpf_chains.local.experts.shared.SharedExperts.decode` says.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        max_tokens: int,
        stop: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        ends: frozenset[int],
        on_piece: Callable[[Piece], None] | None = None,
        hidden: frozenset[int] | None = None,
        active: ActiveExperts | None = None,
        steering: Steering | None = None,
    ) -> None:
        self.prompt = prompt
        self.sampling = sampling
        self.uniforms = sampling.uniforms(prompt, max_tokens)
        self.active, self.steering = active, steering
        self.future: Future[Generation] = Future()
        self.tokens: list[int] = []
        self.ended = False
        self.finish_reason: Literal["stop", "length"] = "length"
        self.decoding: dict[str, Any] = {"way": "base"}
        self._scored: _Notes[Scored] = _Notes()
        self._explained: _Notes[Explained] = _Notes()
        self._max_tokens, self._stop, self._ends = max_tokens, stop, ends
        self._tokenizer, self._text = tokenizer, _Text(tokenizer, hidden)
        self._cut: int | None = None  # where a stop text begins
        self._on_piece, self._sent = on_piece, 0

    @property
    def text(self) -> str:
        """The answer so far; without streaming, stop texts and notes, once it is finished."""
        return str(self._text)[: self._cut]

    @property
    def group(self) -> Group:
        """Rows of one group go together."""
        steering = None if self.steering is None else self.steering.shared
        if self.active is None or not any(self.sampling.alphas):
            return Group(steering=steering)
        return Group(self.active.experts, self.active.speculative and not self.sampling.explain, steering)

    @property
    def asks_model(self) -> bool:
        """Whether its class is drawn from the model's own shares."""
        return self.steering is not None and self.steering.choice.asks_model

    def choose(self, own: Sequence[float]) -> int:
        """The index of its class, given the model's own shares at its prompt if it asks for them."""
        if self.steering is None:
            raise RuntimeError("The row is not steered.")
        return self.steering.choose(self.prompt, self.sampling.seed, own)

    @property
    def whole(self) -> Piece:
        """All of the answer so far."""
        return Piece(self.text, self._scored.all, self._explained.all)

    def note(self, logprob: float, top: list[tuple[int, float]]) -> None:
        """Hear of the next token's log-probability, and of the most probable tokens."""
        self._noted = (logprob, top)

    def explain(self, token: int, base: torch.Tensor, contrasts: Mapping[str, torch.Tensor]) -> None:
        """Hear of the next token's logits by the base model, and of the pairs' z⁺ − z⁻, each of shape (vocabulary,)."""
        self._told = (token, base, contrasts)

    def cycle(self, *, drafted: int, accepted: int, fallback: str | None = None) -> None:
        """Hear of a pass of the base model, before its tokens come."""
        told = self.decoding
        told["cycles"] = told.get("cycles", 0) + 1
        told["drafted"] = told.get("drafted", 0) + drafted
        told["accepted"] = told.get("accepted", 0) + accepted
        told["acceptance"] = told["accepted"] / told["drafted"] if told["drafted"] else None
        if fallback is not None:
            told["reason"] = fallback

    def push(self, token: int) -> bool:
        """Take the next token; True when no more are needed."""
        if self.future.done():  # cancelled or failed
            return True
        try:
            done = self._advance(token)
        except Exception as error:  # one row's failure must not reach the others of its batch
            self.fail(error)
            return True
        if done:
            self._resolve(lambda: self.future.set_result(self))
        return done

    def fail(self, error: BaseException) -> None:
        """End with an error."""
        self._resolve(lambda: self.future.set_exception(error))

    def _resolve(self, settle: Callable[[], None]) -> None:
        with suppress(InvalidStateError):  # cancelled in the meantime
            settle()

    def _advance(self, token: int) -> bool:
        self.tokens.append(token)
        noted = self._take_notes(token)
        self.ended = token in self._ends
        done = self.ended or len(self.tokens) >= self._max_tokens
        if self._stop or self._on_piece or noted:
            self._text.push(token)
            self._cut = self._text.find(self._stop)
        if done or self._cut is not None:
            self._text.finish(self.tokens)
            self._cut = self._text.find(self._stop)
        if self.ended or self._cut is not None:
            self.finish_reason = "stop"
        if not done and self._cut is None:
            self._send(self._settled())
            return False
        end = len(self._text) if self._cut is None else self._cut
        self._scored.cut(end)
        self._explained.cut(end)
        self._send(end)
        return True

    def _take_notes(self, token: int) -> bool:
        """Keep what was heard of this token; False if nothing was to be."""
        scoring, explaining = self.sampling.top_logprobs is not None, self.sampling.explain
        start = self._text.whole_characters
        if scoring:
            self._scored.all.append(Scored(token, *self._noted, start=start))
        if explaining:
            self._explained.all.append(Explained(self._record(*self._told), start))
        return scoring or explaining

    def _record(self, token: int, base: torch.Tensor, contrasts: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        import torch

        from mpf_chains.local.experts.explanation.explain import explain_token

        alphas = self.active.alphas if self.active else {}
        contrasts = {name: each for name, each in contrasts.items() if alphas[name]}  # others move only other rows
        moved = torch.stack(list(contrasts.values())) if contrasts else base.new_zeros(0, len(base))
        told = explain_token(token, base, moved, {name: alphas[name] for name in contrasts}, self._tokenizer)
        record = told.as_dict()
        record["contributions"] = {name: record["contributions"].get(name, 0.0) for name in alphas}
        return record

    def _settled(self) -> int:
        """Length of the text that later tokens can no longer change or cut off."""
        settled = self._text.settled
        longest = max(map(len, self._stop), default=1) - 1
        text = self._text.between(max(0, settled - longest), settled)
        held = [n for stop in self._stop for n in range(1, len(stop)) if text.endswith(stop[:n])]
        return settled - max(held, default=0)

    def _send(self, end: int) -> None:
        if self._on_piece and end > self._sent:
            text = self._text.between(self._sent, end)
            self._on_piece(Piece(text, self._scored.next(end), self._explained.next(end)))
            self._sent = end
