from collections import Counter

import pytest
from langchain_core.messages import AIMessage, SystemMessage
from langchain_core.runnables import RunnableLambda

from mpf_chains.errors import GenerationError, NotSupportedError
from mpf_chains.fusion import PerspectiveFusion
from mpf_chains.perspectives import Perspective, PerspectiveSet
from mpf_chains.testing import BiasedChatModel, FaultyChatModel

TRIO = PerspectiveSet([Perspective("fan", "Praise."), Perspective("critic", "Doubt."), Perspective("clerk", "Count.")])
EVEN = dict.fromkeys(TRIO.names, 1 / 3)
FAN = {"fan": 1.0, "critic": 0.0, "clerk": 0.0}
TWO = {"fan": 2 / 3, "critic": 1 / 3, "clerk": 0.0}
ANSWERS = {"Praise.": ["Great."], "Doubt.": ["Risky."], "Count.": ["Seven."]}


def build(**fields):
    model = BiasedChatModel(answers=ANSWERS)
    fields = {"model": model, "perspectives": TRIO, "weights": EVEN, "sampler": "quota", "n": 3, **fields}
    return PerspectiveFusion(**fields)


async def every_way(fusion):
    """The final message, called in each of the four ways."""
    yield fusion.invoke("Q?")
    yield await fusion.ainvoke("Q?")
    pieces = list(fusion.stream("Q?"))
    yield sum(pieces[1:], pieces[0])
    pieces = [piece async for piece in fusion.astream("Q?")]
    yield sum(pieces[1:], pieces[0])


async def test_answers_are_merged_and_usage_is_summed():
    async for answer in every_way(build()):
        record = answer.response_metadata["mpf"]
        assert set(answer.text.split()) == {"Great.", "Risky.", "Seven."}
        assert sorted(record["perspectives"]) == ["clerk", "critic", "fan"]
        assert (record["mode"], record["calls"]) == ("aggregated", 4)
        candidates = 3 * (2 + 1)  # two words read, one written
        assert record["usage"]["total_tokens"] == candidates + answer.usage_metadata["total_tokens"]
        assert not {"failed", "merge_failed"} & set(record)


async def test_one_drawn_perspective_is_called_once_and_not_merged():
    async for answer in every_way(build(weights=FAN)):
        assert answer.text == "Great."
        assert answer.response_metadata["mpf"]["calls"] == 1
        assert answer.response_metadata["mpf"]["perspectives"] == ["fan"] * 3


async def test_equal_answers_of_two_perspectives_are_merged_so_that_the_number_of_calls_is_known():
    fusion = build(model=FaultyChatModel(), weights=TWO)
    planned = fusion.plan("Q?")
    async for answer in every_way(fusion):
        assert answer.response_metadata["mpf"]["calls"] == planned.calls == 4


def test_equal_draws_at_temperature_0_cost_one_call_wherever_it_is_given():
    zero = PerspectiveSet([Perspective("fan", "Praise.", {"temperature": 0}), *TRIO[1:]])
    model = BiasedChatModel(answers=ANSWERS)
    cold = BiasedChatModel(answers=ANSWERS, temperature=0)
    for fusion, options, calls in (
        (build(weights=TWO, perspectives=zero), {}, 3),
        (build(weights=TWO, model=model.bind(temperature=0)), {}, 3),
        (build(weights=TWO), {"temperature": 0}, 3),
        (build(weights=TWO, dedupe=True), {}, 3),
        (build(weights=TWO, model=cold), {}, 3),
        (build(weights=TWO), {}, 4),
        (build(weights=TWO, model=cold, dedupe=False), {}, 4),
    ):
        assert fusion.plan("Q?", **options).calls == calls
        assert fusion.invoke("Q?", **options).response_metadata["mpf"]["calls"] == calls


@pytest.mark.parametrize("sampler", ["iid", "quota"])
def test_a_plan_is_what_happens(sampler):
    fusion = build(sampler=sampler)
    for _ in range(20):
        plan = fusion.plan("Q?")
        assert fusion.plan("Q?", plan.config) == plan  # planning counts nothing
        record = fusion.invoke("Q?", plan.config).response_metadata["mpf"]
        assert (record["calls"], tuple(record["perspectives"])) == (plan.calls, plan.perspectives)
        assert plan.merge == (len(set(plan.perspectives)) > 1)


def test_a_deduplicated_answer_keeps_its_share():
    prompts = []
    merger = RunnableLambda(lambda messages: prompts.append(messages) or "merged")
    answer = build(weights=TWO, dedupe=True, merge_model=merger, delimiter=lambda: "c0de").invoke("Q?")
    assert answer.text == "merged"
    assert answer.response_metadata["mpf"]["calls"] == 3
    assert prompts[0][-1].text.count("share 2 of 3]\nGreat.") == 1


@pytest.mark.parametrize("empty", ["", " \n", "None", "\u200b"])
async def test_a_failing_perspective_is_left_out_and_recorded(empty):
    def respond(messages):
        if "Doubt." in messages[0].text:
            raise TimeoutError("key sk-123 timed out")
        return empty if "Count." in messages[0].text else BiasedChatModel(answers=ANSWERS).invoke(messages)

    async for answer in every_way(build(model=RunnableLambda(respond))):
        record = answer.response_metadata["mpf"]
        assert answer.text == "Great."
        assert sorted((entry["perspective"], entry["error"]) for entry in record["failed"]) == [
            ("clerk", "empty"),
            ("critic", "TimeoutError"),
        ]
        assert record["calls"] == 3


