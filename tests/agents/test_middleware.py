"""`PerspectiveMiddleware` inside real agents: langchain's `create_agent`, langgraph's streams and checkpointers."""

import asyncio
import pickle
import sys
import threading
from itertools import pairwise

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelFallbackMiddleware, ModelRetryMiddleware
from langchain_core.callbacks import get_usage_metadata_callback
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel

from mpf_chains import Calibration, ChatMPF
from mpf_chains.agents import PerspectiveMiddleware
from mpf_chains.errors import InvalidInput, NotSupportedError, WeightsError
from mpf_chains.perspectives import Perspective, PerspectiveSet
from mpf_chains.testing import BiasedChatModel, FaultyChatModel

PAIR = PerspectiveSet([Perspective("fan", "Praise it.", {"top_p": 0.9}), Perspective("critic", "Doubt it.")])
EVEN = {"fan": 0.5, "critic": 0.5}
CRITIC = {"fan": 0.0, "critic": 1.0}
ASK = {"messages": [HumanMessage("How is it?")]}


@tool
def look(q: str) -> str:
    """Look something up."""
    return f"found {q}"


class Verdict(BaseModel):
    """The verdict."""

    good: bool


def calls(name, *ids, **args):
    return AIMessage("", tool_calls=[{"name": name, "args": args, "id": each, "type": "tool_call"} for each in ids])


class Recording(FaultyChatModel):
    """Keeps what it is called with."""

    asked: list = []  # noqa: RUF012

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        self.asked.append((messages, kwargs))
        return super()._generate(messages, stop, run_manager, **kwargs)

    def _should_stream(self, **kwargs):
        return False


def steering(**fields):
    return PerspectiveMiddleware(**{"perspectives": PAIR, "weights": EVEN, **fields})


def biased():
    return BiasedChatModel(answers={"Praise": ["Great stuff."], "Doubt": ["Risky stuff."]})


def records(state):
    return [message.response_metadata["mpf"] for message in state["messages"] if isinstance(message, AIMessage)]


async def run(agent, ask, config, way):
    return agent.invoke(ask, config) if way == "invoke" else await agent.ainvoke(ask, config)


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
@pytest.mark.parametrize("mode", ["sampled", "aggregated"])
async def test_one_perspective_holds_for_a_whole_tool_loop(way, mode):
    drawn = set()
    for number in range(12):
        script = [calls("look", "c1", "c2", q="x"), calls("look", "c3", q="y"), "done"]
        model = Recording(script=script, asked=[])
        agent = create_agent(model, [look], system_prompt="Be brief.", middleware=[steering(mode=mode, n=3)])
        state = await run(agent, ASK, {"configurable": {"mpf_key": str(number)}}, way)
        assert set(state) == {"messages"}  # the draw stays private
        systems = {messages[0].text for messages, _ in model.asked}
        (system,) = systems
        assert system in ("Praise it.\n\nBe brief.", "Doubt it.\n\nBe brief.")
        assert all(("top_p" in kwargs) == ("Praise" in system) for _, kwargs in model.asked)
        assert all(kwargs["tools"][0]["function"]["name"] == "look" for _, kwargs in model.asked)
        ids = [call["id"] for message in state["messages"][1:-1:2] for call in getattr(message, "tool_calls", [])]
        assert ids[:2] == ["c1", "c2"]
        first, *rest = records(state)
        assert all(record == first for record in rest)
        assert len(rest) == 2
        assert first["mode"] == "sampled"
        assert first.get("instead_of") == (None if mode == "sampled" else "aggregated")
        drawn.add(first["perspective"])
    assert drawn == {"fan", "critic"}


@pytest.mark.parametrize("sampler", ["iid", "quota"])
def test_in_an_agent_with_tools_aggregated_weights_still_set_the_shares(sampler):
    middleware = steering(mode="aggregated", n=4, sampler=sampler)
    agent = create_agent(FaultyChatModel(), [look], middleware=[middleware])
    asked = [{"configurable": {"mpf_key": str(number)}} for number in range(120)]
    fans = sum(records(agent.invoke(ASK, config))[0]["perspective"] == "fan" for config in asked)
    assert 40 <= fans <= 80  # 60 expected; the first of each quota block would give 0 or 120


def test_tools_can_be_refused():
    for options in ({"tools": [look]}, {"response_format": Verdict}):
        agent = create_agent(FaultyChatModel(), middleware=[steering(mode="aggregated", when_tools="raise")], **options)
        with pytest.raises(NotSupportedError, match="when_tools"):
            agent.invoke(ASK)


def test_tools_that_are_bound_to_the_model_count_too():
    agent = create_agent(FaultyChatModel().bind_tools([look]), middleware=[steering(mode="aggregated", n=2)])
    (record,) = records(agent.invoke(ASK))
    assert (record["mode"], record["instead_of"]) == ("sampled", "aggregated")


