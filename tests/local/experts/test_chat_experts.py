"""Experts inside `ChatTransformers`, against their definition: every model over the whole text, without a cache."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import shutil
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage  # noqa: E402
from langchain_core.runnables import ConfigurableField  # noqa: E402

from mpf_chains.errors import GenerationError, InvalidInput, VocabularyMismatch  # noqa: E402
from mpf_chains.local import ChatTransformers, ExpertPair  # noqa: E402
from mpf_chains.local.experts import ExpertLogitsProcessor, explain  # noqa: E402
from mpf_chains.local.experts.explanation.records import explained_tokens  # noqa: E402

ALPHA, STEPS = 0.6, 14
PROMPTS = ["f t y", "e", "z f k e w b", "q"]
TEMPLATE = "<s> {% for m in messages %}{{ m['content'] }} {% endfor %}"
WAYS = ["speculative", "lockstep", "on the base"]
SAMPLING = [{"temperature": 0}, {"temperature": 1.2}, {"temperature": 0.9, "top_k": 9, "top_p": 0.9}]


class Chats:
    """Chat models with experts over a setting of tiny models."""

    def __init__(self, setting: Any, way: str) -> None:
        tokenizer = copy.deepcopy(setting.tokenizer)
        tokenizer.chat_template = TEMPLATE
        base = setting.small if way == "on the base" else setting.base
        self.setting = type(setting)(base, setting.small, tokenizer, setting.folders, setting.copies)
        self.speculative = way == "speculative"

    def __call__(self, experts: Any = None, **more: Any) -> ChatTransformers:
        experts = self.setting.pair(alpha=ALPHA) if experts is None else experts
        settings = dict(temperature=0, max_tokens=STEPS, seed=3, speculative=self.speculative) | more
        return ChatTransformers(model=self.setting.base, tokenizer=self.setting.tokenizer, experts=experts, **settings)

    def ids(self, prompt: str) -> list[int]:
        return list(self.setting.tokenizer(f"<s> {prompt}")["input_ids"])

    def text(self, ids: Any) -> str:
        return str(self.setting.tokenizer.decode(ids, skip_special_tokens=True))

    def on_base(self, ids: list[int]) -> Any:
        """The definition's logits, with the pair on the base itself."""
        setting = self.setting
        itself = type(setting)(setting.small, setting.small, setting.tokenizer, setting.folders, setting.copies)
        return itself.definition(ids, [("e1", "a1", ALPHA)])

    def greedy(self, prompt: str, *pairs: tuple[str, str, float]) -> str:
        return self.text(self.setting.greedy(self.ids(prompt), pairs, STEPS))


@pytest.fixture(params=WAYS)
def chats(llama: Any, request: pytest.FixtureRequest) -> Chats:
    return Chats(llama, request.param)


@pytest.fixture(params=WAYS)
def all_chats(setting: Any, request: pytest.FixtureRequest) -> Chats:
    """Of both architectures."""
    return Chats(setting, request.param)


@pytest.fixture(params=["lockstep", "on the base"])
def stepping(llama: Any, request: pytest.FixtureRequest) -> Chats:
    return Chats(llama, request.param)


@pytest.fixture
def simple(llama: Any) -> Chats:
    return Chats(llama, "lockstep")


def told(message: Any) -> dict[str, Any]:
    metadata: dict[str, Any] = message.response_metadata["experts"]
    return metadata


def test_greedy_answers_are_the_definitions(all_chats: Chats) -> None:
    """Prompts of unlike lengths, so some are padded, and a strength of each its own."""
    chats = all_chats
    pairs = [chats.setting.pair(alpha=ALPHA), chats.setting.pair("race", "e2", None, alpha=-0.4)]
    chat = chats(pairs)
    strengths = [{}, {"gender": -1.0}, {"gender": 0, "race": 0.7}, {"gender": 0.1, "race": 0}]
    with_them = [chat.bind(alphas=alphas) for alphas in strengths]
    expected = [
        chats.greedy(prompt, ("e1", "a1", alphas.get("gender", ALPHA)), ("e2", "small", alphas.get("race", -0.4)))
        for prompt, alphas in zip(PROMPTS, strengths, strict=True)
    ]
    assert [each.invoke(prompt).content for each, prompt in zip(with_them, PROMPTS, strict=True)] == expected
    chat._engine.batches.clear()
    together = in_one_batch(chat, list(zip(PROMPTS, strengths, strict=True)))
    assert max(chat._engine.batches) == len(PROMPTS)
    assert [message.content for message in together] == expected
    assert [told(message)["alphas"] for message in together] == [
        {"gender": ALPHA, "race": -0.4} | alphas for alphas in strengths
    ]


