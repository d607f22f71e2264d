"""Safetensors files, checked before they are loaded: an error says which file and which tensor is wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpf_chains.errors import InvalidInput, MissingExtra

if TYPE_CHECKING:
    import torch

_LONGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library
_MOST_DIMENSIONS = 16


def read_tensors(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All tensors of a safetensors file, and its metadata.

    Raises:
        InvalidInput: If the file is damaged or is something else, whatever its name says. Nothing in it is run.
    """
    metadata = check_tensors(file)
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise MissingExtra("safetensors", "local") from error
    try:
        with safe_open(str(file), framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise InvalidInput(f"{file} cannot be read as safetensors: {error}.") from error


def check_tensors(file: Path) -> dict[str, str]:
    """Check a file's header and that every tensor it announces is inside the file.

    The format: eight bytes, the header's length (little endian); the header, a JSON object from tensor names to dtype,
    shape and the place of the values; the values.

    Returns:
        Its metadata.

    Raises:
        InvalidInput: If something is wrong.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if size < 8 or length > min(size - 8, _LONGEST_HEADER):
                raise InvalidInput(
                    f"{file} is not a safetensors file: it announces a header of {length} bytes and has {size}.",
                    hint="A renamed pickle, a pointer of Git LFS or a download that broke off looks like this.",
                )
            header = json.loads(opened.read(length).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(f"{file} is not a safetensors file: its header cannot be read ({error}).") from error
    if not isinstance(header, dict):
        raise InvalidInput(f"{file} is not a safetensors file: its header is no JSON object.")
    for name, entry in header.items():
        if name != "__metadata__":
            _check_entry(file, name, entry, size - 8 - length)
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InvalidInput(f"{file} is not a safetensors file: its metadata are not all texts.")
    return metadata


def _check_entry(file: Path, name: str, entry: Any, room: int) -> None:
    try:
        start, end = (_whole(number) for number in entry["data_offsets"])
        if len(entry["shape"]) > _MOST_DIMENSIONS:  # the product of a million large numbers takes minutes
            raise ValueError(len(entry["shape"]))
        count = math.prod(_whole(number) for number in entry["shape"])
    except (TypeError, KeyError, ValueError) as error:
        raise InvalidInput(f"{file}: tensor {name!r} is not described by a dtype, a shape and two offsets.") from error
    if not start <= end <= room:
        raise InvalidInput(
            f"{file}: tensor {name!r} should lie in bytes {start} to {end} of the values; the file has {room}.",
            hint="The file was cut off; fetch or write it again.",
        )
    if count and not (end - start) * 2 >= count:  # the smallest dtypes take half a byte
        raise InvalidInput(f"{file}: tensor {name!r} of shape {entry['shape']} has only {end - start} bytes.")


def _whole(number: Any) -> int:
    if type(number) is not int or number < 0:
        raise ValueError(number)
    return number
