"""Tiny random models, LoRA pairs on them in peft's format, and the definition of expert decoding, without any cache."""

from __future__ import annotations

import copy
import json
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SPECIAL = ["<pad>", "<s>", "<e>"]
WORDS = [*SPECIAL, *string.ascii_lowercase]
PAD, BOS, EOS = 0, 1, 2


def tokenizer_of(words: Sequence[str]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[-1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="<e>", unk_token=words[-1]
    )


def tiny_model(kind: str, seed: int, *, vocabulary: int = len(WORDS), width: int = 32, context: int = 64) -> Any:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    tokens = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=vocabulary, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=context, initializer_range=0.3,
            **tokens,
        ))  # fmt: skip
    else:
        model = GPT2LMHeadModel(GPT2Config(
            vocab_size=vocabulary, n_embd=width, n_layer=2, n_head=4, n_positions=context, initializer_range=0.3,
            **tokens,
        ))  # fmt: skip
    torch.random.set_rng_state(state)
    return model.eval()


TARGETS = {"llama": ("q_proj", "v_proj", "up_proj", "down_proj"), "gpt2": ("c_attn", "c_fc", "c_proj")}


def save_adapter(
    folder: Path, model: Any, targets: Sequence[str], seed: int, *, rank: int = 4, size: float = 0.3
) -> Path:
    """A random LoRA adapter in the format of peft's ``save_pretrained``."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in targets:
            shape = module.weight.shape if hasattr(module, "nf") else module.weight.T.shape  # (in, out)
            for letter, dims in (("A", (rank, shape[0])), ("B", (shape[1], rank))):
                values = torch.randn(dims, generator=generator) * size
                tensors[f"base_model.model.{name}.lora_{letter}.weight"] = values
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "bias": "none", "target_modules": list(targets)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def merged(model: Any, folder: Path | None) -> Any:
    """A copy of the model with an adapter worked into its weights."""
    from safetensors.torch import load_file

    model = copy.deepcopy(model)
    if folder is not None:
        tensors = load_file(folder / "adapter_model.safetensors")
        config = json.loads((folder / "adapter_config.json").read_text())
        for name, down in tensors.items():
            if name.endswith("lora_A.weight"):
                module = model.get_submodule(name[len("base_model.model.") : -len(".lora_A.weight")])
                delta = config["lora_alpha"] / config["r"] * tensors[name.replace("lora_A", "lora_B")] @ down
                module.weight.data += delta.T if hasattr(module, "nf") else delta
    return model


@dataclass
class Setting:
    """A base, a small model, and adapters on it as files and as merged copies."""

    base: Any
    small: Any
    tokenizer: Any
    folders: dict[str, Path]
    copies: dict[str, Any]

    def pair(self, name: str = "gender", expert: str | None = "e1", anti: str | None = "a1", **more: Any) -> Any:
        from mpf_chains.local.experts import ExpertPair

        arguments = dict(base=self.small, tokenizer=self.tokenizer) | more
        return ExpertPair(name, expert and self.folders[expert], anti and self.folders[anti], **arguments)

    def merged(self, folder: Path) -> Any:
        return merged(self.small, folder)

    def definition(self, ids: Sequence[int], pairs: Sequence[tuple[str, str, float]]) -> Any:
        """z + Σ α (z⁺ − z⁻) after these tokens, every model over the whole of them; shape (vocabulary,)."""
        import torch

        text = torch.tensor([list(ids)])
        with torch.no_grad():
            z = self.base(text).logits[0, -1]
            for expert, anti, alpha in pairs:
                z = z + alpha * (self.copies[expert](text).logits[0, -1] - self.copies[anti](text).logits[0, -1])
        return z

    def processor(self, pairs: Sequence[tuple[str, str, float]], prompt_mask: Any) -> Definition:
        return Definition(self, pairs, prompt_mask)

    def greedy(self, prompt: Sequence[int], pairs: Sequence[tuple[str, str, float]], steps: int) -> list[int]:
        ids = list(prompt)
        for _ in range(steps):
            ids.append(int(self.definition(ids, pairs).argmax()))
            if ids[-1] == EOS:
                break
        return ids[len(prompt) :]


class Definition:
    """A logits processor that reads everything again at every step, row by row, without padding."""

    def __init__(self, setting: Setting, pairs: Sequence[tuple[str, str, float]], prompt_mask: Any) -> None:
        self.setting, self.pairs, self.mask = setting, pairs, prompt_mask

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        import torch

        beams = len(input_ids) // len(self.mask)
        rows = [ids[int((self.mask[i // beams] == 0).sum()) :].tolist() for i, ids in enumerate(input_ids)]
        logits = torch.stack([self.setting.definition(row, self.pairs) for row in rows])
        return logits.log_softmax(-1) if scores.exp().sum(-1).allclose(torch.ones(len(rows)), atol=1e-4) else logits


def build(kind: str, folder: Path, words: Sequence[str] = WORDS) -> Setting:
    size = len(words)
    base, small = tiny_model(kind, 1, vocabulary=size, width=48), tiny_model(kind, 2, vocabulary=size)
    names = {"e1": 11, "a1": 12, "e2": 13, "a2": 14}
    folders = {name: save_adapter(folder / name, small, TARGETS[kind], seed) for name, seed in names.items()}
    copies = {name: merged(small, folders[name]) for name in names} | {"small": small}
    return Setting(base, small, tokenizer_of(words), folders, copies)


@pytest.fixture(scope="session", params=["llama", "gpt2"])
def setting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return build(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return build("llama", tmp_path_factory.mktemp("only-llama"))


@pytest.fixture(scope="session")
def few_words(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """With a vocabulary of seven tokens, for which distributions over texts can be enumerated."""
    return build("llama", tmp_path_factory.mktemp("few"), WORDS[:7])


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[[Sequence[str]], Any]:
    return tokenizer_of


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    return tiny_model


@pytest.fixture(scope="session")
def make_adapter() -> Callable[..., Path]:
    return save_adapter


@pytest.fixture(scope="session")
def merge() -> Callable[[Any, Path], Any]:
    return merged


@pytest.fixture
def shapes() -> Iterator[Callable[[Any], list[tuple[int, ...]]]]:
    """Shapes of what a module gets, call by call."""
    handles = []

    def watch(module: Any) -> list[tuple[int, ...]]:
        seen: list[tuple[int, ...]] = []
        handles.append(module.register_forward_pre_hook(lambda _module, inputs: seen.append(tuple(inputs[0].shape))))
        return seen

    yield watch
    for handle in handles:
        handle.remove()
