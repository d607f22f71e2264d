"""What every reader of a published benchmark offers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from mpf_chains.benchmarks.readers.fields import Fields, Located
from mpf_chains.benchmarks.readers.items import ItemT
from mpf_chains.errors import BenchmarkError

ALL = "all"


class Reader(Protocol[ItemT]):
    """One benchmark as published: its files, and its layout on the hub.

    Attributes:
        name: As in `read_benchmark`.
        splits: Splits, the default first; empty where the benchmark has none.
        part_field: The field of an item that names its part; "" where there are no parts.
        hub: A hub id with the columns that `from_hub` takes; "" where there is no such layout.
    """

    name: str
    splits: Sequence[str]
    part_field: str
    hub: str

    def from_files(self, path: Path, split: str, part: str) -> Iterator[Located[ItemT]]:
        """Items of a file or folder as originally distributed.

        Args:
            path: File or folder.
            split: One of `splits`, or "all" ("" where there are none). It chooses files in a folder; a file is read
                whatever its split.
            part: A part of the benchmark by its name; "" is all of it.
        """
        ...

    def hub_subsets(self, available: Sequence[str], part: str) -> Sequence[str]:
        """Which subsets of a hub dataset hold a part."""
        ...

    def from_hub(self, records: Iterable[Fields], subset: str, split: str) -> Iterator[Located[ItemT]]:
        """Items of one subset and split of a hub dataset."""
        ...


def find_files(path: Path, patterns: Sequence[str], *, folders: Sequence[str] = ("",)) -> list[Path]:
    """Files of a benchmark: the path itself if it is a file, else those in the folder that match.

    Args:
        path: File or folder.
        patterns: Globs of names; the first that matches anything counts.
        folders: Subfolders in which the original repository may keep them; the first that has any counts.

    Returns:
        At least one file, sorted by name.

    Raises:
        BenchmarkError: If there is none.
    """
    if not path.is_dir():
        return [path]
    for folder in folders:
        for pattern in patterns:
            found = sorted(one for one in (path / folder).glob(pattern) if one.is_file())
            if found:
                return found
    raise BenchmarkError(
        f"{path} holds no {' or '.join(patterns)}.",
        hint="Give the file, or the folder that holds the files under their original names.",
    )


def pick(found: Mapping[str, Path], part: str, path: Path) -> Mapping[str, Path]:
    """The files of one part, or all.

    Raises:
        BenchmarkError: If there is no such part.
    """
    if part and part not in found:
        raise BenchmarkError(f"{path} has no part {part!r}; there is {', '.join(found)}.")
    return {part: found[part]} if part else found


def pick_subsets(available: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Those of the wanted subsets that a hub dataset has, or its only one."""
    return [name for name in wanted if name in available] or list(available if len(available) == 1 else ())
