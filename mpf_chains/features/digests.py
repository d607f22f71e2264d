"""Hashes that pin what a feature is: plain data, functions, library versions."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import inspect
import json
import types
from collections.abc import Callable, Mapping
from typing import Any

from mpf_chains.errors import FeatureError


def digest_of(value: object) -> str:
    """SHA-256 (hex) of plain data and functions.

    Args:
        value: None, booleans, numbers, texts, functions, and mappings, sequences and sets of these.

    Returns:
        64 hexadecimal digits that depend on the content only: not on the order of sets and keys, nor on the process.

    Raises:
        FeatureError: If something in it cannot be pinned.

    Examples:
        >>> digest_of({"a": 1, "b": {2, 3}}) == digest_of({"b": {3, 2}, "a": 1})
        True
    """
    text = json.dumps(_pinned(value), sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def scalars_of(thing: object) -> dict[str, Any]:
    """The public plain settings of an object of another library: what tells one model from another.

    Args:
        thing: Any object. Its attributes that are texts, numbers or booleans count; clients, locks and secrets kept in
            `SecretStr` do not.

    Returns:
        Class name and settings.
    """
    settings = {
        name: value
        for name, value in getattr(thing, "__dict__", {}).items()
        if not name.startswith("_") and isinstance(value, (str, int, float))
    }
    return {"class": f"{type(thing).__module__}.{type(thing).__qualname__}", "settings": settings}


def installed_version(distribution: str) -> str:
    """Version of an installed distribution, or "absent"."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _pinned(value: object) -> Any:
    """A JSON-like form of a value, tagged so that values of different kinds never look alike."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return ["float", repr(value)]
    if isinstance(value, Mapping):
        return ["mapping", sorted([[_pinned(key), _pinned(item)] for key, item in value.items()], key=json.dumps)]
    if isinstance(value, (list, tuple)):
        return ["sequence", [_pinned(item) for item in value]]
    if isinstance(value, (set, frozenset)):
        return ["set", sorted([_pinned(item) for item in value], key=json.dumps)]
    if isinstance(value, functools.partial):
        return ["partial", _pinned(value.func), _pinned(value.args), _pinned(value.keywords)]
    if isinstance(value, (types.FunctionType, types.BuiltinFunctionType, type)):
        return ["function", *_pinned_function(value)]
    raise FeatureError(
        f"A {type(value).__qualname__} cannot be pinned in the digest of a feature; only plain data and functions can.",
        hint="Give the feature `version=` and change it whenever its scores change.",
    )


def _pinned_function(function: Callable[..., Any]) -> list[Any]:
    """Name, source and captured values; bytecode where there is no source (code typed into an interpreter)."""
    name = f"{function.__module__}.{function.__qualname__}"
    if not isinstance(function, types.FunctionType):
        return [name]
    try:
        code: Any = inspect.getsource(function)
    except (OSError, TypeError):
        code = _pinned_code(function.__code__)
    captured = [cell.cell_contents for cell in function.__closure__ or ()]
    return [name, code, _pinned(captured), _pinned(function.__defaults__), _pinned(function.__kwdefaults__)]


def _pinned_code(code: types.CodeType) -> list[Any]:
    constants = [_pinned_code(item) if isinstance(item, types.CodeType) else ascii(item) for item in code.co_consts]
    return [code.co_code.hex(), list(code.co_names), constants]
