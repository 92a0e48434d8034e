"""Which store an address means: `sqlite:FILE`, or a folder."""

from __future__ import annotations

import re

from titans_runtime import InputError
from titans_serve.stores.base import Store
from titans_serve.stores.folder import FolderStore
from titans_serve.stores.sqlite import SQLiteStore


def open_store(address: str) -> Store:
    """Open, or begin, the store at an address.

    Raises:
        InputError: an address of no kind that is known.
        StateError: it cannot be opened.
    """
    kind, colon, rest = address.partition(":")
    if kind == "sqlite" and colon:
        if not rest:
            raise InputError("the store 'sqlite:' names no file", "write sqlite:FILE")
        return SQLiteStore(rest)
    if re.match(r"[a-z]+://", address):
        raise InputError(f"no store is known for {kind}://", "use sqlite:FILE, or the path of a folder")
    return FolderStore(address)
