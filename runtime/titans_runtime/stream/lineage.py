"""Which saved content a session comes from, so that a save never silently replaces somebody else's.

A session knows the content that it read or wrote last at each place. A file that holds anything else was written by
another session, in this process or another: replacing it would lose what that session remembers.

Knows state files by their digest, and locks. Does not know sessions, or how a file is replaced (`atomic`).
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct

from titans_format.document import Text, parse, read
from titans_format.errors import BundleError
from titans_runtime.errors import StateError, os_remedy
from titans_runtime.stream.state_file import StateFileHead

try:
    import fcntl
except ImportError:  # no such locks on this system
    fcntl = None  # type: ignore[assignment]

# Seconds. A save takes far less; whoever holds a lock for longer is stopped, or locks for reasons of its own.
_PATIENCE = 10.0
_LOOK = 0.005  # seconds between two tries
_HEADER_BYTES = 16 * 2**20  # far above any state table's header; what has a longer one is not ours


class Lineage:
    """The contents that a session has read or written, one for each place."""

    def __init__(self, data: bytes | None = None, path: str | os.PathLike[str] | None = None) -> None:
        """Of a session that begins, or that is restored from `data`, which came from `path` or from elsewhere."""
        self._digests: dict[str, str | None] = {}
        if data is not None:
            self._digests["restored" if path is None else os.path.realpath(path)] = _digest(io.BytesIO(data))

    def copy(self) -> Lineage:
        """The same for a session that goes on from here."""
        other = Lineage()
        other._digests = dict(self._digests)
        return other

    def given(self, data: bytes) -> None:
        """Note that the caller was given `data`, to keep where he likes."""
        self._digests["given"] = _digest(io.BytesIO(data))

    def written(self, data: bytes, target: Path) -> None:
        """Note that the session wrote `data` to `target`, links followed."""
        self._digests[str(target)] = _digest(io.BytesIO(data))

    def check(self, target: Path, data: bytes = b"") -> None:
        """Raise `StateError` if a file is there whose content the session has neither read nor written.

        An empty file is nobody's memory, and a file that holds `data` already loses nothing.
        """
        known = {digest for digest in (*self._digests.values(), _digest(io.BytesIO(data))) if digest is not None}
        try:
            with target.open("rb") as file:
                if os.fstat(file.fileno()).st_size == 0 or _digest(file) in known:
                    return
        except FileNotFoundError:
            return
        except OSError as error:
            raise StateError(f"{target} cannot be read ({error.strerror})", os_remedy(error)) from None
        raise StateError(
            f"{target} holds what this session has not read, and saving would replace it",
            "restore it first (--state-in), save to another file, or replace it all the same with force=True (--force)",
        )


@contextlib.contextmanager
def locked(target: Path) -> Iterator[None]:
    """Keep other saves to `target` out, so that what was checked is still true when the file is replaced.

    The lock is on the file, or on its folder while there is no file. It keeps out this library only, and only on file
    systems with locks; elsewhere, and where somebody holds the lock for long, the block runs without it.
    """
    handle = _lock(target, time.monotonic() + _PATIENCE)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _lock(target: Path, deadline: float) -> int | None:
    """An open file that holds the lock; None without one."""
    while fcntl is not None and time.monotonic() < deadline:
        handle: int | None = None
        try:
            place = target if target.is_file() else target.parent
            handle = os.open(place, os.O_RDONLY | os.O_NONBLOCK)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            now = target if target.is_file() else target.parent
            if os.path.samestat(os.fstat(handle), now.stat()):
                held, handle = handle, None
                return held
        except BlockingIOError:
            time.sleep(_LOOK)
        except FileNotFoundError:  # gone since we looked
            if not target.parent.is_dir():
                return None
        except OSError:
            return None
        finally:
            if handle is not None:
                os.close(handle)
    return None


class _Head(Struct):
    sha256: Text


def _digest(file: BinaryIO) -> str | None:
    """What a state file's header gives as its digest; None for anything else."""
    length = int.from_bytes(file.read(8), "little")
    if length > _HEADER_BYTES:
        return None
    try:
        head = read(parse(file.read(length).decode("utf-8"), ""), StateFileHead, "")
        return read(parse(head.metadata.titans, ""), _Head, "").sha256
    except (BundleError, UnicodeDecodeError):
        return None
