"""Steering adapters: a fresh one is a no-op (fault 36), files keep everything, damaged ones are refused (fault 34)."""

from __future__ import annotations

import copy
import json
import pickle
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from mpf_chains.errors import InvalidInput, MPFError  # noqa: E402
from mpf_chains.local.experts.files.adapter import Adapter  # noqa: E402
from mpf_chains.local.prompt import write_prompt  # noqa: E402
from mpf_chains.local.steering.adapter import STEERING, SteeringAdapter  # noqa: E402
from mpf_chains.local.steering.calibration.calibration import calibrate  # noqa: E402
from mpf_chains.local.steering.calibration.states import read_states  # noqa: E402
from mpf_chains.local.steering.steered import Steered  # noqa: E402
from mpf_chains.local.steering.tokens import SteeringTokens  # noqa: E402
from mpf_chains.targets.table import TargetTable  # noqa: E402
from mpf_chains.targets.templates import prompts_about  # noqa: E402

CLASSES = ("female", "male")
TARGETS = TargetTable({"gender": CLASSES}, ("nurse", "plumber"), [[0.9, 0.1], [0.05, 0.95]])
NEW, EXISTING = SteeringTokens("gender", CLASSES), SteeringTokens("gender", CLASSES, ("x", "y"))
MODULE = "model.layers.1.self_attn.q_proj"


def lora_of(model: Any) -> Adapter:
    generator = torch.Generator().manual_seed(0)
    factors = {
        MODULE: (torch.randn(3, 32, generator=generator), torch.randn(32, 3, generator=generator)),
        "model.layers.0.mlp.down_proj": (
            torch.randn(2, 64, generator=generator),
            torch.randn(32, 2, generator=generator),
        ),
    }
    return Adapter("test", factors)


def trained(tiny: Any, *, lora: bool = True, tokens: SteeringTokens = NEW) -> SteeringAdapter:
    model, tokenizer = tiny
    fresh = SteeringAdapter.fresh(model, tokenizer, tokens, TARGETS)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(2, 32, generator=generator) if tokens.new else None
    outputs = torch.randn(2, 32, generator=generator) * 0.1
    return SteeringAdapter(tokens, TARGETS, outputs, inputs, lora_of(model) if lora else None, fresh.base)


def prompt_ids(tokenizer: Any, text: str = "Who is a nurse?") -> list[int]:
    return write_prompt(tokenizer, [{"role": "user", "content": text}])


@pytest.mark.parametrize("tokens", [NEW, EXISTING])
def test_36_a_fresh_adapter_is_a_no_op(tiny: Any, tokens: SteeringTokens, tmp_path: Path) -> None:
    model, tokenizer = tiny
    SteeringAdapter.fresh(model, tokenizer, tokens, TARGETS).save(tmp_path)
    fresh = SteeringAdapter.load(tmp_path)
    text = torch.tensor([prompt_ids(tokenizer), prompt_ids(tokenizer, "Who is a judge?")])
    steered = Steered(model, tokenizer, fresh)
    with torch.no_grad():
        before = model(text).logits
        with steered.active():
            assert torch.equal(model(text).logits, before)
    assert torch.equal(model(text).logits, before)
    if tokens.new:
        assert steered.shares(text.tolist()).tolist() == [[0.5, 0.5], [0.5, 0.5]]
    else:
        expected = before[:, -1].log_softmax(-1)[:, list(steered.ids)].tolist()
        assert steered.log_probabilities(text.tolist()) == pytest.approx(torch.tensor(expected).numpy(), abs=1e-5)


