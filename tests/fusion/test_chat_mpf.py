"""What `ChatMPF` adds to the contract of all perspective Runnables: being the model that was there before."""

import copy
import pickle
from itertools import pairwise

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, get_usage_metadata_callback
from langchain_core.globals import get_llm_cache, set_llm_cache
from langchain_core.language_models.fake_chat_models import FakeListChatModel, GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_core.runnables import ConfigurableField, RunnableBinding, RunnableLambda
from langchain_core.tracers.context import collect_runs
from pydantic import BaseModel

from mpf_chains import Calibration, ChatMPF, PerspectiveRouter
from mpf_chains.errors import DataWarning, InvalidInput, NotSupportedError, WeightsError
from mpf_chains.perspectives import Perspective, PerspectiveSet
from mpf_chains.testing import BiasedChatModel, FaultyChatModel

PAIR = PerspectiveSet([Perspective("fan", "Praise it."), Perspective("critic", "Doubt it.", {"temperature": 0.5})])
PLAIN = [Perspective("fan", "Praise it."), Perspective("critic", "Doubt it.")]
ANSWERS = {"Praise": ["Great stuff."], "Doubt": ["Risky stuff."]}
CRITIC = {"fan": 0.0, "critic": 1.0}
FAN = {"fan": 1.0, "critic": 0.0}
EVEN = {"fan": 0.5, "critic": 0.5}
MODES = ("sampled", "aggregated")
CALL = {"name": "Look", "args": {"q": "x"}, "id": "call-1", "type": "tool_call"}


class Look(BaseModel):
    """Look something up."""

    q: str


class Recording(FaultyChatModel):
    """Keeps what it is called with."""

    def _message(self, messages):
        self.seen.append(messages)
        return super()._message(messages)

    seen: list = []  # noqa: RUF012


def biased():
    return BiasedChatModel(answers=ANSWERS)


def build(model=None, **fields):
    return ChatMPF(
        **{"model": model or biased(), "perspectives": PAIR, "weights": CRITIC, "sampler": "quota", **fields}
    )


def joined(pieces):
    whole = pieces[0]
    for piece in pieces[1:]:
        whole += piece
    return whole


@pytest.mark.parametrize("mode", MODES)
async def test_usage_is_that_of_all_calls_and_counted_once(mode):
    chat = build(weights=EVEN, mode=mode, n=2)
    for way in ("invoke", "ainvoke", "stream", "astream"):
        with get_usage_metadata_callback() as counted:
            if way == "invoke":
                answer = chat.invoke("Q?")
            elif way == "ainvoke":
                answer = await chat.ainvoke("Q?")
            elif way == "stream":
                answer = joined(list(chat.stream("Q?")))
            else:
                answer = joined([piece async for piece in chat.astream("Q?")])
        assert counted.usage_metadata == {"fake": answer.usage_metadata}
        # Each candidate reads 3 words ("Praise it." and "Q?") and writes 2; the merge writes both answers.
        candidates = 5 if mode == "sampled" else 10
        rest = answer.usage_metadata["total_tokens"] - candidates
        assert rest == 0 if mode == "sampled" else rest > 50


async def test_what_comes_last_in_a_stream_says_so():
    for mode in MODES:
        pieces = list(build(weights=EVEN, mode=mode, n=2).stream("Q?"))
        assert [piece.chunk_position for piece in pieces] == [None] * (len(pieces) - 1) + ["last"]
        assert sum(piece.usage_metadata is not None for piece in pieces) == 1


