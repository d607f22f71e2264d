"""Strengths of experts as perspectives: drawn, merged, calibrated, and kept apart in a ledger."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from mpf_chains import Benchmark, MPFCalibrator, Perspective, PerspectiveSet, Row  # noqa: E402
from mpf_chains.features import CallableFeature  # noqa: E402
from mpf_chains.fusion import ChatMPF, PerspectiveRouter  # noqa: E402
from mpf_chains.local import ChatTransformers  # noqa: E402
from mpf_chains.runtime import Ledger  # noqa: E402

STRENGTHS = {"strong": 1.5, "off": 0.0, "against": -1.0}
PERSPECTIVES = PerspectiveSet([
    Perspective(name, arguments={"alphas": {"gender": alpha}}) for name, alpha in STRENGTHS.items()
])  # fmt: skip
WEIGHTS = {"strong": 0.5, "off": 0.25, "against": 0.25}
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def early_letters(texts: Sequence[str]) -> list[float]:
    """The share of a text's letters that are in the first half of the alphabet."""
    return [sum(letter < "n" for letter in text.split()) / max(1, len(text.split())) for text in texts]


@pytest.fixture
def chat(llama: Any) -> ChatTransformers:
    tokenizer = copy.deepcopy(llama.tokenizer)
    tokenizer.chat_template = "<s> {% for m in messages %}{{ m['content'] }} {% endfor %}"
    return ChatTransformers(
        model=llama.base, tokenizer=tokenizer, experts=llama.pair(), temperature=0, max_tokens=6, max_batch_size=64
    )


def told(message: Any) -> Any:
    return message.response_metadata["experts"]["alphas"]["gender"]


@pytest.mark.parametrize("kind", [PerspectiveRouter, ChatMPF])
async def test_strengths_are_drawn_and_share_a_batch(chat: ChatTransformers, kind: Any) -> None:
    drawing = kind(model=chat, perspectives=PERSPECTIVES, weights=WEIGHTS, sampler="quota", seed=1)
    prompts = [f"{a} {b}" for a in "abcd" for b in "ef"]
    chat._engine.batches.clear()
    answers = await drawing.abatch(prompts)
    assert max(chat._engine.batches) == len(prompts)
    names = [answer.response_metadata["mpf"]["perspective"] for answer in answers]
    assert sorted(names) == sorted(["strong"] * 4 + ["off"] * 2 + ["against"] * 2)
    for prompt, name, answer in zip(prompts, names, answers, strict=True):
        assert told(answer) == STRENGTHS[name]
        assert answer.content == chat.invoke(prompt, alphas={"gender": STRENGTHS[name]}).content


def test_strengths_are_calibrated_and_kept_apart(chat: ChatTransformers) -> None:
    rows = tuple(
        Row(f"{split}{i}", "E", f"{LETTERS[i]} {LETTERS[-1 - i]}", target_score={"early": 0.4}, split=split)
        for split in ("decomposition", "validation")
        for i in range(12)
    )
    benchmark = Benchmark("letters", rows)
    ledger = Ledger()

    def calibrator(model: Any) -> MPFCalibrator:
        feature = CallableFeature(early_letters, name="early", version="1")
        return MPFCalibrator(
            model=model, perspectives=PERSPECTIVES, feature=feature, bins=4, resamples=20, progress=False,
            ledger=ledger, validate=("normal",), max_concurrency=32,
        )  # fmt: skip

    chat._engine.batches.clear()
    calibration = calibrator(chat).invoke(benchmark)
    assert sum(calibration.weights["E"].values()) == pytest.approx(1)
    assert max(chat._engine.batches) > len(STRENGTHS)
    assert calibrator(chat).plan(benchmark).done == 36
    fields = {name: getattr(chat, name) for name in ("model", "tokenizer", "experts", "temperature", "max_tokens")}
    for other in ({"alphas": {"gender": 0.3}}, {"filter": "base_first", "top_p": 0.5}):
        assert calibrator(ChatTransformers(**fields, **other)).plan(benchmark).done == 0
    assert calibrator(ChatTransformers(**fields, alphas={"gender": 1})).plan(benchmark).done == 36  # the pair's own
