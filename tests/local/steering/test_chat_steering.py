"""Steering inside `ChatTransformers`, against a model that has the tokens in its vocabulary and the changes merged."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from langchain_core.caches import InMemoryCache  # noqa: E402
from langchain_core.globals import set_llm_cache  # noqa: E402
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage  # noqa: E402
from langchain_core.runnables import ConfigurableField  # noqa: E402

from mpf_chains import Benchmark, MPFCalibrator, Row, local  # noqa: E402
from mpf_chains.core.sampling import QuotaSampler  # noqa: E402
from mpf_chains.errors import DataWarning, GenerationError, InvalidInput, NotSupportedError  # noqa: E402
from mpf_chains.features import CallableFeature  # noqa: E402
from mpf_chains.fusion import PerspectiveRouter  # noqa: E402
from mpf_chains.local import ChatTransformers, SteeringAdapter, SteeringTokens  # noqa: E402
from mpf_chains.local.prompt import write_prompt  # noqa: E402
from mpf_chains.local.steering.choice import named_context  # noqa: E402
from mpf_chains.runtime import Ledger  # noqa: E402
from tests.local import test_tools as tools  # noqa: E402
from tests.local.experts.conftest import build, tiny_model  # noqa: E402
from tests.local.steering.test_adapter import CLASSES, EXISTING, NEW, TARGETS, trained  # noqa: E402

speaker = tools.speaker
PROMPTS = ["Who is a nurse?", "Hi", "A plumber walks into a bar. What next?", "Who is it?"]
NURSE, PLUMBER, NOBODY = PROMPTS[0], PROMPTS[2], PROMPTS[3]


class Reference:
    """The model with low-rank changes in its weights and the tokens' rows behind its embeddings; no cache, no hooks."""

    def __init__(self, model: Any, tokenizer: Any, adapter: SteeringAdapter) -> None:
        self.tokenizer, self.adapter = tokenizer, adapter
        self.ids = adapter.tokens.ids(model, tokenizer)
        self.model = copy.deepcopy(model)
        for name, (down, up) in adapter.lora.factors.items() if adapter.lora else ():
            self.model.get_submodule(name).weight.data += up @ down
        if adapter.input_rows is not None:
            layer = self.model.get_input_embeddings()
            layer.weight.data = torch.cat([layer.weight.data, adapter.input_rows])

    def logits(self, ids: Sequence[int]) -> Any:
        with torch.no_grad():
            return self.model(torch.tensor([list(ids)])).logits[0, -1]

    def prompt(self, text: str) -> list[int]:
        return write_prompt(self.tokenizer, [{"role": "user", "content": text}])

    def next(self, prompt: Sequence[int], name: str, written: Sequence[int]) -> Any:
        plain = self.adapter.plain_opening and not written
        return self.logits([*prompt, *([] if plain else [self.ids[CLASSES.index(name)]]), *written])

    def greedy(self, text: str, name: str, steps: int = 12) -> list[int]:
        return self.behind(self.prompt(text), name, steps)

    def behind(self, prompt: Sequence[int], name: str, steps: int) -> list[int]:
        written: list[int] = []
        while len(written) < steps and written[-1:] != [self.tokenizer.eos_token_id]:
            written.append(int(self.next(prompt, name, written).argmax()))
        return written

    def answer(self, text: str, name: str, steps: int = 12) -> str:
        return str(self.tokenizer.decode(self.greedy(text, name, steps), skip_special_tokens=True))

    def shares(self, text: str) -> dict[str, float]:
        ids = torch.tensor([self.prompt(text)])
        with torch.no_grad():
            output = self.model(ids, output_hidden_states=True)
        moved = output.hidden_states[-1][0, -1] @ self.adapter.output_rows.T
        if not self.adapter.tokens.new:
            moved = moved + output.logits[0, -1, list(self.ids)]
        return dict(zip(CLASSES, moved.double().softmax(-1).tolist(), strict=True))


@pytest.fixture(params=["new", "existing", "plain opening"])
def adapter(request: pytest.FixtureRequest, tiny: Any) -> SteeringAdapter:
    adapter = trained(tiny, tokens=EXISTING if request.param == "existing" else NEW)
    return replace(adapter, plain_opening=request.param == "plain opening")


