"""Target tables as a benchmark: prompts about each context, and the shares that the answers' classes should have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, get_args

from mpf_chains.benchmarks.lines import Place, iter_lines
from mpf_chains.benchmarks.readers.fields import Fields, Located
from mpf_chains.benchmarks.rows import Row
from mpf_chains.errors import BenchmarkError, InvalidInput
from mpf_chains.targets import TargetTable, phrasings, prompts_about, read_target_file
from mpf_chains.targets.phrasings import Kind

TARGETS: Final = "targets"


class TargetsReader:
    """A target table (CSV or TSV, see `mpf_chains.targets.read_target_file`) with the shipped phrasings.

    Items: `Row` whose `entity` is the context and whose `metadata` holds "kind", "attributes" (name → classes) and
    "targets" (class → share, joint classes where there are several attributes). Parts: "answers" (default), questions
    for the attribute, and "stories". Splits: "held_out" phrasings, and those to "train" on.

    References:
        arXiv 2604.05756 (the task and its error).
    """

    name = TARGETS
    splits: Sequence[str] = ("held_out", "train")
    part_field = "kind"
    hub = ""

    def from_files(self, path: Path, split: str, part: str) -> Iterator[Located[Row]]:
        """Rows for every context of the table."""
        kind: Any = part or "answers"
        if kind not in get_args(Kind):
            raise BenchmarkError(f"{path} has no part {part!r}; there is {', '.join(get_args(Kind))}.")
        for _ in iter_lines(path):  # what is no text is refused by line and column
            pass
        try:
            table = read_target_file(path)
        except BenchmarkError:
            raise
        except InvalidInput as error:
            raise Place(path, 1).error(str(error)) from error
        for row in rows_of(table, kind, phrasings(kind, table.attributes, split)):  # type: ignore[arg-type]
            yield Located(Place(path, 1), row)

    def hub_subsets(self, available: Sequence[str], part: str) -> Sequence[str]:
        """There is no layout on the hub."""
        del available, part
        return ()

    def from_hub(self, records: Iterable[Fields], subset: str, split: str) -> Iterator[Located[Row]]:
        """Not offered."""
        del records, subset, split
        yield from ()


def rows_of(table: TargetTable, kind: Kind, templates: Sequence[str]) -> Iterator[Row]:
    """A row for each context and template, contexts in the table's order."""
    attributes = {name: list(classes) for name, classes in table.attributes.items()}
    for number, prompt in enumerate(prompts_about(table.contexts, templates)):
        described = {"kind": kind, "attributes": attributes, "targets": table[prompt.context]}
        identifier = f"{kind}/{prompt.context}/{number % len(templates)}"
        yield Row(identifier, prompt.context, prompt.text, metadata=described)
