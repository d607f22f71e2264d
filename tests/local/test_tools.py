"""Tools, at a tiny Llama that is made to say a given text, and at SmolLM2 for what it is forced to say."""

from __future__ import annotations

import copy
import json
import string
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from operator import add
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from pydantic import BaseModel

from mpf_chains.errors import InvalidInput, NotSupportedError
from mpf_chains.local import ChatTransformers
from mpf_chains.local.messages import chat_turns
from mpf_chains.local.tools import HERMES, LLAMA, MISTRAL, AnswerReader

TEMPLATE = (
    "{% if tools %}{{ '<s>' + (tools | tojson) + '<e>' }}{% endif %}{% for m in messages %}"
    "{{ '<a>' if m.role == 'assistant' else '<u>' }}{{ m.content }}{% for c in m.tool_calls or [] %}CALL{% endfor %}"
    "{{ '<e>' }}{% endfor %}{% if add_generation_prompt %}{{ '<a>' }}{% endif %}"
)
WRITTEN = {
    "hermes": '<tool_call>\n{"name": "NAME", "arguments": ARGUMENTS}\n</tool_call>',
    "llama": '{"name": "NAME", "parameters": ARGUMENTS}{# <|python_tag|> #}',
    "mistral": "[TOOL_CALLS]NAME[ARGS]ARGUMENTS",
}
ANSWERS = {
    "hermes": 'Let me see.\n<tool_call>\n{"name": "plus", "arguments": {"a": 1, "b": "x"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
    "llama": 'Let me see.<|python_tag|>{"name": "plus", "parameters": {"a": 1, "b": "x"}}; '
    '{"name": "now", "parameters": {}}',
    "mistral": 'Let me see.[TOOL_CALLS]plus[ARGS]{"a": 1, "b": "x"}[TOOL_CALLS]now[ARGS]{}',
}


def template_of(form: str) -> str:
    call = WRITTEN[form].replace("NAME", "{{ c.function.name }}")
    return TEMPLATE.replace("CALL", call.replace("ARGUMENTS", "{{ c.function.arguments | tojson }}"))


def plus(a: int, b: str) -> str:
    """Adds."""
    return f"{a}{b}"


def now() -> str:
    """The time."""
    return "noon"


Speaker = Callable[..., ChatTransformers]


