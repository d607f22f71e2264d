"""Fault 34: adapters and models on disk that are damaged, do not fit, or could run code."""

from __future__ import annotations

import copy
import itertools
import json
import pickle
import shutil
import struct
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from mpf_chains.errors import InvalidInput, MPFError  # noqa: E402
from mpf_chains.local.experts import ExpertEnsemble, ExpertLogitsProcessor, ExpertPair, record_base  # noqa: E402
from mpf_chains.local.experts.files.patterns import ModuleNumbers  # noqa: E402
from mpf_chains.local.fingerprint import fingerprint, same_weights, weights_of  # noqa: E402
from mpf_chains.local.quantization import Int8Linear  # noqa: E402

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
TENSOR = "base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight"


@pytest.fixture
def adapter(llama: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama.folders["e1"], tmp_path / "adapter"))


@pytest.fixture
def model_folder(llama: Any, tmp_path: Path) -> Path:
    llama.small.save_pretrained(tmp_path / "model")
    llama.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def header(**entries: Any) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


def with_tensors(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        tensors = load_file(file)
        change(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)

    return damage


def write(content: bytes) -> Callable[[Path], None]:
    return lambda file: file.write_bytes(content) and None


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | changes


DAMAGE = {
    "cut off": (lambda file: file.write_bytes(file.read_bytes()[:-5000]), r"tensor 'base_model.*bytes.*cut off"),
    "empty": (write(b""), "not a safetensors file"),
    "no tensors": (write(header()), "holds no tensors"),
    "header of 2^63 bytes": (write(struct.pack("<Q", 2**63) + b"{}"), "9223372036854775808"),
    "header of 1 GB": (lambda file: file.write_bytes(struct.pack("<Q", 10**9) + b" " * 100), "1000000000"),
    "header is no JSON": (write(struct.pack("<Q", 4) + b"\xff{{{"), "header"),
    "header is a list": (write(struct.pack("<Q", 2) + b"[]"), "no JSON object"),
    "header is deep": (write(struct.pack("<Q", 200_000) + b"[" * 200_000), "header"),
    "negative offset": (write(header(x=entry(data_offsets=[-8, 8])) + bytes(16)), "tensor 'x'"),
    "offsets reversed": (write(header(x=entry(data_offsets=[16, 0])) + bytes(16)), "tensor 'x'"),
    "shape of 2^80": (write(header(x=entry(shape=[2**40, 2**40])) + bytes(16)), "tensor 'x'.*only 16 bytes"),
    "unknown dtype": (write(header(x=entry(dtype="PICKLE")) + bytes(16)), "cannot be read"),
    "a million dimensions": (write(header(x=entry(shape=[10**9] * 10**6)) + bytes(16)), "tensor 'x' is not described"),
    "metadata are numbers": (write(header(__metadata__={"format": 7})), "metadata"),
    "entry is text": (write(header(x="y") + bytes(16)), "tensor 'x'"),
    "wrong shape": (with_tensors(lambda t: t.update({TENSOR: torch.zeros(4, 31)})), rf"'{TENSOR}' has shape \(4, 31\)"),
    "wrong rank": (with_tensors(lambda t: t.update({TENSOR: torch.zeros(5, 32)})), rf"'{TENSOR}'.*rank .* is 4"),
    "one half": (with_tensors(lambda t: t.pop(TENSOR)), f"'{TENSOR}' is missing"),
    "overflows in float32": (
        with_tensors(lambda t: t.update({TENSOR: t[TENSOR].double() + 1e300})),
        f"'{TENSOR}'.*fin",
    ),
    "not finite": (with_tensors(lambda t: t[TENSOR].fill_(float("nan"))), f"'{TENSOR}'.*finite"),
    "other tensors": (with_tensors(lambda t: t.update({"lm_head.weight": torch.zeros(2, 2)})), "'lm_head.weight'"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_adapter_is_refused_by_file_and_tensor(llama: Any, adapter: Path, kind: str) -> None:
    damage, message = DAMAGE[kind]
    damage(adapter / WEIGHTS)
    with pytest.raises(MPFError, match=message) as raised:
        ExpertEnsemble([ExpertPair("g", adapter, None, llama.small, tokenizer=llama.tokenizer)])
    assert str(adapter / WEIGHTS) in str(raised.value)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("saved", ["pickle", "torch", "torch in zip"])
def test_a_pickle_with_another_name_is_not_opened(
    llama: Any, adapter: Path, model_folder: Path, tmp_path: Path, saved: str, full: bool
) -> None:
    file = model_folder / "model.safetensors" if full else adapter / WEIGHTS
    trap = tmp_path / "trap"
    if saved == "pickle":
        file.write_bytes(pickle.dumps(Bomb(trap)))
    else:
        torch.save({"x": Bomb(trap)}, file, _use_new_zipfile_serialization=saved == "torch in zip")
    with pytest.raises(InvalidInput, match="not a safetensors file") as raised:
        ExpertEnsemble([ExpertPair("g", file.parent, None, llama.small, tokenizer=llama.tokenizer)])
    assert str(file) in str(raised.value) and not trap.exists()


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt", "adapter_model.pkl"])
def test_pickled_adapters_are_not_read(llama: Any, adapter: Path, tmp_path: Path, name: str) -> None:
    (adapter / WEIGHTS).unlink()
    (adapter / name).write_bytes(pickle.dumps(Bomb(tmp_path / "trap")))
    with pytest.raises(InvalidInput, match=rf"{name} can run code.*safetensors"):
        ExpertEnsemble([ExpertPair("g", adapter, None, llama.small, tokenizer=llama.tokenizer)])
    assert not (tmp_path / "trap").exists()


def test_pickled_models_are_not_read(llama: Any, model_folder: Path, tmp_path: Path) -> None:
    (model_folder / "model.safetensors").unlink()
    (model_folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "trap")))
    with pytest.raises(InvalidInput, match=r"pytorch_model.bin can run code.*safetensors"):
        ExpertEnsemble([ExpertPair("g", model_folder, None, llama.small, tokenizer=llama.tokenizer)])
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "'IA3'"),
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"r": -1}, "`r`"),
        ({"lora_alpha": "8"}, "`lora_alpha`"),
        ({"lora_alpha": 10**400}, "`lora_alpha`"),
        ({"lora_alpha": float("nan")}, "`lora_alpha`"),
        ({"rank_pattern": {"(": 3}}, r"`rank_pattern` has '\('"),
        ({"rank_pattern": [3]}, "`rank_pattern` is a list"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights to 'pissa'"),  # the base's weights would be others
        ({"init_lora_weights": ["eva"]}, "init_lora_weights to"),
        ({"a_setting_of_tomorrow": True}, "a_setting_of_tomorrow"),
    ],
)
def test_adapters_that_are_more_than_lora_are_refused(llama: Any, adapter: Path, change: Any, message: str) -> None:
    config = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps(config | change))
    with pytest.raises(InvalidInput, match=message):
        ExpertEnsemble([ExpertPair("g", adapter, None, llama.small, tokenizer=llama.tokenizer)])


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[]", b"[" * 100_000, b" " * 2**21])
def test_a_damaged_configuration_is_refused(llama: Any, adapter: Path, content: bytes) -> None:
    (adapter / CONFIG).write_bytes(content)
    with pytest.raises(InvalidInput, match=CONFIG):
        ExpertEnsemble([ExpertPair("g", adapter, None, llama.small, tokenizer=llama.tokenizer)])


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize("pattern", ["(a|a)*b", "(.*.*.*)*x", "([a-z]+)+$", ".*" * 60 + "zz", "a" * 100_000 + "("])
def test_patterns_cannot_make_it_hang(llama: Any, adapter: Path, key: str, pattern: str) -> None:
    config = json.loads((adapter / CONFIG).read_text())
    many = {f"{'.*' * 20}x{i}": 3 for i in range(90)}
    (adapter / CONFIG).write_text(json.dumps(config | {key: many | {pattern: 3}}))
    file = adapter / WEIGHTS
    tensors = {
        f"base_model.model.{'a.' * 60}{i}.lora_{letter}.weight": torch.zeros(4, 4) for i in range(50) for letter in "AB"
    }
    save_file(tensors, file)
    start = time.process_time()
    with pytest.raises(InvalidInput):
        ExpertEnsemble([ExpertPair("g", adapter, None, llama.small, tokenizer=llama.tokenizer)])
    assert time.process_time() - start < 5


def test_patterns_are_those_of_peft() -> None:
    peft = pytest.importorskip("peft.utils.other")
    modules = [f"model.layers.{i}.{part}" for i in (0, 1, 10) for part in ("attn.q", "attn.k", "mlp.up", "q")]
    some = [
        "q",
        "attn.q",
        "^model.layers.0.attn.q",
        "model.layers.0.attn.q$",
        "0.*q",
        ".*",
        "layers.1.*up",
        "^attn.q",
        "^mo",
    ]
    some += [r"layers\.0\.attn.q", "l..ers.*k", "1.attn.*", "10.*.*k", "^.*up$", "s.1", "attn"]
    for first, second in itertools.permutations(some, 2):
        config = {"r": 1, "rank_pattern": {first: 2, second: 3}}
        ours = ModuleNumbers(config, "r", "rank_pattern", "c")
        for module in modules:
            theirs = config["rank_pattern"].get(peft.get_pattern_key(config["rank_pattern"], module), 1)
            assert ours.of(module) == theirs, (first, second, module)


def test_an_adapter_knows_its_base(llama: Any, adapter: Path, make_model: Any) -> None:
    record_base(adapter, llama.small)
    record_base(adapter, llama.small)  # again does no harm
    ExpertEnsemble([ExpertPair("g", adapter, None, llama.small, tokenizer=llama.tokenizer)])
    for seed, width, message in ((3, 32, "fingerprint"), (3, 48, "shape"), (3, 16, "shape")):
        other = make_model("llama", seed, width=width)
        with pytest.raises(InvalidInput, match=message) as raised:
            ExpertEnsemble([ExpertPair("g", adapter, None, other, tokenizer=llama.tokenizer)])
        assert str(adapter / WEIGHTS) in str(raised.value) and "lora_A" in str(raised.value)
    with pytest.raises(InvalidInput, match="GPT2LMHeadModel does not have"):
        ExpertEnsemble([ExpertPair("g", adapter, None, make_model("gpt2", 1), tokenizer=llama.tokenizer)])


def test_a_fingerprint_survives_a_change_of_dtype_and_no_change_of_weights(llama: Any, make_model: Any) -> None:
    model = make_model("llama", 2)
    own = fingerprint(model)
    assert own == fingerprint(llama.small) == fingerprint(model.bfloat16())
    assert same_weights(own, fingerprint(make_model("llama", 2).half()))
    assert not same_weights(own, fingerprint(make_model("llama", 5)))
    model = make_model("llama", 2)
    model.model.layers[0].mlp.up_proj.weight.data *= 1.02
    assert not same_weights(own, fingerprint(model))


def test_files_and_folders_are_named_by_their_contents(llama: Any, model_folder: Path) -> None:
    file = model_folder / "model.safetensors"
    before = weights_of(str(file)), weights_of(str(model_folder))
    assert None not in before and before[0] != before[1] and weights_of("nobody/nothing") is None
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert all(
        one != other for one, other in zip(before, (weights_of(str(file)), weights_of(str(model_folder))), strict=True)
    )
    assert weights_of(llama.small) == fingerprint(llama.small)


def test_full_models_are_read_from_folders_and_checked(llama: Any, model_folder: Path) -> None:
    pair = ExpertPair("g", model_folder, llama.folders["a1"], model_folder)
    ensemble = ExpertEnsemble([pair], device="cpu")
    assert [len(member) for member in ensemble.members] == [2]  # named twice, loaded once
    file = model_folder / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(tensors | {name: torch.zeros(3, 32)}, file, metadata={"format": "pt"})
    with pytest.raises(InvalidInput, match=rf"'{name}' has shape \(3, 32\)"):
        ExpertEnsemble([pair], device="cpu")
    save_file({key: value for key, value in tensors.items() if key != name}, file, metadata={"format": "pt"})
    with pytest.raises(InvalidInput, match=f"'{name}' is missing"):
        ExpertEnsemble([pair], device="cpu")


@pytest.mark.parametrize("role", ["expert", "base"])
@pytest.mark.parametrize("kind", ["model", "model of a known type", "tokenizer"])
def test_code_in_a_repository_is_not_run(llama: Any, model_folder: Path, tmp_path: Path, kind: str, role: str) -> None:
    file = model_folder / ("tokenizer_config.json" if kind == "tokenizer" else "config.json")
    own = {"auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M", "AutoTokenizer": ["own.T", "own.T"]}}
    if kind != "model of a known type":
        own |= {"tokenizer_class": "T"} if kind == "tokenizer" else {"model_type": "own"}
    file.write_text(json.dumps(json.loads(file.read_text()) | own))
    (model_folder / "own.py").write_text(f"open({str(tmp_path / 'trap')!r}, 'w')")
    roles = {"expert": model_folder, "base": llama.small} if role == "expert" else {"base": model_folder}
    pair = ExpertPair("g", **({"expert": llama.small} | roles), tokenizer=llama.tokenizer)
    # of a known type: transformers has a class of its own, and takes it
    refused = nullcontext() if kind == "model of a known type" else pytest.raises(InvalidInput, match="not be loaded")
    with refused:
        ExpertEnsemble([pair], device="cpu")
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize("names", ["config", "index", "index outside"])
def test_weights_of_another_kind_are_not_read_in_a_roundabout_way(
    llama: Any, model_folder: Path, tmp_path: Path, names: str
) -> None:
    """A configuration or an index that points at a pickle beside proper safetensors."""
    trap, pickled = tmp_path / "trap", model_folder / "adapter_model.bin"
    if names == "index outside":
        pickled = tmp_path / "elsewhere.safetensors"
    torch.save({"x": Bomb(trap)}, pickled)
    if names == "config":
        file = model_folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"transformers_weights": pickled.name}))
    else:
        (model_folder / "model.safetensors").rename(model_folder / "model-1.safetensors")
        file = model_folder / "model.safetensors.index.json"
        name = pickled.name if names == "index" else f"../{pickled.name}"
        file.write_text(json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": name}}))
    with pytest.raises(InvalidInput, match=r"names .* as a file of weights") as raised:
        ExpertEnsemble([ExpertPair("g", model_folder, llama.small, tokenizer=llama.tokenizer)], device="cpu")
    assert str(file) in str(raised.value) and not trap.exists()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("config.json", "[" * 10**5),
        ("config.json", '{"model_type": "llama", "hidden_size": "x"}'),
        ("config.json", '{"model_type": 7}'),
        ("tokenizer.json", "{}"),
        ("tokenizer_config.json", "[]"),
    ],
)
def test_models_with_damaged_configurations_are_refused(
    llama: Any, model_folder: Path, file: str, content: str
) -> None:
    (model_folder / file).write_text(content)
    with pytest.raises(InvalidInput, match=r"could not be loaded|cannot be read|JSON object"):
        ExpertEnsemble([ExpertPair("g", model_folder, llama.small, tokenizer=llama.tokenizer)], device="cpu")


