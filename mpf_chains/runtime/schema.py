"""The ledger's tables, the checksum of each row, and how a ledger file is made and connected to."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any, Final

from mpf_chains.runtime.calls import Completion
from mpf_chains.runtime.canonical import canonical_json

VERSION: Final = 1
APPLICATION_ID: Final = 0x4D50464C  # "MPFL", in the header of every ledger file
BUSY_SECONDS: Final = 60.0

GENERATION: Final = (
    "key", "status", "text", "text_sha256", "usage", "finish_reason", "error", "kind", "label", "created_at",
)  # fmt: skip
SCORE: Final = ("key", "feature", "score")
TABLES: Final[Mapping[str, Sequence[str]]] = {"generations": GENERATION, "scores": SCORE}

_SCHEMA: Final = f"""
CREATE TABLE generations (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, status TEXT NOT NULL, text TEXT, text_sha256 TEXT,
    usage TEXT NOT NULL, finish_reason TEXT, error TEXT, kind TEXT NOT NULL, label TEXT NOT NULL,
    created_at REAL NOT NULL, checksum TEXT NOT NULL);
CREATE TABLE scores (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, feature TEXT NOT NULL, score REAL NOT NULL, checksum TEXT NOT NULL,
    UNIQUE (key, feature));
CREATE TABLE claims (key TEXT PRIMARY KEY, owner TEXT NOT NULL, expires_at REAL NOT NULL);
CREATE TABLE probe (filler BLOB);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
"""


@cache
def insertion(table: str) -> str:
    """SQL that stores one row of a table, its checksum last, over an older row of the same call."""
    columns = (*TABLES[table], "checksum")
    unique = "key, feature" if table == "scores" else "key"
    updates = ", ".join(f"{column} = excluded.{column}" for column in columns)
    return (  # an update keeps the row's id, so that ids have no gaps and a gap tells of a lost row
        f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))}) "  # noqa: S608
        f"ON CONFLICT ({unique}) DO UPDATE SET {updates}"
    )


def selection(table: str) -> str:
    """SQL that reads all rows of a table, their checksums last."""
    return f"SELECT {', '.join(TABLES[table])}, checksum FROM {table}"  # noqa: S608  # fixed names only


def restored(table: str, row: Sequence[Any]) -> list[Any]:
    """Make whole numbers in REAL columns floats again: SQLite keeps them as integers on disk."""
    real = TABLES[table].index("score" if table == "scores" else "created_at")
    return [float(value) if at == real and isinstance(value, int) else value for at, value in enumerate(row)]


def with_checksum(row: Sequence[Any]) -> tuple[Any, ...]:
    """Append the checksum (16 hex digits) of a row's values."""
    return (*row, checksum(row))


def checksum(row: Sequence[Any]) -> str:
    """First 16 hex digits of the SHA-256 over a row's values."""
    return hashlib.sha256(canonical_json(list(row)).encode("ascii")).hexdigest()[:16]


def is_intact(row: Sequence[Any]) -> bool:
    """Tell whether a stored row (checksum last) is as it was written."""
    try:
        return bool(checksum(row[:-1]) == row[-1])
    except ValueError:  # a flipped byte can make a NaN or a blob
        return False


def connect(path: Path | None) -> sqlite3.Connection:
    """Connect to a ledger file (None: to memory) in autocommit mode.

    In WAL mode with synchronous=NORMAL a commit survives the death of the process at any moment; only a power cut can
    take the last few, and never the file.
    """
    database = sqlite3.connect(
        ":memory:" if path is None else path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    database.text_factory = lambda raw: raw.decode("utf-8", "replace")  # a flipped byte must not stop the reading
    try:
        database.execute("PRAGMA synchronous = NORMAL")
        if path is None:
            database.executescript(_SCHEMA)
    except sqlite3.Error:
        database.close()
        raise
    return database


def create(path: Path) -> None:
    """Make an empty ledger, readable by its owner only; it appears complete or not at all.

    Args:
        path: Where. If another process makes one there first, that one stays.
    """
    unfinished = path.with_name(f"{path.name}.new-{secrets.token_hex(4)}")
    try:
        os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        with closing(sqlite3.connect(unfinished, isolation_level=None)) as database:
            database.executescript(_SCHEMA)
            database.execute("PRAGMA journal_mode = WAL")
        try:
            os.link(unfinished, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            if not path.exists():
                unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def completion_of(row: Mapping[str, Any], scores: Mapping[str, float]) -> Completion:
    """Read a completion out of a row of `generations`."""
    return Completion(
        row["key"], row["status"], row["text"], json.loads(row["usage"]), row["error"], row["finish_reason"], scores
    )
