"""A store in PostgreSQL, for servers on several machines.

One table holds all values. Each change is one statement, so it happens or does not. Times are the database's, so the
clocks of the servers do not matter. Connections are pooled, and opened again after the database was restarted. Knows
psycopg.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import psycopg
from psycopg_pool import ConnectionPool, PoolTimeout

from titans_runtime import StateError
from titans_serve.stores.base import KINDS, Key, Record, conflict, new_version, without_password

_CONNECTIONS = 8  # as many as the server has threads for its store
_PATIENCE = 5.0  # seconds for a connection to be made
_WAIT = 2.0  # seconds that a request waits for one while the database is away
_TABLE = """
CREATE TABLE IF NOT EXISTS titans_value (
    namespace text NOT NULL, kind text NOT NULL, name text NOT NULL,
    version text NOT NULL, expires timestamptz, data bytea NOT NULL,
    PRIMARY KEY (namespace, kind, name)
)
"""
_PLACE = "namespace = %s AND kind = %s AND name = %s"
_ALIVE = "(expires IS NULL OR expires > clock_timestamp())"
_EXPIRES = "clock_timestamp() + make_interval(secs => %s)"  # NULL seconds make NULL
_LOCK = 7_301_966_214  # of the table's making: any number that no other program uses
_INSERT = f"""
INSERT INTO titans_value AS old VALUES (%s, %s, %s, %s, {_EXPIRES}, %s)
ON CONFLICT (namespace, kind, name) DO UPDATE
SET version = excluded.version, expires = excluded.expires, data = excluded.data
WHERE old.expires <= clock_timestamp()
"""
_UPDATE = f"""
UPDATE titans_value SET version = %s, expires = {_EXPIRES}, data = %s WHERE {_PLACE} AND version = %s AND {_ALIVE}
"""


class PostgreSQLStore:
    """Values in a table. `url` is `postgresql://[USER[:PASSWORD]@]HOST[:PORT]/DATABASE`."""

    def __init__(self, url: str) -> None:
        self.url, self.shown = url, without_password(url)
        try:
            psycopg.conninfo.conninfo_to_dict(url)
        except psycopg.ProgrammingError as error:
            raise StateError(
                f"{self.shown} is not an address of PostgreSQL", "write postgresql://USER@HOST/DATABASE"
            ) from error
        with self._errors():
            # A first connection by itself says what is wrong; the pool would only wait.
            with psycopg.connect(url, connect_timeout=int(_PATIENCE)) as connection:
                connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))  # two servers may start at once
                connection.execute(_TABLE)
            self._pool = ConnectionPool(
                url, min_size=1, max_size=_CONNECTIONS, timeout=_WAIT, reconnect_timeout=1.0,
                check=ConnectionPool.check_connection,
                kwargs={"autocommit": True, "connect_timeout": int(_PATIENCE)}, open=True,
            )  # fmt: skip

    def get(self, key: Key) -> Record | None:
        """See `Store`."""
        rows = self._rows(f"SELECT data, version FROM titans_value WHERE {_PLACE} AND {_ALIVE}", _place(key))
        return Record(bytes(rows[0][0]), str(rows[0][1])) if rows else None  # type: ignore[call-overload]

    def version(self, key: Key) -> str | None:
        """See `Store`."""
        rows = self._rows(f"SELECT version FROM titans_value WHERE {_PLACE} AND {_ALIVE}", _place(key))
        return str(rows[0][0]) if rows else None

    def put(self, key: Key, data: bytes, replaces: str | None, lives: float | None = None) -> str:
        """See `Store`."""
        version = new_version()
        if replaces is None:
            written = self._change(_INSERT, (*_place(key), version, lives, data))
        else:
            written = self._change(_UPDATE, (version, lives, data, *_place(key), replaces))
        if not written:
            raise conflict(key)
        return version

    def delete(self, key: Key) -> bool:
        """See `Store`."""
        return self._change(f"DELETE FROM titans_value WHERE {_PLACE}", _place(key)) > 0

    def names(self, namespace: str, kind: str) -> list[str]:
        """See `Store`."""
        rows = self._rows(
            f'SELECT name FROM titans_value WHERE namespace = %s AND kind = %s AND {_ALIVE} ORDER BY name COLLATE "C"',
            (namespace, kind),
        )
        return [str(row[0]) for row in rows]

    def delete_namespace(self, namespace: str) -> int:
        """See `Store`."""
        namespace = Key(namespace, KINDS[0], "x").namespace
        return self._change("DELETE FROM titans_value WHERE namespace = %s", (namespace,))

    def expire(self) -> int:
        """See `Store`."""
        return self._change("DELETE FROM titans_value WHERE expires <= clock_timestamp()", ())

    def close(self) -> None:
        """See `Store`."""
        self._pool.close()

    def _rows(self, statement: str, values: Sequence[object]) -> list[tuple[object, ...]]:
        with self._errors(), self._pool.connection() as connection:
            return connection.execute(statement.encode(), values).fetchall()

    def _change(self, statement: str, values: Sequence[object]) -> int:
        """How many rows were changed."""
        with self._errors(), self._pool.connection() as connection:
            return connection.execute(statement.encode(), values).rowcount

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (psycopg.Error, PoolTimeout) as error:
            reason = " ".join(str(error).split())
            raise StateError(
                f"the store {self.shown} failed ({reason})",
                "see whether PostgreSQL runs, has room left and takes this user",
            ) from error


def _place(key: Key) -> tuple[str, str, str]:
    return key.namespace, key.kind, key.name