@pytest.mark.parametrize("tokens", [NEW, EXISTING])
def test_rows_and_low_rank_changes_do_what_they_are_defined_to_do(tiny: Any, tokens: SteeringTokens) -> None:
    model, tokenizer = tiny
    adapter = trained(tiny, tokens=tokens)
    steered = Steered(model, tokenizer, adapter)
    merged = copy.deepcopy(model)
    for name, (down, up) in adapter.lora.factors.items():
        merged.get_submodule(name).weight.data += up @ down
    prompt = prompt_ids(tokenizer)
    with torch.no_grad():
        output = merged(torch.tensor([prompt]), output_hidden_states=True)
        logits, state = output.logits[0, -1], output.hidden_states[-1][0, -1]
        if tokens.new:
            everything = torch.cat([logits, adapter.output_rows @ state])
        else:
            everything = logits.clone()
            everything[list(steered.ids)] += adapter.output_rows @ state
    wanted = everything.log_softmax(-1)[list(steered.ids)]
    padded = [prompt_ids(tokenizer, "Tell me at length who this nurse is."), prompt]
    assert steered.log_probabilities(padded)[1] == pytest.approx(wanted.numpy(), abs=1e-4)
    assert steered.shares(padded).sum(axis=1) == pytest.approx([1, 1])

    rows = merged.get_input_embeddings().weight.detach()
    if tokens.new:
        rows = torch.cat([rows, adapter.input_rows])
    for k, id_ in enumerate(steered.ids):
        with torch.no_grad(), steered.active():
            found = model(torch.tensor([[*prompt, id_, prompt[0]]])).logits[0]
        with torch.no_grad():
            wanted = merged(inputs_embeds=rows[[*prompt, id_, prompt[0]]][None]).logits[0]
        assert torch.allclose(found, wanted, atol=1e-4), k


def test_new_tokens_are_generated_from_without_resizing(tiny: Any) -> None:
    model, tokenizer = tiny
    steered = Steered(model, tokenizer, trained(tiny))
    texts = []
    for id_ in steered.ids:
        with steered.active():
            ids = torch.tensor([[*prompt_ids(tokenizer), id_]])
            mask = torch.ones_like(ids)
            texts.append(
                model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
            )
    assert not torch.equal(*texts) and max(map(max, texts)) < len(tokenizer)
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer)


def test_a_pass_that_fails_leaves_nothing_behind(tiny: Any) -> None:
    model, tokenizer = tiny
    steered = Steered(model, tokenizer, trained(tiny))
    text = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        before = model(text).logits
        with steered.active(), pytest.raises(IndexError):
            model(torch.tensor([[steered.ids[0], steered.ids[1], -1]]))
        assert torch.equal(model(text).logits, before)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("tokens", [NEW, EXISTING])
def test_a_file_keeps_everything(tiny: Any, tmp_path: Path, tokens: SteeringTokens, lora: bool) -> None:
    model, tokenizer = tiny
    plain = trained(tiny, tokens=tokens, lora=lora)
    adapter = replace(plain, plain_opening=tokens.new)
    assert (adapter.digest == plain.digest) is not tokens.new
    adapter.save(tmp_path / "a" / "b")
    again = SteeringAdapter.load(tmp_path / "a" / "b")
    assert again.plain_opening is tokens.new
    if not tokens.new:
        with pytest.raises(InvalidInput, match="existing tokens would begin a plain opening"):
            replace(plain, plain_opening=True)
    assert again.digest == adapter.digest and again.base == adapter.base
    assert again.tokens == adapter.tokens and again.targets.digest == TARGETS.digest
    again.check(model, tokenizer)
    names = {"steering.safetensors"} | ({"adapter_config.json", "adapter_model.safetensors"} if lora else set())
    assert {file.name for file in (tmp_path / "a" / "b").iterdir()} == names
    assert (
        SteeringAdapter(tokens, TARGETS.select(["nurse"]), adapter.output_rows, adapter.input_rows).digest
        != adapter.digest
    )


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_low_rank_changes_are_in_the_format_of_peft(tiny: Any, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model, tokenizer = tiny
    adapter = trained(tiny)
    adapter.save(tmp_path)
    text = torch.tensor([prompt_ids(tokenizer)])
    with torch.no_grad(), Steered(model, tokenizer, adapter).active():
        wanted = model(text).logits
    with torch.no_grad():
        assert torch.allclose(
            peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path)(text).logits, wanted, atol=1e-4
        )


