"""A conversation as the token ids of a prompt, written by the model's own chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from mpf_chains.errors import InvalidInput, NotSupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turns = Sequence[Mapping[str, Any]]
_CALL_ID = "000000000"  # nine letters or digits: Mistral's templates take nothing else


def write_prompt(tokenizer: PreTrainedTokenizerBase, chat: Turns, tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
    """The ids of a conversation, up to where the answer begins.

    Args:
        tokenizer: With a chat template.
        chat: Turns with "role" and "content", as `chat_turns` makes them.
        tools: What the model may call, in OpenAI's form.

    Raises:
        InvalidInput: If the tokenizer has no chat template.
        NotSupportedError: If the chat template refuses the conversation, or ignores its tools or tool calls: found by
            writing it with them and without.
    """
    if not tokenizer.chat_template:
        raise InvalidInput(
            "The tokenizer has no chat template, so messages cannot be written as a prompt.",
            hint="Use an instruction-tuned model, or set `tokenizer.chat_template`.",
        )
    if tools and render(tokenizer, chat, tools) == render(tokenizer, chat):
        raise NotSupportedError(
            "The model's chat template ignores tools: the prompt is the same with and without them.",
            hint="Use a model that was trained to call tools, with its own chat template.",
        )
    if calls := [call for turn in chat for call in turn.get("tool_calls", ())]:
        silent = [{key: value for key, value in turn.items() if key != "tool_calls"} for turn in chat]
        told, untold = (render(tokenizer, each, tools) for each in (chat, silent))
        if any(told.count(name) <= untold.count(name) for call in calls if (name := call["function"]["name"])):
            raise NotSupportedError(
                "The model's chat template ignores the tool calls of this conversation.",
                hint="Use a model that was trained to call tools, or leave its calls and their results out.",
            )
    return list(_apply(tokenizer, chat, tools, return_dict=True)["input_ids"])


def render(tokenizer: PreTrainedTokenizerBase, chat: Turns, tools: Sequence[Mapping[str, Any]] = ()) -> str:
    """The text of a prompt.

    Raises:
        NotSupportedError: If the chat template refuses the conversation.
    """
    return str(_apply(tokenizer, chat, tools, tokenize=False))


def call_openings(
    tokenizer: PreTrainedTokenizerBase, chat: Turns, tools: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> tuple[tuple[int, ...], ...]:
    r"""How an answer begins that calls one of these tools, up to the call's arguments, as ids of tokens.

    Learnt from the chat template, which writes such an answer for the next turn: for Qwen it is
    ``<tool_call>\n{"name": "f", "arguments":``.

    Raises:
        NotSupportedError: If the template writes the prompt otherwise once the call follows it.
    """
    prompt = render(tokenizer, chat, tools)
    openings = []
    for name in names:
        opening, other = (_opening(tokenizer, chat, tools, each) for each in (name, f"{name}_"))
        if not opening.startswith(prompt) or opening == other:
            raise NotSupportedError(
                f"The model's chat template does not show how a call of {name!r} begins, so it cannot be forced.",
                hint="Leave `tool_choice` out.",
            )
        openings.append(tuple(_continuation(tokenizer, prompt, opening[len(prompt) :])))
    return tuple(openings)


def _opening(tokenizer: PreTrainedTokenizerBase, chat: Turns, tools: Sequence[Mapping[str, Any]], name: str) -> str:
    """The conversation with a call of this tool, up to where the arguments make a difference."""
    texts = []
    for arguments in ({}, {"x": 0}):
        call = {"type": "function", "id": _CALL_ID, "function": {"name": name, "arguments": arguments}}
        turn = {"role": "assistant", "content": "", "tool_calls": [call]}
        texts.append(str(_apply(tokenizer, [*chat, turn], tools, tokenize=False, add_generation_prompt=False)))
    same = takewhile(lambda pair: pair[0] == pair[1], zip(*texts, strict=False))
    return "".join(character for character, _ in same).rstrip("{ ")


def _continuation(tokenizer: PreTrainedTokenizerBase, prompt: str, text: str) -> list[int]:
    """Tokens of a text where it follows the prompt, without the space that some tokenizers put before every text."""
    before, whole = (tokenizer.encode(each, add_special_tokens=False) for each in (prompt, prompt + text))
    if whole[: len(before)] == before:
        return list(whole[len(before) :])
    return list(tokenizer.encode(text, add_special_tokens=False))


def _apply(tokenizer: PreTrainedTokenizerBase, chat: Turns, tools: Sequence[Mapping[str, Any]], **how: Any) -> Any:
    from jinja2.exceptions import TemplateError

    how = {"add_generation_prompt": True, **how}
    try:
        return tokenizer.apply_chat_template(
            [dict(turn) for turn in chat], tools=[dict(tool) for tool in tools] or None, **how
        )
    except TemplateError as error:
        roles = ", ".join(turn["role"] for turn in chat)
        raise NotSupportedError(f"The model's chat template refuses a conversation of {roles}: {error}.") from error
