"""What experts leave behind in models and identities, after they were used."""

from __future__ import annotations

import copy
import gc
import pickle
import shutil
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from mpf_chains.local import ChatTransformers, ExpertPair  # noqa: E402


def chat_of(llama: Any, experts: Any, **more: Any) -> ChatTransformers:
    tokenizer = copy.deepcopy(llama.tokenizer)
    tokenizer.chat_template = "<s> {% for m in messages %}{{ m['content'] }} {% endfor %}"
    return ChatTransformers(
        model=llama.small, tokenizer=tokenizer, experts=experts, temperature=0, max_tokens=4, speculative=False, **more
    )


def test_models_pickle_after_they_were_used(llama: Any) -> None:
    """A copy of the small model is the small model as it is, without what experts put into it."""
    chat = chat_of(llama, llama.pair())
    chat.invoke("e")
    loaded = pickle.loads(pickle.dumps(llama.small))
    text = torch.tensor([[1, 4, 5]])
    with torch.no_grad():
        assert torch.equal(loaded(text).logits, llama.small(text).logits)
    assert pickle.loads(pickle.dumps(chat)).invoke("e").usage_metadata


def test_an_identity_is_of_what_is_loaded(llama: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(llama.folders["e1"], tmp_path / "expert")
    pair = ExpertPair("gender", folder, llama.folders["a1"], llama.small, tokenizer=llama.tokenizer)
    before = chat_of(llama, pair)
    named = before._identifying_params["experts"]
    shutil.copytree(llama.folders["e2"], folder, dirs_exist_ok=True)
    after = chat_of(llama, pair)
    assert before._identifying_params["experts"] == named != after._identifying_params["experts"]


def test_choices_of_pairs_do_not_pile_up_in_the_model(llama: Any) -> None:
    names = ["a", "b", "c", "d"]
    model = copy.deepcopy(llama.small)
    pairs = [
        ExpertPair(name, llama.folders["e1"], llama.folders["a1"], model, tokenizer=llama.tokenizer) for name in names
    ]
    chat = chat_of(type(llama)(model, model, llama.tokenizer, llama.folders, llama.copies), pairs)

    def hooks() -> int:
        gc.collect()
        return max(len(module._forward_hooks) for module in model.modules())

    copied = hooks()  # what other tests had in the model that this is a copy of
    for size in (1, 2, 3, 4):
        for some in combinations(names, size):
            chat.invoke("e", alphas={name: float(name in some) for name in names})
    assert 1 < hooks() - copied <= 10