@pytest.fixture
def make(tiny: Any) -> Callable[..., ChatTransformers]:
    model, tokenizer = tiny

    def chat(steering: Any = None, **more: Any) -> ChatTransformers:
        settings = {"max_tokens": 12, "temperature": 0, "seed": 3, "max_batch_size": 64} | more
        return ChatTransformers(model=model, tokenizer=tokenizer, steering=steering or trained(tiny), **settings)

    return chat


def told(message: Any) -> dict[str, Any]:
    metadata: dict[str, Any] = message.response_metadata["steering"]
    return metadata


async def at_once(*calls: tuple[ChatTransformers, str, dict[str, Any]]) -> list[Any]:
    """Answers of calls that are all waiting when the first of them is generated."""
    gate = threading.Event()
    calls[0][0]._engine.submit(lambda _: gate.wait(60))
    asyncio.get_running_loop().call_later(0.3, gate.set)
    return await asyncio.gather(*(chat.ainvoke(text, **more) for chat, text, more in calls))


@pytest.fixture
def passes(tiny: Any) -> Iterator[list[tuple[int, ...]]]:
    """Shape of what the model reads, pass by pass."""
    seen: list[tuple[int, ...]] = []
    layer = tiny[0].get_input_embeddings()
    handle = layer.register_forward_pre_hook(lambda _layer, inputs: seen.append(tuple(inputs[0].shape)))
    yield seen
    handle.remove()


def test_answers_go_on_behind_the_token(tiny: Any, adapter: SteeringAdapter, make: Any) -> None:
    """Alone and in one batch of prompts of unlike lengths; exactly the token is missing."""
    reference = Reference(*tiny, adapter)
    chat = make(adapter)
    expected = {(text, name): reference.answer(text, name) for text in PROMPTS for name in CLASSES}
    assert len(set(expected.values())) > len(PROMPTS)

    messages = asyncio.run(at_once(*((chat, text, {"steer": name}) for text, name in expected)))
    for (text, name), message in zip(expected, messages, strict=True):
        alone = chat.invoke(text, steer=name)
        assert message.content == alone.content == expected[text, name]
        new = len(reference.greedy(text, name))
        assert message.usage_metadata["output_tokens"] == new
        assert message.usage_metadata["input_tokens"] == len(reference.prompt(text))
        assert told(message)["class"] == name
        assert told(message)["from"] == "given"


def test_answers_of_one_prompt_share_one_prefill(make: Any, passes: list[tuple[int, ...]]) -> None:
    for draw in ("quota", "model", "target"):
        chat = make(draw=draw, max_tokens=3, temperature=1.0, seed=None)
        chat.invoke(NURSE, max_tokens=1)  # loads
        passes.clear()
        asyncio.run(at_once(*((chat, text, {}) for text in [NURSE] * 10 + [PLUMBER] * 4)))
        assert [rows for rows, _ in passes[:2]] == [2, 14]
        assert [columns for _, columns in passes[1:]] == [1] * (len(passes) - 1)
        assert len(passes) == 4  # prompts, tokens, and two more for three tokens of text


def test_quota_draws_follow_the_target_to_one_answer(make: Any) -> None:
    chat = make(draw="quota", max_tokens=1)
    messages = chat.batch([NURSE] * 20 + [PLUMBER] * 20)
    for i, (context, female) in enumerate({"nurse": 18, "plumber": 1}.items()):
        metadata = [told(message) for message in messages[20 * i : 20 * i + 20]]
        assert Counter(each["class"] for each in metadata) == {"female": female, "male": 20 - female}
        assert metadata[0] == {
            "class": metadata[0]["class"], "draw": "quota", "context": context, "from": "target",
            "shares": TARGETS[context],
        }  # fmt: skip
    again = [told(chat.invoke("Who?", context="nurse"))["class"] for _ in range(10)]
    assert again.count("female") == 9  # goes on counting


