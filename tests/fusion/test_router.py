import pickle

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.runnables import RunnableLambda

from mpf_chains.artifact import Calibration, Weights
from mpf_chains.core.sampling import IIDSampler, QuotaSampler
from mpf_chains.errors import GenerationError, InvalidInput, WeightsError
from mpf_chains.fusion import PerspectiveRouter
from mpf_chains.perspectives import Perspective, PerspectiveSet
from mpf_chains.testing import BiasedChatModel, FaultyChatModel

PAIR = PerspectiveSet([Perspective("fan", "Praise it."), Perspective("critic", "Doubt it.", {"temperature": 0.5})])
CRITIC = {"fan": 0.0, "critic": 1.0}


def recording(seen):
    """A model that keeps what it is called with."""

    def respond(messages, **settings):
        seen.append((messages, settings))
        return AIMessage("ok")

    return RunnableLambda(respond)


def calibration():
    return Calibration(
        perspectives=PAIR,
        mode="sampled",
        features=("sentiment",),
        weights={"france": {"fan": 1.0, "critic": 0.0}, "spain": CRITIC},
        pooled={"fan": 0.5, "critic": 0.5},
    )


def test_the_instruction_joins_the_system_message_and_the_rest_is_untouched():
    history = [
        SystemMessage("Be brief."),
        HumanMessage([{"type": "text", "text": "{0.__class__} {{ x }}"}, {"type": "image", "url": "https://a/b.png"}]),
        AIMessage("", tool_calls=[{"name": "look", "args": {"q": "{x}"}, "id": "call-1"}]),
        ToolMessage("found", tool_call_id="call-1"),
    ]
    for position, system in (
        ("before", "Doubt it.\n\nBe brief."),
        ("after", "Be brief.\n\nDoubt it."),
        ("replace", "Doubt it."),
    ):
        seen = []
        router = PerspectiveRouter(model=recording(seen), perspectives=PAIR, weights=CRITIC, position=position)
        router.invoke(history, temperature=1.0, stop=["."])
        ((messages, settings),) = seen
        assert messages == [SystemMessage(system), *history[1:]]
        assert settings == {"temperature": 0.5, "stop": ["."]}  # the perspective's own argument wins


def test_an_empty_history_gets_the_instruction():
    seen = []
    PerspectiveRouter(model=recording(seen), perspectives=PAIR, weights=CRITIC).invoke([])
    assert seen[0][0] == [SystemMessage("Doubt it.")]


def test_a_calibration_brings_perspectives_version_and_entities():
    made = calibration()
    router = PerspectiveRouter(model=BiasedChatModel(), weights=made)
    record = router.invoke("Q?", {"configurable": {"mpf_entity": "spain", "mpf_key": "k"}}).response_metadata["mpf"]
    assert record == {
        "mode": "sampled",
        "perspective": "critic",
        "entity": "spain",
        "key": "k",
        "weights_version": made.version,
    }
    with pytest.raises(WeightsError, match="no weights for entity None"):
        router.invoke("Q?")


@pytest.mark.parametrize(("fallback", "expected"), [("pooled", {0.5}), ("uniform", {0.5})])
def test_unknown_entities_fall_back_only_when_told_to(fallback, expected):
    router = PerspectiveRouter(model=BiasedChatModel(), weights=calibration(), entity="atlantis", fallback=fallback)
    drawn = {router.invoke("Q?").response_metadata["mpf"]["perspective"] for _ in range(30)}
    assert drawn == {"fan", "critic"}
    assert set(router.weights.lookup("atlantis", fallback).values()) == expected


def test_the_entity_may_be_a_function_of_the_conversation():
    router = PerspectiveRouter(
        model=BiasedChatModel(), weights=calibration(), entity=lambda messages: messages[-1].text.lower()
    )
    assert router.invoke("France").response_metadata["mpf"]["perspective"] == "fan"
    assert router.invoke("Spain").response_metadata["mpf"]["perspective"] == "critic"