def in_one_batch(chat: ChatTransformers, calls: list[tuple[str, dict[str, Any]]], **more: Any) -> list[AIMessage]:
    """As an `MPFCalibrator` asks: at the same time, each with its own bound arguments."""

    async def ask() -> list[AIMessage]:
        return await asyncio.gather(*(chat.ainvoke(prompt, alphas=alphas, **more) for prompt, alphas in calls))

    return asyncio.run(ask())


@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize("kind", ["last", "base_first"])
def test_a_row_of_a_batch_equals_the_row_alone(chats: Chats, sampling: Any, kind: str) -> None:
    chat = chats(filter=kind, **sampling)
    strengths = [{"gender": alpha} for alpha in (0.6, 0, -0.3, 1.5)]
    calls = list(zip(PROMPTS, strengths, strict=True))
    alone = [chat.invoke(prompt, alphas=alphas).content for prompt, alphas in calls]
    assert [message.content for message in in_one_batch(chat, calls)] == alone
    assert len(set(alone)) == len(alone)


@pytest.mark.parametrize("sampling", SAMPLING)
def test_what_moves_nothing_is_the_base_model(chats: Chats, shapes: Any, sampling: Any) -> None:
    """Fault 31: α = 0, and two equal halves."""
    plain = ChatTransformers(model=chats.setting.base, tokenizer=chats.setting.tokenizer, max_tokens=STEPS, seed=3)
    expected = plain.bind(**sampling).batch(PROMPTS)
    off, idle = chats(alphas={"gender": 0}, **sampling), chats(chats.setting.pair(anti="e1"), **sampling)
    for chat in (off, idle):
        chat.invoke("e")  # loads
        read = shapes(chats.setting.small.get_input_embeddings())
        answers = chat.batch(PROMPTS)
        assert [answer.content for answer in answers] == [answer.content for answer in expected]
        assert [answer.usage_metadata for answer in answers] == [answer.usage_metadata for answer in expected]
        assert {told(answer)["decoding"]["way"] for answer in answers} == {"base"}
        if chats.setting.base is not chats.setting.small:
            assert not read
    assert chats(**sampling).invoke(PROMPTS[0]).content != expected[0].content


def test_the_base_first_filter_is_that_of_the_processor(chats: Chats) -> None:
    chat = chats(filter="base_first", top_p=0.6)
    for prompt in PROMPTS:
        ids = torch.tensor([chats.ids(prompt)])
        processor = ExpertLogitsProcessor(
            chats.setting.pair(alpha=ALPHA), chats.setting.tokenizer, filter="base_first", top_p=0.6
        )
        out = chats.setting.base.generate(
            ids, attention_mask=torch.ones_like(ids), logits_processor=[processor], do_sample=False, pad_token_id=0,
            max_new_tokens=STEPS,
        )  # fmt: skip
        answer = chat.invoke(prompt)
        assert answer.content == chats.text(out[0, ids.shape[1] :])
        assert told(answer)["filter"] == "base_first"
        assert (
            answer.content == chat.bind(filter="base_first", top_p=0.6, temperature=1.0, top_k=1).invoke(prompt).content
        )


def test_experts_read_each_position_once(stepping: Chats, shapes: Any) -> None:
    """Fault 33; on the base itself one pass reads all three."""
    chat = stepping()
    chat.invoke("e")  # loads
    read = shapes(stepping.setting.small.get_input_embeddings())
    answer = chat.invoke(PROMPTS[0])
    on_base = stepping.setting.base is stepping.setting.small
    positions = answer.usage_metadata["total_tokens"] - 1  # the last one is not read
    assert sum(rows * columns for rows, columns in read) == (3 if on_base else 2) * positions
    assert len(read) == answer.usage_metadata["output_tokens"]


def test_nothing_is_read_by_experts_where_the_nucleus_leaves_no_choice(simple: Chats, shapes: Any) -> None:
    chat = simple(filter="base_first", top_p=1e-6)
    chat.invoke("e")
    read = shapes(simple.setting.small.get_input_embeddings())
    assert chat.invoke(PROMPTS[0]).content == simple.greedy(PROMPTS[0])
    assert not read