def test_it_streams_where_the_model_inside_does():
    whole = FakeListChatModel(responses=["a b c"])
    for inner in (whole, GenericFakeChatModel(messages=iter(["a b c"] * 9)), biased()):
        for disabled in (False, True):
            inner.disable_streaming = disabled
            prompt = [SystemMessage("Praise it."), HumanMessage("Q?")]
            bare, ours = (
                list(inner.stream(prompt)),
                list(build(inner, weights={"fan": 1.0, "critic": 0.0}).stream("Q?")),
            )
            assert [piece.text for piece in ours if piece.text] == [piece.text for piece in bare if piece.text]
    assert build(biased(), streaming=True)._should_stream(async_api=False)
    assert not build(biased(), streaming=False)._should_stream(async_api=False, stream=True)


@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")
async def test_v3_events_carry_the_draw():
    stream = build().stream_events("Q?", {"configurable": {"mpf_key": "k"}}, version="v3")
    assert stream.output.text == "Risky stuff."
    assert stream.output.response_metadata["mpf"]["key"] == "k"
    stream = await build(weights=EVEN, mode="aggregated", n=2).astream_events("Q?", version="v3")
    output = await stream.output
    assert output.response_metadata["mpf"]["calls"] == 3
    assert output.usage_metadata == output.response_metadata["mpf"]["usage"]


def test_callbacks_tags_and_metadata_of_the_model_inside_are_kept():
    class Seen(BaseCallbackHandler):
        runs: list = []  # noqa: RUF012

        def on_chat_model_start(self, serialized, messages, *, tags, metadata, **kwargs):
            self.runs.append((tags, metadata))

    inner = biased()
    inner.callbacks, inner.tags, inner.metadata = [Seen()], ["mine"], {"team": "a"}
    build(inner).invoke("Q?", {"tags": ["yours"]})
    ((tags, metadata),) = Seen.runs
    assert set(tags) == {"mine", "yours"}
    assert metadata["team"] == "a"


def test_tracing_names_the_model_inside():
    chat = build(BiasedChatModel(model_name="gpt-x", temperature=0.3))
    params = chat._get_ls_params(stop=["."])
    assert (params["ls_model_name"], params["ls_temperature"], params["ls_stop"]) == ("gpt-x", 0.3, ["."])
    assert chat._get_ls_params(model="other")["ls_model_name"] == "other"
    assert chat.model_name == "gpt-x"
    twice = build(biased().bind(stop=["a"]), stop=["b"])
    assert twice._get_ls_params()["ls_stop"] == ["b"]
    assert twice.invoke("Q?", stop=["c"]).text == "Risky stuff."
    kinds = [
        build(weights=EVEN, seed=1),
        build(weights=EVEN, seed=2),
        build(),
        build(mode="aggregated"),
        build(shadow=True),
    ]
    kinds.append(build(perspectives=[PAIR[0], Perspective("critic", "Doubt it all.")]))
    assert all(a._identifying_params != b._identifying_params for a, b in pairwise(kinds))


def test_tools_are_bound_in_the_way_of_the_model_inside():
    script = [AIMessage("", tool_calls=[CALL])]
    inner = FaultyChatModel(script=script * 2)
    for mode in MODES:
        bound = build(inner, mode=mode).bind_tools([Look], tool_choice="any")
        assert isinstance(bound, RunnableBinding)
        assert bound.kwargs == inner.bind_tools([Look], tool_choice="any").kwargs
        answer = bound.invoke("Q?")
        assert answer.tool_calls == [CALL]
        assert answer.response_metadata["mpf"]["perspective"] == "critic"


def test_a_model_whose_bind_tools_returns_another_model():
    class Own(FaultyChatModel):
        offered: tuple = ()

        def bind_tools(self, tools, **kwargs):
            return self.model_copy(update={"offered": tuple(tools)})

    bound = build(Own(script=["text"])).bind_tools([Look])
    assert isinstance(bound, ChatMPF)
    assert bound.model.offered == (Look,)
    assert bound.invoke("Q?").response_metadata["mpf"]["perspective"] == "critic"


