"""Models in GGUF files, as llama.cpp writes them."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
gguf = pytest.importorskip("gguf")

from mpf_chains.errors import InvalidInput, NotSupportedError  # noqa: E402
from mpf_chains.local import ChatTransformers  # noqa: E402

TOKENS = ["<e>", "<u>", "<a>", *string.ascii_letters, "Ġ", ".", "zz"]
TEMPLATE = "{% for m in messages %}{{ '<u>' + m['content'] }}{% endfor %}{{ '<a>' }}"


def write_gguf(model: Any, file: Path) -> None:
    """A Llama in float32, with a byte-level tokenizer."""
    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(TOKENS)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(TOKENS) - 3))
    writer.add_token_merges(["z z"])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    writer.add_chat_template(TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        stem = name.removesuffix(".weight")
        values = tensor.numpy()
        if (count := heads.get(stem.rpartition(".")[2])) is not None:  # llama.cpp pairs rotary columns otherwise
            rows, columns = values.shape
            values = values.reshape(count, 2, rows // count // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        writer.add_tensor(names.get_name(stem) + ".weight", values.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(TOKENS), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, eos_token_id=0, bos_token_id=0, initializer_range=0.4,
    ))  # fmt: skip
    torch.random.set_rng_state(state)
    return model.eval()


@pytest.fixture(scope="module")
def file(llama: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(llama, path)
    return path


def test_a_gguf_file_is_the_model_that_was_written(llama: Any, file: Path) -> None:
    settings: dict[str, Any] = {"temperature": 0, "max_tokens": 12, "logprobs": True}
    by_path = ChatTransformers(model=str(file), **settings)
    by_name = ChatTransformers(model=str(file.parent), gguf_file=file.name, **settings)
    answer = by_path.invoke("abc")
    assert by_name.invoke("abc").content == answer.content
    assert answer.response_metadata["model_name"] == str(file)
    ids = [1, *(TOKENS.index(letter) for letter in "abc"), 2]
    for entry in answer.response_metadata["logprobs"]["content"]:
        with torch.inference_mode():
            scores = llama(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        ids.append(int(scores.argmax()))
        assert entry["logprob"] == pytest.approx(float(scores.max()), abs=1e-4)
    assert by_path._identifying_params["weights"]


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"model": "nowhere/none.gguf"}, InvalidInput, r"no file 'nowhere/none\.gguf'"),
        ({"model": "FOLDER", "gguf_file": "other.gguf"}, InvalidInput, r"no file .*other\.gguf"),
        ({"model": "DAMAGED"}, InvalidInput, r"damaged\.gguf"),
        ({"model": "some/repository", "gguf_file": "none.gguf"}, InvalidInput, "some/repository"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    file: Path, tmp_path: Path, fields: dict[str, str], error: type[Exception], words: str
) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF" + bytes(100))
    places = {"FOLDER": str(file.parent), "DAMAGED": str(damaged)}
    fields = {name: places.get(value, value) for name, value in fields.items()}
    with pytest.raises(error, match=words):
        ChatTransformers(**fields).invoke("abc")


def test_a_loaded_model_has_no_file(llama: Any) -> None:
    with pytest.raises(ValueError, match="gguf_file") as caught:
        ChatTransformers(model=llama, gguf_file="x.gguf")
    assert NotSupportedError.__name__ in repr(caught.value) or "loaded already" in str(caught.value)