def test_pairs_on_full_models_are_drafted_for_from_the_text(llama: Any) -> None:
    chats = Chats(llama, "speculative")
    halves = {"expert": llama.copies["e1"], "anti_expert": llama.copies["a1"]}
    pair = ExpertPair("gender", **halves, tokenizer=llama.tokenizer, alpha=ALPHA)
    answers = chats(pair).batch(PROMPTS)
    assert [answer.content for answer in answers] == [chats.greedy(prompt, ("e1", "a1", ALPHA)) for prompt in PROMPTS]
    assert {told(answer)["decoding"]["draft"] for answer in answers} == {"prompt_lookup"}


def test_different_experts_share_a_model_and_a_batch(simple: Chats) -> None:
    gender, race = simple(), simple(simple.setting.pair("race", "e2", "a2", alpha=ALPHA))
    assert gender._engine is race._engine

    async def ask() -> list[Any]:
        return await asyncio.gather(gender.ainvoke("e"), race.ainvoke("e"), gender.ainvoke("q"))

    contents = [answer.content for answer in asyncio.run(ask())]
    pairs = [("e1", "a1", ALPHA), ("e2", "a2", ALPHA), ("e1", "a1", ALPHA)]
    assert contents == [simple.greedy(prompt, pair) for prompt, pair in zip(["e", "e", "q"], pairs, strict=True)]


@pytest.mark.parametrize("sampling", SAMPLING)
async def test_streams_add_up_to_the_answer(chats: Chats, sampling: Any) -> None:
    chat = chats(logprobs=True, top_logprobs=1, **sampling)
    for explained in (False, True):
        model = chat.bind(explain=explained)
        whole = model.invoke("f t")
        cut = chat.bind(explain=explained, stop=[whole.text[5:8]])
        for each, expected in ((model, whole), (cut, cut.invoke("f t"))):
            streams = [list(each.stream("f t")), [chunk async for chunk in each.astream("f t")]]
            for total in (reduce(add, stream) for stream in streams):
                assert total.content == expected.content
                assert total.usage_metadata == expected.usage_metadata
                told(total)["decoding"], told(expected)["decoding"] = {}, {}  # drafts depend on measured times
                for mine, others in zip(told(total).pop("tokens", []), told(expected).get("tokens", []), strict=True):
                    assert mine["text"] == others["text"] and mine["after"] == pytest.approx(others["after"], abs=1e-5)
                assert told(total) == {key: value for key, value in told(expected).items() if key != "tokens"}
        assert len(cut.invoke("f t").content) < len(whole.content)


def test_an_explanation_is_that_of_the_text(chats: Chats) -> None:
    pairs = [chats.setting.pair(alpha=ALPHA), chats.setting.pair("race", "e2", None, alpha=-0.4)]
    chat = chats(pairs, temperature=1.0, explain=True, max_tokens=6)
    alphas = {"race": 0.0}
    answer = chat.invoke("f t", alphas=alphas)
    records = told(answer)["tokens"]
    assert json.loads(json.dumps(records)) == records
    tokens = [record["token"] for record in records]
    assert chats.text(tokens) == answer.content
    expected = explain(
        chats.setting.base, chat._shared.load(), chats.setting.tokenizer, chats.ids("f t"), tokens,
        alphas={"gender": ALPHA, **alphas},
    )  # fmt: skip
    for mine, theirs in zip(explained_tokens(answer), expected, strict=True):
        assert (mine.before, mine.after) == pytest.approx((theirs.before, theirs.after), abs=1e-5)
        assert mine.contributions == pytest.approx(dict(theirs.contributions), abs=1e-4)
        assert [each.token for each in mine.alternatives] == [each.token for each in theirs.alternatives]
    assert told(answer)["decoding"]["way"] == "lockstep"
    off = chat.invoke("f t", alphas={"gender": 0, "race": 0})
    assert all(record["before"] == record["after"] for record in told(off)["tokens"])
    assert all(record["contributions"] == {"gender": 0.0, "race": 0.0} for record in told(off)["tokens"])
    assert "tokens" not in told(chat.invoke("f t", explain=False))


