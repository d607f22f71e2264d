"""Target tables from files: CSV or TSV, one row per context or one per class, and the statistics of Winogender."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

from mpf_chains.errors import BenchmarkError, InvalidInput
from mpf_chains.targets.names import attribute_of
from mpf_chains.targets.table import TargetTable, joint_name

_SHARE = "share"
_TOLERANCE = 0.005
_WINOGENDER = {"occupation", "bls_pct_female"}


def read_targets(
    file: str | PathLike[str],
    attributes: Mapping[str, Sequence[str]],
    *,
    context: str = "context",
    total: float = 1.0,
    tolerance: float = 1e-6,
) -> TargetTable:
    """Read a target table.

    Two layouts, told apart by the column "share". Without it a row is a context, with a column for each class. With it
    a row is one share, with a column for each attribute that names its class; a combination that is left out has
    share 0. Other columns are not read.

    Args:
        file: CSV with commas, or TSV if its name ends in ".tsv"; UTF-8, with a header row.
        attributes: Name of each attribute → its classes.
        context: The column that names the context. Default "context".
        total: What the shares of a context sum to: 1 (default), or 100 for percentages.
        tolerance: How far a sum may be off, as a share of the total; what is off is divided out. Default 1e-6;
            published percentages, which are rounded, need some 1e-3.

    Raises:
        BenchmarkError: Naming file, line and column, if the file cannot be read, lacks a column, names an unknown
            class, gives a share twice or one that is no number from 0 to the total, or a sum is off.
        InvalidInput: If the attributes are no attributes.
    """
    path = Path(file)
    names, rows = _table(path)
    long = _SHARE in names
    if not long and len(attributes) > 1:
        raise BenchmarkError(
            f"{path}:1: a table of several attributes needs the column {_SHARE!r}; the header has "
            f"{', '.join(map(repr, names))}.",
            hint="Write one row per context and combination of classes.",
        )
    wanted = [context, *attributes, _SHARE] if long else [context, *next(iter(attributes.values()), ())]
    missing = [name for name in wanted if name not in names]
    if missing:
        raise BenchmarkError(
            f"{path}:1: the header has no column {', '.join(map(repr, missing))}; it has {', '.join(map(repr, names))}."
        )
    shares: dict[str, dict[str | tuple[str, ...], float]] = {}
    last: dict[str, int] = {}
    for line, cells in rows:
        where = cells[context].strip()
        if not where:
            raise BenchmarkError(f"{path}:{line}:{context}: the cell is empty; it must name the context.")
        if not long and where in shares:
            raise BenchmarkError(f"{path}:{line}:{context}: {where!r} has a row already, line {last[where]}.")
        given, last[where] = shares.setdefault(where, {}), line
        for name, column in _columns(path, line, cells, attributes, long=long):
            if name in given:
                raise BenchmarkError(f"{path}:{line}: the share of {name!r} in {where!r} is given twice.")
            given[name] = _number(path, line, column, cells[column], total) / total
    if not shares:
        raise BenchmarkError(f"{path} has a header and no rows.")
    for where, given in shares.items():
        found = math.fsum(given.values())
        if abs(found - 1) > tolerance:
            raise BenchmarkError(
                f"{path}:{last[where]}: the shares of {where!r} sum to {found * total:.6g}; they must sum to {total:g} "
                f"(tolerance {tolerance * total:g}).",
                hint="Percentages need `total=100`; rounded figures need a larger `tolerance`.",
            )
        shares[where] = {name: share / found for name, share in given.items()}
    return TargetTable.of(shares, attributes)


def read_target_file(file: str | PathLike[str], *, attribute: str | None = None) -> TargetTable:
    """Read a target table whose attributes and classes its header says.

    The first column names the context. With a column "share" the others are attributes, and their cells the classes;
    without it the others are the classes of one attribute: "gender", "race" or "sentiment" if they are those of
    `PerspectiveSet.builtin` ("Women" and "men" are, too), else "class". Shares may be percentages, which they are taken
    for if one is above 1, or those of the first context sum to more than 2; rounded ones may be off by 0.5 %.
    occupations-stats.tsv of Winogender is read as `read_winogender_targets` does. For anything else: `read_targets`.

    Args:
        file: CSV, or TSV if its name ends in ".tsv".
        attribute: What the columns are classes of, as prompts name it ("age group"). Default: see above.

    Raises:
        BenchmarkError: As `read_targets`; also if the file names its attributes and another is given.
    """
    path = Path(file)
    names, rows = _table(path)
    if attribute is not None and (_SHARE in names or set(names) >= _WINOGENDER):
        raise BenchmarkError(f"{path}:1: the file says what its attributes are, and {attribute!r} is given.")
    if set(names) >= _WINOGENDER:
        return read_winogender_targets(path)
    context, *others = names
    attributes: dict[str, Sequence[str]]
    if _SHARE in others:
        keys = [name for name in others if name != _SHARE]
        attributes = {name: tuple(dict.fromkeys(cells[name].strip() for _, cells in rows)) for name in keys}
        columns = [_SHARE]
    else:
        attributes, columns = {attribute or attribute_of(others) or "class": tuple(others)}, others
    if not attributes or any(len(classes) < 2 for classes in attributes.values()):
        raise BenchmarkError(
            f"{path}:1: the header has {', '.join(map(repr, names))}; after the context there must be a column for "
            f"each class, two at least, or the attributes and {_SHARE!r}."
        )
    found = [
        (cells[context].strip(), _number(path, line, column, cells[column], 100))
        for line, cells in rows for column in columns
    ]  # fmt: skip
    percent = any(share > 1 + _TOLERANCE for _, share in found)
    percent = percent or math.fsum(share for name, share in found if name == found[0][0]) > 2
    return read_targets(path, attributes, context=context, total=100 if percent else 1, tolerance=_TOLERANCE)


def read_winogender_targets(file: str | PathLike[str], *, source: str = "bls") -> TargetTable:
    """Shares of women and men in 60 occupations, from occupations-stats.tsv of Winogender.

    Source: Rudinger, Naradowsky, Leonard & Van Durme, "Gender bias in coreference resolution", NAACL 2018; the figures
    are of the US Bureau of Labor Statistics, 2015/16, and of the corpus of Bergsma & Lin 2006.

    Args:
        file: The file, or the folder it lies in.
        source: "bls" (default): people in the occupation; "bergsma": mentions in text.

    Returns:
        A table of "gender" with the classes "female" and "male".

    Raises:
        BenchmarkError: If the file is not there or is another one.
    """
    if source not in {"bls", "bergsma"}:
        raise InvalidInput(f"`source` is {source!r}; it must be 'bls' or 'bergsma'.")
    path = Path(file)
    path = path / "occupations-stats.tsv" if path.is_dir() else path
    names, rows = _table(path)
    column = f"{source}_pct_female"
    if not {"occupation", column} <= set(names):
        raise BenchmarkError(
            f"{path}:1: the header has {', '.join(map(repr, names))}; it must have 'occupation' and {column!r}."
        )
    first: dict[str, int] = {}
    for line, cells in rows:
        name = cells["occupation"]
        if first.setdefault(name, line) != line:
            raise BenchmarkError(f"{path}:{line}:occupation: {name!r} has a row already, line {first[name]}.")
    women = {cells["occupation"]: _number(path, line, column, cells[column], 100) / 100 for line, cells in rows}
    return TargetTable.of(
        {name: {"female": share, "male": 1 - share} for name, share in women.items()}, {"gender": ("female", "male")}
    )


def _columns(
    path: Path, line: int, cells: Mapping[str, str], attributes: Mapping[str, Sequence[str]], *, long: bool
) -> list[tuple[str, str]]:
    """Which shares a row holds: class and column; ``long`` if the row is one share, whose class its cells name."""
    if not long:
        return [(name, name) for classes in attributes.values() for name in classes]
    for attribute, classes in attributes.items():
        if cells[attribute].strip() not in classes:
            raise BenchmarkError(
                f"{path}:{line}:{attribute}: {cells[attribute].strip()!r} is no class of {attribute!r}; they are "
                f"{', '.join(map(repr, classes))}."
            )
    return [(joint_name([cells[attribute].strip() for attribute in attributes]), _SHARE)]


def _number(path: Path, line: int, column: str, text: str, total: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= total * (1 + 1e-9):
        raise BenchmarkError(f"{path}:{line}:{column}: {text!r} is no number from 0 to {total:g}.")
    return value


def _table(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Column names, and rows as cells by column with their line; blank lines are skipped."""
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BenchmarkError(f"{path} is not UTF-8: {error}.") from error
    except OSError as error:
        raise BenchmarkError(f"{path} cannot be read: {error.strerror}.") from error
    if "\0" in text:
        raise BenchmarkError(f"{path} has a NUL character, so it is no table.")
    reader = csv.reader(text.splitlines(keepends=True), delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
    rows: list[tuple[int, list[str]]] = []
    try:
        rows.extend((reader.line_num, cells) for cells in reader if any(map(str.strip, cells)))
    except csv.Error as error:
        raise BenchmarkError(f"{path}:{reader.line_num}: not CSV: {error}.") from error
    if not rows:
        raise BenchmarkError(f"{path} is empty.")
    names = [name.strip() for name in rows[0][1]]
    if len(set(names)) < len(names):
        raise BenchmarkError(f"{path}:1: a column is given more than once: {', '.join(map(repr, names))}.")
    for line, cells in rows[1:]:
        if len(cells) != len(names):
            raise BenchmarkError(
                f"{path}:{line}: the row has {len(cells)} cells; the header has {len(names)}.",
                hint=f"Cells are parted by a {'tab' if path.suffix == '.tsv' else 'comma'}.",
            )
    return names, [(line, dict(zip(names, cells, strict=True))) for line, cells in rows[1:]]
