"""Saving what can be read of a damaged ledger into a new one, and saying what could not."""

from __future__ import annotations

import sqlite3
import warnings
from contextlib import closing
from pathlib import Path
from typing import Any

from mpf_chains.errors import DataWarning, LedgerError
from mpf_chains.runtime import schema
from mpf_chains.runtime.pages import Pages

_NAMED = 10  # losses spelled out in the warning


def find_damage(database: sqlite3.Connection) -> str | None:
    """Look for damage in a whole ledger: structure, indexes, and the checksum of every row.

    Args:
        database: An open connection.

    Returns:
        What is wrong, in words; None if all is well.
    """
    try:
        (verdict,) = database.execute("PRAGMA integrity_check(1)").fetchone()
        if verdict != "ok":
            return str(verdict).replace("\n", " ")
        for table in schema.TABLES:
            bad = sum(not schema.is_intact(row) for row in database.execute(schema.selection(table)))
            if bad:
                return f"{bad} row(s) of {table} have a wrong checksum"
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        return str(error)
    return None


def salvage(path: Path, damage: str) -> None:
    """Replace a damaged ledger by one with its good rows; the damaged file is kept beside it.

    Args:
        path: The ledger.
        damage: What was found, for the message.

    Raises:
        LedgerError: If no answer can be read.

    Warns:
        DataWarning: Naming what was lost and where the damaged file is.
    """
    rescued = path.with_name(f"{path.name}.rescued")
    rescued.unlink(missing_ok=True)
    try:
        kept, lost = _copy_good_rows(path, rescued)
        if not kept:
            raise LedgerError(
                f"The ledger {path} is damaged ({damage}) and none of its answers can be read.",
                hint="Put back a copy from a backup; or give the answers up and pay for them again: "
                f"mv '{path}' '{path}.bad'",
            )
        aside = _first_free(path)
        for suffix in ("-wal", "-shm"):
            if (extra := path.with_name(path.name + suffix)).exists():
                extra.replace(aside.with_name(aside.name + suffix))
        path.replace(aside)
        rescued.replace(path)
    finally:
        rescued.unlink(missing_ok=True)
    more = f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
    warnings.warn(
        f"The ledger {path} was damaged ({damage}). {kept} answers were kept. Lost, and asked again when "
        f"needed: {'; '.join(lost[:_NAMED]) or 'none'}{more}. The damaged file is kept as {aside}.",
        DataWarning,
        stacklevel=5,
    )


def _copy_good_rows(path: Path, rescued: Path) -> tuple[int, list[str]]:
    """Write the intact rows to a new ledger; return how many answers were kept, and names of what was lost."""
    pages = Pages(path)
    good, lost = _sort_rows(pages)
    schema.create(rescued)
    with closing(schema.connect(rescued)) as target:
        target.execute("BEGIN")
        for table, rows in good.items():
            target.executemany(schema.insertion(table), [rows[number] for number in sorted(rows)])
        target.execute("COMMIT")
    names = [f"{table[:-1]} {number} ({name})" for (table, number), name in sorted(lost.items())]
    if pages.missing:
        names.insert(0, f"whatever the last {pages.missing} pages held, which the file is too short by")
    return len(good["generations"]), names


def _sort_rows(pages: Pages) -> tuple[dict[str, dict[int, list[Any]]], dict[tuple[str, int], str]]:
    """Tell intact rows (table to id to values) from lost ones (table and id to a name)."""
    good: dict[str, dict[int, list[Any]]] = {table: {} for table in schema.TABLES}
    lost: dict[tuple[str, int], str] = {}
    created = schema.GENERATION.index("created_at")
    for number, values in pages.rows():
        table = next(
            (name for name, columns in schema.TABLES.items() if values and len(values) == len(columns) + 2), None
        )
        if values is None or table is None:
            continue  # a row of claims, or one that a gap in its table's ids will tell of
        row = schema.restored(table, values[1:])
        older = good[table].get(number)
        if not schema.is_intact(row):
            lost[table, number] = repr(row[schema.GENERATION.index("label")]) if table == "generations" else "a score"
        elif older is None or table == "scores" or row[created] >= older[created]:
            good[table][number] = row
    for table, rows in good.items():
        last = max([*rows, *(number for name, number in lost if name == table and number < 1 << 40)], default=0)
        for number in set(range(1, min(last, len(rows) * 1000) + 1)) - rows.keys():  # ids have no gaps
            lost.setdefault((table, number), "unreadable")
        for number in rows:
            lost.pop((table, number), None)
    return good, lost


def _first_free(path: Path) -> Path:
    number = 1
    while (candidate := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    return candidate
