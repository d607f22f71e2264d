"""LoRA adapters in peft's folder format, read with suspicion: safetensors only, every tensor checked, nothing run."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpf_chains.errors import InvalidInput, NotSupportedError
from mpf_chains.local.experts.files.patterns import ModuleNumbers
from mpf_chains.local.experts.files.tensors import read_tensors
from mpf_chains.local.fingerprint import fingerprint, same_weights

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE = "mpf_base_fingerprint"  # key in the metadata of the weights file
MODEL = "model.safetensors"
_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")
_HARMLESS = {  # settings of peft's LoraConfig with which a module still does y += scale · B A x
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying",
    "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core",
    "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config",
    "target_modules", "task_type", "use_rslora",
}  # fmt: skip
_STARTS = {True, False, None, "gaussian", "eva", "orthogonal", "mica"}  # the others change the base's weights, too


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA adapter: each linear module it names gives y + up(down(x)) in place of y.

    Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", equation 3.

    Args:
        name: Where it comes from, for messages.
        factors: Module name to (down, shape (rank, in); up, shape (out, rank), times the adapter's scale).
        base: Fingerprint of the model it was trained on. None (default): not recorded.

    Attributes:
        digest: SHA-256 (hex) of the factors: adapters with one digest do the same.
    """

    name: str
    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    base: str | None = None
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256()
        for module in sorted(self.factors):
            digest.update(module.encode())
            for factor in self.factors[module]:
                digest.update(f"{tuple(factor.shape)}".encode() + factor.float().contiguous().numpy().tobytes())
        object.__setattr__(self, "digest", digest.hexdigest())

    def check(self, model: PreTrainedModel) -> None:
        """Whether it fits a model.

        Raises:
            InvalidInput: If it was trained on another model, names a module that the model lacks, or has a factor of
                a shape that does not fit. The message names the file and the tensor.
        """
        for module, (down, up) in self.factors.items():
            try:
                shape = in_and_out(model.get_submodule(module))
            except AttributeError:
                shape = None
            if shape is None:
                raise InvalidInput(
                    f"{self.name}: tensor {_tensor(module, 'A')!r} belongs to a linear module {module!r}, which "
                    f"{type(model).__name__} does not have.",
                    hint="The adapter was trained on another kind of model.",
                )
            for letter, size, wanted in (("A", down.shape[1], shape[0]), ("B", up.shape[0], shape[1])):
                if size != wanted:
                    full = tuple(down.shape) if letter == "A" else tuple(up.shape)
                    raise InvalidInput(
                        f"{self.name}: tensor {_tensor(module, letter)!r} has shape {full}; this model's {module!r} "
                        f"takes {shape[0]} and gives {shape[1]} values.",
                        hint="The adapter was trained on a model of another size.",
                    )
        if self.base is not None and not same_weights(self.base, fingerprint(model)):
            tensor = _tensor(next(iter(self.factors)), "A")
            raise InvalidInput(
                f"{self.name}: its tensors ({tensor!r} and others) fit, but it was trained on a model with fingerprint "
                f"{self.base}; this one has {fingerprint(model)}.",
                hint="Give the small model that the adapter was trained on.",
            )


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter as peft's ``save_pretrained`` writes it.

    Args:
        folder: Has adapter_config.json and adapter_model.safetensors.

    Raises:
        InvalidInput: If a file is missing, damaged or not what its name says, or its tensors are not LoRA factors.
        NotSupportedError: If the adapter is no plain LoRA adapter.
    """
    config = _read_config(folder / CONFIG)
    file = folder / WEIGHTS
    if not file.is_file():
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in {".bin", ".pt", ".pth", ".pkl"})
        found = f"; {', '.join(pickles)} can run code when it is loaded, and is not read" if pickles else ""
        raise InvalidInput(
            f"{folder} has no {WEIGHTS}{found}.",
            hint="Save the adapter again with peft's `save_pretrained(folder)`, which writes safetensors.",
        )
    tensors, metadata = read_tensors(file)
    found_factors: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None or tensor.ndim != 2:
            raise NotSupportedError(
                f"{file}: tensor {name!r} of shape {tuple(tensor.shape)} is no LoRA factor of a linear module.",
                hint="Train with LoRA on linear modules only (no embeddings, biases or other parts).",
            )
        found_factors.setdefault(match["module"], {})[match["factor"]] = tensor
    ranks = ModuleNumbers(config, "r", "rank_pattern", str(folder / CONFIG))
    alphas = ModuleNumbers(config, "lora_alpha", "alpha_pattern", str(folder / CONFIG))
    factors = {}
    for module, halves in sorted(found_factors.items()):
        rank, alpha = ranks.of(module), alphas.of(module)
        factors[module] = _pair(file, module, halves, rank, alpha / (rank**0.5 if config.get("use_rslora") else rank))
    if not factors:
        raise InvalidInput(f"{file} holds no tensors.")
    return Adapter(str(file), factors, metadata.get(BASE))


def record_base(folder: str | os.PathLike[str], model: PreTrainedModel) -> None:
    """Write into a weights file which model was trained, so that loading the result with another one fails.

    Args:
        folder: An adapter as peft's ``save_pretrained`` writes it, or a full model in one safetensors file as that of
            transformers does; the file is replaced in one step.
        model: The model that was trained, as it was before, without an adapter in it.

    Raises:
        InvalidInput: If there is no such file, or it is damaged.
    """
    write_base(Path(folder), fingerprint(model))


def write_base(folder: Path, base: str) -> None:
    """As `record_base`, from the model's fingerprint."""
    from safetensors.torch import save_file

    file = folder / (WEIGHTS if (folder / CONFIG).exists() else MODEL)
    tensors, metadata = read_tensors(file)
    draft = file.with_suffix(".draft")
    save_file(tensors, draft, metadata={"format": "pt", **metadata, BASE: base})
    os.replace(draft, file)  # noqa: PTH105 - says that it overwrites


