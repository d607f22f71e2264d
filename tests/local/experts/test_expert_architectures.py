"""The same equality for models that differ in positions, masks, windows, caches and heads."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from mpf_chains.local.experts import ExpertLogitsProcessor, ExpertPair  # noqa: E402

PROMPTS = [[1, 7, 9, 4, 20, 11], [1, 5], [1, 25, 8, 13]]
STEPS = 8
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
GROUPED = SIZES | {"num_key_value_heads": 2, "max_position_embeddings": 64}
KINDS: dict[str, dict[str, Any]] = {
    "mistral": GROUPED | {"sliding_window": 4},  # shorter than the prompts
    "qwen2": GROUPED,
    "gemma2": GROUPED | {"head_dim": 8, "sliding_window": 4, "final_logit_softcapping": 5.0},
    "phi": SIZES | {"max_position_embeddings": 64},  # a head with a bias
    "gpt_neox": SIZES | {"max_position_embeddings": 64},
    "opt": {key: value for key, value in SIZES.items() if key != "intermediate_size"}
    | {"ffn_dim": 48, "max_position_embeddings": 64, "word_embed_proj_dim": 32},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},  # ALiBi: positions from the mask alone
    "granite": GROUPED | {"logits_scaling": 4.0},
}
TARGETS = ["q_proj", "v_proj", "up_proj", "query_key_value", "fc1", "dense_h_to_4h"]


def random_model(kind: str, seed: int) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    tokens = {"vocab_size": 29, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **KINDS[kind], **tokens))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_batch_is_the_definition(llama: Any, kind: str, make_adapter: Any, merge: Any, tmp_path: Any) -> None:
    base, small = llama.base, random_model(kind, 2)
    folders = [make_adapter(tmp_path / f"{i}", small, TARGETS, i) for i in range(2)]
    copies = {name: merge(small, folder) for name, folder in zip("ea", folders, strict=True)}
    setting, pairs = type(llama)(base, small, llama.tokenizer, {}, copies), [("e", "a", 1.5)]
    longest = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in PROMPTS])
    mask = (ids != 0).long()
    pair = ExpertPair("g", *folders, small, alpha=1.5, tokenizer=llama.tokenizer)
    ours, theirs = ExpertLogitsProcessor(pair, llama.tokenizer, attention_mask=mask), setting.processor(pairs, mask)
    for beams in (1, 3):
        arguments: dict[str, Any] = {"max_new_tokens": STEPS, "num_beams": beams, "do_sample": False, "pad_token_id": 0}
        rows, expected, plain = (
            base.generate(ids, attention_mask=mask, logits_processor=processors, **arguments).tolist()
            for processors in ([ours], [theirs], [])
        )
        assert rows == expected != plain