def test_weights_that_are_assigned_later_count_for_what_was_made_before():
    class Own(FaultyChatModel):
        def bind_tools(self, tools, **kwargs):
            return self.model_copy()

    for model in (FaultyChatModel(), FaultyChatModel().with_fallbacks([FaultyChatModel()]), Own()):
        chat = build(model)
        made = chat.bind_tools([Look])
        chat.weights = FAN
        assert made.invoke("Q?").response_metadata["mpf"]["perspective"] == "fan"


@pytest.mark.parametrize("mode", MODES)
def test_structured_output(mode):
    def inner():
        return FaultyChatModel(script=[AIMessage("", tool_calls=[CALL])])

    chat = build(inner(), mode=mode)
    assert chat.with_structured_output(Look).invoke("Q?") == Look(q="x")
    raw = build(inner(), mode=mode).with_structured_output(Look, include_raw=True).invoke("Q?")
    assert raw["parsed"] == Look(q="x")
    assert raw["raw"].response_metadata["mpf"]["mode"] == "sampled"
    tried_twice = FaultyChatModel(script=[RuntimeError("down")]).with_fallbacks([inner()])
    assert build(tried_twice, mode=mode).with_structured_output(Look).invoke("Q?") == Look(q="x")
    if mode == "aggregated":
        with pytest.raises(NotSupportedError, match="when_tools"):
            build(inner(), mode=mode, when_tools="raise").with_structured_output(Look).invoke("Q?")


def test_structured_output_that_cannot_be_entered_is_refused():
    class Closed(FaultyChatModel):
        def with_structured_output(self, schema, **kwargs):
            return RunnableLambda(lambda _: schema)

    with pytest.raises(NotSupportedError, match="Closed makes structured output"):
        build(Closed()).with_structured_output(Look)


async def test_bindings_retries_and_fallbacks_inside_and_outside():
    down = FaultyChatModel(failing={"": RuntimeError("down")})
    for model in (
        down.with_fallbacks([biased()]),
        FaultyChatModel(script=[RuntimeError("down")], default="Risky stuff.").with_retry(
            wait_exponential_jitter=False
        ),
        biased().bind(stop=["."]).with_config(tags=["x"]),
    ):
        with get_usage_metadata_callback() as counted:
            assert build(model).invoke("Q?").text == "Risky stuff."
            assert (await build(model).ainvoke("Q?")).text == "Risky stuff."
            assert joined(list(build(model).stream("Q?"))).text == "Risky stuff."
        assert counted.usage_metadata["fake"]["output_tokens"] == 6  # three answers of two words, counted once
    assert build(down).with_fallbacks([build()]).invoke("Q?").text == "Risky stuff."
    flaky = FaultyChatModel(script=[RuntimeError("down")], default="up")
    assert build(flaky, max_retries=1).invoke("Q?").text == "up"
    with pytest.raises(RuntimeError, match="down"):
        build(down).invoke("Q?")


def test_the_config_can_choose_the_model_and_its_fields():
    fields = biased().configurable_fields(default=ConfigurableField("default"))
    chat = build(fields, perspectives=[Perspective("plain")], weights={"plain": 1.0})
    assert chat.invoke("Q?").text == "It depends."
    assert chat.invoke("Q?", {"configurable": {"default": "No."}}).text == "No."
    either = biased().configurable_alternatives(ConfigurableField("which"), other=FaultyChatModel(default="other"))
    chat = build(either)
    assert chat.invoke("Q?").text == "Risky stuff."
    assert chat.with_config(configurable={"which": "other"}).invoke("Q?").text == "other"
    assert joined(list(chat.stream("Q?", {"configurable": {"which": "other"}}))).text == "other"