def test_without_a_target_quotas_are_the_models_own_in_each_context(tiny: Any, adapter: Any, make: Any) -> None:
    chat, reference = make(adapter, draw="quota", max_tokens=1), Reference(*tiny, adapter)
    texts = ["Hi", NOBODY, *"abcdefgh"] * 3
    for context in ("judge", "cook"):
        messages = [*chat.batch(texts, context=context), chat.invoke("Hi", context=context)]
        owed = {name: sum(reference.shares(text)[name] for text in [*texts, "Hi"]) for name in CLASSES}
        drawn = Counter(told(message)["class"] for message in messages)
        assert all(abs(drawn[name] - owed[name]) < 1 for name in CLASSES)
        assert {(told(message)["from"], told(message)["context"]) for message in messages} == {("model", context)}
        assert told(messages[1])["shares"] == pytest.approx(reference.shares(NOBODY), abs=1e-5)
    drawn = Counter(told(message)["class"] for message in chat.batch([NOBODY, "Hi"] * 15)[::2])  # by prompt
    assert all(abs(drawn[name] - 15 * share) < 1 for name, share in reference.shares(NOBODY).items())


@pytest.mark.parametrize("draw", ["model", "target"])
def test_independent_draws_follow_their_shares_and_the_seed(tiny: Any, make: Any, draw: str) -> None:
    chat, n = make(draw=draw, max_tokens=1), 400
    shares = TARGETS["nurse"] if draw == "target" else Reference(*tiny, trained(tiny)).shares(NURSE)

    async def ask() -> Any:
        return await asyncio.gather(*(chat.ainvoke(NURSE, seed=seed) for seed in range(n)))

    first, again = ([told(message)["class"] for message in asyncio.run(ask())] for _ in range(2))
    assert first == again
    assert told(chat.invoke(NURSE, seed=7))["class"] == first[7]
    share = shares["female"]
    assert abs(first.count("female") / n - share) < 4 * (share * (1 - share) / n) ** 0.5
    free = chat.batch([NURSE] * 64, seed=None, temperature=1.0) if draw == "target" else []
    assert len({told(message)["class"] for message in free}) != 1


async def test_streams_never_show_the_token(tiny: Any, adapter: SteeringAdapter, make: Any) -> None:
    chat = make(adapter, temperature=1.0, logprobs=True).bind(steer="male", max_tokens=20)
    whole = chat.invoke(NURSE)
    for chunks in ([*chat.stream(NURSE)], [chunk async for chunk in chat.astream(NURSE)]):
        total = reduce(add, chunks)
        assert total.content == whole.content
        assert total.usage_metadata == whole.usage_metadata
        assert told(total) == told(whole)
        assert total.response_metadata["logprobs"] == whole.response_metadata["logprobs"]
    scored = whole.response_metadata["logprobs"]["content"]
    assert "".join(each["token"] for each in scored) == whole.content
    reference = Reference(*tiny, adapter)
    law = reference.next(reference.prompt(NURSE), "male", []).log_softmax(-1)
    first = law[tiny[1].convert_tokens_to_ids(scored[0]["token"])]
    assert scored[0]["logprob"] == pytest.approx(float(first), abs=1e-4)


def test_stop_texts_and_limits_are_of_the_text(make: Any) -> None:
    chat = make(temperature=1.0)
    text = chat.invoke(NURSE, steer="female").content
    assert len(text) == 12
    assert chat.invoke(NURSE, steer="female", stop=[text[3:5]]).content == text[: text.index(text[3:5])]
    assert chat.invoke(NURSE, steer="female", max_tokens=4).content == text[:4]
    with pytest.raises(GenerationError, match="timeout"):
        chat.invoke(NURSE, steer="female", timeout=0)


def test_calls_with_and_without_steering_meet_in_one_batch(tiny: Any, make: Any) -> None:
    """What is not steered gets what the model gives alone; adapters do not mix."""
    model, tokenizer = tiny
    plain = ChatTransformers(model=model, tokenizer=tokenizer, max_tokens=12, temperature=0, max_batch_size=64)
    expected = [plain.invoke(text).content for text in PROMPTS]
    adapters = [trained(tiny), trained(tiny, lora=False), trained(tiny, tokens=EXISTING)]
    chats = [make(each) for each in adapters]
    assert chats[0]._engine is plain._engine
    for chat in chats:
        chat.invoke("Hi")  # loads, so that all meet below
    plain._engine.batches.clear()

    calls = [(chat, text, {"steer": "male"}) for chat in chats for text in PROMPTS]
    messages = asyncio.run(at_once(*((plain, text, {}) for text in PROMPTS), *calls))
    assert max(plain._engine.batches) == len(messages)
    assert [message.content for message in messages[:4]] == expected
    for i, each in enumerate(adapters, 1):
        reference = Reference(model, tokenizer, each)
        answers = [message.content for message in messages[4 * i : 4 * i + 4]]
        assert answers == [reference.answer(text, "male") for text in PROMPTS]
    text = torch.tensor([Reference(model, tokenizer, adapters[0]).prompt(NURSE)])
    with torch.no_grad():
        assert torch.equal(model(text).logits, copy.deepcopy(model)(text).logits)