@pytest.fixture
def speaker() -> Speaker:
    """Makes a model of a format that says these texts, one per prompt (the last again and again)."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    def speak(*texts: str, form: str = "hermes") -> ChatTransformers:
        special = ["<unk>", "<e>", "<s>", "<u>", "<a>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>"]
        vocabulary = {token: i for i, token in enumerate([*special, *string.printable])}
        raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        raw.add_special_tokens(special)
        raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        raw.decoder = decoders.Fuse()
        tokenizer: Any = PreTrainedTokenizerFast(
            tokenizer_object=raw, eos_token="<e>", unk_token="<unk>",
            chat_template=template_of(form),
        )  # fmt: skip
        config = LlamaConfig(
            vocab_size=len(vocabulary), hidden_size=16, intermediate_size=16, num_hidden_layers=1, eos_token_id=1,
            num_attention_heads=2, max_position_embeddings=4096, bos_token_id=None, pad_token_id=1,
        )  # fmt: skip
        model: Any = LlamaForCausalLM(config)
        scripts = [[*tokenizer.encode(text, add_special_tokens=False), 1] for text in texts]
        said: list[int] = []

        def say(_model: Any, _arguments: Any, named: dict[str, Any], output: Any) -> None:
            if named["input_ids"].shape[1] > 1:
                said[:] = scripts.pop(0) if len(scripts) > 1 else scripts[0]
            output.logits[:, -1, said.pop(0)] = 1e4

        if texts:
            model.register_forward_hook(say, with_kwargs=True)
        return ChatTransformers(model=model, tokenizer=tokenizer, temperature=0, max_tokens=400)

    return speak


def called(message: Any) -> list[tuple[str, dict[str, Any]]]:
    return [(call["name"], call["args"]) for call in message.tool_calls]


@pytest.mark.parametrize("form", ANSWERS)
async def test_calls_are_read_from_every_way_of_answering(speaker: Speaker, form: str) -> None:
    model = speaker(ANSWERS[form], form=form).bind_tools([plus, now])
    whole = model.invoke("1 + x?")
    assert whole.content == "Let me see."
    assert called(whole) == [("plus", {"a": 1, "b": "x"}), ("now", {})]
    assert whole.response_metadata["finish_reason"] == "tool_calls"
    ids = [call["id"] for call in whole.tool_calls]
    assert len(set(ids)) == 2
    assert all(i.isalnum() and len(i) == 9 for i in ids)  # Mistral's templates take no others
    streamed = list(model.stream("1 + x?"))
    others = [
        *model.batch(["1 + x?"] * 2),
        reduce(add, streamed),
        reduce(add, [c async for c in model.astream("1 + x?")]),
    ]
    for other in others:
        assert (other.content, other.tool_calls, other.usage_metadata, other.response_metadata) == (
            whole.content, whole.tool_calls, whole.usage_metadata, whole.response_metadata,
        )  # fmt: skip
    first_call = next(i for i, chunk in enumerate(streamed) if chunk.tool_call_chunks)
    assert "".join(str(chunk.content) for chunk in streamed[:first_call]) == "Let me see."
    assert first_call == len("Letmesee.")  # letter by letter, a space with the next: a call could have followed


@pytest.mark.parametrize(
    ("form", "written"),
    [
        ("hermes", '<tool_call>\n{"name": "plus", "arguments": {"a": 1'),  # cut off
        ("hermes", '<tool_call>\n{"name": "plus", "arguments": [1, 2]}\n</tool_call>'),
        ("hermes", '<tool_call>\n{"name": "plus", "arguments": {"a": NaN}}\n</tool_call>'),
        ("llama", '{"name": "plus", "parameters": {"a": 1'),
        ("mistral", '[TOOL_CALLS]plus[ARGS]{"a": 1'),
        ("mistral", "[TOOL_CALLS]" + "[" * 100_000),
    ],
)
def test_a_malformed_call_is_an_invalid_one_even_in_a_stream(speaker: Speaker, form: str, written: str) -> None:
    if len(written) < 1000:
        model = speaker(written, form=form).bind_tools([plus])
        messages: list[Any] = [model.invoke("?"), reduce(add, model.stream("?"))]
        assert messages[0].response_metadata["finish_reason"] == "tool_calls"
    else:
        reader = AnswerReader(MISTRAL, [], "")
        messages = [reduce(add, [*reader.feed(written), *reader.finish()])]
    for message in messages:
        assert message.tool_calls == []
        assert message.content == ""
        (invalid,) = message.invalid_tool_calls
        assert json.loads(invalid["args"]) in written
        assert invalid["name"] in {"plus", None}


FRAGMENTS = [
    "a < b", "<tool_", "<tool_call>", "</tool_call>", '{"name": "f", "arguments": {}}', '{"name": "f", ', "é", " ",
    '"parameters": {"x": [1]}}', "\n", "[TOOL_CALLS]", "[ARGS]", "[", "<|python_tag|>", ";",
]  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(st.sampled_from([HERMES, LLAMA, MISTRAL]), st.lists(st.sampled_from(FRAGMENTS), max_size=7), st.integers(1, 9))
def test_how_an_answer_is_cut_into_pieces_does_not_matter(form: Any, fragments: list[str], size: int) -> None:
    text = "".join(fragments)
    read = []
    for step in (size, len(text) + 1):
        reader = AnswerReader(form, [], "prompt")
        chunks = [c for i in range(0, len(text), step) for c in reader.feed(text[i : i + step])] + reader.finish()
        total = reduce(add, chunks, AIMessageChunk(content=""))
        read.append((total.content, total.tool_calls, total.invalid_tool_calls))
    assert read[0] == read[1]


def test_the_tokenizer_may_declare_how_answers_are_read(speaker: Speaker) -> None:
    for written, expected in (('<<plus {"a": 2}>>', [("plus", {"a": 2})]), ("<<plus {bad}>>", [])):
        model = speaker(f"So.{written}")
        model.tokenizer.response_template = {
            "start_anchor": "<a>",
            "fields": {
                "tool_calls": {
                    "open_pattern": r"<<(?P<name>\w+) ", "close": ">>", "content": "json", "repeats": True,
                    "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
                },
                "content": {"content": "text"},
            },
        }  # fmt: skip
        answer = model.bind_tools([plus]).invoke("?")
        assert answer.content == "So."
        assert called(answer) == expected
        assert len(answer.invalid_tool_calls) == (not expected)
        (cut,) = model.bind_tools([plus], max_tokens=written.index("}") + len("So.") + 1).invoke("?").invalid_tool_calls
        assert json.loads(cut["args"]) in written  # no end mark, no call


@pytest.mark.parametrize("form", ANSWERS)
def test_the_prompt_tells_of_tools_calls_and_results(speaker: Speaker, form: str) -> None:
    model = speaker(form=form)
    call = {"name": "plus", "args": {"a": 1, "b": "x"}, "id": "call00001", "type": "tool_call"}
    blocks: list[Any] = [
        {"type": "text", "text": "Let me see."},
        {"type": "tool_use", "id": "call00001", "name": "plus"},
    ]
    chat = [HumanMessage("1 + x?"), AIMessage(blocks, tool_calls=[call]), ToolMessage("1x", tool_call_id="call00001")]
    text = model.tokenizer.decode(model._engine.prompt_ids(chat_turns(chat)))
    assert text.index("Let me see.") < text.index("plus") < text.index('{"a": 1, "b": "x"}') < text.index("<u>1x<e><a>")
    with_tool = model.get_num_tokens_from_messages(chat, [now]) - model.get_num_tokens_from_messages(chat)
    assert with_tool > len("now The time.")


def test_a_template_that_ignores_tools_is_found(chat: ChatTransformers, speaker: Speaker) -> None:
    assert not chat.takes_tools() and speaker(form="hermes").takes_tools()
    with pytest.raises(NotSupportedError, match="template ignores tools"):
        chat.bind_tools([plus]).invoke("Hi")
    made = AIMessage("", tool_calls=[{"name": "plus", "args": {}, "id": "1"}])
    with pytest.raises(NotSupportedError, match="ignores the tool calls"):
        chat.invoke([HumanMessage("Hi"), made, ToolMessage("3", tool_call_id="1")])
    assert chat.bind_tools([plus], tool_choice="none").invoke("Hi").content == chat.invoke("Hi").content


def test_a_template_that_hides_part_of_a_call_is_found(speaker: Speaker) -> None:
    model = speaker(form="hermes")
    shown = model.tokenizer.chat_template
    model.tokenizer.chat_template = shown.replace("c.function.name", "'?'")
    made = AIMessage("", tool_calls=[{"name": "plus", "args": {}, "id": "1"}])
    with pytest.raises(NotSupportedError, match="ignores the tool calls"):
        model.invoke([HumanMessage("Hi"), made, ToolMessage("3", tool_call_id="1")])
    with pytest.raises(NotSupportedError, match="'plus' begins, so it cannot be forced"):
        model.bind_tools([plus], tool_choice="any").invoke("Hi")


def test_an_unknown_way_of_calling_is_refused(speaker: Speaker) -> None:
    model = speaker("Hi")
    model.tokenizer.chat_template = model.tokenizer.chat_template.replace("tool_call>", "other>")
    with pytest.raises(NotSupportedError, match="response_template"):
        model.bind_tools([plus]).invoke("Hi")


def test_a_tool_that_another_provider_runs_is_refused(speaker: Speaker) -> None:
    with pytest.raises(NotSupportedError, match="web_search"):
        speaker().bind_tools([{"type": "web_search"}])


@pytest.mark.parametrize("choice", ["minus", {"type": "function", "function": {"name": "minus"}}, 3])
def test_an_impossible_choice_is_refused_at_once(speaker: Speaker, choice: Any) -> None:
    with pytest.raises(InvalidInput, match="tool_choice"):
        speaker().bind_tools([plus], tool_choice=choice)


@pytest.mark.parametrize("form", ANSWERS)
def test_a_choice_forces_the_call_of_a_random_model(speaker: Speaker, form: str) -> None:
    model = speaker(form=form)
    begins = {"hermes": '<tool_call>\n{"name": "%s", "arguments":', "llama": '{"name": "%s", "parameters":',
              "mistral": "[TOOL_CALLS]%s[ARGS]"}[form]  # fmt: skip

    def names(answers: list[Any]) -> set[str]:
        for answer in answers:
            first = (answer.tool_calls + answer.invalid_tool_calls)[:1]
            assert first if form != "llama" else (first or answer.content)
            logged = "".join(each["token"] for each in answer.response_metadata["logprobs"]["content"])
            assert any(logged.startswith(begins % name) for name in ("plus", "now"))
        return {call["name"] for answer in answers for call in answer.tool_calls + answer.invalid_tool_calls}

    drawn = model.bind(temperature=1.0, max_tokens=60, logprobs=True)
    some = [drawn.bind(seed=seed, tools=[plus, now], tool_choice="any").invoke("Hi") for seed in range(12)]
    one = [drawn.bind(seed=seed, tools=[plus, now], tool_choice="now").invoke("Hi") for seed in range(3)]
    if form != "llama":  # there, what a random model adds is no call any more
        assert names(some) == {"plus", "now"}
        assert names(one) == {"now"}
    else:
        names(some + one)


def test_forced_and_free_rows_share_a_batch(speaker: Speaker) -> None:
    model = speaker().bind(temperature=1.0, max_tokens=80, seed=1)
    kinds: list[dict[str, Any]] = [{}, {"tools": [plus], "tool_choice": "any"}, {"tools": [plus]}]
    alone = [model.bind(**kind).invoke("Hi") for kind in kinds]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda kind: model.bind(**kind).invoke("Hi"), kinds))
    assert [(a.content, a.invalid_tool_calls) for a in together] == [(a.content, a.invalid_tool_calls) for a in alone]


class Person(BaseModel):
    """Somebody."""

    name: str
    age: int


def test_structured_output(speaker: Speaker) -> None:
    said = '<tool_call>\n{"name": "Person", "arguments": {"name": "Anna", "age": 30}}\n</tool_call>'
    assert speaker(said).with_structured_output(Person).invoke("Who?") == Person(name="Anna", age=30)


def test_an_agent_runs(speaker: Speaker) -> None:
    agents = pytest.importorskip("langchain.agents")
    model = speaker('<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>', "It is noon.")
    messages = agents.create_agent(model, [now]).invoke({"messages": [HumanMessage("What time is it?")]})["messages"]
    assert [message.text for message in messages] == ["What time is it?", "", "noon", "It is noon."]


@pytest.mark.slow
@pytest.mark.real_model
def test_a_real_model_is_forced_to_call() -> None:
    from mpf_chains.local import load_smollm2

    _, stored = load_smollm2()
    tokenizer = copy.deepcopy(stored)
    tokenizer.chat_template = (
        template_of("hermes")
        .replace("'<s>'", "'<|im_start|>system\\n'")
        .replace("<e>", "<|im_end|>\\n")
        .replace("<u>", "<|im_start|>user\\n")
        .replace("<a>", "<|im_start|>assistant\\n")
    )
    model = ChatTransformers(model="smollm2", tokenizer=tokenizer, temperature=0, max_tokens=40)
    answer = model.bind_tools([plus, now], tool_choice="now").invoke("What time is it?")
    assert [call["name"] for call in (answer.tool_calls + answer.invalid_tool_calls)[:1]] == ["now"]
