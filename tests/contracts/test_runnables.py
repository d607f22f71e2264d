"""What everything that draws perspectives must do, in whichever of LangChain's ways it is called."""

import asyncio
import pickle
import threading
from collections import Counter
from functools import reduce
from operator import add

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableLambda
from scipy.stats import chisquare

from mpf_chains.artifact import Weights
from mpf_chains.errors import WeightsError
from mpf_chains.fusion import ChatMPF, PerspectiveFusion, PerspectiveRouter
from mpf_chains.perspectives import PerspectiveSet
from mpf_chains.testing import BiasedChatModel, FaultyChatModel

MPF = PerspectiveSet.builtin("mpf")
WEIGHTS = dict(zip(MPF.names, (0.4, 0.3, 0.15, 0.1, 0.05), strict=True))


def chat_sampled(**fields):
    return ChatMPF(mode="sampled", **fields)


def chat_aggregated(**fields):
    return ChatMPF(mode="aggregated", **fields)


RUNNABLES = (PerspectiveRouter, PerspectiveFusion)
CHATS = (chat_sampled, chat_aggregated)
KINDS = (*RUNNABLES, *CHATS)
MERGING = (PerspectiveFusion, chat_aggregated)
WAYS = (
    "invoke",
    "ainvoke",
    "stream",
    "astream",
    "batch",
    "abatch",
    "batch_as_completed",
    "abatch_as_completed",
    "events",
)


def fixed_code():
    return "c0de"


def build(kind, **fields):
    fields = {"model": BiasedChatModel(), "perspectives": MPF, "weights": WEIGHTS, "seed": 3, **fields}
    return kind(**fields, **({"delimiter": fixed_code} if kind in MERGING else {}))


class Counting(BaseCallbackHandler):
    def __init__(self):
        self.starts = Counter()
        self.parents = {}
        self.tags = []
        self.metadata = []

    def on_chain_start(self, serialized, inputs, *, run_id, parent_run_id=None, **kwargs):
        self.starts["chain"] += 1
        self.parents[run_id] = parent_run_id

    def on_chat_model_start(self, serialized, messages, *, run_id, parent_run_id=None, tags, metadata, **kwargs):
        self.starts["model"] += 1
        self.parents[run_id] = parent_run_id
        self.tags.append(tags)
        self.metadata.append(metadata)

    def on_llm_end(self, response, **kwargs):
        self.starts["model end"] += 1

    def on_chain_end(self, outputs, **kwargs):
        self.starts["chain end"] += 1


async def ask(runnable, way, question, config):
    """The final message, and the pieces that came."""
    if way == "invoke":
        pieces = [runnable.invoke(question, config)]
    elif way == "ainvoke":
        pieces = [await runnable.ainvoke(question, config)]
    elif way == "stream":
        pieces = list(runnable.stream(question, config))
    elif way == "astream":
        pieces = [piece async for piece in runnable.astream(question, config)]
    elif way == "batch":
        pieces = runnable.batch([question], config)
    elif way == "abatch":
        pieces = await runnable.abatch([question], config)
    elif way == "batch_as_completed":
        pieces = [item for _, item in runnable.batch_as_completed([question], config)]
    elif way == "abatch_as_completed":
        pieces = [item async for _, item in runnable.abatch_as_completed([question], config)]
    else:
        events = [event async for event in runnable.astream_events(question, config, version="v2")]
        kind = "on_chat_model_stream" if isinstance(runnable, ChatMPF) else "on_chain_stream"
        pieces = [event["data"]["chunk"] for event in events if event["event"] == kind]
    return reduce(add, pieces), pieces


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
async def test_every_way_gives_the_same_answer_and_record(kind, way):
    runnable, handler = build(kind), Counting()
    config = {"configurable": {"mpf_key": "request-1"}, "tags": ["mine"], "metadata": {"user": "u1"}}
    expected = runnable.invoke("How is it?", config)
    message, pieces = await ask(runnable, way, "How is it?", {**config, "callbacks": [handler]})

    assert message.text == expected.text
    assert message.response_metadata["mpf"] == expected.response_metadata["mpf"]
    assert sum("mpf" in piece.response_metadata for piece in pieces) == 1
    if kind in CHATS:
        assert handler.starts == {"model": 1, "model end": 1}
    else:
        calls = expected.response_metadata["mpf"].get("calls", 1)
        assert handler.starts == {"chain": 1, "chain end": 1, "model": calls, "model end": calls}
        (chain,) = [run for run, parent in handler.parents.items() if parent is None]
        assert set(handler.parents.values()) == {None, chain}
    assert all(tags.count("mine") == 1 for tags in handler.tags)
    assert all(metadata["user"] == "u1" for metadata in handler.metadata)