def test_structured_output_is_kept():
    for mode in ("sampled", "aggregated"):
        model = FaultyChatModel(script=[calls("Verdict", "c1", good=True)])
        state = create_agent(model, middleware=[steering(mode=mode)], response_format=Verdict).invoke(ASK)
        assert state["structured_response"] == Verdict(good=True)
        assert records(state)[0]["mode"] == "sampled"


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_without_tools_the_answers_are_merged(way):
    agent = create_agent(biased(), middleware=[steering(mode="aggregated", n=2, sampler="quota")])
    with get_usage_metadata_callback() as counted:
        state = await run(agent, ASK, None, way)
    answer = state["messages"][-1]
    assert sorted(answer.text.split()) == ["Great", "Risky", "stuff.", "stuff."]
    (record,) = records(state)
    assert (record["mode"], record["calls"]) == ("aggregated", 3)
    assert counted.usage_metadata["fake"]["total_tokens"] == record["usage"]["total_tokens"]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="LangGraph streams from async code from Python 3.11 on")
@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")
async def test_only_the_merge_reaches_the_users_stream():
    agent = create_agent(biased(), middleware=[steering(mode="aggregated", n=2, sampler="quota")])
    streams = {
        "messages": [chunk.text for chunk, _ in agent.stream(ASK, stream_mode="messages")],
        "amessages": [chunk.text async for chunk, _ in agent.astream(ASK, stream_mode="messages")],
    }
    events = [event async for event in agent.astream_events(ASK, version="v2")]
    streams["events"] = [event["data"]["chunk"].text for event in events if event["event"] == "on_chat_model_stream"]
    run = await agent.astream_events(ASK, version="v3")
    streams["v3"] = [word async for message in run.messages async for word in message.text]
    for name, words in streams.items():
        assert sorted("".join(words).split()) == ["Great", "Risky", "stuff.", "stuff."], name
        assert len(words) > 3, name  # word by word


def test_the_fan_out_is_concurrent():
    barrier = threading.Barrier(3, timeout=5)

    class Meeting(FaultyChatModel):
        def _generate(self, messages, stop=None, run_manager=None, **kwargs):
            if not messages[0].text.startswith("You write"):  # the merge
                barrier.wait()
            return super()._generate(messages, stop, run_manager, **kwargs)

        def _should_stream(self, **kwargs):
            return False

    agent = create_agent(Meeting(), middleware=[steering(mode="aggregated", n=3, sampler="quota")])
    assert records(agent.invoke(ASK))[0]["calls"] == 4


def test_scopes():
    for checkpointer in (InMemorySaver(), None):
        for scope, kinds in (("thread", 1), ("turn", 2)):
            agent = create_agent(biased(), middleware=[steering(scope=scope)], checkpointer=checkpointer)
            for thread in ("a", "b", "c"):
                config = {"configurable": {"thread_id": f"{scope}-{thread}"}}
                drawn = {agent.invoke(ASK, config)["messages"][-1].text for _ in range(12)}
                assert len(drawn) == kinds


def test_a_thread_keeps_its_perspective_when_weights_are_swapped():
    middleware = steering(scope="thread", weights={"fan": 1.0, "critic": 0.0})
    agent = create_agent(biased(), middleware=[middleware], checkpointer=InMemorySaver())
    old, new = ({"configurable": {"thread_id": name}} for name in ("old", "new"))
    assert agent.invoke(ASK, old)["messages"][-1].text == "Great stuff."
    middleware.weights = CRITIC
    assert agent.invoke(ASK, old)["messages"][-1].text == "Great stuff."
    assert agent.invoke(ASK, new)["messages"][-1].text == "Risky stuff."
    made = Calibration(PerspectiveSet([Perspective("plain")]), "sampled", ("s",), {"X": {"plain": 1.0}}, {"plain": 1.0})
    middleware.entity, middleware.fallback = "X", "uniform"
    middleware.weights = made
    assert agent.invoke(ASK, old)["messages"][-1].text == "Great stuff."  # it began so
    latest = {"configurable": {"thread_id": "latest"}}
    assert records(agent.invoke(ASK, latest))[-1]["perspective"] == "plain"
    with pytest.raises(WeightsError):
        middleware.weights = {"plain": 0.5}


