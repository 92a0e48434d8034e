"""A store in one SQLite file, which needs no other program: what `titans serve` uses by default.

SQLite's own locks make a write exclusive, also between processes. Deleted values are overwritten with zeros
(https://sqlite.org/pragma.html#pragma_secure_delete), and the write-ahead log is emptied after a deletion.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from titans_runtime import StateError
from titans_serve.stores.base import Key, Record, conflict, new_version

_TABLE = """
CREATE TABLE IF NOT EXISTS value (
    namespace TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL,
    version TEXT NOT NULL, expires REAL, data BLOB NOT NULL,
    PRIMARY KEY (namespace, kind, name)
) WITHOUT ROWID
"""
_PLACE = "namespace = ? AND kind = ? AND name = ?"
_WAIT = 30.0  # seconds that a writer waits for another one


class SQLiteStore:
    """Values in a table. `now` is a clock in seconds."""

    def __init__(self, path: str | os.PathLike[str], now: Callable[[], float] = time.time) -> None:
        self.path = Path(path)
        self._now = now
        self._lock = threading.Lock()
        try:
            if not self.path.exists():
                self.path.touch(mode=0o600)  # memories are personal data
            self._connection = sqlite3.connect(self.path, timeout=_WAIT, isolation_level=None, check_same_thread=False)
            with self._errors():
                for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON", "trusted_schema=OFF"):
                    self._connection.execute(f"PRAGMA {pragma}")
                self._connection.execute(_TABLE)
        except (OSError, sqlite3.Error) as error:
            raise StateError(f"{self.path} cannot be opened as a store ({error})", "name a writable file") from error

    def get(self, key: Key) -> Record | None:
        """See `Store`."""
        with self._lock, self._errors():
            row = self._connection.execute(
                f"SELECT data, version, expires FROM value WHERE {_PLACE}", _place(key)
            ).fetchone()
        if row is None or (row[2] is not None and row[2] <= self._now()):
            return None
        return Record(bytes(row[0]), str(row[1]))

    def version(self, key: Key) -> str | None:
        """See `Store`."""
        with self._lock, self._errors():
            row = self._connection.execute(f"SELECT version, expires FROM value WHERE {_PLACE}", _place(key)).fetchone()
        return None if row is None or (row[1] is not None and row[1] <= self._now()) else str(row[0])

    def put(self, key: Key, data: bytes, replaces: str | None, lives: float | None = None) -> str:
        """See `Store`."""
        now, version = self._now(), new_version()
        expires = None if lives is None else now + lives
        with self._lock, self._errors(), self._transaction():
            self._connection.execute(f"DELETE FROM value WHERE {_PLACE} AND expires <= ?", (*_place(key), now))
            row = self._connection.execute(f"SELECT version FROM value WHERE {_PLACE}", _place(key)).fetchone()
            if (None if row is None else row[0]) != replaces:
                raise conflict(key)
            self._connection.execute(
                "INSERT OR REPLACE INTO value VALUES (?, ?, ?, ?, ?, ?)", (*_place(key), version, expires, data)
            )
        return version

    def delete(self, key: Key) -> bool:
        """See `Store`."""
        return self._delete(_PLACE, _place(key)) > 0

    def names(self, namespace: str, kind: str) -> list[str]:
        """See `Store`."""
        with self._lock, self._errors():
            rows = self._connection.execute(
                "SELECT name FROM value WHERE namespace = ? AND kind = ? AND (expires IS NULL OR expires > ?) "
                "ORDER BY name",
                (namespace, kind, self._now()),
            ).fetchall()
        return [str(row[0]) for row in rows]

    def delete_namespace(self, namespace: str) -> int:
        """See `Store`."""
        return self._delete("namespace = ?", (namespace,))

    def expire(self) -> int:
        """See `Store`."""
        return self._delete("expires <= ?", (self._now(),))

    def close(self) -> None:
        """See `Store`."""
        with self._lock:
            self._connection.close()

    def _delete(self, where: str, values: tuple[str | float, ...]) -> int:
        with self._lock, self._errors():
            count = self._connection.execute(f"DELETE FROM value WHERE {where}", values).rowcount
            if count:  # or the log would hold the deleted bytes until its next checkpoint
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return count

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StateError(
                f"the store {self.path} failed ({error})", "see whether its disk is full or the file is damaged"
            ) from error


def _place(key: Key) -> tuple[str, str, str]:
    return key.namespace, key.kind, key.name