def test_a_draw_is_the_samplers():
    even = {"fan": 0.5, "critic": 0.5}
    router = PerspectiveRouter(model=BiasedChatModel(), perspectives=PAIR, weights=even, seed=7, entity="france")
    for key in map(str, range(20)):
        record = router.invoke("Q?", {"configurable": {"mpf_key": key}}).response_metadata["mpf"]
        assert record["perspective"] == IIDSampler(7).draw(even, key=key, entity="france")


def test_quota_counts_survive_pickling():
    router = PerspectiveRouter(
        model=BiasedChatModel(), perspectives=PAIR, weights={"fan": 0.5, "critic": 0.5}, sampler="quota"
    )
    first = router.invoke("Q?").response_metadata["mpf"]["perspective"]
    second = pickle.loads(pickle.dumps(router)).invoke("Q?").response_metadata["mpf"]["perspective"]
    assert {first, second} == {"fan", "critic"}


def test_tool_calls_and_metadata_pass_through():
    call = {"name": "look", "args": {"q": 1}, "id": "call-1", "type": "tool_call"}
    reply = AIMessage("", tool_calls=[call], id="m1")
    router = PerspectiveRouter(model=FaultyChatModel(script=[reply, reply]), perspectives=PAIR, weights=CRITIC)
    answer = router.invoke("Q?")
    assert answer.tool_calls == [call]
    assert answer.response_metadata["model_name"] == "fake"
    assert "mpf" not in reply.response_metadata
    pieces = list(router.stream("Q?"))
    assert sum(pieces[1:], pieces[0]).tool_calls == [call]


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"weights": {"fan": 0.4, "critic": 0.43}}, WeightsError, "sum to 0.83"),
        ({"weights": CRITIC, "perspectives": None}, InvalidInput, "`perspectives` are missing"),
        ({"weights": {"france": CRITIC}, "fallback": "pooled"}, WeightsError, "needs pooled"),
        ({"weights": CRITIC, "sampler": "sobol"}, InvalidInput, "`sampler` is 'sobol'"),
        ({"weights": CRITIC, "fallback": "nearest"}, ValueError, "fallback"),
        ({"weights": CRITIC, "wieghts": CRITIC}, ValueError, "wieghts"),
        ({"weights": CRITIC, "model": len}, ValueError, "Runnable"),
    ],
)
def test_wrong_arguments_are_refused_at_construction(fields, error, message):
    with pytest.raises(error, match=message):
        PerspectiveRouter(**{"model": BiasedChatModel(), "perspectives": PAIR, **fields})


def test_a_changed_instruction_is_not_what_was_calibrated():
    changed = PerspectiveSet([Perspective("fan", "Praise it a lot."), PAIR["critic"]])
    with pytest.raises(WeightsError, match="'fan' has another instruction"):
        PerspectiveRouter(model=BiasedChatModel(), perspectives=changed, weights=calibration())
    assert Weights.of(calibration().weights, changed).lookup("spain") == CRITIC


def test_a_model_that_returns_no_message_is_named():
    router = PerspectiveRouter(model=RunnableLambda(lambda _, **settings: {"a": 1}), perspectives=PAIR, weights=CRITIC)
    with pytest.raises(GenerationError, match="returned a dict"):
        router.invoke("Q?")


def test_seed_and_sampler_go_together():
    fields = {"model": BiasedChatModel(), "perspectives": PAIR, "weights": CRITIC}
    assert PerspectiveRouter(**fields, sampler=IIDSampler(1), seed=5).sampler.seed == 5
    assert PerspectiveRouter(**fields, sampler=QuotaSampler(4)).sampler.seed == 4

    class Mine:
        def draw(self, weights, *, key="", index=0, entity=""):
            return "fan"

    assert PerspectiveRouter(**fields, sampler=Mine()).invoke("Q?").response_metadata["mpf"]["perspective"] == "fan"
    with pytest.raises(InvalidInput, match="`seed`"):
        PerspectiveRouter(**fields, sampler=Mine(), seed=1)