def test_other_threads_use_the_model_as_it_is(tiny: Any, make: Any) -> None:
    """Somebody may have the loaded model in hand while answers are generated on it."""
    model, tokenizer = tiny
    chat = make(max_tokens=200, temperature=1.0)
    text = torch.tensor([Reference(model, tokenizer, trained(tiny)).prompt(NURSE)])
    with torch.no_grad():
        expected = model(text).logits
    chat.invoke(NURSE, max_tokens=1)
    found: list[bool] = []

    def use() -> None:
        while not future.done() or not found:
            with torch.no_grad():
                found.append(torch.equal(model(text).logits, expected))

    future = chat._start([*make()._convert_input(NURSE).to_messages()], None, {})[0]
    thread = threading.Thread(target=use)
    thread.start()
    future.result(60)
    thread.join()
    assert all(found)


TEMPLATE = "<s> {% for m in messages %}{{ m['content'] }} {% endfor %}"
ALPHA, STEPS = 0.8, 10


@pytest.mark.parametrize("way", ["speculative", "lockstep", "on the base"])
@pytest.mark.parametrize("kind", ["new", "existing", "plain opening"])
def test_experts_correct_what_comes_behind_the_token(tmp_path: Path, way: str, kind: str) -> None:
    """z̃ = z(prompt, token, text) + α (z⁺ − z⁻)(prompt, text), with the steering's low-rank changes in z alone."""
    setting = build("llama", tmp_path)
    tokenizer = copy.deepcopy(setting.tokenizer)
    tokenizer.chat_template = TEMPLATE
    base = setting.small if way == "on the base" else setting.base
    tokens = SteeringTokens("gender", CLASSES, ("x", "y") if kind == "existing" else None)
    fresh = SteeringAdapter.fresh(base, tokenizer, tokens, TARGETS, plain_opening=kind == "plain opening")
    generator = torch.Generator().manual_seed(5)
    size = fresh.output_rows.shape[1]
    inputs = None if fresh.input_rows is None else torch.randn(2, size, generator=generator)
    changes = replace(trained_lora(base, generator), base=None)
    adapter = replace(fresh, input_rows=inputs, lora=changes)
    reference = Reference(base, tokenizer, adapter)

    def definition(text: str, name: str) -> str:
        prompt = list(tokenizer(f"<s> {text}")["input_ids"])
        written: list[int] = []
        while len(written) < STEPS and written[-1:] != [tokenizer.eos_token_id]:
            z = reference.next(prompt, name, written)
            seen = torch.tensor([prompt + written])
            with torch.no_grad():
                plus, minus = (setting.copies[each](seen).logits[0, -1] for each in ("e1", "a1"))
            written.append(int((z + ALPHA * (plus - minus)).argmax()))
        return str(tokenizer.decode(written, skip_special_tokens=True))

    chat = ChatTransformers(
        model=base, tokenizer=tokenizer, experts=setting.pair(alpha=ALPHA), steering=adapter, temperature=0,
        max_tokens=STEPS, speculative=way != "lockstep",
    )  # fmt: skip
    prompts = ["f t y", "e", "z f k e w b"]
    plain = [chat.invoke(text, steer="male", alphas={"gender": 0}).content for text in prompts]
    assert plain == [
        tokenizer.decode(
            reference.behind(tokenizer(f"<s> {text}")["input_ids"], "male", STEPS), skip_special_tokens=True
        )
        for text in prompts
    ]
    for name in CLASSES:
        messages = chat.batch(prompts, steer=name)
        expected = [definition(text, name) for text in prompts]
        assert [message.content for message in messages] == expected
        assert expected != plain
        assert messages[0].response_metadata["experts"]["decoding"]["way"] == "lockstep"
    if way == "speculative":
        assert "steering" in messages[0].response_metadata["experts"]["decoding"]["reason"]
    assert chat.invoke("e", steer="male", explain=True).content == definition("e", "male")


