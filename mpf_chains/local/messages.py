"""LangChain's messages as the turns that chat templates read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, ToolMessage

from mpf_chains.errors import InvalidInput, NotSupportedError

Turn = dict[str, Any]
_ROLES = {"system": "system", "human": "user", "ai": "assistant", "tool": "tool"}
_CALL_BLOCKS = {"tool_use", "tool_call"}


def chat_turns(messages: Sequence[BaseMessage]) -> list[Turn]:
    r"""Messages as the turns of a chat template; consecutive ones of one role become one, a blank line between.

    Tool calls stand in their turn in OpenAI's form, with the arguments as an object, as transformers wants them; those
    that were not valid keep their text as arguments. Results of tools are turns of their own.

    Args:
        messages: At least one; text only. A tool's result follows the call that it answers.

    Raises:
        InvalidInput: If there is none, or a tool's result answers no call before it.
        NotSupportedError: If one has anything but text.

    Examples:
        >>> from langchain_core.messages import HumanMessage
        >>> chat_turns([HumanMessage("Hi."), HumanMessage("How are you?")])
        [{'role': 'user', 'content': 'Hi.\n\nHow are you?'}]
    """
    if not messages:
        raise InvalidInput("There are no messages to answer.")
    turns: list[Turn] = []
    called: dict[str | None, str] = {}  # names of tools by the ids of their calls
    for message in messages:
        turn: Turn = {"role": _role(message), "content": _text(message)}
        if isinstance(message, AIMessage) and (calls := _calls(message)):
            turn["tool_calls"] = calls
            called.update({call["id"]: call["function"]["name"] for call in calls})
        if isinstance(message, ToolMessage):
            if message.tool_call_id not in called:
                raise InvalidInput(
                    f"A tool message answers the call {message.tool_call_id!r}, which no message before it made.",
                    hint="Keep the AIMessage with the call.",
                )
            turn.update(name=message.name or called[message.tool_call_id], tool_call_id=message.tool_call_id)
        if turns and turns[-1].keys() == turn.keys() == {"role", "content"} and turns[-1]["role"] == turn["role"]:
            turns[-1]["content"] += f"\n\n{turn['content']}"
        else:
            turns.append(turn)
    return turns


def raw_text(turns: Sequence[Turn]) -> str:
    """The text that a model is to continue without a chat template.

    Raises:
        InvalidInput: If there is more than one user's message, or another one.

    Examples:
        >>> raw_text([{"role": "user", "content": "Once upon a time"}])
        'Once upon a time'
    """
    if [turn["role"] for turn in turns] != ["user"]:
        roles = ", ".join(turn["role"] for turn in turns)
        raise InvalidInput(
            f"`raw` is on, and the conversation is of {roles}: only one user's message can be continued as it stands."
        )
    return str(turns[0]["content"])


def _calls(message: AIMessage) -> list[dict[str, Any]]:
    return [
        {"type": "function", "id": call["id"], "function": {"name": call["name"] or "", "arguments": call["args"]}}
        for call in [*message.tool_calls, *message.invalid_tool_calls]
    ]


def _role(message: BaseMessage) -> str:
    if isinstance(message, ChatMessage):
        return message.role
    role = _ROLES.get(message.type.removesuffix("MessageChunk").lower())
    if role is None:
        raise NotSupportedError(f"A message of type {message.type!r} has no role in a chat template.")
    return role


def _text(message: BaseMessage) -> str:
    if isinstance(message.content, list):
        known = {"text"} | (_CALL_BLOCKS if isinstance(message, AIMessage) and message.tool_calls else set())
        for block in message.content:
            kind = "text" if isinstance(block, str) else block.get("type")
            if kind not in known:
                raise NotSupportedError(f"ChatTransformers takes text only; a message has a block of type {kind!r}.")
    return str(message.text)
