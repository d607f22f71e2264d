"""A generation as LangChain's messages: whole, or chunk by chunk."""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessageChunk, message_chunk_to_message
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from mpf_chains.local.engine import Generation, Piece
from mpf_chains.local.logprobs import Scored, as_openai

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mpf_chains.local.tools import AnswerReader


class Answer:
    """One answer on its way out. The chunks of a stream add up to the whole by construction.

    Args:
        model_name: For the metadata.
        tokenizer: Names the tokens that are scored.
        reader: Takes tool calls out of the text. None: there are no tools.
        scored: Whether log-probabilities were asked for.
    """

    def __init__(
        self, model_name: str, tokenizer: PreTrainedTokenizerBase, reader: AnswerReader | None, scored: bool
    ) -> None:
        self._model_name, self._tokenizer, self._reader = model_name, tokenizer, reader
        self._scored: list[Scored] | None = [] if scored else None  # not yet sent

    def piece(self, piece: Piece) -> list[ChatGenerationChunk]:
        """What can be sent after another piece of text."""
        if self._scored is not None:
            self._scored += piece.scored
        if self._reader is None:
            messages = [AIMessageChunk(content=piece.text)] if piece.text else []
        else:
            messages = self._reader.feed(piece.text)
        return self._with_logprobs(messages)

    def end(self, generation: Generation) -> list[ChatGenerationChunk]:
        """What remains after the last piece: the metadata, and what waited for the end."""
        messages = [] if self._reader is None else self._reader.finish(cut_off=not generation.ended)
        called = self._reader is not None and self._reader.calls > 0 and generation.finish_reason == "stop"
        metadata: dict[str, Any] = {
            "model_name": self._model_name,
            "finish_reason": "tool_calls" if called else generation.finish_reason,
        }
        if self._scored is not None:
            metadata["logprobs"] = {"content": []}
        read, written = len(generation.prompt), len(generation.tokens)
        usage = UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)
        last = AIMessageChunk(content="", response_metadata=metadata, usage_metadata=usage, chunk_position="last")
        return self._with_logprobs([*messages, last])

    def whole(self, generation: Generation) -> ChatResult:
        """The finished answer."""
        first, *rest = [*self.piece(Piece(generation.text, generation.scored)), *self.end(generation)]
        total = reduce(add, rest, first)
        return ChatResult(generations=[ChatGeneration(message=message_chunk_to_message(total.message))])

    def _with_logprobs(self, messages: list[AIMessageChunk]) -> list[ChatGenerationChunk]:
        if messages and self._scored:
            messages[0].response_metadata["logprobs"] = as_openai(self._tokenizer, self._scored)
            self._scored = []
        return [ChatGenerationChunk(message=message) for message in messages]