@pytest.mark.parametrize("way", ["stream", "astream", "events"])
@pytest.mark.parametrize("kind", KINDS)
async def test_streams_come_word_by_word(kind, way):
    message, pieces = await ask(build(kind), way, "How is it?", {"configurable": {"mpf_key": "k"}})
    assert len(pieces) > len(message.text.split()) > 2
    assert pieces[0].text == message.text.split()[0]


@pytest.mark.parametrize("kind", MERGING)
async def test_candidates_do_not_reach_the_users_stream(kind):
    fusion = build(kind)
    events = [event async for event in fusion.astream_events("Q?", version="v2")]
    streamed = "".join(event["data"]["chunk"].text for event in events if event["event"] == "on_chat_model_stream")
    assert len({event["run_id"] for event in events if event["event"] == "on_chat_model_start"}) == 1
    assert streamed == events[-1]["data"]["output"].text


@pytest.mark.parametrize("kind", KINDS)
async def test_batches_draw_in_order_and_agree(kind):
    config = {"configurable": {"mpf_key": "k"}, "max_concurrency": 4}
    questions = [f"Q{index}?" for index in range(12)]
    texts = {}
    for way in ("batch", "abatch"):
        runnable = build(kind, sampler="quota")
        answers = await runnable.abatch(questions, config) if way == "abatch" else runnable.batch(questions, config)
        texts[way] = [answer.text for answer in answers]
        assert [answer.response_metadata["mpf"]["key"] for answer in answers][:2] == ["k", "k#1"]
    assert texts["batch"] == texts["abatch"]
    one_by_one = build(kind, sampler="quota")
    keys = [{"configurable": {"mpf_key": f"k#{index}" if index else "k"}} for index in range(12)]
    assert [one_by_one.invoke(q, key).text for q, key in zip(questions, keys, strict=True)] == texts["batch"]


@pytest.mark.parametrize("way", ["batch", "abatch"])
@pytest.mark.parametrize("kind", RUNNABLES)
async def test_max_concurrency_bounds_the_model_calls_of_a_batch(kind, way):
    lock, running, peak = threading.Lock(), 0, 0
    full, too_many = threading.Event(), threading.Event()

    def enter():
        nonlocal running, peak
        with lock:
            running += 1
            peak = max(peak, running)
            if running >= 3:
                full.set()
            if running > 3:
                too_many.set()

    def leave():
        nonlocal running
        with lock:
            running -= 1

    def respond(messages):
        enter()
        full.wait(5)  # all that may run do, and one too many has the time to come
        too_many.wait(0.005)
        leave()
        return messages[0].text

    async def arespond(messages):
        enter()
        await asyncio.sleep(0)
        leave()
        return messages[0].text

    runnable = build(kind, model=RunnableLambda(respond, arespond))
    config = {"max_concurrency": 3}
    questions = ["Q?"] * 20
    answers = runnable.batch(questions, config) if way == "batch" else await runnable.abatch(questions, config)
    assert len(answers) == 20
    assert peak == 3


