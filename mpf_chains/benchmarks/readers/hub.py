"""Datasets of the Hugging Face hub, and folders or files in its layout: the `datasets` extra."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from mpf_chains.benchmarks.lines import Place
from mpf_chains.benchmarks.readers.fields import Fields, Located
from mpf_chains.benchmarks.readers.items import ItemT
from mpf_chains.benchmarks.readers.reader import ALL, Reader
from mpf_chains.errors import BenchmarkError, MissingExtra

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_TABLE = ".parquet"
_SPLIT_NAMES = {"dev": "validation", "valid": "validation"}


def on_hub(source: str | Path) -> bool:
    """Whether a source is read with `datasets`: a hub id, a Parquet file, or a folder of such (a clone from the hub).

    A `Path`, and a text that names an existing file or folder, is never looked up on the hub.

    Raises:
        BenchmarkError: If there can be no such path, or it must not be looked at.
    """
    path = Path(source)
    try:
        if path.is_dir():
            return any(path.glob(f"*{_TABLE}")) or any(path.glob(f"*/*{_TABLE}"))
        if path.suffix == _TABLE or path.exists():
            return path.suffix == _TABLE
    except OSError as error:
        raise BenchmarkError(f"{source} cannot be read: {error.strerror or error}.") from error
    return isinstance(source, str) and _HUB_ID.fullmatch(source) is not None


def iter_hub(reader: Reader[ItemT], source: str | Path, split: str, part: str) -> Iterator[Located[ItemT]]:
    """Items of a hub dataset, streamed.

    Args:
        reader: The reader that knows the columns.
        source: "owner/name", or "owner/name@revision" to pin it; a Parquet file; a folder in the hub's layout.
        split: One of the reader's splits, or "all".
        part: A part of the benchmark; "" is all of it.

    Yields:
        Items with the number of their row.

    Raises:
        BenchmarkError: If the dataset cannot be loaded or a row cannot be used.
        MissingExtra: If `datasets` is not installed.
    """
    if not reader.hub:
        raise BenchmarkError(f"The benchmark {reader.name!r} has no layout on the hub.", hint="Give its local folder.")
    for subset, name, table in _tables(reader, source, split, part):
        records = _records(table, Place(Path(source) / subset / name, 1))
        for located in reader.from_hub(records, subset, name):
            if not part or getattr(located.item, reader.part_field) == part:
                yield located


def _tables(reader: Reader[ItemT], source: str | Path, split: str, part: str) -> Iterator[tuple[str, str, Any]]:
    """Subset, split and rows of every table that holds what is wanted."""
    try:
        datasets = import_module("datasets")
    except ImportError as error:
        raise MissingExtra(error.name or "datasets", "datasets") from error
    path = Path(source)
    if path.is_file():
        file = {"data_files": str(path), "split": "train", "streaming": True}
        yield path.stem, split or "train", _tried(source, datasets.load_dataset, "parquet", **file)
        return
    where, _, revision = (str(source), "", "") if path.exists() else str(source).partition("@")
    options = {"revision": revision} if revision else {}
    available = _tried(source, datasets.get_dataset_config_names, where, **options)
    subsets = reader.hub_subsets(available, part)
    if not subsets:
        raise BenchmarkError(
            f"{source} has no subset for {part or 'all'!r} of {reader.name!r}; it has {', '.join(available)}.",
            hint=f"The layout must be that of {reader.hub!r}.",
        )
    for subset in subsets:
        names = _tried(source, datasets.get_dataset_split_names, where, subset, **options)
        for name in _splits(names, split, f"{source}, subset {subset}"):
            table = {"split": name, "streaming": True, **options}
            yield subset, name, _tried(source, datasets.load_dataset, where, subset, **table)


def _tried(source: str | Path, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    try:
        return call(*arguments, **options)
    except Exception as error:  # `datasets` raises whatever the network, the hub and the file formats raise
        reason = f"`datasets` cannot load it: {type(error).__name__}: {error}."
        local = Path(source).exists()
        raise BenchmarkError(
            f"{source}: {reason}" if local else f"{source} is no local file or folder, and {reason}",
            hint="" if local else "Check the name; without a connection, give a local copy.",
        ) from error


def _splits(available: list[str], split: str, where: str) -> list[str]:
    name = _SPLIT_NAMES.get(split, split)
    if split in {"", ALL} or len(available) == 1:
        return available
    if name not in available:
        raise BenchmarkError(f"{where} has no split {name!r}; it has {', '.join(available)}.")
    return [name]


def _records(table: Any, place: Place) -> Iterator[Fields]:
    rows, number = iter(table), 0
    while (row := _tried(place.path, next, rows, None)) is not None:
        number += 1
        yield Fields(_named(row, table.features), Place(place.path, number))


def _named(value: Any, feature: Any) -> Any:
    """The value with the numbers of class labels replaced by their names."""
    if hasattr(feature, "int2str"):
        return feature.int2str(value) if isinstance(value, int) and 0 <= value < feature.num_classes else value
    if isinstance(value, Mapping):
        inner = feature if isinstance(feature, Mapping) else {}
        return {key: _named(one, inner.get(key)) for key, one in value.items()}
    if isinstance(value, list):
        element = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
        return [_named(one, element) for one in value]
    return value