def trained_lora(model: Any, generator: Any) -> Any:
    from mpf_chains.local.experts.files.adapter import Adapter

    linear = model.get_submodule("model.layers.1.self_attn.q_proj")
    shape = linear.in_features, linear.out_features
    down, up = torch.randn(3, shape[0], generator=generator), torch.randn(shape[1], 3, generator=generator)
    return Adapter("test", {"model.layers.1.self_attn.q_proj": (down, up)})


def test_likelihoods_are_under_the_low_rank_changes(tiny: Any, tmp_path: Path) -> None:
    model, tokenizer = tiny
    texts = [("", "Anurse is here"), ("The nurse", " said that"), ("The nurse", " saw him")]
    base = ChatTransformers(model=model, tokenizer=tokenizer)
    rows = ChatTransformers(model=model, tokenizer=tokenizer, steering=trained(tiny, lora=False))
    both = ChatTransformers(model=model, tokenizer=tokenizer, steering=trained(tiny))
    merged = Reference(model, tokenizer, trained(tiny, lora=True, tokens=EXISTING)).model
    merged_chat = ChatTransformers(model=merged, tokenizer=tokenizer)
    scores = [dict(chat.log_likelihoods(texts)) for chat in (base, rows, both, merged_chat)]
    for i in range(len(texts)):
        assert (scores[0][i] == scores[1][i]).all()
        assert scores[2][i] == pytest.approx(scores[3][i], abs=1e-4)
        assert scores[2][i] != pytest.approx(scores[0][i], abs=1e-2)
    next_ = [dict(chat.next_token_log_probabilities(["A nurse"]))[0] for chat in (both, merged_chat)]
    assert next_[0] == pytest.approx(next_[1], abs=1e-4)
    setting = build("llama", tmp_path)
    adapter = SteeringAdapter.fresh(setting.small, setting.tokenizer, NEW, TARGETS)
    changed = replace(adapter, lora=trained_lora(setting.small, torch.Generator().manual_seed(0)))
    chat = ChatTransformers(
        model=setting.small, tokenizer=setting.tokenizer, steering=changed, experts=setting.pair(alpha=1.0)
    )
    with pytest.raises(NotSupportedError, match="low-rank"):
        chat.log_likelihoods([("", "a b")])
    assert dict(chat.log_likelihoods([("", "a b")], alphas={"gender": 0}))


def test_wrong_requests_say_what_is_right(tiny: Any, make: Any) -> None:
    model, tokenizer = tiny
    chat = make()
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: chat.invoke("Hi", steer="femal"), r"'femal'; the classes of gender are 'female', 'male'.*'female'\?"),
        (lambda: make(steer="x"), "'x'; the classes"),
        (lambda: chat.invoke("Hi", draw="dice"), "'dice'; it must be 'model', 'target' or 'quota'"),
        (lambda: chat.invoke("Hi", draw="target"), "do not name exactly one of the 2 contexts.*context="),
        (lambda: chat.invoke("A nurse, a plumber", draw="target"), "do not name exactly one"),
        (lambda: chat.invoke("Hi", draw="target", context="nurs"), "no context 'nurs'; near it are 'nurse'"),
        (lambda: make(draw="target", context="judge"), "no context 'judge'"),
        (lambda: chat.invoke("Hi", raw=True), "`raw`"),
        (lambda: make(raw=True), "`raw`"),
        (lambda: ChatTransformers(model=model, tokenizer=tokenizer, steer="male"), "no steering tokens"),
        (lambda: ChatTransformers(model=model, tokenizer=tokenizer).invoke("Hi", draw="model"), "no steering tokens"),
        (lambda: make("no/such/folder"), "steering.safetensors"),
    ]  # fmt: skip
    for call, message in cases:
        with pytest.raises((InvalidInput, ValueError), match=rf"(?s){message}"):
            call()


