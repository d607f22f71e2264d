"""What identifies a loaded model's weights, whatever its name says."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_SAMPLE = 256
_BLOCK = 4096
_known: weakref.WeakKeyDictionary[Any, tuple[object, str]] = weakref.WeakKeyDictionary()


def fingerprint(model: PreTrainedModel) -> str:
    """What identifies a model's weights: two hashes, of the names and shapes, and of up to 256 values per tensor.

    Values are rounded to bfloat16 first, so a float32 and a bfloat16 copy of one model have the same fingerprint.
    In a model of another dtype, or with int8 weights, the second hash is "-", and only the first one can be compared.

    Args:
        model: A loaded model.

    Returns:
        Two times 32 hex digits, a colon between.

    Examples:
        >>> same_weights("1f:a0", "1f:a0"), same_weights("1f:a0", "1f:-"), same_weights("1f:a0", "1f:77")
        (True, True, False)
    """
    parameters = sorted(_weights(model))
    state = tuple((name, id(tensor), _edits(tensor)) for name, tensor in parameters)  # changes where a weight does
    known = _known.get(model)
    if known is None or known[0] != state:
        known = _known[model] = (state, _read(parameters))
    return known[1]


def folder_fingerprint(folder: Path) -> str:
    """What identifies the files of a model's folder: their names and sizes, and up to 256 blocks of 4 KiB of each.

    Args:
        folder: A folder with a model; hidden files and folders in it do not count.

    Returns:
        32 hex digits.
    """
    return _files_fingerprint(sorted(one for one in folder.iterdir() if one.is_file() and one.name[0] != "."))


def _files_fingerprint(files: Iterable[Path]) -> str:
    found = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        found.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as opened:
            for block in range(min(_SAMPLE, -(-size // _BLOCK))):
                opened.seek(block * max(_BLOCK, size // _SAMPLE))
                found.update(opened.read(_BLOCK))
    return found.hexdigest()[:32]


def weights_of(model: Any) -> str | None:
    """What identifies a model's weights where its name does not: a loaded model, or files, which can be trained on.

    Args:
        model: A loaded model, a hub id, a folder or a file.

    Returns:
        A fingerprint; None for a hub id.
    """
    if not isinstance(model, str):
        return fingerprint(model)
    path = Path(model)
    if path.is_file():
        return _files_fingerprint([path])
    return folder_fingerprint(path) if path.is_dir() else None


def _weights(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters by name, also those that `mpf_chains.local.quantization` has made buffers, or a head of its own."""
    from mpf_chains.local.quantization import Int8Linear

    yield from model.named_parameters()
    untyped: Any = model
    rounded: dict[str, Any] = {
        name: module for name, module in untyped.named_modules() if isinstance(module, Int8Linear)
    }
    tied = rounded and untyped.config.get_text_config().tie_word_embeddings
    shared = untyped.get_output_embeddings() if tied else None
    yield from ((f"{name}.weight", module.weight) for name, module in rounded.items() if module is not shared)


def _read(parameters: Iterable[tuple[str, torch.Tensor]]) -> str:
    import torch

    shapes, values = hashlib.sha256(), hashlib.sha256()
    exact = True
    for name, tensor in parameters:
        shapes.update(f"{name} {tuple(tensor.shape)}\n".encode())
        exact &= tensor.dtype in {torch.float32, torch.bfloat16} and type(tensor) in {torch.Tensor, torch.nn.Parameter}
        if not exact:
            continue
        flat = tensor.detach().flatten()
        sample = flat[:: max(1, flat.numel() // _SAMPLE)][:_SAMPLE]
        values.update(sample.to(torch.bfloat16).view(torch.int16).cpu().numpy().tobytes())
    return f"{shapes.hexdigest()[:32]}:{values.hexdigest()[:32] if exact else '-'}"


def _edits(tensor: torch.Tensor) -> int:
    """How often it was changed in place; tensors of inference mode do not count."""
    return 0 if tensor.is_inference() else int(tensor._version)


def same_weights(one: str, other: str) -> bool:
    """Whether two fingerprints can be of the same weights."""
    shapes, values = zip(one.partition(":")[::2], other.partition(":")[::2], strict=True)
    return shapes[0] == shapes[1] and (values[0] == values[1] or "-" in values)
