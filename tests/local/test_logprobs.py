from __future__ import annotations

import math
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pytest

from mpf_chains.local import ChatTransformers


def logged(message: Any) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = message.response_metadata["logprobs"]["content"]
    return content


def test_they_are_the_models_own_whatever_the_sampling(chat: ChatTransformers, tiny: tuple[Any, Any]) -> None:
    import torch

    model, tokenizer = tiny
    answer = chat.invoke("Why?", temperature=0.5, top_k=20, seed=3, logprobs=True, top_logprobs=3)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Why?"}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    entries = logged(answer)
    tokens = tokenizer.convert_tokens_to_ids([entry["token"] for entry in entries])
    with torch.inference_mode():
        scores = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    own = scores.gather(1, torch.tensor(tokens)[:, None])[:, 0].numpy()
    np.testing.assert_allclose([entry["logprob"] for entry in entries], own, atol=1e-4)
    values, ids = scores.topk(3)
    for entry, logprobs, top in zip(entries, values.tolist(), ids.tolist(), strict=True):
        assert [other["token"] for other in entry["top_logprobs"]] == tokenizer.convert_ids_to_tokens(top)
        np.testing.assert_allclose([other["logprob"] for other in entry["top_logprobs"]], logprobs, atol=1e-4)
    assert chat.invoke("Why?", temperature=0.5, top_k=20, seed=3).content == answer.content


@pytest.mark.parametrize("stop", [None, "cut"])
async def test_every_way_of_answering_gives_them(chat: ChatTransformers, stop: str | None) -> None:
    plain = chat.invoke("Hi", temperature=1.0, seed=4)
    stops = [plain.text[9:12]] if stop else None
    with_them = ChatTransformers(
        model=chat.model, tokenizer=chat.tokenizer, temperature=1, seed=4, max_tokens=24, logprobs=True, top_logprobs=2,
        stop=stops,
    )  # fmt: skip
    whole = with_them.invoke("Hi")
    assert "".join(entry["token"] for entry in logged(whole)) == whole.content
    assert (len(whole.text) < len(plain.text)) == bool(stop)
    streams = [list(with_them.stream("Hi")), [chunk async for chunk in with_them.astream("Hi")]]
    for answer in [*with_them.batch(["Hi", "Why?"])[:1], *(reduce(add, stream) for stream in streams)]:
        assert [(e["token"], e["bytes"]) for e in logged(answer)] == [(e["token"], e["bytes"]) for e in logged(whole)]
        np.testing.assert_allclose(
            [e["logprob"] for e in logged(answer)], [e["logprob"] for e in logged(whole)], atol=1e-4
        )
    for chunk in streams[0][:-1]:
        assert "".join(entry["token"] for entry in logged(chunk)) == chunk.content


def test_off_is_free_and_on_is_per_call(chat: ChatTransformers, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    calls: list[int] = []
    original = torch.Tensor.log_softmax
    monkeypatch.setattr(torch.Tensor, "log_softmax", lambda *a, **k: calls.append(1) or original(*a, **k))
    assert "logprobs" not in chat.invoke("Hi").response_metadata
    assert not calls
    assert logged(chat.invoke("Hi", logprobs=True))[0]["top_logprobs"] == []
    assert calls
    assert (
        "logprobs"
        not in ChatTransformers(model=chat.model, tokenizer=chat.tokenizer, logprobs=True)
        .invoke("Hi", logprobs=False, max_tokens=3)
        .response_metadata
    )


@pytest.mark.parametrize("arguments", [{"top_logprobs": 2}, {"logprobs": True, "top_logprobs": -1}])
def test_what_makes_no_sense_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="top_logprobs"):
        ChatTransformers(model="smollm2", **arguments)


@pytest.mark.real_model
def test_bytes_of_tokens_make_up_the_text() -> None:
    model = ChatTransformers(model="smollm2", temperature=0, max_tokens=16, logprobs=True, top_logprobs=1)
    answer = model.invoke("Repeat: 😀 naïve – 東京")
    entries = logged(answer)
    assert bytes(byte for entry in entries for byte in entry["bytes"]).decode(errors="replace") == answer.content
    assert all(entry["logprob"] == entry["top_logprobs"][0]["logprob"] for entry in entries)  # greedy
    assert all(math.isfinite(entry["logprob"]) and entry["logprob"] <= 0 for entry in entries)
    from mpf_chains.local.logprobs import token_bytes

    _, tokenizer, _ = model._engine.load()
    for text in ("😀 naïve – 東京\n\ttab", "<|im_start|>user"):
        assert b"".join(token_bytes(tokenizer, i) for i in tokenizer.encode(text)).decode() == text