def test_34_adapters_of_other_models_are_refused(tiny: Any) -> None:
    model, tokenizer = tiny
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.lm_head.weight += 0.5
    chat = ChatTransformers(model=other, tokenizer=tokenizer, steering=trained(tiny))
    for _ in range(2):
        with pytest.raises(InvalidInput, match="fitted on a model with"):
            chat.invoke("Hi")
    wide = tiny_model("llama", 0, vocabulary=len(tokenizer), width=48)
    with pytest.raises(InvalidInput, match="rows of 32 values; this model's have 48"):
        ChatTransformers(model=wide, tokenizer=tokenizer, steering=trained(tiny)).invoke("a")


def test_36_tokens_that_split_are_refused(tiny: Any) -> None:
    model, tokenizer = tiny
    split = SteeringAdapter(SteeringTokens("gender", CLASSES, ("ab", "c")), TARGETS, torch.zeros(2, 32))
    with pytest.raises(InvalidInput, match="'ab' of class 'female' is 2 tokens"):
        ChatTransformers(model=model, tokenizer=tokenizer, steering=split).invoke("Hi")


def test_the_context_has_room_for_the_token(tiny: Any, make: Any) -> None:
    longest = tiny[0].config.max_position_embeddings
    text = "a" * (longest - len(Reference(*tiny, trained(tiny)).prompt("")) - 3)
    assert len(make().invoke(text, steer="male", max_tokens=9, temperature=1.0).content) <= 2
    with pytest.raises(InvalidInput, match=f"{longest} tokens"):
        make().invoke(text + "aa", steer="male")


def test_identity_copies_and_files(tiny: Any, make: Any, tmp_path: Path) -> None:
    adapter = trained(tiny)
    adapter.save(tmp_path)
    chat = make(adapter, draw="quota", context="nurse")
    by_path = make(str(tmp_path), draw="quota", context="nurse")
    assert (
        by_path._identifying_params
        == chat._identifying_params
        == make(tmp_path, draw="quota", context="nurse")._identifying_params
    )
    others = [
        make(adapter), make(adapter, draw="quota"), make(adapter, draw="quota", context="nurse", steer="male"),
        make(trained(tiny, lora=False), draw="quota", context="nurse"),
    ]  # fmt: skip
    assert len({str(each._identifying_params) for each in [chat, *others]}) == 5
    assert by_path._steering is chat._steering  # put on the model once
    expected = chat.invoke("Hi", steer="male").content
    for other in (pickle.loads(pickle.dumps(chat)), copy.deepcopy(chat), chat.model_copy(), by_path):
        assert other.invoke("Hi", steer="male").content == expected
        assert other._identifying_params == chat._identifying_params
    for name in ("steering", "experts"):
        with pytest.raises(NotSupportedError, match=f"`{name}` decides"):
            setattr(chat, name, None)
    without = chat.model_copy(update={"steering": None, "draw": "model", "context": None})
    assert "steering" not in without.invoke("Hi").response_metadata
    assert "steering" not in without._identifying_params


def test_copies_count_quotas_together(make: Any) -> None:
    chat = make(draw="quota", context="nurse", max_tokens=1)
    configured = chat.configurable_fields(context=ConfigurableField(id="context"))
    models = [chat, chat.model_copy(), copy.deepcopy(chat), configured.with_config(configurable={"context": "nurse"})]
    drawn = [told(models[i % 4].invoke("Hi"))["class"] for i in range(20)]
    assert drawn.count("female") == 18
    shared = QuotaSampler()
    drawn = [told(make(draw="quota", context="nurse", quotas=shared).invoke("Hi"))["class"] for _ in range(10)]
    assert drawn.count("female") == 9
    elsewhere = told(configured.with_config(configurable={"context": "plumber"}).invoke("Hi"))
    assert elsewhere["shares"] == TARGETS["plumber"]


