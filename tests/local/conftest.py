"""A tiny, randomly initialised Llama with a character tokenizer: every property of the wrapper but sensible text."""

from __future__ import annotations

import string
from typing import Any

import pytest

from mpf_chains.local import ChatTransformers

TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'][0] + '>' + m['content'] + '<e>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<a>' }}{% endif %}"
)


def build_tokenizer() -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<e>", "<s>", "<u>", "<a>"]
    vocabulary = {token: i for i, token in enumerate([*special, *string.ascii_letters, *" .,?!\n"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<e>", unk_token="<unk>", chat_template=TEMPLATE
    )


@pytest.fixture(scope="session")
def tiny() -> tuple[Any, Any]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = build_tokenizer()
    generator = torch.random.get_rng_state()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, bos_token_id=None, eos_token_id=1, pad_token_id=1,
        initializer_range=0.4,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    torch.random.set_rng_state(generator)
    return model, tokenizer


@pytest.fixture
def chat(tiny: tuple[Any, Any]) -> ChatTransformers:
    model, tokenizer = tiny
    return ChatTransformers(model=model, tokenizer=tokenizer, max_tokens=24, temperature=0, seed=0)
