"""Published benchmarks by name: from a local path or a hub id to typed items."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Literal, overload

import numpy as np
from numpy.typing import NDArray

from mpf_chains.benchmarks.lines import Place
from mpf_chains.benchmarks.readers.bbq import BBQReader
from mpf_chains.benchmarks.readers.bold import BOLDReader
from mpf_chains.benchmarks.readers.crows_pairs import CrowsPairsReader
from mpf_chains.benchmarks.readers.fields import Located
from mpf_chains.benchmarks.readers.holistic_bias import HolisticBiasReader
from mpf_chains.benchmarks.readers.hub import iter_hub, on_hub
from mpf_chains.benchmarks.readers.items import Choice, Item, ItemT, Passage, Prompt, PromptPair, as_dict
from mpf_chains.benchmarks.readers.prompt_pairs import PromptPairsReader
from mpf_chains.benchmarks.readers.reader import ALL, Reader
from mpf_chains.benchmarks.readers.redditbias import RedditBiasReader
from mpf_chains.benchmarks.readers.rows import RowsReader, SagedReader
from mpf_chains.benchmarks.readers.stereoset import StereoSetReader
from mpf_chains.benchmarks.readers.targets import TargetsReader
from mpf_chains.benchmarks.readers.wikitext2 import WikiText2Reader
from mpf_chains.benchmarks.readers.winobias import WinoBiasReader
from mpf_chains.benchmarks.readers.winogender import WinogenderReader
from mpf_chains.benchmarks.rows import Row
from mpf_chains.errors import BenchmarkError

ChoiceName = Literal["stereoset", "crows_pairs", "bbq", "winobias", "winogender", "redditbias"]
PromptName = Literal["bold", "holistic_bias"]
RowName = Literal["targets", "rows", "saged"]

READERS: dict[str, Reader[Any]] = {
    reader.name: reader
    for reader in (
        StereoSetReader(), CrowsPairsReader(), BBQReader(), WinoBiasReader(), WinogenderReader(), BOLDReader(),
        HolisticBiasReader(), RedditBiasReader(), PromptPairsReader(), WikiText2Reader(), TargetsReader(),
        RowsReader(), SagedReader(),
    )
}  # fmt: skip
"""Every published benchmark that can be read, by name."""


@dataclass(frozen=True)
class ItemSet(Generic[ItemT]):
    """Items of a benchmark, with what metrics need of them as arrays.

    Args:
        name: The benchmark.
        items: At least one, ids unique.
        source: Where they were read; not part of `digest` or equality. Default "".

    Raises:
        BenchmarkError: If there are no items or an id comes twice.

    Examples:
        >>> pair = ("He is a nurse.", "She is a nurse.")
        >>> items = ItemSet("mine", (Choice("1", "gender", pair, ("anti-stereotype", "stereotype")),))
        >>> items.column("labels").tolist()
        [['anti-stereotype', 'stereotype']]
    """

    name: str
    items: tuple[ItemT, ...]
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "items", tuple(self.items))
        if not self.items:
            raise BenchmarkError(f"The benchmark {self.name!r} has no items; it needs at least one.")
        if len({item.id for item in self.items}) < len(self.items):
            raise BenchmarkError(f"The benchmark {self.name!r} has an id more than once; ids must be unique.")

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[ItemT]:
        return iter(self.items)

    def __hash__(self) -> int:
        return hash(self.digest)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the items, in order; name and source do not count."""
        total = hashlib.sha256()
        for item in self.items:
            plain = item.as_dict() if isinstance(item, Row) else as_dict(item)
            total.update(json.dumps(plain, sort_keys=True, allow_nan=False).encode() + b"\n")
        return total.hexdigest()

    def column(self, name: str) -> NDArray[Any]:
        """A field or tag (of rows: metadata) of every item.

        Args:
            name: Such as "group", "condition", "labels", "correct" or "polarity".

        Returns:
            Array (N,) in the order of the items; (N, K) for "candidates" and "labels" of N items with K candidates
            each.

        Raises:
            BenchmarkError: If an item has no such value, or the numbers of candidates differ.
        """
        values = [self._value(item, name) for item in self.items]
        if isinstance(values[0], tuple) and len(set(map(len, values))) > 1:
            raise BenchmarkError(f"Items of {self.name!r} differ in their number of {name}; they make no array.")
        return np.array(values)

    def select(self, **equal: str | float | Collection[str | float]) -> ItemSet[ItemT]:
        """The items whose fields or tags have these values, in the same order.

        Args:
            **equal: By name the value, or a list or set of allowed ones, such as condition="ambiguous" or
                group=["African_Americans", "European_Americans"].

        Raises:
            BenchmarkError: If an item has no such value, or none is left.
        """
        allowed = {
            name: value if isinstance(value, Collection) and not isinstance(value, str) else (value,)
            for name, value in equal.items()
        }
        kept = tuple(item for item in self.items if all(self._value(item, key) in allowed[key] for key in allowed))
        if not kept:
            wanted = ", ".join(f"{key}={value!r}" for key, value in equal.items())
            raise BenchmarkError(f"The benchmark {self.name!r} has no items with {wanted}.")
        return ItemSet(self.name, kept, self.source)

    def split(self, by: str, share: float = 0.5, seed: int = 0) -> tuple[ItemSet[ItemT], ItemSet[ItemT]]:
        """Two parts, of which one is to choose on (a strength, a prompt) and the other to report on.

        All items with one value are in the same part. Within each `group` the values are put in an order that only they
        and the seed decide, and the first of them make the first part: of StereoSet both of the benchmark's own parts,
        read alone or together, are divided alike.

        Args:
            by: What must not be in both: a field or tag such as "target" (StereoSet's terms), "name" or "family".
            share: About which share of the values goes to the first part, in (0, 1). Default 0.5.
            seed: Another one gives other parts. Default 0.

        Returns:
            The two parts, items in the same order.

        Raises:
            BenchmarkError: If the share is not in (0, 1), an item has no such value, or a part would be empty.

        Examples:
            >>> sentences = ("Engineers are men.", "Engineers are women."), ("stereotype", "anti-stereotype")
            >>> items = ItemSet("mine", tuple(
            ...     Choice(f"{target}/{n}", "profession", *sentences, tags={"target": target})
            ...     for target in ("engineer", "nurse", "tailor", "mover") for n in range(3)))
            >>> [len(part) for part in items.split("target")]
            [6, 6]
        """
        if not 0 < share < 1:
            raise BenchmarkError(f"`share` is {share}; it must be between 0 and 1.")
        values = [str(self._value(item, by)) for item in self.items]
        strata: dict[str, str] = {}
        for item, value in zip(self.items, values, strict=True):
            strata.setdefault(value, str(getattr(item, "group", "")))
        chosen: set[str] = set()
        for stratum in set(strata.values()):
            ordered = sorted((value for value in strata if strata[value] == stratum), key=lambda one: _drawn(one, seed))
            count = round(share * len(ordered))
            chosen.update(ordered[: min(max(count, 1), len(ordered) - 1) if len(ordered) > 1 else count])
        parts = [
            tuple(item for item, value in zip(self.items, values, strict=True) if (value in chosen) == first)
            for first in (True, False)
        ]
        if not all(parts):
            raise BenchmarkError(f"The {len(strata)} values of {by!r} in {self.name!r} do not make two parts.")
        first, second = (ItemSet(self.name, part, self.source) for part in parts)
        return first, second

    def _value(self, item: Item, name: str) -> Any:
        tags = item.metadata if isinstance(item, Row) else item.tags
        value = tags[name] if name in tags else getattr(item, name, None)
        if value is None or callable(value):
            fields = [key for key in type(item).__dataclass_fields__ if getattr(item, key) is not None]
            raise BenchmarkError(
                f"Item {item.id!r} of {self.name!r} has no {name!r}; it has {', '.join([*fields, *tags])}."
            )
        return value