def test_hooks_go_with_the_adapter(tiny: Any) -> None:
    model, tokenizer = tiny
    mine = copy.deepcopy(model)

    def hooks() -> int:
        return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in mine.modules())

    before = hooks()
    chat = ChatTransformers(model=mine, tokenizer=tokenizer, steering=trained(tiny), max_tokens=2)
    chat.invoke("Hi")
    assert hooks() > before
    again = pickle.loads(pickle.dumps(mine))
    with torch.no_grad():
        assert torch.equal(again(torch.tensor([[3, 9]])).logits, model(torch.tensor([[3, 9]])).logits)
    plain = chat.model_copy(update={"steering": None})
    del chat
    plain.invoke("Hi")  # the worker holds nothing of the last batch
    gc.collect()
    plain.invoke("Hi")  # hooks without an owner take themselves off
    assert hooks() == before


def test_tools_are_called_behind_the_token(speaker: Any) -> None:
    """The model says its script, of which the first character is where the token stands."""
    chat = speaker("?" + tools.ANSWERS["hermes"])
    adapter = SteeringAdapter.fresh(chat.model, chat.tokenizer, NEW, TARGETS)
    steered = chat.model_copy(update={"steering": adapter}).bind_tools([tools.plus, tools.now])
    message = steered.invoke("1 + x?", steer="male")
    assert message.content == "Let me see."
    assert tools.called(message) == [("plus", {"a": 1, "b": "x"}), ("now", {})]
    assert told(message)["class"] == "male"


def test_everything_that_is_named_exists() -> None:
    assert {"SteeringAdapter", "SteeringTokens", "SteeringTrainer"} <= set(local.__all__)
    assert all(getattr(local, name).__doc__ for name in local.__all__)


def test_named_contexts() -> None:
    names = ["driver", "truck driver", "nurse", "CEO"]
    found = {text: named_context(text, names) for text in (
        "Describe a truck driver.", "the Driver", "The nurse's day", "two nurses", "nurse, driver", "truck\ndriver",
        "a nurse-midwife", "nursery",
    )}  # fmt: skip
    assert list(found.values()) == ["truck driver", "driver", "nurse", "nurse", None, "truck driver", None, None]


def test_a_given_context_is_found_and_what_may_be_a_slip_is_said(make: Any) -> None:
    chat = make(draw="quota", max_tokens=1)
    assert told(chat.invoke("x", context=" Nurse"))["context"] == "nurse"
    assert told(chat.invoke("x", context="judge"))["from"] == "model"  # held out
    with pytest.warns(DataWarning, match="near it are 'nurse'"):
        assert told(chat.invoke("x", context="nurs"))["from"] == "model"
    for context, message in ((" ", "`context` is ' '.*'nurse'"), (3, "is 3")):
        with pytest.raises(InvalidInput, match=message):
            chat.invoke("x", context=context)


def test_the_context_is_what_the_user_named_last(make: Any) -> None:
    chat = make(draw="target", max_tokens=1)
    asked: list[BaseMessage] = [HumanMessage("A plumber?"), AIMessage("A nurse"), HumanMessage("A nurse?")]
    for later in ([], [AIMessage("A plumber"), HumanMessage("Go on")], [AIMessage("A plumber")]):
        assert told(chat.invoke([*asked, *later]))["context"] == "nurse"
    both = [*asked, AIMessage("x"), HumanMessage("A nurse and a plumber?")]
    assert told(chat.invoke(both, draw="model"))["context"] is None


def test_a_global_cache_freezes_no_class(make: Any) -> None:
    chat = make(draw="quota", max_tokens=1)
    set_llm_cache(InMemoryCache())
    try:
        for each in (chat, make(steer="male", draw="quota", max_tokens=1).bind(steer=None)):
            assert Counter(told(each.invoke(PLUMBER))["class"] for _ in range(20)) == {"female": 1, "male": 19}
        frozen = make(draw="quota", max_tokens=1, cache=True)
        assert len({told(frozen.invoke("Who is a nurse?"))["class"] for _ in range(20)}) == 1
    finally:
        set_llm_cache(None)
    assert chat.model_copy(update={"steering": None, "draw": "model"}).cache is None


def test_assignments_are_checked(make: Any) -> None:
    chat = make()
    for name, value in {"draw": "bogus", "steer": "x", "context": " ", "temperature": -1}.items():
        with pytest.raises(ValueError, match=name if name != "draw" else "'quota'"):
            setattr(chat, name, value)
    chat.draw = "quota"
    assert told(chat.invoke(NURSE))["draw"] == "quota"