def test_fitted_rows_give_the_shares_that_the_fit_says(tiny: Any) -> None:
    model, tokenizer = tiny
    for tokens in (NEW, EXISTING):
        prompts = prompts_about(TARGETS.contexts, ["Who is {a_context}?"])
        readings = read_states(model, tokenizer, prompts, tokens)
        fitted = calibrate(readings, TARGETS, ridge=1e-6)
        fresh = SteeringAdapter.fresh(model, tokenizer, tokens, TARGETS)
        adapter = SteeringAdapter(tokens, TARGETS, torch.tensor(fitted.fit.rows), fresh.input_rows, base=fresh.base)
        found = Steered(model, tokenizer, adapter).shares([prompt_ids(tokenizer, prompt.text) for prompt in prompts])
        assert found == pytest.approx(TARGETS.flat, abs=0.01)


class Bomb:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def about(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        with safe_open(str(file), "pt") as opened:
            metadata = dict(opened.metadata())
        content = change(json.loads(metadata["mpf_steering"]))
        save_file(load_file(file), file, metadata={**metadata, "mpf_steering": json.dumps(content)})

    return damage


def tensors(**others: Any) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        with safe_open(str(file), "pt") as opened:
            metadata = dict(opened.metadata())
        content = {name: tensor for name, tensor in {**load_file(file), **others}.items() if tensor is not None}
        save_file(content, file, metadata=metadata)

    return damage


ONE = {"output_rows": torch.zeros(2, 2)}
DAMAGE = {
    "cut off": (lambda file: file.write_bytes(file.read_bytes()[:-100]), "tensor '.*cut off"),
    "absurd header": (lambda file: file.write_bytes(struct.pack("<Q", 2**62) + b"{}"), "not a safetensors file"),
    "no metadata": (lambda file: save_file(ONE, file), "lacks 'mpf_steering'"),
    "no JSON": (lambda file: save_file(ONE, file, metadata={"mpf_steering": "{"}), "no steering adapter"),
    "deep JSON": (lambda file: save_file(ONE, file, metadata={"mpf_steering": "[" * 100_000}), "no steering adapter"),
    "a list": (about(lambda _: [1]), "no steering adapter"),
    "newer": (about(lambda content: content | {"format": 9}), "format 9"),
    "no classes": (about(lambda content: {"format": 1}), "lacks 'attributes'"),
    "classes are numbers": (about(lambda content: content | {"attributes": [["a", [1, 2]]]}), "no steering adapter"),
    "other classes": (about(lambda content: content | {"attributes": [["a", ["x", "y", "z"]]]}), "shape"),
    "contexts are a number": (about(lambda content: content | {"contexts": 3}), "no steering adapter"),
    "tokens are a number": (about(lambda content: content | {"tokens": 3}), "no steering adapter"),
    "one token too few": (about(lambda content: content | {"tokens": ["x"]}), "1 tokens for the 2 classes"),
    "tokens that exist": (about(lambda content: content | {"tokens": ["x", "y"]}), "new tokens, and only those"),
    "no rows": (tensors(output_rows=None), "lacks 'output_rows'"),
    "no targets": (tensors(targets=None), "lacks 'targets'"),
    "no input rows": (tensors(input_rows=None), "new tokens, and only those"),
    "a row too few": (tensors(output_rows=torch.zeros(1, 32)), r"shape \(1, 32\)"),
    "not finite": (tensors(input_rows=torch.full((2, 32), float("nan"))), "'input_rows'.*finite"),
    "whole numbers": (tensors(output_rows=torch.zeros(2, 32).long()), "'output_rows'.*finite"),
    "no distribution": (tensors(targets=torch.ones(2, 2)), "sum to"),
    "other tensors": (tensors(**{"lm_head.weight": torch.zeros(2)}), "'lm_head.weight'"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_34_a_damaged_adapter_is_refused_by_file(tiny: Any, tmp_path: Path, kind: str) -> None:
    trained(tiny, lora=False).save(tmp_path)
    damage, message = DAMAGE[kind]
    damage(tmp_path / STEERING)
    with pytest.raises(MPFError, match=message) as raised:
        SteeringAdapter.load(tmp_path)
    assert str(tmp_path / STEERING) in str(raised.value)


@pytest.mark.parametrize("saved", ["pickle", "torch"])
@pytest.mark.parametrize("name", [STEERING, "adapter_model.safetensors", "steering.pt"])
def test_34_a_pickle_is_not_opened(tiny: Any, tmp_path: Path, name: str, saved: str) -> None:
    trained(tiny).save(tmp_path)
    if name == "steering.pt":
        (tmp_path / STEERING).unlink()
    if saved == "pickle":
        (tmp_path / name).write_bytes(pickle.dumps(Bomb(tmp_path / "trap")))
    else:
        torch.save({"x": Bomb(tmp_path / "trap")}, tmp_path / name)
    with pytest.raises(
        InvalidInput, match=r"steering\.pt can run code" if name == "steering.pt" else "not a safetensors file"
    ):
        SteeringAdapter.load(tmp_path)
    assert not (tmp_path / "trap").exists()


def test_34_parts_of_another_adapter_are_refused(tiny: Any, tmp_path: Path) -> None:
    trained(tiny).save(tmp_path)
    (tmp_path / "adapter_config.json").rename(tmp_path / "elsewhere")
    with pytest.raises(InvalidInput, match=r"adapter_model\.safetensors is not the file .*; it is missing"):
        SteeringAdapter.load(tmp_path)
    (tmp_path / "elsewhere").rename(tmp_path / "adapter_config.json")
    weights = load_file(tmp_path / "adapter_model.safetensors")
    save_file({name: tensor * 2 for name, tensor in weights.items()}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(InvalidInput, match=r"is not the file that steering\.safetensors was written with"):
        SteeringAdapter.load(tmp_path)


def test_34_a_flipped_bit_is_seen(tiny: Any, tmp_path: Path) -> None:
    trained(tiny).save(tmp_path)
    file = tmp_path / STEERING
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # of a row
    file.write_bytes(content)
    with pytest.raises(InvalidInput, match=r"steering\.safetensors is damaged"):
        SteeringAdapter.load(tmp_path)


def test_34_another_adapter_is_replaced_whole(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = trained(tiny), trained(tiny, lora=False, tokens=EXISTING)
    old.save(tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr("mpf_chains.local.steering.adapter.write_lora", full)
        with pytest.raises(InvalidInput, match="cannot be written: no space left"):
            trained(tiny, tokens=EXISTING).save(tmp_path)
    assert SteeringAdapter.load(tmp_path).digest == old.digest
    new.save(tmp_path)
    assert SteeringAdapter.load(tmp_path).digest == new.digest
    assert [file.name for file in tmp_path.iterdir()] == [STEERING]
    with pytest.raises(InvalidInput, match="cannot be written"):
        new.save(tmp_path / STEERING)


def test_34_another_model_is_refused_by_tensor(tiny: Any, tmp_path: Path) -> None:
    model, tokenizer = tiny
    trained(tiny, lora=False).save(tmp_path)
    adapter = SteeringAdapter.load(tmp_path)
    other = copy.deepcopy(model)
    other.model.norm.weight.data += 1
    with pytest.raises(InvalidInput, match=r"steering\.safetensors: its tensors \('output_rows' and others\) fit, but"):
        Steered(other, tokenizer, adapter)
    small = SteeringAdapter(NEW, TARGETS, torch.zeros(2, 16), torch.zeros(2, 16))
    with pytest.raises(InvalidInput, match="'output_rows' has rows of 16 values; this model's have 32"):
        small.check(model, tokenizer)
    factors = {MODULE: (torch.zeros(2, 16), torch.zeros(32, 2))}
    with pytest.raises(InvalidInput, match=r"q_proj.*lora_A.*shape \(2, 16\)"):
        SteeringAdapter(NEW, TARGETS, torch.zeros(2, 32), torch.zeros(2, 32), Adapter("here", factors)).check(
            model, tokenizer
        )
    with pytest.raises(InvalidInput, match="the targets have the classes female, male; the tokens male, female"):
        SteeringAdapter.fresh(model, tokenizer, SteeringTokens("gender", ("male", "female")), TARGETS)
