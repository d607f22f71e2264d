"""Benchmarks: rows, and where rows have no target of their own, the perspective whose answers are the target."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mpf_chains.benchmarks.entities import mentioned, swap_entity
from mpf_chains.benchmarks.files import read_rows, write_rows
from mpf_chains.benchmarks.records import Header
from mpf_chains.benchmarks.rows import SPLITS, Row, Split
from mpf_chains.benchmarks.university import entity_names, standings, strategist, university_rows
from mpf_chains.errors import BenchmarkError
from mpf_chains.perspectives import Perspective


@dataclass(frozen=True)
class Benchmark:
    """Rows with unique ids, each with a target.

    Args:
        name: For reports; not part of `digest`.
        rows: At least one.
        baseline: Entity to the role-play perspective whose answers are the target of that entity's rows with neither
            text nor score (the "hypothetical" baseline). Default none: then every row needs a target of its own.

    Raises:
        BenchmarkError: If there are no rows, an id comes twice, a row has no target of any kind, or the baseline names
            an entity without rows.

    Examples:
        >>> rows = (Row("1", "ETH Zurich", "Is ETH Zurich any good?", target_score={"sentiment": 0.8}),)
        >>> Benchmark("mine", rows).entities
        ('ETH Zurich',)
    """

    name: str
    rows: tuple[Row, ...]
    baseline: Mapping[str, Perspective] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(self.rows))
        object.__setattr__(self, "baseline", MappingProxyType(dict(self.baseline)))
        self._check_ids()
        self._check_targets()

    def __hash__(self) -> int:
        return hash(self.digest)

    def __reduce__(self) -> tuple[type[Benchmark], tuple[Any, ...]]:
        return Benchmark, (self.name, self.rows, dict(self.baseline))

    @classmethod
    def builtin(cls, name: str, entities: Sequence[str] | Mapping[str, str] | None = None) -> Benchmark:
        """A benchmark that ships with the package: 140 questions per university, 100 to fit on, 40 to judge on.

        Args:
            name: "university": the target is one text about a fictional university with the name swapped, so it is the
                same for every entity (the paper's "counterfactual" baseline). "university-hr": the target is how a
                role-played recruiter answers, whose approval follows the entity's standing.
            entities: Names; any for "university". "university-hr" knows the standing of those that ship; for others
                pass a mapping from name to one sentence on its standing. Default: the first four that ship.

        Raises:
            BenchmarkError: If there is no such benchmark, or an entity's standing is unknown.

        Examples:
            >>> len(Benchmark.builtin("university", entities=["ETH Zurich"]).rows)
            140
        """
        if name == "university":
            names = entity_names(entities)
            return cls(name, university_rows(names, with_targets=True))
        if name == "university-hr":
            known = standings(entities)
            baseline = {entity: strategist(entity, standing) for entity, standing in known.items()}
            return cls(name, university_rows(list(known), with_targets=False), baseline)
        raise BenchmarkError(f'There is no built-in benchmark {name!r}; choose "university" or "university-hr".')

    @classmethod
    def read(
        cls, path: str | Path, *, name: str | None = None, baseline: Mapping[str, Perspective] | None = None
    ) -> Benchmark:
        """Read a file.

        Args:
            path: .jsonl, .ndjson or .csv (ours or of SAGED), UTF-8. Use `iter_rows` to stream rows of a huge file.
            name: Default: the name in the file, else the file's name without suffix.
            baseline: See the class. Default: what the file holds.

        Raises:
            BenchmarkError: Naming file:line:column, if something in the file cannot be used.
        """
        rows, header = read_rows(Path(path))
        return cls(name or header.name or Path(path).stem, rows, header.baseline if baseline is None else baseline)

    def write(self, path: str | Path) -> Path:
        """Write a file that `read` gives back exactly (a name only where there is a baseline).

        Args:
            path: .jsonl, .ndjson or .csv. An existing file is replaced as a whole.

        Returns:
            The path.

        Raises:
            BenchmarkError: If the format is unknown or cannot hold a row, or the file cannot be written.
            NotSupportedError: If there is a baseline and the format is CSV.
        """
        write_rows(Path(path), self.rows, Header(self.name, self.baseline))
        return Path(path)

    @property
    def entities(self) -> tuple[str, ...]:
        """The entities, in the order of their first rows."""
        return tuple(dict.fromkeys(row.entity for row in self.rows))

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of rows and baseline, in order; the name does not count."""
        total = hashlib.sha256()
        for row in self.rows:
            total.update(_canonical(row.as_dict()))
        total.update(_canonical({entity: one.digest for entity, one in self.baseline.items()}))
        return total.hexdigest()

    def select(
        self, entities: Sequence[str] | None = None, split: Split | None = None, per_entity: int | None = None
    ) -> Benchmark:
        """A part of the benchmark, rows in the same order.

        Args:
            entities: Which entities. Default all.
            split: "decomposition" or "validation". Default both.
            per_entity: At most so many rows of each entity in each split, at least 1, spread evenly so that the part
                covers the topics. Default all.

        Raises:
            BenchmarkError: If an entity or split is unknown, or nothing is left.

        Examples:
            >>> few = Benchmark.builtin("university").select(per_entity=2)
            >>> len(few.rows) == 4 * 2 * 2  # entities, splits, rows
            True
        """
        known = self.entities
        wanted = known if entities is None else entity_names(entities)
        unknown = [entity for entity in wanted if entity not in known]
        if unknown:
            raise BenchmarkError(
                f"No rows about {', '.join(map(repr, unknown))}; there are rows about {', '.join(known)}."
            )
        if split is not None and split not in SPLITS:
            raise BenchmarkError(f"`split` is {split!r}; it must be one of {', '.join(SPLITS)}.")
        if per_entity is not None and per_entity < 1:
            raise BenchmarkError(f"`per_entity` is {per_entity}; it must be at least 1.")
        groups: dict[tuple[str, str], list[int]] = {}
        for index, row in enumerate(self.rows):
            if row.entity in wanted and split in {None, row.split}:
                groups.setdefault((row.entity, row.split), []).append(index)
        if not groups:
            raise BenchmarkError(f"Benchmark {self.name!r} has no {split} rows about {', '.join(wanted)}.")
        kept = sorted(index for group in groups.values() for index in _spread(group, per_entity))
        rows = tuple(self.rows[index] for index in kept)
        present = {row.entity for row in rows}
        return replace(self, rows=rows, baseline={key: one for key, one in self.baseline.items() if key in present})

    def counterfactual(self, fictional: str, entities: Sequence[str], *, articles: bool = True) -> Benchmark:
        """The same rows about each entity, its name swapped for a fictional one's in questions and target texts.

        Args:
            fictional: The name as it stands in the texts.
            entities: The names to put there.
            articles: Whether an English "a" or "an" before the name follows it. Default yes.

        Returns:
            A benchmark with ids "id/entity" and the same targets for every entity, without baseline. Metadata
            are kept; "question_id", if there is none, is the row's id: rows that share it share one target, and
            calibration counts them as one question.

        Raises:
            BenchmarkError: If the name is not in a question, or a row has no target of its own.
        """
        unnamed = [row.id for row in self.rows if not mentioned(row.question, [fictional])]
        if unnamed:
            raise BenchmarkError(
                f"{len(unnamed)} questions do not name {fictional!r}; the first has id {unnamed[0]!r}.",
                hint="Give the name as it stands in the questions, capitals included.",
            )
        rows = tuple(
            replace(
                row,
                id=f"{row.id}/{entity}",
                entity=entity,
                question=swap_entity(row.question, fictional, entity, articles=articles),
                target_text=row.target_text and swap_entity(row.target_text, fictional, entity, articles=articles),
                metadata={"question_id": row.id, **row.metadata},
            )
            for entity in entity_names(entities)
            for row in self.rows
        )
        return Benchmark(self.name, rows)

    def _check_ids(self) -> None:
        if not self.rows:
            raise BenchmarkError(f"Benchmark {self.name!r} has no rows; it needs at least one.")
        seen: set[str] = set()
        for row in self.rows:
            if not isinstance(row, Row):
                raise BenchmarkError(f"`rows` holds {row!r}; it must hold Row objects only.")
            if row.id in seen:
                raise BenchmarkError(f"The id {row.id!r} comes more than once; ids must be unique.")
            seen.add(row.id)

    def _check_targets(self) -> None:
        for entity, perspective in self.baseline.items():
            if not isinstance(perspective, Perspective):
                raise BenchmarkError(f"The baseline of {entity!r} must be a Perspective, not {perspective!r}.")
        idle = list(self.baseline.keys() - set(self.entities))
        if idle:
            raise BenchmarkError(f"The baseline names {idle[0]!r}, but no row is about it.")
        bare = [
            row
            for row in self.rows
            if row.target_text is None and not row.target_score and row.entity not in self.baseline
        ]
        if bare:
            raise BenchmarkError(
                f"{len(bare)} of {len(self.rows)} rows have neither target_text nor target_score, and their entity has "
                f"no baseline perspective; the first is {bare[0].id!r} about {bare[0].entity!r}.",
                hint="Give each row a target, or pass baseline={entity: Perspective(...)} for these entities.",
            )


def _spread(indices: Sequence[int], count: int | None) -> Sequence[int]:
    """`count` of the indices, the middles of as many equal stretches; all where there are no more."""
    total = len(indices)
    if count is None or count >= total:
        return indices
    return [indices[(2 * step + 1) * total // (2 * count)] for step in range(count)]


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False).encode() + b"\n"