def test_one_answer_each_from_new_models_has_the_shares(make: Any) -> None:
    """A first quota draw is not always the larger class."""
    drawn = [told(make(draw="quota", max_tokens=1, seed=seed).invoke(NURSE))["class"] for seed in range(60)]
    assert 2 <= drawn.count("male") <= 14
    assert len({make(seed=None).quotas.seed for _ in range(5)}) == 5


async def test_classes_are_perspectives_with_the_targets_as_weights(tiny: Any, make: Any) -> None:
    adapter = trained(tiny)
    chat = make(adapter)
    router = PerspectiveRouter(
        model=chat, perspectives=adapter.tokens.perspectives, weights=adapter.targets.weights, sampler="quota", seed=1
    )
    answers = await router.abatch([NURSE] * 20, {"configurable": {"mpf_entity": "plumber"}})
    names = [answer.response_metadata["mpf"]["perspective"] for answer in answers]
    assert names.count("female") == 1
    assert [told(answer)["class"] for answer in answers] == names
    reference = Reference(*tiny, adapter)
    expected = {name: reference.answer(NURSE, name) for name in CLASSES}
    assert [answer.content for answer in answers] == [expected[name] for name in names]


def test_classes_are_calibrated_as_perspectives(tiny: Any, make: Any) -> None:
    adapter = trained(tiny)
    chat = make(adapter, max_tokens=6)
    rows = tuple(
        Row(f"{split}{i}", "E", f"{chr(97 + i)} {chr(122 - i)}", target_score={"early": 0.4}, split=split)
        for split in ("decomposition", "validation")
        for i in range(12)
    )

    def early(texts: Sequence[str]) -> list[float]:
        return [sum(letter < "n" for letter in text.lower()) / max(1, len(text)) for text in texts]

    ledger = Ledger()

    def calibrator(model: Any) -> MPFCalibrator:
        return MPFCalibrator(
            model=model, perspectives=adapter.tokens.perspectives, bins=4,
            feature=CallableFeature(early, name="early", version="1"),
            resamples=20, progress=False, ledger=ledger, validate=("normal",), max_concurrency=32,
        )  # fmt: skip

    calibration = calibrator(chat).invoke(Benchmark("letters", rows))
    assert sum(calibration.weights["E"].values()) == pytest.approx(1)
    assert set(calibration.weights["E"]) == set(CLASSES)
    assert calibrator(chat).plan(Benchmark("letters", rows)).done == 24
    other = make(trained(tiny, lora=False), max_tokens=6)
    assert calibrator(other).plan(Benchmark("letters", rows)).done == 0


@pytest.mark.real_model
def test_smollm2_follows_its_target() -> None:
    """Rows fitted in a second: every draw has the target's shares, and the text is without the token."""
    from mpf_chains.local.steering import prompts_about, refit

    plain = ChatTransformers(model="smollm2", max_tokens=8, temperature=0, max_batch_size=64)
    model, tokenizer, _ = plain._engine.load()
    for tokens in (SteeringTokens("gender", CLASSES), SteeringTokens("gender", CLASSES, ("0", "1"))):
        fresh = SteeringAdapter.fresh(model, tokenizer, tokens, TARGETS)
        asked = prompts_about(TARGETS.contexts, ["Write the gender of {a_context}."])
        adapter, _ = refit(model, tokenizer, fresh, asked)
        chat = plain.model_copy(update={"steering": adapter})
        for context, text in asked:
            own = told(chat.invoke(text, max_tokens=1))
            assert (own["context"], own["from"]) == (context, "model")
            assert own["shares"] == pytest.approx(TARGETS[context], abs=0.01)
    messages = chat.batch([text] * 20, max_tokens=1, draw="quota")
    assert Counter(told(message)["class"] for message in messages) == {"female": 1, "male": 19}
    sampled = chat.bind(steer="male", temperature=1.0, seed=1)
    assert "".join(str(chunk.text) for chunk in sampled.stream(text)) == sampled.invoke(text).content
    alone = ChatTransformers(model=model, tokenizer=tokenizer, max_tokens=8, temperature=0)
    assert plain.invoke("Hi").content == alone.invoke("Hi").content
