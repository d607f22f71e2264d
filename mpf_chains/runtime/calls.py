"""What is asked of a model, what comes back, and how an answer's status is read off a provider's reply."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from langchain_core.messages import BaseMessage

from mpf_chains.errors import NotSupportedError
from mpf_chains.runtime.canonical import sha256_of, storable

Status = Literal["ok", "empty", "refusal", "length", "failed"]

# Finish reasons, in lower case, of OpenAI, Anthropic, Google, Bedrock, Cohere, Mistral and Ollama.
_REFUSED: Final = frozenset({
    "refusal", "content_filter", "content_filtered", "guardrail_intervened", "safety", "recitation", "blocklist",
    "prohibited_content", "spii", "error_toxic",
})  # fmt: skip
_CUT: Final = frozenset({
    "length", "max_tokens", "max_output_tokens", "max_length", "model_length", "model_context_window_exceeded",
})  # fmt: skip


@dataclass(frozen=True)
class Call:
    """One request to a model.

    Args:
        messages: The conversation to send.
        arguments: Keyword arguments bound to this model call, JSON-like values only. Default none.
        draw: Which repetition of the same request this is, from 0. Part of the key, never sent to the model.
        kind: What the request is for ("generate", "fuse", ...). Part of the key.
        label: Human words for progress and errors, such as "ETH Zurich / q017 / optimist / draw 0". Not in the key.
        configurable: What the call's config says under "configurable", such as "mpf_entity" and "mpf_key" for models
            that draw perspectives. Default none.
        requests: How many requests are sent for it: several where the model merges answers. Counts against budgets; not
            in the key. Default 1.

    Examples:
        >>> from langchain_core.messages import HumanMessage
        >>> call = Call((HumanMessage("Hello"),), draw=1)
        >>> call.key("model") == Call((HumanMessage("Hello", id="other"),), draw=1, label="named").key("model")
        True
        >>> call.key("model") == Call((HumanMessage("Hello"),)).key("model")
        False
    """

    messages: tuple[BaseMessage, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    draw: int = 0
    kind: str = "generate"
    label: str = ""
    configurable: Mapping[str, str] = field(default_factory=dict)
    requests: int = 1

    def key(self, model_id: str) -> str:
        """Name the request: SHA-256 (64 hex digits) of everything that can change its answer.

        Args:
            model_id: What names the model and its parameters; see `model_identity`.

        Returns:
            The key, the same in every process. Message ids and the label are left out.

        Raises:
            InvalidInput: If a message or argument is not JSON-like.
        """
        messages = [_content_of(message) for message in self.messages]
        configured = [dict(self.configurable)] if self.configurable else []
        return sha256_of([model_id, messages, dict(self.arguments), self.draw, self.kind, *configured])

    @property
    def name(self) -> str:
        """The label, or the start of the last message where there is none."""
        return self.label or (repr(str(self.messages[-1].text)[:60]) if self.messages else "an empty conversation")


@dataclass(frozen=True)
class Completion:
    """What one call came to.

    Args:
        key: The call's key.
        status: "ok"; "empty" (nothing but whitespace); "refusal"; "length" (cut at the token limit, text kept);
            "failed" (no answer after all retries, text None; a later run asks again).
        text: The answer. None if failed, or if the ledger keeps no text and this was read from it.
        usage: Tokens billed: "input_tokens", "output_tokens", "total_tokens". Empty if the model reports none.
        error: Why the call failed. Default None.
        finish_reason: The provider's own word for why it stopped. Default None.
        scores: Feature digest to score, as stored beside the answer. Default none.
    """

    key: str
    status: Status
    text: str | None
    usage: Mapping[str, int] = field(default_factory=dict)
    error: str | None = None
    finish_reason: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)


def read_completion(key: str, output: object, replies: Iterable[BaseMessage] = ()) -> Completion:
    """Turn what a model or chain returned into a completion with a defined status.

    Args:
        key: The call's key.
        output: An AIMessage, a string, or None.
        replies: Model messages seen inside a chain whose output has lost them (it ends in a string parser): their
            usage is summed and the last one says why the model stopped. Default none.

    Returns:
        The completion. A refusal outranks an empty text, an empty text a cut one.

    Raises:
        NotSupportedError: If the output is something else (a dict of structured output, say).
    """
    if output is not None and not isinstance(output, (str, BaseMessage)):
        raise NotSupportedError(
            f"The model returned a {type(output).__name__}; an AIMessage or a string is needed.",
            hint="Pass the chat model itself, or end the chain in StrOutputParser().",
        )
    messages = [output] if isinstance(output, BaseMessage) else list(replies)
    last = messages[-1] if messages else None
    text = storable(str(output.text) if isinstance(output, BaseMessage) and output.content else _string(output))
    reason = _finish_reason(last)
    refusal = _refusal_text(last)
    word = (reason or "").lower()
    status: Status = "ok"
    if refusal or word in _REFUSED:
        status, text = "refusal", text if text.strip() else storable(refusal)
    elif not text.strip():
        status = "empty"
    elif word in _CUT:
        status = "length"
    return Completion(key, status, text, usage=_usage(messages), finish_reason=reason)


def _content_of(message: BaseMessage) -> dict[str, object]:
    """The part of a message that a provider sees."""
    seen: dict[str, object] = {"type": message.type, "content": message.content}
    for attribute in ("name", "role", "tool_calls", "tool_call_id", "additional_kwargs"):
        if value := getattr(message, attribute, None):
            seen[attribute] = value
    return seen


def _string(output: object) -> str:
    return output if isinstance(output, str) else ""


def _usage(messages: Iterable[BaseMessage]) -> dict[str, int]:
    total: dict[str, int] = {}
    for message in messages:
        for name, count in (getattr(message, "usage_metadata", None) or {}).items():
            if isinstance(count, int):
                total[name] = total.get(name, 0) + count
    return total


def _finish_reason(message: BaseMessage | None) -> str | None:
    """Providers name it differently: OpenAI, Anthropic, Bedrock, Ollama, and OpenAI's Responses API."""
    metadata: Mapping[str, Any] = (message.response_metadata or {}) if message is not None else {}
    details = metadata.get("incomplete_details")
    if isinstance(details, Mapping) and details.get("reason"):
        return str(details["reason"])
    for name in ("finish_reason", "stop_reason", "stopReason", "done_reason"):
        if metadata.get(name):
            return str(metadata[name])
    return None


def _refusal_text(message: BaseMessage | None) -> str:
    if message is None:
        return ""
    if refusal := message.additional_kwargs.get("refusal"):
        return str(refusal)
    for block in message.content if isinstance(message.content, list) else ():
        if isinstance(block, dict):
            inner = block.get("value") if block.get("type") == "non_standard" else block
            if isinstance(inner, dict) and inner.get("refusal"):
                return str(inner["refusal"])
    return ""