def iter_benchmark(
    name: str, source: str | Path, *, split: str | None = None, part: str | None = None
) -> Iterator[Item]:
    """Items of a published benchmark, one at a time.

    Memory stays flat for all but benchmarks that are JSON documents (StereoSet, BOLD), which are read file by file.

    Args:
        name: One of `READERS`.
        source: See `read_benchmark`.
        split: See `read_benchmark`.
        part: See `read_benchmark`.

    Yields:
        Items in the order of the files. Whether ids are unique is checked by `read_benchmark`.

    Raises:
        BenchmarkError: As `read_benchmark`.
        MissingExtra: As `read_benchmark`.
    """
    for located in _located(name, source, split, part):
        yield located.item


@overload
def read_benchmark(
    name: ChoiceName, source: str | Path, *, split: str | None = None, part: str | None = None
) -> ItemSet[Choice]: ...


@overload
def read_benchmark(
    name: PromptName, source: str | Path, *, split: str | None = None, part: str | None = None
) -> ItemSet[Prompt]: ...


@overload
def read_benchmark(
    name: Literal["hellinger"], source: str | Path, *, split: str | None = None, part: str | None = None
) -> ItemSet[PromptPair]: ...


@overload
def read_benchmark(
    name: Literal["wikitext2"], source: str | Path, *, split: str | None = None, part: str | None = None
) -> ItemSet[Passage]: ...