def test_logprobs_are_of_the_corrected_law(chats: Chats) -> None:
    answer = chats(logprobs=True, top_logprobs=2, top_p=0.5, temperature=0.7).invoke("f t")
    ids = chats.ids("f t")
    assert told(answer)["decoding"]["way"] == ("speculative" if chats.speculative else "lockstep")
    for entry in answer.response_metadata["logprobs"]["content"]:
        law = chats.setting.definition(ids, [("e1", "a1", ALPHA)]).log_softmax(-1)
        token = chats.setting.tokenizer.convert_tokens_to_ids(entry["token"])
        assert entry["logprob"] == pytest.approx(float(law[token]), abs=1e-4)
        assert entry["top_logprobs"][0]["logprob"] == pytest.approx(float(law.max()), abs=1e-4)
        ids = [*ids, token]


def test_a_closed_stream_and_a_timeout_stop_generating(chats: Chats, shapes: Any) -> None:
    chat = chats(max_tokens=50)
    words = [word for word in chats.setting.tokenizer.get_vocab() if len(word) == 1]
    endless = next(word for word in words if chat.invoke(word).usage_metadata["output_tokens"] == 50)
    read = shapes(chats.setting.base.get_input_embeddings())
    stream = chat.stream(endless)
    next(stream)
    stream.close()
    with pytest.raises(GenerationError, match="timeout"):
        chat.invoke(endless, timeout=1e-4)
    chat.invoke("e", max_tokens=1)  # runs after they have left
    assert len(read) < 60


def test_a_strength_that_is_too_large_fails_its_own_call_only(chats: Chats) -> None:
    chat = chats()
    huge = chat.bind(alphas={"gender": 3e38})
    with pytest.raises(GenerationError, match=r"not all finite.*Lower alpha"):
        huge.invoke("e")

    async def ask() -> list[Any]:
        return await asyncio.gather(huge.ainvoke("e"), chat.ainvoke("q"), return_exceptions=True)

    failed, fine = asyncio.run(ask())
    assert isinstance(failed, GenerationError)
    assert fine.content == chats.greedy("q", ("e1", "a1", ALPHA))


def test_thirteen_pairs_are_not_explained_and_nothing_is_read(simple: Chats) -> None:
    pairs = [simple.setting.pair(f"pair {i}", alpha=0.01) for i in range(13)]
    chat = simple(pairs, explain=True, max_tokens=2)
    with pytest.raises(InvalidInput, match="13 pairs move something; at most 12"):
        chat.invoke("e")
    assert not chat._engine.batches
    ways = [{f"pair {i}": 0.0 for i in some} for some in (range(6), range(6, 13))]

    async def ask() -> list[Any]:
        return await asyncio.gather(*(chat.ainvoke("e", alphas=way) for way in ways))

    for answer, way in zip(asyncio.run(ask()), ways, strict=True):  # of one batch, in which 13 pairs move something
        parts = told(answer)["tokens"][0]["contributions"]
        assert [name for name, part in parts.items() if not part] == list(way)


def test_an_answer_ends_where_an_experts_context_ends(simple: Chats, make_model: Any, make_adapter: Any) -> None:
    """Fault 32."""
    short = make_model("llama", 2, context=16)
    pair = ExpertPair("gender", simple.setting.folders["e1"], base=short, tokenizer=simple.setting.tokenizer)
    for speculative in (True, False):
        chat = simple(pair, speculative=speculative, temperature=1.5, max_tokens=40)
        answers = chat.batch(["e", "f t y " * 4])  # the short one is padded beyond the context that it must not pass
        assert all(answer.usage_metadata["total_tokens"] <= 16 for answer in answers)
        assert max(answer.usage_metadata["total_tokens"] for answer in answers) == 16
        assert answers[0].content == chat.invoke("e").content
        chat._engine.batches.clear()
        with pytest.raises(InvalidInput, match="20 tokens; the experts' context holds 16"):
            chat.invoke("f " * 19)
        assert not chat._engine.batches
        assert chat.invoke("f " * 19, alphas={"gender": 0}).content  # the model alone reads it


def test_another_vocabulary_is_refused(simple: Chats, make_tokenizer: Any) -> None:
    """Fault 30."""
    words = simple.setting.tokenizer.convert_ids_to_tokens(range(29))
    words[5], words[6] = words[6], words[5]
    pair = simple.setting.pair(tokenizer=make_tokenizer(words))
    with pytest.raises(VocabularyMismatch, match="Token id 5"):
        simple(pair).invoke("e")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"alphas": {"age": 1.0}}, "names 'age'; the pairs are: 'gender'"),
        ({"alphas": {"gender": float("nan")}}, "alpha of 'gender' is nan"),
        ({"alphas": {"gender": float("inf")}}, "finite"),
        ({"filter": "first"}, "last.*base_first"),
        ({"experts": (), "alphas": {"gender": 1.0}}, "no experts"),
        ({"experts": (), "explain": True}, "no experts"),
    ],
)
def test_what_makes_no_sense_is_refused(simple: Chats, arguments: dict[str, Any], words: str) -> None:
    arguments = dict(arguments)
    experts = arguments.pop("experts", None)
    with pytest.raises(ValueError, match=words):
        simple(experts, **arguments)
    with pytest.raises(InvalidInput, match=words):
        simple(experts).invoke("e", **arguments)