def test_a_full_model_knows_its_base(llama: Any, model_folder: Path, make_model: Any) -> None:
    record_base(model_folder, llama.small)
    ensemble = ExpertEnsemble(
        [ExpertPair("g", model_folder, None, llama.small, tokenizer=llama.tokenizer)], device="cpu"
    )
    assert len(ensemble.members) == 2
    other = make_model("llama", 3)
    with pytest.raises(InvalidInput, match="trained from a model with fingerprint") as raised:
        ExpertEnsemble([ExpertPair("g", model_folder, None, other, tokenizer=llama.tokenizer)], device="cpu")
    assert str(model_folder / "model.safetensors") in str(raised.value)


def test_adapters_work_on_a_model_with_int8_weights(llama: Any, adapter: Path, make_model: Any) -> None:
    """`quantize` needs torchao; the layers that it leaves behind on a CPU are made here by hand."""
    record_base(adapter, llama.small)
    rounded = rounded_copy(llama.small)
    assert same_weights(fingerprint(rounded), fingerprint(llama.small))
    assert not same_weights(fingerprint(rounded), fingerprint(make_model("llama", 2, width=48)))
    ids = torch.tensor([[1, 7, 9, 4]])
    pair = ExpertPair("g", adapter, None, rounded, tokenizer=llama.tokenizer)
    ensemble = ExpertEnsemble([pair])
    contrast = ensemble.contributions(ensemble.reader().read(ids))[0, 0, 0]
    with torch.no_grad():
        expected = (llama.merged(adapter)(ids).logits - llama.small(ids).logits)[0, -1]
    torch.testing.assert_close(contrast, expected, atol=0.3, rtol=0.1)