def test_settings_of_calls_reach_the_model_inside():
    seen = []

    class Own(FaultyChatModel):
        def _generate(self, messages, stop=None, run_manager=None, **kwargs):
            seen.append((stop, kwargs))
            return super()._generate(messages, stop, run_manager, **kwargs)

    chat = build(Own(), temperature=0.1, max_tokens=7, timeout=3, stop=["."])
    chat.invoke("Q?", max_tokens=9)
    chat.invoke("Q?", stop=["!"], temperature=1.0)
    # The perspective's own argument wins.
    assert seen[0] == (["."], {"temperature": 0.5, "max_tokens": 9, "timeout": 3})
    assert seen[1] == (["!"], {"temperature": 0.5, "max_tokens": 7, "timeout": 3})


def test_a_global_cache_does_not_freeze_the_draw():
    chat = build(weights=EVEN)
    set_llm_cache(InMemoryCache())
    try:
        assert {chat.invoke("Q?").text for _ in range(6)} == {"Great stuff.", "Risky stuff."}
        inner = FaultyChatModel(script=["one", "two"])
        assert [build(inner).invoke("Q?").text for _ in range(2)] == ["one", "one"]  # what the user set up for it
    finally:
        set_llm_cache(None)
    assert get_llm_cache() is None


def test_the_rate_limiter_inside_limits_every_call():
    class Count(BaseRateLimiter):
        taken = 0

        def acquire(self, *, blocking=True):
            Count.taken += 1
            return True

        async def aacquire(self, *, blocking=True):
            return self.acquire()

    inner = biased()
    inner.rate_limiter = Count()
    chat = build(inner, weights=EVEN, mode="aggregated", n=2)
    chat.invoke("Q?")
    list(chat.stream("Q?"))
    assert Count.taken == 6


def test_generate_has_no_config_and_works_all_the_same():
    result = build().generate([[HumanMessage("Q?")], [HumanMessage("P?")]])
    texts = [generations[0].text for generations in result.generations]
    assert texts == ["Risky stuff."] * 2
    keys = [generations[0].message.response_metadata["mpf"]["key"] for generations in result.generations]
    assert keys == [str(run.run_id) for run in result.run]


def test_copies_pickles_and_updates():
    chat = build(weights=EVEN)
    first = chat.invoke("Q?").text
    for other in (pickle.loads(pickle.dumps(chat)), copy.deepcopy(chat)):
        assert other.invoke("Q?").text != first  # the quota sampler's counts came along
    updated = chat.model_copy(update={"weights": CRITIC, "tags": ["t"]})
    assert {updated.invoke("Q?").text for _ in range(4)} == {"Risky stuff."}
    assert updated.tags == ["t"]
    with pytest.raises(WeightsError):
        chat.model_copy(update={"weights": {"fan": 0.4, "critic": 0.4}})


def test_it_counts_tokens_and_has_the_profile_of_the_model_inside():
    class Own(FaultyChatModel):
        def get_num_tokens(self, text):
            return 42

        def get_num_tokens_from_messages(self, messages, tools=None):
            return 43

    inner = Own(profile={"tool_calling": True})
    chat = build(inner)
    assert (chat.get_num_tokens("x"), chat.get_num_tokens_from_messages([])) == (42, 43)
    assert chat.profile == {"tool_calling": True}


def test_the_mode_is_the_calibrations():
    made = Calibration(PAIR, "aggregated", ("sentiment",), {"X": EVEN}, EVEN)
    assert ChatMPF(model=biased(), weights=made).mode == "aggregated"
    with pytest.warns(DataWarning, match="calibrated for aggregated mode"):
        assert ChatMPF(model=biased(), weights=made, mode="sampled").mode == "sampled"


def test_what_is_no_chat_model_is_refused():
    with pytest.raises(InvalidInput, match="use PerspectiveRouter or PerspectiveFusion"):
        build(RunnableLambda(lambda messages: "x"))
    with pytest.raises(InvalidInput, match="init_chat_model"):
        build("openai:gpt-x")
    with pytest.raises(ValueError, match="wieghts"):
        build(wieghts=EVEN)


