"""A generation as LangChain's messages: whole, or chunk by chunk."""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessageChunk, message_chunk_to_message
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from mpf_chains.local.generation import Generation, Piece
from mpf_chains.local.logprobs import as_openai
from mpf_chains.local.sampling import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mpf_chains.local.tools import AnswerReader


class Answer:
    """One answer on its way out. The chunks of a stream add up to the whole by construction.

    Args:
        model_name: For the metadata.
        tokenizer: Names the tokens that are scored.
        reader: Takes tool calls out of the text. None: there are no tools.
        sampling: What was asked to be noted about tokens.
    """

    def __init__(
        self, model_name: str, tokenizer: PreTrainedTokenizerBase, reader: AnswerReader | None, sampling: Sampling
    ) -> None:
        self._model_name, self._tokenizer, self._reader, self._sampling = model_name, tokenizer, reader, sampling
        self._waiting = Piece("")  # its notes were not yet sent

    def piece(self, piece: Piece) -> list[ChatGenerationChunk]:
        """What can be sent after another piece of text."""
        waiting = self._waiting
        self._waiting = Piece("", [*waiting.scored, *piece.scored], [*waiting.explained, *piece.explained])
        if self._reader is None:
            messages = [AIMessageChunk(content=piece.text)] if piece.text else []
        else:
            messages = self._reader.feed(piece.text)
        return self._with_notes(messages)

    def end(self, generation: Generation) -> list[ChatGenerationChunk]:
        """What remains after the last piece: the metadata, and what waited for the end."""
        messages = [] if self._reader is None else self._reader.finish(cut_off=not generation.ended)
        called = self._reader is not None and self._reader.calls > 0 and generation.finish_reason == "stop"
        metadata: dict[str, Any] = {
            "model_name": self._model_name,
            "finish_reason": "tool_calls" if called else generation.finish_reason,
        }
        if self._sampling.top_logprobs is not None:
            metadata["logprobs"] = {"content": []}
        if generation.active is not None:
            metadata["experts"] = {
                "alphas": dict(generation.active.alphas),
                "filter": self._sampling.filter,
                "decoding": dict(generation.decoding),
                **({"tokens": []} if self._sampling.explain else {}),
            }
        if generation.steering is not None:
            metadata["steering"] = dict(generation.steering.told)
        read, written = len(generation.prompt), len(generation.tokens)
        usage = UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)
        last = AIMessageChunk(content="", response_metadata=metadata, usage_metadata=usage, chunk_position="last")
        return self._with_notes([*messages, last])

    def whole(self, generation: Generation) -> ChatResult:
        """The finished answer."""
        first, *rest = [*self.piece(generation.whole), *self.end(generation)]
        total = reduce(add, rest, first)
        return ChatResult(generations=[ChatGeneration(message=message_chunk_to_message(total.message))])

    def _with_notes(self, messages: list[AIMessageChunk]) -> list[ChatGenerationChunk]:
        if messages:
            metadata, waiting = messages[0].response_metadata, self._waiting
            if waiting.scored:
                metadata["logprobs"] = as_openai(self._tokenizer, waiting.scored)
            if waiting.explained:
                metadata.setdefault("experts", {})["tokens"] = [dict(each.record) for each in waiting.explained]
            self._waiting = Piece("")
        return [ChatGenerationChunk(message=message) for message in messages]