def test_a_copy_has_the_experts_that_it_names(simple: Chats) -> None:
    pairs = [simple.setting.pair(alpha=ALPHA), simple.setting.pair("race", "e2", None, alpha=-0.4)]
    chat = simple(pairs[0])
    other = chat.model_copy(update={"experts": pairs[1:]})
    answer = other.invoke("f t y")
    assert answer.content == simple.greedy("f t y", ("e2", "small", -0.4)) != chat.invoke("f t y").content
    assert told(answer)["alphas"] == {"race": -0.4}
    none = chat.model_copy(update={"experts": ()}).invoke("f t y")
    assert none.content == simple(()).invoke("f t y").content and "experts" not in none.response_metadata
    assert pickle.loads(pickle.dumps(simple(()).model_copy(update={"max_tokens": 2}))).max_tokens == 2
    for start in (chat, simple(())):
        with pytest.raises(InvalidInput, match=r"`experts`.*model_copy"):
            start.experts = pairs


def test_pairs_need_unlike_names(simple: Chats) -> None:
    with pytest.raises(ValueError, match="named 'gender'"):
        simple([simple.setting.pair(), simple.setting.pair()])


def test_constructing_loads_nothing_and_pairs_are_shared(simple: Chats, tmp_path: Path) -> None:
    """A pair on the base itself, all by name: one model, however it is made, copied or pickled."""
    for part in (simple.setting.small, simple.setting.tokenizer):
        part.save_pretrained(tmp_path)
    pair = ExpertPair("gender", simple.setting.folders["e1"], simple.setting.folders["a1"], str(tmp_path), alpha=ALPHA)
    chat = ChatTransformers(model=str(tmp_path), experts=pair, temperature=0, max_tokens=STEPS)
    others = [
        ChatTransformers(model=str(tmp_path), experts=[pair], alphas={"gender": 0.1}),
        pickle.loads(pickle.dumps(chat)),
        copy.deepcopy(chat),
    ]
    assert {id(each._shared) for each in others} == {id(chat._shared)}
    assert not chat._engine.loaded and not chat._shared.loaded
    on_base = type(simple.setting)(
        simple.setting.small, simple.setting.small, simple.setting.tokenizer, simple.setting.folders,
        simple.setting.copies,
    )  # fmt: skip
    assert chat.invoke("e").content == simple.text(on_base.greedy(simple.ids("e"), [("e1", "a1", ALPHA)], STEPS))
    (loaded,) = chat._shared.load().loaded
    assert loaded.untuned.small.model is chat._engine.load()[0]
    configurable = chat.configurable_fields(alphas=ConfigurableField(id="strengths"))
    weaker = configurable.invoke("e", {"configurable": {"strengths": {"gender": 0.2}}})
    assert told(weaker)["alphas"] == {"gender": 0.2}


def test_experts_have_the_models_dtype(simple: Chats, tmp_path: Path) -> None:
    for part in (simple.setting.base, simple.setting.tokenizer):
        part.save_pretrained(tmp_path / "base")
    for part in (simple.setting.small, simple.setting.tokenizer):
        part.save_pretrained(tmp_path / "small")
    pair = ExpertPair("gender", simple.setting.folders["e1"], base=str(tmp_path / "small"))
    chat = ChatTransformers(model=str(tmp_path / "base"), experts=pair, dtype="bfloat16", max_tokens=3)
    assert chat.invoke("e").usage_metadata
    (loaded,) = chat._shared.load().loaded
    assert loaded.expert.small.model.dtype == torch.bfloat16