def test_it_stands_where_the_model_stood():
    prompt = ChatPromptTemplate.from_messages([("system", "Be {how}."), ("human", "{q}")])
    inner = Recording(default="ok", seen=[])
    chain = prompt | build(inner) | StrOutputParser()
    assert chain.invoke({"how": "brief", "q": "{0.__class__}"}) == "ok"
    assert inner.seen == [[SystemMessage("Doubt it.\n\nBe brief."), HumanMessage("{0.__class__}")]]
    router = PerspectiveRouter(model=build(), perspectives=PAIR, weights=EVEN, sampler="quota")
    assert router.invoke("Q?").text in ("Great stuff.", "Risky stuff.")


def test_a_temperature_of_0_is_seen_wherever_it_is_given():
    cold = BiasedChatModel(answers=ANSWERS, temperature=0)
    two = {"fan": 2 / 3, "critic": 1 / 3}
    for chat, calls in (
        (build(cold, weights=two, mode="aggregated", n=3), 3),
        (build(cold.with_fallbacks([biased()]), weights=two, mode="aggregated", n=3), 3),
        (build(weights=two, mode="aggregated", n=3, temperature=0, perspectives=PLAIN), 3),
        (build(cold.with_retry(), weights=two, mode="aggregated", n=3), 3),
        (build(cold, weights=two, mode="aggregated", n=3, max_retries=2), 3),
        (build(weights=two, mode="aggregated", n=3), 4),
    ):
        plan = chat.plan("Q?")
        assert plan.calls == calls
        assert chat.invoke("Q?", plan.config).response_metadata["mpf"]["calls"] == calls


def test_no_run_but_its_own_is_opened():
    flaky = FaultyChatModel(script=[RuntimeError("x")]).with_retry(wait_exponential_jitter=False)
    down = FaultyChatModel(failing={"": RuntimeError("down")}).with_fallbacks([biased()])
    for fields in (
        {"model": flaky},
        {"model": down},
        {"model": FaultyChatModel(script=[RuntimeError("x")]), "max_retries": 1},
        {"model": biased(), "merge_model": biased(), "mode": "aggregated", "weights": EVEN, "n": 2},
    ):
        with collect_runs() as collected, get_usage_metadata_callback() as counted:
            answer = build(**fields).invoke("Q?")
        assert [run.name for run in collected.traced_runs] == ["ChatMPF"]
        assert counted.usage_metadata["fake"] == answer.usage_metadata


def test_a_cache_of_its_own_tells_entities_and_draws_apart():
    chat = build(cache=InMemoryCache(), weights={"a": FAN, "b": CRITIC, "c": EVEN}, fallback="error", sampler="iid")
    texts = {entity: chat.invoke("Q?", {"configurable": {"mpf_entity": entity}}).text for entity in ("a", "b", "a")}
    assert texts == {"a": "Great stuff.", "b": "Risky stuff."}
    assert {chat.invoke("Q?", {"configurable": {"mpf_entity": "c"}}).text for _ in range(20)} == set(texts.values())


def test_callbacks_go_with_the_model_that_has_them():
    class Seen(BaseCallbackHandler):
        def __init__(self):
            self.runs = 0

        def on_chat_model_start(self, *args, **kwargs):
            self.runs += 1

    old, new = Seen(), Seen()
    chat = build(BiasedChatModel(callbacks=[old]))
    chat.invoke("Q?")
    chat.model = BiasedChatModel(callbacks=[new])
    chat.invoke("Q?")
    assert (old.runs, new.runs) == (1, 1)


def test_one_inside_another_draws_by_the_key_too():
    inner = build(weights=EVEN, sampler="iid")
    chat = ChatMPF(model=inner, perspectives=[Perspective("plain")], weights={"plain": 1.0})
    texts = {key: {chat.invoke("Q?", {"configurable": {"mpf_key": key}}).text for _ in range(6)} for key in "abcdef"}
    assert all(len(each) == 1 for each in texts.values())
    assert len(set.union(*texts.values())) == 2