@overload
def read_benchmark(
    name: RowName, source: str | Path, *, split: str | None = None, part: str | None = None
) -> ItemSet[Row]: ...


@overload
def read_benchmark(
    name: str, source: str | Path, *, split: str | None = None, part: str | None = None
) -> ItemSet[Any]: ...


def read_benchmark(name: str, source: str | Path, *, split: str | None = None, part: str | None = None) -> ItemSet[Any]:
    """A published benchmark as typed items. What each gives, and its files, is in the docstring of its reader.

    Args:
        name: "stereoset", "crows_pairs", "bbq", "winobias", "winogender", "redditbias" (`Choice`), "bold",
            "holistic_bias" (`Prompt`), "hellinger" (`PromptPair`), "wikitext2" (`Passage`), "targets", "rows" or
            "saged" (`Row`).
        source: File or folder as originally distributed; a Parquet file or folder in the hub's layout; or a hub id
            "owner/name" or "owner/name@revision". A `Path`, or a name that exists here, is never looked up on the hub.
            For "hellinger" also "openings", the pairs that ship.
        split: Which split of a folder or hub dataset. Default: the one that is evaluated on, "test" where there are
            several; "all" for all.
        part: Which part, such as a category of BBQ. Default all.

    Returns:
        The items, in the order of the files.

    Raises:
        BenchmarkError: Naming file:line:column and the fix, if something cannot be read or used; if name, split or part
            is unknown.
        MissingExtra: If the source needs `datasets` and it is not installed.
    """
    places: dict[str, Place] = {}
    items = []
    for located in _located(name, source, split, part):
        identifier = located.item.id
        if identifier in places:
            raise located.place.error(
                f"the id {identifier!r} was given at {places[identifier]} already; ids must be unique."
            )
        places[identifier] = located.place
        items.append(located.item)
    if not items:
        raise BenchmarkError(f"{source}:1:1: there are no items; there must be at least one.")
    return ItemSet(name, tuple(items), str(source))


def _located(name: str, source: str | Path, split: str | None, part: str | None) -> Iterator[Located[Any]]:
    if name not in READERS:
        raise BenchmarkError(f"There is no reader for {name!r}; there is {', '.join(READERS)}.")
    reader = READERS[name]
    chosen = _split(reader.splits, split, name)
    if part and not reader.part_field:
        raise BenchmarkError(
            f"The benchmark {name!r} has no parts; leave out `part`.", hint="Use `.select(group=...)`."
        )
    if on_hub(source):
        return iter_hub(reader, source, chosen, part or "")
    return reader.from_files(Path(source), chosen, part or "")


def _drawn(value: str, seed: int) -> bytes:
    """What orders values by lot: the same in every process, whatever else there is."""
    return hashlib.blake2b(f"{seed}/{value}".encode(), digest_size=8).digest()


def _split(splits: Sequence[str], split: str | None, name: str) -> str:
    if split is None:
        return splits[0] if splits else ""
    if not splits:
        raise BenchmarkError(f"The benchmark {name!r} has no splits; leave out `split`.")
    if split not in {*splits, ALL}:
        raise BenchmarkError(f"`split` is {split!r}; it must be one of {', '.join(splits)}, {ALL}.")
    return split