@pytest.mark.parametrize("sampler", ["iid", "quota"])
def test_frequencies_follow_the_weights(sampler):
    router = build(PerspectiveRouter, model=RunnableLambda(lambda messages: "x"), sampler=sampler)
    configs = ({"configurable": {"mpf_key": str(index)}} for index in range(100_000))
    drawn = Counter(router._prepare("Q?", config, {}).draw.names[0] for config in configs)
    expected = [WEIGHTS[name] * 100_000 for name in MPF.names]
    assert chisquare([drawn[name] for name in MPF.names], expected).pvalue > 0.001
    if sampler == "quota":
        assert all(abs(drawn[name] - share) <= 1 for name, share in zip(MPF.names, expected, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_keys(kind):
    runnable = build(kind)
    records = [runnable.invoke("Q?").response_metadata["mpf"] for _ in range(2)]
    assert records[0]["key"] != records[1]["key"]
    run_id = "0199d1b4-0000-7000-8000-000000000001"
    assert runnable.invoke("Q?", {"run_id": run_id}).response_metadata["mpf"]["key"] == run_id


@pytest.mark.parametrize("kind", RUNNABLES)
def test_a_nested_router_draws_for_itself(kind):
    inner = build(PerspectiveRouter)
    model = RunnableLambda(
        lambda messages, config: inner.invoke(messages, config).response_metadata["mpf"]["perspective"]
    )
    outer = build(PerspectiveRouter, model=model)
    keys = [{"configurable": {"mpf_key": str(i)}} for i in range(60)]
    same = [(answer := outer.invoke("Q?", key)).text == answer.response_metadata["mpf"]["perspective"] for key in keys]
    assert 0 < sum(same) < 45  # independent: 28 % expected; one shared draw: 100 %


@pytest.mark.parametrize("kind", KINDS)
async def test_one_bad_item_does_not_spoil_the_batch(kind):
    runnable = build(kind, weights={"france": WEIGHTS})
    configs = [{"configurable": {"mpf_entity": entity}} for entity in ("france", "atlantis", "france")]
    for answers in (
        runnable.batch(["Q?"] * 3, configs, return_exceptions=True),
        await runnable.abatch(["Q?"] * 3, configs, return_exceptions=True),
    ):
        assert [type(answer).__name__ for answer in answers] == ["AIMessage", "WeightsError", "AIMessage"]
    with pytest.raises(WeightsError, match="atlantis"):
        runnable.batch(["Q?"] * 3, configs)


@pytest.mark.parametrize("kind", KINDS)
def test_combinators(kind):
    config = {"configurable": {"mpf_key": "k"}}
    runnable = build(kind)
    expected = runnable.invoke("Q {x}?", config).text
    assert runnable.with_config(config).invoke("Q {x}?").text == expected
    assert pickle.loads(pickle.dumps(runnable)).invoke("Q {x}?", config).text == expected
    chain = ChatPromptTemplate.from_messages([("human", "{q}")]) | runnable | StrOutputParser()
    assert chain.invoke({"q": "Q {x}?"}, config) == expected == "".join(chain.stream({"q": "Q {x}?"}, config))
    broken = build(kind, model=FaultyChatModel(script=[RuntimeError("down")] * 9))
    assert broken.with_fallbacks([runnable]).invoke("Q {x}?", config).text == expected
    assert runnable.get_input_schema().model_json_schema()
    assert not runnable.is_lc_serializable()


@pytest.mark.parametrize("kind", KINDS)
def test_configurable_fields(kind):
    runnable = build(kind, sampler="quota", weights={"a": WEIGHTS, "b": WEIGHTS}, entity="a").configurable_fields(
        weights=ConfigurableField("w"), seed=ConfigurableField("s"), entity=ConfigurableField("e")
    )
    only = dict.fromkeys(MPF.names, 0.0) | {"critical": 1.0}
    record = runnable.invoke("Q?", {"configurable": {"w": only, "e": "b"}}).response_metadata["mpf"]
    assert record["entity"] == "b"
    assert "critical" in (record.get("perspective") or record["perspectives"])
    assert record["weights_version"] == Weights.of(only, MPF).version
    with pytest.raises(WeightsError, match="leave out"):
        runnable.invoke("Q?", {"configurable": {"w": {"critical": 1.0}}})
    configured = runnable.with_config(configurable={"s": 8})
    drawn = Counter(
        name
        for _ in range(20)
        for record in [configured.invoke("Q?").response_metadata["mpf"]]
        for name in record.get("perspectives", [record.get("perspective")])
    )
    assert all(abs(drawn[name] / drawn.total() - WEIGHTS[name]) <= 0.05 for name in MPF.names)  # counts were kept


@pytest.mark.parametrize("given", ["Q?", HumanMessage("Q?"), [("human", "Q?")], [HumanMessage("Q?")]])
@pytest.mark.parametrize("kind", KINDS)
def test_inputs(kind, given):
    if isinstance(given, HumanMessage):
        with pytest.raises(ValueError, match="HumanMessage"):
            build(kind).invoke(given)
    else:
        answer = build(kind).invoke(given)
        assert isinstance(answer, AIMessage)
        assert answer.text
