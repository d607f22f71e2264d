"""`ChatMPF` around langchain-openai's own client, over real HTTP: structured output, tools, models chosen by config."""

import json

import pytest
from langchain.chat_models import init_chat_model
from langchain_core.messages import AIMessageChunk
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from mpf_chains import ChatMPF, Perspective
from tests.loopback import serving

PAIR = [Perspective("fan", "Praise it."), Perspective("critic", "Doubt it.")]
CRITIC = {"fan": 0.0, "critic": 1.0}
CALL = {"id": "call-1", "type": "function", "function": {"name": "Verdict", "arguments": json.dumps({"good": True})}}


class Verdict(BaseModel):
    """The verdict."""

    good: bool


@pytest.fixture
def seen():
    return []


@pytest.fixture
def url(seen):
    def answer(asked, headers):
        seen.append(asked)
        if asked.get("tools"):
            return 200, {"content": None, "tool_calls": [CALL]}
        return 200, {"content": json.dumps({"good": True}) if asked.get("response_format") else f"by {asked['model']}"}

    with serving(answer) as address:
        yield address


def openai(url, **fields):
    return ChatOpenAI(base_url=url, api_key="none", model="m", max_retries=0, **fields)


def wrapped(model, **fields):
    return ChatMPF(model=model, perspectives=PAIR, weights=CRITIC, **fields)


@pytest.mark.parametrize("mode", ["sampled", "aggregated"])
@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
@pytest.mark.parametrize("include_raw", [False, True])
async def test_structured_output_asks_what_the_bare_model_asks(url, seen, mode, method, include_raw):
    question = "As JSON: is it good?"
    options = {"method": method, "include_raw": include_raw}
    bare = openai(url).with_structured_output(Verdict, **options).invoke([("system", "Doubt it."), ("human", question)])
    chain = wrapped(openai(url), mode=mode).with_structured_output(Verdict, **options)
    for ours in (chain.invoke(question), await chain.ainvoke(question)):
        assert (ours["parsed"], bare["parsed"]) == (Verdict(good=True),) * 2 if include_raw else ours == bare
    assert seen[0] == seen[1] == seen[2]  # to the byte: instruction, schema, tools
    if include_raw:
        assert ours["raw"].response_metadata["mpf"]["perspective"] == "critic"


@pytest.mark.parametrize("mode", ["sampled", "aggregated"])
async def test_streamed_tool_calls(url, seen, mode):
    chain = wrapped(openai(url), mode=mode).bind_tools([Verdict], tool_choice="any")
    pieces = list(chain.stream("Q?"))
    whole = sum(pieces[1:], pieces[0])
    assert isinstance(whole, AIMessageChunk)
    assert [(call["name"], call["args"], call["id"]) for call in whole.tool_calls] == [
        ("Verdict", {"good": True}, "call-1")
    ]
    assert whole.usage_metadata["total_tokens"] == 3
    assert seen[0]["messages"][0] == {"role": "system", "content": "Doubt it."}


async def test_init_chat_model_with_the_model_in_the_config(url, seen):
    inner = init_chat_model(
        configurable_fields=("model",), model_provider="openai", base_url=url, api_key="none", max_retries=0
    )
    chat = wrapped(inner)
    for name in ("a", "b"):
        config = {"configurable": {"model": name, "mpf_key": "k"}}
        assert chat.invoke("Q?", config).text == f"by {name}"
        assert (await chat.ainvoke("Q?", config)).text == f"by {name}"
        assert "".join(piece.text for piece in chat.stream("Q?", config)) == f"by {name}"
        assert chat.with_structured_output(Verdict).invoke("Q?", config) == Verdict(good=True)
    assert {asked["messages"][0]["content"] for asked in seen} == {"Doubt it."}
