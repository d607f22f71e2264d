"""Tools that a model may call: what is asked of it, and its answers taken apart into text and calls."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessageChunk
from langchain_core.messages.tool import ToolCallChunk, tool_call_chunk
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from mpf_chains.errors import InvalidInput, NotSupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SEPARATORS = re.compile(r"(?:[\s;,]|\[TOOL_CALLS\])*")
_NAME = re.compile(r'"name"\s*:\s*"([^"\\]*)"')
_MISTRAL_CALL = re.compile(r"\s*(?P<name>[^\s\[\]{}]+)\s*(?:\[CALL_ID\][^\[]*)?\[ARGS\]\s*")


@dataclass(frozen=True)
class Toolbox:
    """The tools of a call.

    Args:
        definitions: In OpenAI's form.
        forced: Names of tools one of which the answer must call. Empty: the model is free.
    """

    definitions: tuple[dict[str, Any], ...] = ()
    forced: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, tools: Sequence[Mapping[str, Any] | type | Callable[..., Any] | BaseTool] | None, choice: Any = None
    ) -> Toolbox:
        """From what `bind_tools` takes.

        Args:
            tools: Whatever LangChain can turn into a tool.
            choice: None or "auto": the model decides. "none": it is not shown the tools. "any", "required" or True: it
                must call one. A name, or OpenAI's object with one: it must call this one.

        Raises:
            InvalidInput: If the choice is none of these.
            NotSupportedError: If a tool is one that another provider runs.

        Examples:
            >>> def now() -> str:
            ...     "The time."
            >>> Toolbox.of([now], "any").forced
            ('now',)
        """
        definitions = tuple(convert_to_openai_tool(tool) for tool in tools or ())
        for tool in definitions:
            if "function" not in tool:
                raise NotSupportedError(
                    f"A local model can call functions only, and no tool of type {tool.get('type')!r}."
                )
        names = tuple(str(tool["function"]["name"]) for tool in definitions)
        if choice in (None, False, "auto"):
            return cls(definitions)
        if choice == "none":
            return cls()
        if definitions and (choice is True or choice in ("any", "required")):
            return cls(definitions, names)
        name = choice.get("function", {}).get("name") if isinstance(choice, dict) else choice
        if name not in names:
            known = ", ".join(["'auto', 'none', 'any'", *map(repr, names)]) if names else "nothing: there are no tools"
            raise InvalidInput(f"`tool_choice` is {choice!r}; it may be {known}.")
        return cls(definitions, (name,))


NO_TOOLS = Toolbox()


@dataclass(frozen=True)
class AnswerFormat:
    """How a model writes calls into its answers.

    Args:
        template: As transformers' ``tokenizer.response_template``: where calls begin and end.
        markers: Special tokens that belong to it, by their text. None: all of them.
        declared: Whether the template is the tokenizer's own. It reads the prompt, too, which may begin the answer.
    """

    template: Mapping[str, Any]
    markers: frozenset[str] | None = None
    declared: bool = False

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, tools: Sequence[Mapping[str, Any]]) -> AnswerFormat:
        """What the tokenizer declares; else Hermes' and Qwen's, Mistral's or Llama 3's, by words of the chat template.

        Raises:
            NotSupportedError: If it is none of these.
        """
        declared = getattr(tokenizer, "response_template", None)
        if declared is not None:
            return cls(declared, declared=True)
        template = str(tokenizer.get_chat_template(tools=[dict(tool) for tool in tools]))
        if "<tool_call>" in template and "<function=" not in template:
            return HERMES
        if "[TOOL_CALLS]" in template:
            return MISTRAL
        if "<|python_tag|>" in template or "<|start_header_id|>" in template:
            return LLAMA
        raise NotSupportedError(
            "It is not known how this model writes tool calls.",
            hint="Set `tokenizer.response_template`, which transformers reads answers with.",
        )

    def hidden(self, tokenizer: PreTrainedTokenizerBase, ends: frozenset[int]) -> frozenset[int]:
        """Ids of the tokens that are not part of an answer's text."""
        special = {i: str(token) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        if self.markers is None:
            return ends
        return ends | {i for i, text in special.items() if text not in self.markers}


def _format(markers: Sequence[str], **calls: str) -> AnswerFormat:
    fields = {"tool_calls": {"content": "text", "repeats": True, **calls}, "content": {"content": "text"}}
    return AnswerFormat({"start_anchor": "unused", "fields": fields}, frozenset(markers))


HERMES = _format(
    ["<tool_call>", "</tool_call>"], open_pattern=r"\s*<tool_call>\s*", close_pattern=r"\s*</tool_call>\s*"
)
MISTRAL = _format(["[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"], open_pattern=r"\s*\[TOOL_CALLS\]")
_BARE = r'\A\s*(?=\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*"[^"]*"\s*,\s*"(?:parameters|arguments)"\s*:)'
LLAMA = _format(["<|python_tag|>"], open_pattern=rf"\s*<\|python_tag\|>\s*|{_BARE}")


class AnswerReader:
    """Takes an answer apart while it comes: text at once, a call as soon as it is complete.

    An answer read in one piece and the same answer read in many give the same. Where calls begin and end is found by
    transformers' own ``ResponseParser``. A call that is no JSON object with a name and an object of arguments becomes
    an invalid one. LangChain completes unfinished JSON when it adds up the chunks of a stream; so that a call which
    was cut off is not taken for a whole one, what was written of it is passed on as a JSON *string*.

    Args:
        form: How the model writes calls.
        tools: What it may call, in OpenAI's form.
        prompt: The text of the prompt; also makes the ids of calls, with their number and text.
    """

    def __init__(self, form: AnswerFormat, tools: Sequence[Mapping[str, Any]], prompt: str) -> None:
        self.calls = 0
        self._form, self._prompt = form, prompt
        self._tools: list[Any] = [dict(tool) for tool in tools]
        self._body = ""
        self._parser = self._new(prompt if form.declared else "")

    def _new(self, prefix: str) -> Any:
        from transformers.utils.chat_parsing import ResponseParser

        return ResponseParser(dict(self._form.template), prefix=prefix, tools=self._tools)

    def feed(self, text: str) -> list[AIMessageChunk]:
        """What this piece of the answer settles."""
        events: list[Mapping[str, Any]] = []
        for character in text:  # so that a failure is that of one region
            try:
                events += self._parser.feed(character)
            except (ValueError, KeyError, TypeError):
                events += self._failed(character)
        return list(self._chunks(events))

    def finish(self, cut_off: bool = False) -> list[AIMessageChunk]:
        """What the end of the answer settles.

        Args:
            cut_off: Whether a limit ended it, and not the model. Then a call that was being written is invalid: some
                formats would read its first half as a whole one.
        """
        try:
            _, events = self._parser.finalize()
        except (ValueError, KeyError, TypeError):
            events = self._failed("")
        if cut_off and self._form.declared:
            events = [
                {"type": "malformed"} if (each["type"], each.get("field")) == ("region_close", "tool_calls") else each
                for each in events
            ]
        return list(self._chunks(events))

    def _failed(self, character: str) -> list[Mapping[str, Any]]:
        """The format's own parser found no sense in a call: it is passed on as it stands."""
        self._parser = self._new("")
        return [{"type": "malformed", "text": character}]

    def _chunks(self, events: Sequence[Mapping[str, Any]]) -> Iterator[AIMessageChunk]:
        texts: dict[str, str] = {}
        for event in events:
            kind, field = event["type"], event.get("field")
            if kind == "region_chunk" and (field == "tool_calls" or event.get("dirty")):
                self._body += event["text"]
            elif kind == "region_chunk":
                texts[str(field)] = texts.get(str(field), "") + event["text"]
            elif kind == "malformed" or (kind == "region_close" and field == "tool_calls"):
                yield from _text_chunks(texts)
                texts = {}
                written, self._body = self._body + event.get("text", ""), ""
                value = event.get("value")
                found = read_calls(written) if value is None or isinstance(value, str) else _from_value(value, written)
                for call in found:
                    yield AIMessageChunk(content="", tool_call_chunks=[self._numbered(call)])
            elif kind == "region_close":
                self._body = ""
        yield from _text_chunks(texts)

    def _numbered(self, call: Call) -> ToolCallChunk:
        key = f"{self.calls}:{call.name}:{call.arguments}:{self._prompt}".encode()
        digest = hashlib.blake2b(key, digest_size=8).hexdigest()[:9]  # nine: see `prompt`
        index, self.calls = self.calls, self.calls + 1
        return tool_call_chunk(name=call.name, args=call.arguments, id=digest, index=index)


def _text_chunks(texts: Mapping[str, str]) -> Iterator[AIMessageChunk]:
    for field, text in texts.items():
        yield (
            AIMessageChunk(content=text)
            if field == "content"
            else AIMessageChunk(content="", additional_kwargs={field: text})
        )


@dataclass(frozen=True)
class Call:
    """A call as it was written.

    Args:
        name: Of the tool; None if it cannot be made out.
        arguments: JSON of an object, or, of an invalid call, a JSON string of what was written.
    """

    name: str | None
    arguments: str


def read_calls(body: str) -> list[Call]:
    r"""The calls in what stands between the marks of a format.

    Objects, lists of them, several in a row, with "arguments" or "parameters", bare or in OpenAI's "function"; and
    Mistral's name before its arguments. Anything else is an invalid call.

    Examples:
        >>> read_calls('{"name": "now", "parameters": {"zone": "CET"}}')
        [Call(name='now', arguments='{"zone": "CET"}')]
        >>> read_calls('{"name": "now", "arguments": {"zone"')
        [Call(name='now', arguments='"{\\"name\\": \\"now\\", \\"arguments\\": {\\"zone\\""')]
    """
    calls: list[Call] = []
    position = _skip(body, 0)
    while position < len(body):
        start, named = position, _MISTRAL_CALL.match(body, position)
        try:
            value, position = _DECODER.raw_decode(body, named.end() if named else position)
        except (ValueError, RecursionError):
            calls.append(_invalid(body[start:], named and named["name"]))
            break
        if named:
            value = {"name": named["name"], "arguments": value}
        calls += _from_value(value, body[start:position])
        position = _skip(body, position)
    return calls or [_invalid(body)]


def _from_value(value: Any, written: str) -> list[Call]:
    if isinstance(value, list):
        return [call for item in value for call in _from_value(item, json.dumps(item, ensure_ascii=False))]
    inner = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(inner, dict) or not isinstance(name := inner.get("name"), str):
        return [_invalid(written)]
    arguments = inner.get("arguments", inner.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = _DECODER.decode(arguments or "{}")
        except (ValueError, RecursionError):
            return [_invalid(written, name)]
    if not isinstance(arguments, dict):
        return [_invalid(written, name)]
    return [Call(name, json.dumps(arguments, ensure_ascii=False))]


def _invalid(written: str, name: str | None = None) -> Call:
    if name is None and (found := _NAME.search(written)):
        name = found[1]
    return Call(name, json.dumps(written.strip(), ensure_ascii=False))


def _skip(text: str, position: int) -> int:
    match = _SEPARATORS.match(text, position)
    return match.end() if match else position


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)
