"""The ledger: every finished answer on disk, so that nothing is lost and nothing is paid for twice."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from mpf_chains.errors import LedgerError
from mpf_chains.runtime import schema
from mpf_chains.runtime.calls import Call, Completion
from mpf_chains.runtime.canonical import canonical_json, storable
from mpf_chains.runtime.owners import is_alive
from mpf_chains.runtime.salvage import find_damage, salvage

LEASE_SECONDS: Final = 120.0
_BYTES_PER_ANSWER: Final = 2048  # a rough need of disk space, for the check before a run
_SQLITE_HEADER: Final = b"SQLite format 3\0"


@dataclass(frozen=True)
class LedgerRow:
    """One row of a ledger, for reports.

    Args:
        completion: The answer with its status, usage and scores; its text is None if the ledger keeps none.
        kind: The call's kind.
        label: The call's label.
        created_at: When it was stored, in seconds since the epoch.
        text_sha256: SHA-256 (hex) of the text; None if there was no text.
    """

    completion: Completion
    kind: str
    label: str
    created_at: float
    text_sha256: str | None


class Ledger:
    """Finished answers and their scores, in one SQLite file that several threads and processes can share.

    Each answer is committed as it arrives and survives the death of the process. The whole file is checked when it is
    opened; good rows of a damaged one are moved to a new file in its place and the lost ones named in a DataWarning.

    Args:
        path: The file; made with mode 0600 if missing, in a directory made with mode 0700 if missing. None (the
            default): in memory, gone with the object.
        store_text: Whether to keep answers' texts. Default True. If False only their SHA-256, status, usage and
            scores are written.
        clock: Gives the present in seconds since the epoch. Default `time.time`.

    Raises:
        LedgerError: If the file cannot be opened, is no ledger, has a newer schema, or is damaged beyond repair.

    Examples:
        >>> from langchain_core.messages import HumanMessage
        >>> call = Call((HumanMessage("Hello"),))
        >>> with Ledger() as ledger:
        ...     ledger.record(Completion(call.key("model"), "ok", "Hi."), call, {"length": 3.0})
        ...     ledger.lookup([call.key("model")])[call.key("model")].text, ledger.counts()
        ('Hi.', {'ok': 1})
    """

    def __init__(
        self, path: str | Path | None = None, store_text: bool = True, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.path = None if path is None else Path(path).expanduser().absolute()
        self.store_text = store_text
        self._clock = clock
        self._lock = threading.RLock()
        self._db = self._open()
        self._db.row_factory = sqlite3.Row
        weakref.finalize(self, self._db.close)  # for those who forget

    def __repr__(self) -> str:
        return f"Ledger({str(self.path) if self.path else None!r}, store_text={self.store_text})"

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Using the ledger afterwards raises LedgerError; closing it again does nothing."""
        with self._lock:
            self._db.close()

    def check_writable(self, answers: int = 1) -> None:
        """Make sure that answers can be stored, before any is paid for.

        Args:
            answers: How many are to come. Default 1.

        Raises:
            LedgerError: If the file cannot be written or the disk is too full for so many answers.
        """
        with self._transaction() as db:
            db.execute("INSERT INTO probe VALUES (zeroblob(65536))")
        with self._transaction() as db:
            db.execute("DELETE FROM probe")
        need = answers * _BYTES_PER_ANSWER
        if self.path is not None and (free := shutil.disk_usage(self.path.parent).free) < need:
            raise LedgerError(
                f"The disk of {self.path} has {free >> 20} MiB free; {answers} answers need about {need >> 20} MiB.",
                hint="Free some space or put the ledger on another disk. Nothing has been asked yet.",
            )

    def lookup(self, keys: Iterable[str], features: Collection[str] = ()) -> dict[str, Completion]:
        """Find finished answers.

        Args:
            keys: Keys of calls.
            features: Digests of features that must be scored wherever the text was not kept. Default none.

        Returns:
            Key to completion. Calls that failed are left out, and so are answers without text that lack one of the
            scores: they have to be asked again.
        """
        wanted = json.dumps(list(keys))
        with self._reading() as db:
            rows = db.execute(
                "SELECT * FROM generations WHERE status != 'failed' AND key IN (SELECT value FROM json_each(?))",
                (wanted,),
            ).fetchall()
            scores = self._scores(db, wanted)
        found = (schema.completion_of(row, scores.get(row["key"], {})) for row in rows)
        return {completion.key: completion for completion in found if _is_usable(completion, features)}

    def record(
        self, completion: Completion, call: Call, scores: Mapping[str, float] | None = None, *, owner: str | None = None
    ) -> None:
        """Store one completion with its scores, in one transaction; its claim ends.

        Args:
            completion: The answer. One that failed is stored for reports and asked again by a later run.
            call: The call it answers, for its kind and label.
            scores: Feature digest to score. Default none.
            owner: Whose claim ends. Default None: nobody's.

        Raises:
            LedgerError: If it cannot be written.
        """
        row = self._row(completion, call)
        with self._transaction() as db:
            db.execute(schema.insertion("generations"), schema.with_checksum(row))
            self._write_scores(db, completion.key, scores or {})
            if owner is not None:
                db.execute("DELETE FROM claims WHERE key = ? AND owner = ?", (completion.key, owner))

    def add_scores(self, scores: Mapping[str, Mapping[str, float]]) -> None:
        """Store scores of answers that are in the ledger already, or of texts that no call answered.

        Args:
            scores: Key of the call (or a key of your own for another text) to feature digest to score (finite).

        Raises:
            LedgerError: If they cannot be written.
        """
        with self._transaction() as db:
            for key, by_feature in scores.items():
                self._write_scores(db, key, by_feature)

    def scores(self, keys: Iterable[str]) -> dict[str, dict[str, float]]:
        """Find what `add_scores` and `record` have stored, whether or not a call goes with it.

        Args:
            keys: Keys as given to them.

        Returns:
            Key to feature digest to score; keys without any score are left out.
        """
        with self._reading() as db:
            return self._scores(db, json.dumps(list(keys)))

    def claim(self, key: str, owner: str, features: Collection[str] = ()) -> Completion | bool:
        """Ask for the sole right to make a call.

        Args:
            key: The call's key.
            owner: Who asks; see `owners.new_owner`.
            features: As for `lookup`.

        Returns:
            The completion, if it is there by now; True if the call is yours to make; False while another owner that
            still lives is making it. The claim of a dead owner is taken over.
        """
        with self._transaction() as db:
            row = db.execute("SELECT * FROM generations WHERE key = ? AND status != 'failed'", (key,)).fetchone()
            if row is not None:
                completion = schema.completion_of(row, self._scores(db, json.dumps([key])).get(key, {}))
                if _is_usable(completion, features):
                    return completion
            holder = db.execute("SELECT owner, expires_at FROM claims WHERE key = ?", (key,)).fetchone()
            if holder is not None and holder["owner"] != owner and self._holds(holder):
                return False
            db.execute("INSERT OR REPLACE INTO claims VALUES (?, ?, ?)", (key, owner, self._clock() + LEASE_SECONDS))
        return True

    def renew(self, owner: str) -> None:
        """Extend the leases of all of an owner's claims, for those on other machines to see."""
        with self._transaction() as db:
            db.execute("UPDATE claims SET expires_at = ? WHERE owner = ?", (self._clock() + LEASE_SECONDS, owner))

    def release(self, owner: str) -> None:
        """Give up all of an owner's claims."""
        with self._transaction() as db:
            db.execute("DELETE FROM claims WHERE owner = ?", (owner,))

    def counts(self) -> dict[str, int]:
        """How many answers there are of each status."""
        with self._reading() as db:
            return dict(
                map(tuple, db.execute("SELECT status, count(*) FROM generations GROUP BY status ORDER BY status"))
            )

    def rows(self, kind: str | None = None) -> Iterator[LedgerRow]:
        """Go through all rows, oldest first.

        Args:
            kind: Only calls of this kind. Default None: all.

        Yields:
            One LedgerRow each, failed calls included.
        """
        last = 0
        while True:
            with self._reading() as db:  # in slices, so that a slow reader does not hold up writers
                batch = db.execute(
                    "SELECT * FROM generations WHERE id > ? AND (? IS NULL OR kind = ?) ORDER BY id LIMIT 500",
                    (last, kind, kind),
                ).fetchall()
                scores = self._scores(db, json.dumps([row["key"] for row in batch]))
            if not batch:
                return
            for row in batch:
                completion = schema.completion_of(row, scores.get(row["key"], {}))
                yield LedgerRow(completion, row["kind"], row["label"], row["created_at"], row["text_sha256"])
            last = batch[-1]["id"]

    def __len__(self) -> int:
        return sum(self.counts().values())

    def _row(self, completion: Completion, call: Call) -> tuple[Any, ...]:
        text = None if completion.text is None else storable(completion.text)
        digest = None if text is None else hashlib.sha256(text.encode()).hexdigest()
        return (
            completion.key, completion.status, text if self.store_text else None, digest,
            canonical_json(dict(completion.usage)), completion.finish_reason,
            None if completion.error is None else storable(completion.error),
            call.kind, storable(call.label), float(self._clock()),
        )  # fmt: skip

    def _holds(self, holder: Mapping[str, Any]) -> bool:
        alive = is_alive(holder["owner"])
        return bool(holder["expires_at"] > self._clock()) if alive is None else alive

    @staticmethod
    def _write_scores(db: sqlite3.Connection, key: str, scores: Mapping[str, float]) -> None:
        rows = [schema.with_checksum((key, feature, float(score))) for feature, score in scores.items()]
        db.executemany(schema.insertion("scores"), rows)

    @staticmethod
    def _scores(db: sqlite3.Connection, keys: str) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        query = "SELECT key, feature, score FROM scores WHERE key IN (SELECT value FROM json_each(?))"
        for key, feature, score in db.execute(query, (keys,)):
            found.setdefault(key, {})[feature] = score
        return found

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._db
            except sqlite3.Error as error:
                raise self._explained(error) from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")  # write lock first: waiting for it later could deadlock
                yield self._db
                self._db.execute("COMMIT")
            except BaseException as error:
                with suppress(sqlite3.Error):
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise self._explained(error) from error
                raise

    def _open(self) -> sqlite3.Connection:
        if self.path is None:
            return schema.connect(None)
        try:
            self._prepare(self.path)
            db, damage = self._checked(self.path)
            if damage is not None:
                salvage(self.path, damage)
                db, damage = self._checked(self.path)
        except (sqlite3.Error, OSError) as error:
            raise self._explained(error) from error
        return db

    def _checked(self, path: Path) -> tuple[sqlite3.Connection, str | None]:
        """Connect; return the connection (closed, if damaged) and the damage found."""
        db = sqlite3.connect(":memory:")
        db.close()
        try:
            db = schema.connect(path)
            self._check_kind(db)
            damage = find_damage(db)
        except sqlite3.OperationalError:  # no sign of damage: the disk, permissions, a lock
            db.close()
            raise
        except sqlite3.DatabaseError as error:
            damage = str(error)
        if damage is not None:
            db.close()
        return db, damage

    @staticmethod
    def _prepare(path: Path) -> None:
        """Make what is missing, and refuse a file that is none of ours before anything touches it."""
        for folder in reversed(path.parents):
            if not folder.exists():
                folder.mkdir(mode=0o700, exist_ok=True)
        if not path.exists():
            schema.create(path)
        with path.open("rb") as file:
            start = file.read(len(_SQLITE_HEADER))
        if start != _SQLITE_HEADER:
            raise LedgerError(
                f"{path} ({path.stat().st_size} bytes) is not a ledger: it does not begin as an SQLite file does.",
                hint="Choose another path. If a ledger was here, its start is damaged: put back a copy from a backup, "
                f"or give its answers up and pay for them again: mv '{path}' '{path}.bad'",
            )
        path.chmod(0o600)

    def _check_kind(self, db: sqlite3.Connection) -> None:
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if application != schema.APPLICATION_ID:
            db.close()
            raise LedgerError(f"{self.path} is an SQLite file of another program.", hint="Choose another path.")
        if version > schema.VERSION:
            db.close()
            raise LedgerError(
                f"The ledger {self.path} has schema {version}; this mpf-chains reads up to {schema.VERSION}.",
                hint="Upgrade mpf-chains.",
            )

    def _explained(self, error: Exception) -> LedgerError:
        text = str(error)
        hints = {
            "full": "Free some space on its disk and run again: what is stored is kept.",
            "readonly": "Make the file and its directory writable, or choose another path.",
            "read-only": "Make the file and its directory writable, or choose another path.",
            "ermission": "Make the file and its directory writable, or choose another path.",
            "unable to open": "Make its directory writable, or choose another path.",
            "locked": f"Another process has held it for {schema.BUSY_SECONDS:.0f} s: end that one, then run again.",
            "closed": "Open a new Ledger on the same path.",
            "malformed": "Open it again: that checks it and saves what can be read.",
        }
        hint = next((hint for sign, hint in hints.items() if sign in text), "Check its disk and path, then run again.")
        return LedgerError(f"The ledger {self.path or 'in memory'} cannot be used: {text}.", hint=hint)


def _is_usable(completion: Completion, features: Collection[str]) -> bool:
    """An answer without its text serves only those whose scores are there; one without words has none."""
    if completion.text is not None or completion.status in {"empty", "refusal"}:
        return True
    return all(feature in completion.scores for feature in features)
