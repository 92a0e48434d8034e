"""Which store an address means: `sqlite:FILE`, `redis://…`, `postgresql://…`, or a folder."""

from __future__ import annotations

import re
from pathlib import Path

from titans_format.install import install
from titans_runtime import InputError
from titans_serve.stores.base import Store
from titans_serve.stores.folder import FolderStore
from titans_serve.stores.sqlite import SQLiteStore


def open_store(address: str) -> Store:
    """Open, or begin, the store at an address.

    Raises:
        InputError: an address of no kind that is known, or one whose packages are missing.
        StateError: it cannot be opened.
    """
    kind, colon, rest = address.partition(":")
    if kind == "sqlite" and colon:
        if not rest:
            raise InputError("the store 'sqlite:' names no file", "write sqlite:FILE")
        return SQLiteStore(rest)
    try:
        if kind in ("redis", "rediss") and rest.startswith("//"):
            from titans_serve.stores.redis import RedisStore

            return RedisStore(address)
        if kind in ("postgresql", "postgres") and rest.startswith("//"):
            from titans_serve.stores.postgresql import PostgreSQLStore

            return PostgreSQLStore(address)
    except ImportError as error:
        extra = "redis" if kind.startswith("redis") else "postgresql"
        raise InputError(
            f"a store in {kind} needs packages that are missing ({error})", f"run: {install(extra)}"
        ) from error
    if re.match(r"[a-z]+://", address):
        raise InputError(
            f"no store is known for {kind}://", "use sqlite:FILE, redis://, postgresql://, or the path of a folder"
        )
    return FolderStore(address)


def everywhere(address: str) -> str:
    """The same address for a process in another directory: files with their whole path."""
    if address.startswith("sqlite:"):
        return f"sqlite:{Path(address.removeprefix('sqlite:')).resolve()}"
    return address if re.match(r"[a-z]+://", address) else str(Path(address).resolve())
