import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from mpf_chains.errors import InvalidInput
from mpf_chains.runtime import Call
from mpf_chains.runtime.calls import read_completion

BASE = Call((SystemMessage("Be brief."), HumanMessage("Hi")), arguments={"temperature": 0.5})


@pytest.mark.parametrize(
    "other",
    [
        Call((SystemMessage("Be long."), HumanMessage("Hi")), arguments={"temperature": 0.5}),
        Call((HumanMessage("Be brief."), HumanMessage("Hi")), arguments={"temperature": 0.5}),
        Call(BASE.messages, arguments={"temperature": 0.6}),
        Call(BASE.messages),
        Call(BASE.messages, arguments={"temperature": 0.5}, draw=1),
        Call(BASE.messages, arguments={"temperature": 0.5}, kind="fuse"),
    ],
)
def test_whatever_changes_the_answer_changes_the_key(other: Call) -> None:
    assert other.key("m") != BASE.key("m") != BASE.key("n")


def test_key_is_pinned_so_that_old_ledgers_stay_readable() -> None:
    assert BASE.key("m")[:16] == "3f8ff5c462a90176"
    assert Call(BASE.messages, BASE.arguments, label="other").key("m") == BASE.key("m")


def test_arguments_that_are_not_json_are_refused() -> None:
    for value in (float("nan"), object(), b"bytes"):
        with pytest.raises(InvalidInput, match="stable key"):
            Call((), arguments={"x": value}).key("m")


def reply(content: object, **metadata: object) -> AIMessage:
    return AIMessage(content, response_metadata=metadata)


@pytest.mark.parametrize(
    ("output", "status", "text"),
    [
        ("plain", "ok", "plain"),
        (reply("fine", finish_reason="stop"), "ok", "fine"),
        (
            reply([{"type": "text", "text": "in "}, {"type": "reasoning", "reasoning": "x"}, "blocks"]),
            "ok",
            "in blocks",
        ),
        (None, "empty", ""),
        ("", "empty", ""),
        (reply(" \n\t"), "empty", " \n\t"),
        (reply([]), "empty", ""),
        (AIMessage.model_construct(content=None, response_metadata={}, additional_kwargs={}), "empty", ""),
        (reply("cut", finish_reason="length"), "length", "cut"),
        (reply("cut", stop_reason="max_tokens"), "length", "cut"),
        (reply("cut", finish_reason="MAX_TOKENS"), "length", "cut"),
        (reply("cut", incomplete_details={"reason": "max_output_tokens"}), "length", "cut"),
        (reply("", finish_reason="length"), "empty", ""),
        (reply("no", finish_reason="content_filter"), "refusal", "no"),
        (reply("", stop_reason="refusal"), "refusal", ""),
        (reply("", finish_reason="SAFETY"), "refusal", ""),
        (AIMessage("", additional_kwargs={"refusal": "I can't."}), "refusal", "I can't."),
        (reply([{"type": "refusal", "refusal": "I won't."}]), "refusal", "I won't."),
        (reply([{"type": "non_standard", "value": {"refusal": "No."}}]), "refusal", "No."),
        ("half a \ud83d", "ok", "half a \ufffd"),
    ],
)
def test_each_kind_of_reply_has_a_status(output: object, status: str, text: str) -> None:
    completion = read_completion("k", output)
    assert (completion.status, completion.text) == (status, text)