def test_adapters_on_a_rounded_model_share_it(simple: Chats, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    for part in (simple.setting.small, simple.setting.tokenizer):
        part.save_pretrained(tmp_path)
    pair = ExpertPair("gender", simple.setting.folders["e1"], simple.setting.folders["a1"], str(tmp_path), alpha=ALPHA)
    chat = ChatTransformers(
        model=str(tmp_path), quantization="int8", experts=pair, temperature=0, max_tokens=4, explain=True
    )
    answer = chat.invoke("e")
    (loaded,) = chat._shared.load().loaded
    assert loaded.untuned.small.model is chat._engine.load()[0]
    first = told(answer)["tokens"][0]
    assert first["after"] == pytest.approx(float(simple.on_base(simple.ids("e")).softmax(-1)[first["token"]]), abs=0.1)


def test_experts_are_named_by_what_is_in_them(simple: Chats, tmp_path: Path) -> None:
    folders = simple.setting.folders
    shutil.copytree(folders["e1"], tmp_path / "elsewhere")

    def named(*, expert: Any = folders["e1"], **more: Any) -> str:
        return str(simple(ExpertPair("g", expert, base="some/model"), **more)._identifying_params)

    assert named() == named(expert=tmp_path / "elsewhere")
    others = [
        named(expert=folders["e2"]), named(alphas={"g": 0.5}), named(filter="base_first"), named(top_p=0.5),
        named(explain=True),
        str(simple(())._identifying_params),
    ]  # fmt: skip
    assert len({named(), *others}) == len(others) + 1


def test_likelihoods_and_next_tokens_are_of_the_corrected_law(chats: Chats) -> None:
    chat = chats()
    law = [("e1", "a1", ALPHA)]
    (scores,) = dict(chat.log_likelihoods([("f t", " y e")])).values()
    ids = list(chats.setting.tokenizer("f t y e", add_special_tokens=False)["input_ids"])
    for place, score in enumerate(scores, start=2):
        expected = chats.setting.definition(ids[:place], law).log_softmax(-1)[ids[place]]
        assert score == pytest.approx(float(expected), abs=1e-4)
    (everything,) = dict(chat.next_token_log_probabilities(["f t"])).values()
    expected = chats.setting.definition(ids[:2], law).log_softmax(-1)
    assert everything == pytest.approx(expected.numpy(), abs=1e-4)
    (off,) = dict(chat.log_likelihoods([("f t", " y e")], alphas={"gender": 0})).values()
    (plain,) = dict(chats(()).log_likelihoods([("f t", " y e")])).values()
    assert off == pytest.approx(plain) and off != pytest.approx(scores)


def test_a_raw_prompt_is_continued_as_it_stands(chats: Chats) -> None:
    chat = chats()
    ids = list(chats.setting.tokenizer("f t", add_special_tokens=False)["input_ids"])
    expected = chats.text(chats.setting.greedy(ids, [("e1", "a1", ALPHA)], STEPS))
    answer = chat.invoke("f t", raw=True)
    assert answer.content == expected != chat.invoke("f t").content
    assert (
        answer.usage_metadata["input_tokens"]
        == 2
        == chats(raw=True).get_num_tokens_from_messages([HumanMessage("f t")])
    )
    for messages in ([SystemMessage("f"), HumanMessage("t")], [HumanMessage("f"), AIMessage("t")]):
        with pytest.raises(InvalidInput, match="raw"):
            chat.invoke(messages, raw=True)


@pytest.mark.slow
@pytest.mark.real_model
def test_smollm2_with_adapters_on_itself_answers_as_generate_does(make_adapter: Any, tmp_path: Path) -> None:
    plain = ChatTransformers(model="smollm2", dtype="float32", device="cpu")
    model, tokenizer, _ = plain._engine.load()
    halves = [make_adapter(tmp_path / f"{i}", model, ["q_proj", "v_proj"], i, rank=8, size=0.05) for i in range(2)]
    pair = ExpertPair("g", *halves, "smollm2", alpha=ALPHA)
    chat = ChatTransformers(model="smollm2", dtype="float32", device="cpu", experts=pair, temperature=0, max_tokens=10)
    calls = [("What is a nurse?", {"g": ALPHA}), ("Hi", {"g": -ALPHA}), ("Tell me about plumbers.", {"g": 0})]
    answers = in_one_batch(chat, calls)
    for (prompt, alphas), answer in zip(calls, answers, strict=True):
        ids = torch.tensor([plain._engine.prompt_ids([{"role": "user", "content": prompt}])])
        loaded = ExpertPair("g", *halves, model, tokenizer=tokenizer)
        processor = ExpertLogitsProcessor(loaded, tokenizer, alphas=alphas)
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), logits_processor=[processor], do_sample=False, max_new_tokens=10
        )
        assert answer.content == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    assert len({answer.content for answer in answers}) == 3