def in_and_out(module: torch.nn.Module) -> tuple[int, int] | None:
    """How many values a linear module takes and gives; None for other modules."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    from mpf_chains.local.quantization import Int8Linear

    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Int8Linear):
        rows, columns = module.get_buffer("weight").shape
        return columns, rows
    if isinstance(module, Conv1D):
        return int(module.nx), int(module.nf)
    return None


def _tensor(module: str, letter: str) -> str:
    return f"base_model.model.{module}.lora_{letter}.weight"


def _read_config(file: Path) -> Mapping[str, Any]:
    try:
        if file.stat().st_size > 2**20:
            raise InvalidInput(f"{file} has {file.stat().st_size} bytes; a LoRA configuration has a few thousand.")
        config = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(f"{file} cannot be read as JSON: {error}.") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise NotSupportedError(f"{file} describes an adapter of type {kind!r}; only 'LORA' is supported.")
    used = sorted(name for name, value in config.items() if value and name not in _HARMLESS)
    if config.get("bias", "none") != "none":
        used.append("bias")
    start = config.get("init_lora_weights")
    if not (isinstance(start, bool | str | None) and start in _STARTS):
        used.append(f"init_lora_weights to {start!r}")
    if used:
        raise NotSupportedError(
            f"{file} sets {', '.join(used)}, so the adapter may change more than low-rank factors say.",
            hint="Train it with plain LoRA: r, lora_alpha, target_modules, use_rslora, rank_pattern, alpha_pattern.",
        )
    return config


def _pair(
    file: Path, module: str, halves: Mapping[str, torch.Tensor], rank: float, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both factors of a module, the second one scaled; the scale is peft's: alpha / r, or alpha / √r with rsLoRA."""
    import torch

    for letter in "AB":
        if letter not in halves:
            raise InvalidInput(f"{file}: tensor {_tensor(module, letter)!r} is missing; its other half is there.")
        if not halves[letter].is_floating_point() or not halves[letter].to(torch.float32).isfinite().all():
            raise InvalidInput(f"{file}: tensor {_tensor(module, letter)!r} has values that are no finite numbers.")
    down, up = halves["A"].to(torch.float32), halves["B"].to(torch.float32)
    for letter, half, got in (("A", down, down.shape[0]), ("B", up, up.shape[1])):
        if got != rank:
            raise InvalidInput(
                f"{file}: tensor {_tensor(module, letter)!r} has shape {tuple(half.shape)}; the rank in {CONFIG} is "
                f"{rank:g}."
            )
    scaled = up * scale
    if not scaled.isfinite().all():
        raise InvalidInput(f"{file}: tensor {_tensor(module, 'B')!r}, times the scale, is too large.")
    return down, scaled
