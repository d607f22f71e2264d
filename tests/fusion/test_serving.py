"""Changing weights, strength and shadow while serving: no request sees half of a change."""

import asyncio
import threading
from collections import Counter

import numpy as np
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from mpf_chains import Calibration, ChatMPF, PerspectiveFusion, PerspectiveRouter
from mpf_chains.errors import InvalidInput, WeightsError
from mpf_chains.fusion import MentionedEntity
from mpf_chains.perspectives import Perspective, PerspectiveSet
from mpf_chains.testing import BiasedChatModel, FaultyChatModel

PAIR = PerspectiveSet([Perspective("fan", "Praise it.", {"top_p": 0.9}), Perspective("critic", "Doubt it.")])
EVEN = {"fan": 0.5, "critic": 0.5}
ANSWERS = {"Praise it.": ["Great."], "Doubt it.": ["Risky."], "Count it.": ["Seven."], "Sing it.": ["La."]}
KINDS = {
    "router": PerspectiveRouter,
    "fusion": lambda **fields: PerspectiveFusion(n=3, **fields),
    "chat sampled": lambda **fields: ChatMPF(mode="sampled", **fields),
    "chat aggregated": lambda **fields: ChatMPF(mode="aggregated", n=3, **fields),
}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request):
    return request.param


def build(kind, **fields):
    return kind(**{"model": BiasedChatModel(answers=ANSWERS), "perspectives": PAIR, "weights": EVEN, **fields})


def drawn(answer):
    record = answer.response_metadata["mpf"]
    return record["perspectives"] if "perspectives" in record else [record["perspective"]]


def calibration(*names_and_texts, mode):
    members = PerspectiveSet([Perspective(*pair) for pair in names_and_texts])
    even = dict.fromkeys(members.names, 1 / len(members))
    return Calibration(members, mode, ("sentiment",), {"X": even}, even)


def test_swapping_while_serving_never_mixes_versions(kind):
    mode = build(kind)._mode
    versions = [
        calibration(("fan", "Praise it."), ("critic", "Doubt it."), mode=mode),
        calibration(("clerk", "Count it."), ("bard", "Sing it."), mode=mode),
    ]
    allowed = {made.version: set(made.perspectives.names) for made in versions}
    words = {"fan": "Great.", "critic": "Risky.", "clerk": "Seven.", "bard": "La."}
    serving = build(kind, weights=versions[0], perspectives=None, entity="X")
    seen, broken, done = Counter(), [], threading.Event()

    def serve():
        while not done.is_set():
            try:
                answer = serving.invoke("Q?")
            except Exception as error:
                broken.append(error)
                return
            version = answer.response_metadata["mpf"]["weights_version"]
            seen[version] += 1
            names = set(drawn(answer))
            if not names <= allowed[version] or set(answer.text.split()) != {words[name] for name in names}:
                broken.append((version, names, answer.text))

    threads = [threading.Thread(target=serve) for _ in range(4)]
    for thread in threads:
        thread.start()
    for index in range(30):
        serving.weights = versions[index % 2]
        goal = seen.total() + 8
        while seen.total() < goal and not broken:
            done.wait(0.001)
    done.set()
    for thread in threads:
        thread.join()
    assert not broken
    assert set(seen) == set(allowed)


def test_what_is_assigned_is_checked_and_a_refused_change_changes_nothing(kind):
    serving = build(kind)
    for name, value, error in (
        ("weights", {"fan": 0.3, "critic": 0.3}, WeightsError),
        ("strength", 1.5, InvalidInput),
        ("strength", True, InvalidInput),
        ("perspectives", [Perspective("other")], WeightsError),
        ("fallback", "pooled?", ValueError),
    ):
        before = getattr(serving, name)
        with pytest.raises(error):
            setattr(serving, name, value)
        assert getattr(serving, name) == before
    serving.weights = {"fan": 1.0, "critic": 0.0}
    assert serving.invoke("Q?").text == "Great."
    bound = serving.bind(stop=["."])
    serving.weights = {"fan": 0.0, "critic": 1.0}
    assert bound.invoke("Q?").text == "Risky."  # what was built from it follows


def test_strength_0_and_shadow_send_the_prompt_as_it_came(kind):
    class Recording(FaultyChatModel):
        asked: list = []  # noqa: RUF012

        def _generate(self, messages, stop=None, run_manager=None, **kwargs):
            self.asked.append((messages, kwargs))
            return super()._generate(messages, stop, run_manager, **kwargs)

    prompt = [SystemMessage("Be brief.", id="s"), HumanMessage("Q {x}?", id="h")]
    for fields in ({"strength": 0.0}, {"shadow": True}):
        model = Recording(asked=[])
        record = build(kind, model=model, **fields).invoke(prompt, temperature=0.2).response_metadata["mpf"]
        assert model.asked == [(prompt, {"temperature": 0.2})]
        assert record.get("perspectives", record.get("perspective")) in ([], None)
        if "shadow" in fields:
            assert set(np.atleast_1d(record["shadow"])) <= set(PAIR.names)


def test_strength_is_the_share_that_is_steered_and_rising_it_only_adds(kind):
    steered = {}
    for strength in (0.0, 0.25, 0.75, 1.0):
        serving = build(kind, strength=strength)
        answers = {key: serving.invoke("Q?", {"configurable": {"mpf_key": str(key)}}) for key in range(200)}
        steered[strength] = {key: drawn(answer) for key, answer in answers.items() if drawn(answer) not in ([], [None])}
        assert abs(len(steered[strength]) / 200 - strength) < 0.1
    for low, high in ((0.0, 0.25), (0.25, 0.75), (0.75, 1.0)):
        assert steered[low].items() <= steered[high].items()  # the same keys, under the same perspectives


