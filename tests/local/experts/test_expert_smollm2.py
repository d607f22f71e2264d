"""The real small model with a pair of random adapters on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from mpf_chains.local.experts import ExpertEnsemble, ExpertLogitsProcessor, ExpertPair, explain  # noqa: E402

pytestmark = [pytest.mark.real_model, pytest.mark.slow]
TEXTS = ["The nurse said that", "My neighbour, who has been a plumber for many years, told me that"]
STEPS, ALPHA = 6, 0.5


@pytest.fixture(scope="module")
def smollm2() -> Any:
    from mpf_chains.local import load_smollm2

    return load_smollm2(dtype="float32", device="cpu")


def test_random_adapters_on_smollm2_give_what_their_definition_says(
    smollm2: Any, make_adapter: Any, merge: Any, tmp_path: Path
) -> None:
    model, tokenizer = smollm2
    folders = [make_adapter(tmp_path / f"{i}", model, ["q_proj", "v_proj"], i, rank=8, size=0.05) for i in range(2)]
    expert, anti_expert = (merge(model, folder) for folder in folders)

    def definition(ids: list[int]) -> Any:
        with torch.inference_mode():
            z, plus, minus = (each(torch.tensor([ids])).logits[0, -1] for each in (model, expert, anti_expert))
        return z + ALPHA * (plus - minus)

    tokenizer.padding_side = "left"
    inputs = tokenizer(TEXTS, return_tensors="pt", padding=True)
    ensemble = ExpertEnsemble([ExpertPair("g", *folders, model, alpha=ALPHA, tokenizer=tokenizer)])
    processor = ExpertLogitsProcessor(ensemble, tokenizer, attention_mask=inputs["attention_mask"])
    out = model.generate(**inputs, logits_processor=[processor], max_new_tokens=STEPS, do_sample=False)
    plain = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False)
    assert out.tolist() != plain.tolist()
    for text, row in zip(TEXTS, out[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
        ids = prompt = tokenizer(text)["input_ids"]
        for token in row:
            assert token == int(definition(ids).argmax())
            ids = [*ids, token]
        first = explain(model, ensemble, tokenizer, prompt, row)[0]
        assert first.after == pytest.approx(float(definition(prompt).softmax(-1)[row[0]]), abs=1e-4)
        assert tokenizer.decode([row[0]]) == first.text