async def test_when_told_to_raise_the_first_failure_is_raised():
    model = FaultyChatModel(failing={"Doubt.": TimeoutError("slow")})
    fusion = build(model=model, on_error="raise")
    with pytest.raises(TimeoutError):
        fusion.invoke("Q?")
    with pytest.raises(TimeoutError):
        await fusion.ainvoke("Q?")
    with pytest.raises(GenerationError, match="empty"):
        build(model=FaultyChatModel(script=[""] * 3), on_error="raise").invoke("Q?")


async def test_when_all_fail_it_raises():
    fusion = build(model=FaultyChatModel(failing={"": TimeoutError("slow")}))
    for call in (fusion.invoke, lambda question: list(fusion.stream(question))):
        with pytest.raises(GenerationError, match="3 of 3 perspectives gave no answer") as caught:
            call("Q?")
        assert isinstance(caught.value.__cause__, TimeoutError)
    with pytest.raises(GenerationError):
        await fusion.ainvoke("Q?")


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (RuntimeError("down, key sk-123"), "RuntimeError"),
        ("", "empty"),
        (AIMessage("", tool_calls=[{"name": "x", "args": {}, "id": "1"}]), "empty"),
    ],
)
async def test_a_failing_merge_falls_back_to_one_answer(script, reason):
    async for answer in every_way(build(merge_model=FaultyChatModel(script=[script] * 4))):
        assert answer.text in ("Great.", "Risky.", "Seven.")
        assert not answer.tool_calls
        assert answer.response_metadata["mpf"]["merge_failed"] == reason


async def test_a_merge_that_repeats_its_markers_is_no_answer():
    for text in ("[c0de5678 draft 1, share 1 of 3] Great.", "[c0de5678"):
        merger = FaultyChatModel(default=text)
        async for answer in every_way(build(merge_model=merger, delimiter=lambda: "c0de567812345678")):
            assert answer.text in ("Great.", "Risky.", "Seven.")
            assert answer.response_metadata["mpf"]["merge_failed"] == "markers"
    async for answer in every_way(build(merge_model=FaultyChatModel(default="[1] is a source."))):
        assert answer.text == "[1] is a source."
        assert "merge_failed" not in answer.response_metadata["mpf"]


async def test_a_merge_that_breaks_off_in_the_stream_raises():
    def halves(pieces):
        for _ in pieces:
            yield "half "
        raise RuntimeError("cut")

    fusion = build(merge_model=RunnableLambda(lambda _: _) | halves)
    with pytest.raises(RuntimeError, match="cut"):
        list(fusion.stream("Q?"))
    assert fusion.invoke("Q?").response_metadata["mpf"]["merge_failed"] == "RuntimeError"


async def test_tool_calls_are_never_merged():
    call = {"name": "look", "args": {"q": 1}, "id": "call-1", "type": "tool_call"}

    def respond(messages):
        return AIMessage("", tool_calls=[call]) if "Doubt." in messages[0].text else AIMessage("text")

    async for answer in every_way(build(model=RunnableLambda(respond))):
        assert answer.tool_calls == [call]
        assert answer.response_metadata["mpf"]["calls"] == 3


def test_the_merge_keeps_the_users_system_message_and_has_no_tools():
    seen = []

    def respond(messages, **settings):
        seen.append((messages, settings))
        return messages[0].text

    tools = [{"name": "look"}]
    model = RunnableLambda(respond)
    fusion = build(
        model=model, merge_model=model.bind(tools=tools, stop=["."]).with_retry(), merge_instruction="Merge {them}."
    )
    fusion.invoke([("system", "Speak French."), ("human", "Q?")], top_p=0.5)
    asked, (messages, settings) = seen[:3], seen[3]
    assert all(s == {"top_p": 0.5} for _, s in asked)
    assert settings == {"stop": ["."], "top_p": 0.5}
    assert messages[0] == SystemMessage("Merge {them}.\n\nSpeak French.")


@pytest.mark.parametrize("shape", [{"tools": [{"name": "look"}]}, {"response_format": {"type": "json_schema"}}])
async def test_requests_with_tools_or_structure_are_answered_by_one_perspective_or_refused(shape):
    model = BiasedChatModel(answers=ANSWERS)
    for fusion, options in ((build(model=model.bind(**shape)), {}), (build(model=model), shape)):
        answer = fusion.invoke("Q?", **options)
        record = answer.response_metadata["mpf"]
        assert (record["mode"], record["instead_of"]) == ("sampled", "aggregated")
        assert answer.text in ("Great.", "Risky.", "Seven.")
        assert fusion.plan("Q?", **options).calls == 1
    with pytest.raises(NotSupportedError, match=r"cannot be merged.*when_tools"):
        await build(model=model.bind(**shape), when_tools="raise").ainvoke("Q?")


def test_draws_follow_the_sampler():
    drawn = Counter()
    fusion = build(weights={"fan": 0.5, "critic": 0.3, "clerk": 0.2}, n=5)
    for _ in range(4):
        drawn.update(fusion.invoke("Q?").response_metadata["mpf"]["perspectives"])
    assert drawn == {"fan": 10, "critic": 6, "clerk": 4}