def test_shadow_draws_what_would_have_been_drawn(kind):
    config = {"configurable": {"mpf_key": "k"}}
    serving = build(kind)
    real = serving.invoke("Q?", config)
    serving.shadow = True
    shadow = serving.invoke("Q?", config)
    assert list(np.atleast_1d(shadow.response_metadata["mpf"]["shadow"])) == drawn(real)
    assert drawn(shadow) in ([], [None])
    assert shadow.text == "It depends."


def test_strength_and_weights_can_come_with_the_request(kind):
    from langchain_core.runnables import ConfigurableField

    serving = build(kind).configurable_fields(strength=ConfigurableField("s"), weights=ConfigurableField("w"))
    assert serving.invoke("Q?", {"configurable": {"s": 0.0}}).text == "It depends."
    assert serving.invoke("Q?", {"configurable": {"w": {"fan": 1.0, "critic": 0.0}}}).text == "Great."


def test_the_mode_of_a_chat_model_can_be_changed():
    chat = ChatMPF(model=BiasedChatModel(answers=ANSWERS), perspectives=PAIR, weights=EVEN, sampler="quota", n=2)
    assert chat.invoke("Q?").text in ("Great.", "Risky.")
    chat.mode = "aggregated"
    assert sorted(chat.invoke("Q?").text.split()) == ["Great.", "Risky."]


def test_the_mentioned_entity():
    entity = MentionedEntity(("ETH", "ETH Zürich", "EPFL"), default="any")
    for text, found in (
        ("Is eth zürich good?", "ETH Zürich"),
        ("ETH's labs", "ETH"),
        ("Methods?", "any"),
        ("Context: EPFL has labs. Question: What about ETH?", "ETH"),
    ):
        assert entity([AIMessage("EPFL?"), HumanMessage(text), AIMessage("EPFL!")]) == found
    assert entity([HumanMessage("EPFL?"), AIMessage("Good."), HumanMessage("And its exams?")]) == "EPFL"
    assert MentionedEntity(())([HumanMessage("x")]) is None
    weights = {"ETH": {"fan": 1.0, "critic": 0.0}, "EPFL": {"fan": 0.0, "critic": 1.0}}
    router = PerspectiveRouter(
        model=BiasedChatModel(answers=ANSWERS),
        perspectives=PAIR,
        weights=weights,
        entity=MentionedEntity(tuple(weights)),
    )
    assert [router.invoke(f"How is {name}?").text for name in weights] == ["Great.", "Risky."]


def test_every_setting_of_a_request_is_from_one_moment():
    """Changed while its calls are under way, a request keeps model, position and mode that it began with."""
    started, swapped = threading.Event(), threading.Event()

    class Waiting(BiasedChatModel):
        def _generate(self, messages, stop=None, run_manager=None, **kwargs):
            started.set()
            swapped.wait(5)
            return super()._generate(messages, stop, run_manager, **kwargs)

    other = FaultyChatModel(default="from the new model")
    for made in (
        build(KINDS["fusion"], model=Waiting(answers=ANSWERS), sampler="quota"),
        build(KINDS["chat aggregated"], model=Waiting(answers=ANSWERS), sampler="quota"),
    ):
        started.clear(), swapped.clear()
        answers = []
        thread = threading.Thread(target=lambda serving=made, kept=answers: kept.append(serving.invoke("Q?")))
        thread.start()
        started.wait(5)
        made.model, made.position = other, "replace"
        swapped.set()
        thread.join()
        assert sorted(set(answers[0].text.split())) == ["Great.", "Risky."]
        assert made.invoke("Q?").text == "from the new model"


def test_assignments_at_the_same_time_do_not_undo_each_other(kind):
    for _ in range(20):
        serving = build(kind)
        threads = [
            threading.Thread(target=setattr, args=(serving, name, value))
            for name, value in (("strength", 0.5), ("shadow", True), ("entity", "x"), ("position", "after"))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (serving.strength, serving.shadow, serving.entity, serving.position) == (0.5, True, "x", "after")


async def test_a_stream_that_is_left_closes_the_models(kind):
    closed = []

    class Open(BiasedChatModel):
        async def _astream(self, messages, stop=None, run_manager=None, **kwargs):
            try:
                async for chunk in super()._astream(messages, stop, run_manager, **kwargs):
                    yield chunk
            finally:
                closed.append(True)

    stream = build(kind, model=Open(answers=ANSWERS)).astream("Q?")
    await anext(stream)
    await stream.aclose()
    assert closed


@pytest.mark.slow
async def test_ten_thousand_requests_at_a_time():
    running = peak = 0

    class Echo(FaultyChatModel):
        async def _agenerate(self, messages, stop=None, run_manager=None, **kwargs):
            nonlocal running, peak
            running += 1
            peak = max(peak, running)
            await asyncio.sleep(0)
            running -= 1
            return self._result(messages[-1].text)

        def _result(self, text):
            return ChatResult(generations=[ChatGeneration(message=AIMessage(text))])

    chat = build(KINDS["chat sampled"], model=Echo())
    answers = await chat.abatch([str(number) for number in range(10_000)], {"max_concurrency": 256})
    assert [answer.text for answer in answers] == [str(number) for number in range(10_000)]
    assert 200 < peak <= 256