def test_a_thread_can_be_switched_off_and_on_and_to_another_entity():
    weights = {"ETH": {"fan": 1.0, "critic": 0.0}, "EPFL": CRITIC}
    middleware = steering(scope="thread", weights=weights)
    agent = create_agent(biased(), middleware=[middleware], checkpointer=InMemorySaver())

    def perspective(entity):
        config = {"configurable": {"thread_id": "t", "mpf_entity": entity}}
        return records(agent.invoke(ASK, config))[-1]["perspective"]

    assert perspective("ETH") == "fan"
    middleware.strength = 0.0
    assert perspective("ETH") is None
    middleware.strength = 1.0
    assert perspective("ETH") == "fan"
    middleware.shadow = True
    assert perspective("ETH") is None
    middleware.shadow = False
    assert (perspective("ETH"), perspective("EPFL")) == ("fan", "critic")


def test_entity_strength_and_shadow():
    weights = {"ETH": {"fan": 1.0, "critic": 0.0}, "EPFL": CRITIC}

    def named(messages):
        return "ETH" if "ETH" in messages[-1].text else "EPFL"

    agent = create_agent(biased(), middleware=[steering(weights=weights, entity=named)])
    assert agent.invoke({"messages": [("human", "ETH?")]})["messages"][-1].text == "Great stuff."
    assert agent.invoke({"messages": [("human", "EPFL?")]})["messages"][-1].text == "Risky stuff."
    by_config = {"configurable": {"mpf_entity": "ETH"}}
    assert agent.invoke({"messages": [("human", "EPFL?")]}, by_config)["messages"][-1].text == "Great stuff."
    for mode in ("sampled", "aggregated"):
        for fields in ({"strength": 0.0}, {"shadow": True}):
            model = Recording(asked=[])
            agent = create_agent(model, system_prompt="Be brief.", middleware=[steering(mode=mode, **fields)])
            (record,) = records(agent.invoke(ASK))
            ((messages, kwargs),) = model.asked
            assert [message.text for message in messages] == ["Be brief.", "How is it?"]
            assert "top_p" not in kwargs
            assert ("shadow" in record) is ("shadow" in fields)


def test_other_middleware_works_on_each_inner_call():
    flaky = FaultyChatModel(script=[RuntimeError("down")])
    retry = ModelRetryMiddleware(max_retries=1, initial_delay=0.0, jitter=False)
    agent = create_agent(flaky, middleware=[steering(mode="aggregated", n=2, sampler="quota"), retry])
    (record,) = records(agent.invoke(ASK))
    assert "failed" not in record
    down = FaultyChatModel(failing={"": RuntimeError("down")})
    agent = create_agent(down, middleware=[steering(weights=CRITIC), ModelFallbackMiddleware(biased())])
    assert agent.invoke(ASK)["messages"][-1].text == "Risky stuff."


def test_chat_mpf_works_in_an_agent_too():
    chat = ChatMPF(model=biased(), perspectives=PAIR, weights=CRITIC)
    assert create_agent(chat).invoke(ASK)["messages"][-1].text == "Risky stuff."
    script = [calls("look", "c1", q="x"), "done"]
    chat = ChatMPF(model=FaultyChatModel(script=script), perspectives=PAIR, weights=EVEN, mode="aggregated")
    state = create_agent(chat, [look]).invoke(ASK)
    assert [message.text for message in state["messages"]] == ["How is it?", "", "found x", "done"]
    assert {record["instead_of"] for record in records(state)} == {"aggregated"}


async def test_runs_at_the_same_time_do_not_mix():
    agent = create_agent(biased(), middleware=[steering()])
    keys = [{"configurable": {"mpf_key": str(number)}} for number in range(40)]
    states = await asyncio.gather(*(agent.ainvoke(ASK, key) for key in keys))
    again = [agent.invoke(ASK, key) for key in keys]
    assert [records(a) for a in states] == [records(b) for b in again]
    texts = {"fan": "Great stuff.", "critic": "Risky stuff."}
    assert all(state["messages"][-1].text == texts[records(state)[0]["perspective"]] for state in states)
    assert any(a != b for a, b in pairwise(record["perspective"] for state in states for record in records(state)))


def test_it_pickles_and_refuses_what_it_does_not_know():
    middleware = pickle.loads(pickle.dumps(steering(weights=CRITIC)))
    assert create_agent(biased(), middleware=[middleware]).invoke(ASK)["messages"][-1].text == "Risky stuff."
    with pytest.raises(InvalidInput, match="scope"):
        steering(scope="user")
    with pytest.raises(InvalidInput, match="mode"):
        steering(mode="both")
    with pytest.raises(ValueError, match="wieghts"):
        steering(wieghts=EVEN)
    for name, value in (("mode", "aggregated"), ("scope", "thread"), ("wieghts", EVEN)):
        with pytest.raises(InvalidInput, match=f"`{name}` cannot be assigned"):
            setattr(middleware, name, value)
    for mode in ("sampled", "aggregated"):
        with pytest.raises(ValueError, match="greater than or equal to 1"):
            steering(mode=mode, n=-5)
