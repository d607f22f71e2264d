import asyncio
import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage, trim_messages

from mpf_chains.errors import GenerationError, InvalidInput, NotSupportedError
from mpf_chains.local import ChatTransformers

PROMPTS = ["Hi", "Tell me more about it, please.", "Why?", "A much longer question, so that others are padded. " * 2]


def text_of(chunks: list[AIMessageChunk]) -> str:
    return "".join(str(chunk.text) for chunk in chunks)


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 1.0}, {"temperature": 0.8, "top_k": 9}])
def test_a_row_of_a_batch_equals_the_row_alone(chat: ChatTransformers, sampling: dict[str, Any]) -> None:
    model = chat.bind(**sampling)
    alone = [model.invoke(prompt) for prompt in PROMPTS]
    chat._engine.batches.clear()
    together = model.batch(PROMPTS)
    assert max(chat._engine.batches) > 1
    assert [m.content for m in together] == [m.content for m in alone]
    assert [m.usage_metadata for m in together] == [m.usage_metadata for m in alone]


def test_greedy_is_what_transformers_generates(chat: ChatTransformers, tiny: tuple[Any, Any]) -> None:
    import torch

    model, tokenizer = tiny
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Why?"}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    with torch.inference_mode():
        out = model.generate(**ids, max_new_tokens=24, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert chat.invoke("Why?").content == tokenizer.decode(out, skip_special_tokens=True)


def test_answers_longer_than_a_cache_block_are_right(chat: ChatTransformers, tiny: tuple[Any, Any]) -> None:
    long = chat.bind(max_tokens=300, temperature=1.0, seed=5)
    alone, together = long.invoke("Hi"), long.batch(["Hi", "Why?", "Hi"])
    assert together[0].content == together[2].content == alone.content


async def test_twenty_concurrent_calls_form_few_batches(chat: ChatTransformers) -> None:
    chat._engine.batches.clear()
    answers = await asyncio.gather(*(chat.ainvoke(f"Hi {i}", seed=i, temperature=1.0) for i in range(20)))
    assert sum(chat._engine.batches) == 20
    assert len(chat._engine.batches) <= 3
    assert len({answer.content for answer in answers}) > 15


def test_seeds(chat: ChatTransformers) -> None:
    first, again, other = (chat.invoke("Hi", temperature=1.0, seed=seed).content for seed in (1, 1, 2))
    assert first == again != other
    free = chat.bind(temperature=1.0, seed=None)
    assert free.invoke("Hi").content != free.invoke("Hi").content


@pytest.mark.parametrize("arguments", [{}, {"stop": ["e", "ab"]}])
async def test_streams_add_up_to_the_answer(chat: ChatTransformers, arguments: dict[str, Any]) -> None:
    model = chat.bind(temperature=1.0, seed=4, **arguments)
    whole = model.invoke("Hi")
    sync = list(model.stream("Hi"))
    asynchronous = [chunk async for chunk in model.astream("Hi")]
    for chunks in (sync, asynchronous):
        assert text_of(chunks) == whole.content
        assert chunks[-1].chunk_position == "last"
        total = chunks[0]
        for chunk in chunks[1:]:
            total += chunk
        assert total.usage_metadata == whole.usage_metadata
        assert total.response_metadata == whole.response_metadata


def test_usage_and_metadata(chat: ChatTransformers) -> None:
    answer = chat.invoke([SystemMessage("Be kind"), HumanMessage("Hi")], temperature=1.0, max_tokens=5, seed=3)
    assert answer.usage_metadata == {"input_tokens": 9 + 4 + 1, "output_tokens": 5, "total_tokens": 19}
    assert answer.response_metadata["finish_reason"] == "length"
    assert answer.response_metadata["model_name"] == "LlamaForCausalLM"
    assert len(answer.text) == 5


def test_stop_texts_end_the_answer(chat: ChatTransformers) -> None:
    whole = chat.invoke("Hi", temperature=1.0, seed=3).text
    stop = whole[6:9]
    answer = chat.invoke("Hi", temperature=1.0, seed=3, stop=[stop])
    assert answer.text == whole[: whole.index(stop)]
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == whole.index(stop) + 3


def test_a_stop_text_may_stand_alone(chat: ChatTransformers) -> None:
    whole = chat.invoke("Hi", temperature=1.0, seed=3).text
    one = chat.bind(temperature=1.0, seed=3, stop=whole[6:9]).invoke("Hi")
    assert one.text == whole[: whole.index(whole[6:9])]
    assert ChatTransformers(model="smollm2", stop="ab").stop == ["ab"]


def test_a_cache_keeps_answers_with_notes_apart(chat: ChatTransformers) -> None:
    stored = chat.model_copy(update={"cache": InMemoryCache()})
    assert "logprobs" not in stored.invoke("Hi").response_metadata
    noting = stored.model_copy(update={"logprobs": True})
    assert noting.invoke("Hi").response_metadata["logprobs"]["content"][0]["top_logprobs"] == []
    more = noting.model_copy(update={"top_logprobs": 2}).invoke("Hi")
    assert len(more.response_metadata["logprobs"]["content"][0]["top_logprobs"]) == 2


def test_a_copy_loads_what_its_fields_say(chat: ChatTransformers, tiny: tuple[Any, Any], tmp_path: Path) -> None:
    for part in tiny:
        part.save_pretrained(tmp_path)
    named = chat.model_copy(update={"model": str(tmp_path), "tokenizer": None, "dtype": "float64", "max_batch_size": 2})
    assert named.invoke("Hi").response_metadata["model_name"] == str(tmp_path)
    assert str(named._engine.load()[0].dtype) == "torch.float64"
    named._engine.batches.clear()
    named.batch(["Hi"] * 5)
    assert max(named._engine.batches) <= 2
    assert chat.model_copy(update={"temperature": 1.0})._engine is chat._engine is not named._engine


def test_what_is_loaded_cannot_be_assigned(chat: ChatTransformers) -> None:
    for name in ("model", "tokenizer", "revision", "device", "dtype", "quantization", "gguf_file", "max_batch_size"):
        with pytest.raises(NotSupportedError, match=f"`{name}`.*model_copy"):
            setattr(chat, name, getattr(chat, name))
    chat.max_tokens = 3
    assert chat.invoke("Hi").usage_metadata["output_tokens"] == 3
    for update in ({"quantization": "int8"}, {"max_batch_size": 0}, {"temprature": 1}, {"temperature": -1}):
        with pytest.raises(ValueError, match=next(iter(update))):
            chat.model_copy(update=update)


def test_an_end_token_ends_the_answer(chat: ChatTransformers) -> None:
    answers = [chat.invoke("Hi", temperature=1.5, seed=seed, max_tokens=200) for seed in range(5)]
    ended = [answer for answer in answers if answer.response_metadata["finish_reason"] == "stop"]
    assert ended
    assert all("<e>" not in answer.text for answer in answers)


def test_a_closed_stream_stops_generating(chat: ChatTransformers, tiny: tuple[Any, Any]) -> None:
    passes = []
    handle = tiny[0].register_forward_hook(lambda *_: passes.append(1))
    try:
        stream = chat.stream("Hi", max_tokens=400, temperature=1.0, seed=8)
        next(stream)
        stream.close()
        chat.invoke("Hi", max_tokens=1)  # runs after the closed one has left
    finally:
        handle.remove()
    assert len(passes) < 300


async def test_a_cancelled_call_stops_generating_and_the_others_finish(chat: ChatTransformers) -> None:
    task = asyncio.create_task(chat.ainvoke("Hi", max_tokens=400))
    await asyncio.sleep(0)
    task.cancel()
    assert (await chat.ainvoke("Why?")).content == chat.invoke("Why?").content
    with pytest.raises(asyncio.CancelledError):
        await task


def test_one_bad_request_does_not_reach_its_batch(chat: ChatTransformers) -> None:
    image = HumanMessage([{"type": "image_url", "image_url": {"url": "https://example.org/x.png"}}])
    answers = chat.batch([[HumanMessage("Hi")], [image], [HumanMessage("Why?")]], return_exceptions=True)
    assert isinstance(answers[1], NotSupportedError)
    assert [answers[0].content, answers[2].content] == [chat.invoke("Hi").content, chat.invoke("Why?").content]


def test_a_failing_model_fails_the_call_and_not_the_next(chat: ChatTransformers, tiny: tuple[Any, Any]) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    handle = tiny[0].register_forward_pre_hook(fail)
    with pytest.raises(GenerationError, match="out of memory"):
        chat.invoke("Hi")
    handle.remove()
    assert chat.invoke("Hi").usage_metadata


def test_consecutive_messages_of_one_role_are_merged(chat: ChatTransformers) -> None:
    parts = chat.invoke([HumanMessage("Hi"), HumanMessage([{"type": "text", "text": "Why?"}])])
    assert parts.content == chat.invoke("Hi\n\nWhy?").content


@pytest.mark.parametrize(
    ("messages", "arguments", "error", "words"),
    [
        ("Hi", {"tool": []}, NotSupportedError, "argument.*tool"),
        ("Hi", {"top_logprobs": 2}, InvalidInput, "logprobs"),
        ("Hi", {"max_tokens": 0}, InvalidInput, "max_tokens"),
        ("Hi", {"temperature": -1}, InvalidInput, "temperature"),
        *(
            ("Hi", {name: value}, InvalidInput, f"`{name}` is")
            for name, values in {
                "max_tokens": ("1", None, 3.5),
                "timeout": ("x", -1, 1e300),
                "stop": (3, ["a", 3], b"ab"),
                "alphas": ("gender", [1, 2], 1.0, ""),
            }.items()
            for value in values
        ),
        ([], {}, InvalidInput, "no messages"),
        ([HumanMessage("x"), ToolMessage("3", tool_call_id="1")], {}, InvalidInput, "answers the call '1'"),
        (
            [AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "1"}])],
            {},
            NotSupportedError,
            "tool",
        ),
        ("x" * 600, {}, InvalidInput, "context holds 512"),
    ],
)
def test_what_cannot_be_done_is_refused(
    chat: ChatTransformers, messages: Any, arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        chat.invoke(messages, **arguments)


def test_the_answer_ends_where_the_context_ends(chat: ChatTransformers) -> None:
    answer = chat.invoke("x" * 505, temperature=1.0, max_tokens=50, seed=1)
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["total_tokens"] <= 512


def test_a_template_without_system_messages_says_so(tiny: tuple[Any, Any]) -> None:
    tokenizer = copy.deepcopy(tiny[1])
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(NotSupportedError, match="System role not supported"):
        ChatTransformers(model=tiny[0], tokenizer=tokenizer).invoke("Hi")
    tokenizer.chat_template = None
    with pytest.raises(InvalidInput, match="no chat template"):
        ChatTransformers(model=tiny[0], tokenizer=tokenizer).invoke("Hi")


def test_a_model_is_found_in_a_folder_and_shared(tiny: tuple[Any, Any], chat: ChatTransformers, tmp_path: Any) -> None:
    for part in tiny:
        part.save_pretrained(tmp_path)
    model = ChatTransformers(model=str(tmp_path), temperature=0, max_new_tokens=24)
    assert not model._engine.loaded
    twin = pickle.loads(pickle.dumps(model))
    assert twin._engine is model._engine is copy.deepcopy(model)._engine
    assert model.invoke("Hi").content == chat.invoke("Hi").content
    assert twin._engine.loaded
    assert model.invoke("Hi").response_metadata["model_name"] == str(tmp_path)


def test_a_missing_model_is_named(tmp_path: Any) -> None:
    with pytest.raises(InvalidInput, match="nothing-here"):
        ChatTransformers(model=str(tmp_path / "nothing-here")).invoke("Hi")


async def ask(model: Any, way: str) -> None:
    if way == "invoke":
        model.invoke("Hi")
    elif way == "ainvoke":
        await model.ainvoke("Hi")
    elif way == "stream":
        list(model.stream("Hi"))
    else:
        _ = [chunk async for chunk in model.astream("Hi")]


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream"])
async def test_a_timeout_ends_the_call(chat: ChatTransformers, tiny: tuple[Any, Any], way: str) -> None:
    passes = []
    handle = tiny[0].register_forward_hook(lambda *_: passes.append(1))
    try:
        with pytest.raises(GenerationError, match=r"timeout of 0\.05 s") as caught:
            await ask(chat.bind(timeout=0.05, max_tokens=450, temperature=1.0, seed=8), way)
        chat.invoke("Hi", max_tokens=1, timeout=60)  # runs after the slow one has left
    finally:
        handle.remove()
    assert caught.value.retryable
    assert len(passes) < 400


def test_tokens_are_counted_as_the_model_counts(chat: ChatTransformers) -> None:
    assert chat.get_num_tokens("Why?") == 4
    assert (
        chat.get_num_tokens_from_messages([HumanMessage("Why?")]) == chat.invoke("Why?").usage_metadata["input_tokens"]
    )
    conversation = [HumanMessage("Hi"), AIMessage("Why?"), HumanMessage("Tell me more about it, please.")]
    limit = chat.get_num_tokens_from_messages(conversation[-1:])
    trimmed = trim_messages(conversation, max_tokens=limit, token_counter=chat, strategy="last")
    assert trimmed == conversation[-1:]


def test_importing_and_constructing_loads_no_torch() -> None:
    code = (
        "import sys; from mpf_chains.local import ChatTransformers; ChatTransformers(model='smollm2'); "
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_misspelt_fields_are_refused() -> None:
    with pytest.raises(ValueError, match="temprature"):
        ChatTransformers(model="smollm2", temprature=1)


def test_a_loaded_model_is_named_by_its_weights_too(tiny: tuple[Any, Any]) -> None:
    import copy

    import torch

    model, tokenizer = tiny
    changed = copy.deepcopy(model)
    of = [ChatTransformers(model=each, tokenizer=tokenizer) for each in (model, changed)]
    assert len({str(chat._identifying_params) for chat in of}) == 1
    with torch.no_grad():
        changed.model.norm.weight.mul_(1.5)
    assert len({str(chat._identifying_params) for chat in of}) == 2


def test_a_folder_that_was_trained_on_is_another_model(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    import copy

    import torch

    model, tokenizer = tiny
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.model.norm.weight.mul_(1.5)
    scores, names = [], []
    for saved in (model, changed):
        saved.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        chat = ChatTransformers(model=str(tmp_path))
        names.append(str(chat._identifying_params))
        scores.append(dict(chat.log_likelihoods([("", "abc")]))[0].sum())
    assert names[0] != names[1]
    assert scores[0] != scores[1]
