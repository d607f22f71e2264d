from __future__ import annotations

import sys
from typing import Any

import pytest

from mpf_chains.errors import MissingExtra
from mpf_chains.local import ChatTransformers


def test_without_torchao_the_extra_is_named(
    tiny: tuple[Any, Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in tiny:
        part.save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(MissingExtra, match=r"torchao.*mpf-chains\[int8\]"):
        ChatTransformers(model=str(tmp_path), quantization="int8").invoke("Hi")


def test_a_loaded_model_is_not_changed(tiny: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match="loaded already"):
        ChatTransformers(model=tiny[0], tokenizer=tiny[1], quantization="int8")


def test_it_is_part_of_what_the_model_is() -> None:
    plain, rounded = ChatTransformers(model="smollm2"), ChatTransformers(model="smollm2", quantization="int8")
    assert "quantization" not in plain._identifying_params
    assert rounded._identifying_params["quantization"] == "int8"
    assert plain._engine is not rounded._engine


@pytest.mark.real_model
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_weights_take_half_and_probabilities_hardly_change(dtype: str) -> None:
    pytest.importorskip("torchao")
    plain = ChatTransformers(model="smollm2", dtype=dtype)
    rounded = ChatTransformers(model="smollm2", dtype=dtype, quantization="int8")
    text = "The Treaty of Versailles ended the state of war between Germany and most of the Allied Powers."
    before, after = (dict(model.log_likelihoods([("", text)]))[0] for model in (plain, rounded))
    assert abs(before.mean() - after.mean()) < 0.05  # nats
    assert (before != after).any()
    model, _, _ = rounded._engine.load()
    layers = [module for module in model.modules() if type(module).__name__ == "Int8Linear"]
    assert len(layers) == 7 * model.config.num_hidden_layers + 1
    assert all(layer.weight.element_size() == 1 for layer in layers)
    answers = rounded.bind(temperature=0, max_tokens=8).batch(["What is the capital of France?"] * 2)
    assert "Paris" in answers[0].text + plain.invoke("What is the capital of France?", temperature=0, max_tokens=8).text
