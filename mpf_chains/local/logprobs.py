"""Log-probabilities of generated tokens, in the form that OpenAI gives them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Scored(NamedTuple):
    """A generated token with its log-probability and the most probable tokens of its place.

    Log-probabilities are natural logarithms under the model's own distribution: before temperature, top_k, top_p and
    before a forced tool call leaves other tokens out.

    Args:
        token: Id.
        logprob: At most 0, in nats.
        top: (id, log-probability), most probable first.
        start: Where in the answer's text its own begins.
    """

    token: int
    logprob: float
    top: Sequence[tuple[int, float]]
    start: int


def as_openai(tokenizer: PreTrainedTokenizerBase, scored: Sequence[Scored]) -> dict[str, Any]:
    """``{"content": [{"token", "logprob", "bytes", "top_logprobs": [{"token", "logprob", "bytes"}, ...]}, ...]}``.

    Bytes are None where the tokenizer does not tell them.
    """

    def entry(token: int, logprob: float) -> dict[str, Any]:
        written = token_bytes(tokenizer, token)
        return {"token": written.decode(errors="replace"), "logprob": logprob, "bytes": list(written)}

    return {
        "content": [
            {**entry(each.token, each.logprob), "top_logprobs": [entry(*other) for other in each.top]}
            for each in scored
        ]
    }


def token_bytes(tokenizer: PreTrainedTokenizerBase, token: int) -> bytes:
    """The bytes that a token stands for, part of a character perhaps; of a special token its name."""
    piece = str(tokenizer.convert_ids_to_tokens(token))
    if token in tokenizer.added_tokens_decoder:
        return piece.encode()
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    decoder = str(getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", ""))
    if "ByteLevel" in decoder:
        return bytes(_byte_of()[character] for character in piece)
    return piece.replace("\u2581", " ").encode()


@lru_cache(maxsize=1)
def _byte_of() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