def rounded_copy(model: Any) -> Any:
    """With `Int8Linear` in place of every linear layer."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is torch.nn.Linear:
                scale = child.weight.data.abs().amax(1, keepdim=True) / 127
                qdata = (child.weight.data / scale).round().to(torch.int8)
                weight = SimpleNamespace(qdata=qdata, scale=scale, dtype=torch.float32)
                setattr(parent, name, Int8Linear(SimpleNamespace(weight=weight, bias=child.bias)))
    return model


@pytest.mark.parametrize(
    "wrong",
    [{"name": " ", "expert": "e"}, {"name": 7, "expert": "e", "base": "b"},
     {"name": "g", "expert": "e", "base": "b", "alpha": "1"}, {"name": "g"}, {"name": "g", "expert": "e"},
     {"name": "g", "expert": "e", "base": "b", "alpha": float("inf")}],
)  # fmt: skip
def test_pairs_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        ExpertPair(**wrong)


def test_an_adapter_is_no_base(llama: Any, adapter: Path) -> None:
    with pytest.raises(InvalidInput):
        ExpertEnsemble([ExpertPair("g", llama.folders["e1"], base=adapter, tokenizer=llama.tokenizer)])


def test_what_is_not_there_is_named(llama: Any) -> None:
    with pytest.raises(InvalidInput, match="'nobody/nothing' could not be loaded"):
        ExpertEnsemble([ExpertPair("g", "nobody/nothing", base=llama.small, tokenizer=llama.tokenizer)])


def test_what_is_no_model_or_no_pair_is_said_to_be_so(llama: Any) -> None:
    with pytest.raises(InvalidInput, match="Pair 'g' has 3 for a model"):
        ExpertEnsemble(ExpertPair("g", 3, base=llama.small, tokenizer=llama.tokenizer))
    with pytest.raises(InvalidInput, match="'x' is no `ExpertPair`"):
        ExpertEnsemble(["x"])


@pytest.mark.parametrize("part", ["expert", "base"])
@pytest.mark.parametrize("place", ["/no/such/folder", "./nothing", "one/two/three"])
def test_a_folder_that_is_not_there_is_said_to_be_so(llama: Any, part: str, place: str) -> None:
    parts = {"expert": llama.folders["e1"], "base": llama.small, part: place}
    with pytest.raises(InvalidInput, match=f"The folder '{place}' does not exist"):
        ExpertEnsemble([ExpertPair("g", **parts, tokenizer=llama.tokenizer)])


def test_an_adapter_needs_its_base(llama: Any) -> None:
    pair = ExpertPair("g", llama.folders["e1"], llama.small, tokenizer=llama.tokenizer)
    with pytest.raises(InvalidInput, match="`base`"):
        ExpertLogitsProcessor(pair, llama.tokenizer)
