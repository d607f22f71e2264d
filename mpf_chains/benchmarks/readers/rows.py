"""Rows as a benchmark like the others: our own files, and those of SAGED."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mpf_chains.benchmarks.files import format_of
from mpf_chains.benchmarks.readers.fields import Fields, Located
from mpf_chains.benchmarks.readers.reader import pick_subsets
from mpf_chains.benchmarks.rows import Row
from mpf_chains.benchmarks.tables import SagedFormat

_OPTIONAL = ("target_text", "target_score", "split", "metadata")


class RowsReader:
    """Our own .jsonl, .ndjson and .csv files, streamed; see `Benchmark.read`, which also knows baselines.

    Items: `Row`. On the hub: the columns are those of `Row`.
    """

    name = "rows"
    splits: Sequence[str] = ()
    part_field = ""
    hub = "owner/name"

    def from_files(self, path: Path, split: str, part: str) -> Iterator[Located[Row]]:
        """Rows of the file."""
        del split, part
        for record in format_of(path).records(path):
            yield Located(record.place, record.row)

    def hub_subsets(self, available: Sequence[str], part: str) -> Sequence[str]:
        """The default subset, or the only one."""
        del part
        return pick_subsets(available, ("default",))

    def from_hub(self, records: Iterable[Fields], subset: str, split: str) -> Iterator[Located[Row]]:
        """Rows with the same columns; empty ones are none."""
        del subset, split
        for record in records:
            required = {name: record.get(name) for name in ("id", "entity", "question")}
            given = {name: record.values[name] for name in _OPTIONAL if record.values.get(name) not in (None, "")}
            yield record.located(Row, **required, **given)


class SagedReader:
    """CSV files of SAGED, streamed. Items: `Row`, as `Benchmark.read` gives them."""

    name = "saged"
    splits: Sequence[str] = ()
    part_field = ""
    hub = ""

    def from_files(self, path: Path, split: str, part: str) -> Iterator[Located[Row]]:
        """Rows of the file."""
        del split, part
        for record in SagedFormat().records(path):
            yield Located(record.place, record.row)

    def hub_subsets(self, available: Sequence[str], part: str) -> Sequence[str]:
        """There is no layout on the hub."""
        del available, part
        return ()

    def from_hub(self, records: Iterable[Fields], subset: str, split: str) -> Iterator[Located[Row]]:
        """Not offered."""
        del records, subset, split
        yield from ()
