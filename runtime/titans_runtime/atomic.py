"""Replacing a file so that whoever reads it, now or after a crash, finds all of the old or all of the new.

Knows files. Does not know what is in them.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from pathlib import Path

from titans_runtime.errors import StateError

_LEFTOVER_SECONDS = 3600.0  # a temporary file this old was left by a process that was killed


def write_atomically(path: str | os.PathLike[str], data: bytes, *, durable: bool = True) -> None:
    """Replace a file by `data`: whoever reads it, now or after a crash, finds all of the old or all of the new.

    Without `durable` that holds as long as the machine itself does not stop.

    Raises:
        StateError: it cannot be written; the old file is as it was.
    """
    target = Path(path)
    temporary: Path | None = None
    prefix = f".{target.name}."
    try:
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o600  # a memory is its user's alone
        handle, name = tempfile.mkstemp(prefix=prefix, suffix=".tmp", dir=target.parent)
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            if durable:
                os.fsync(file.fileno())
        temporary.replace(target)
        temporary = None
        if durable:
            _sync_folder(target.parent)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        remedy = "make its directory" if isinstance(error, FileNotFoundError) else "free some space"
        raise StateError(f"{target} cannot be written ({reason}); {remedy} or choose another place") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    _remove_leftovers(target.parent, prefix)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise `StateError` where a file plainly cannot be written, before work is done that is to end in it."""
    target = Path(path)
    if target.is_dir():
        raise StateError(f"{target} is a directory; name a file")
    if not target.parent.is_dir():
        raise StateError(
            f"{target} cannot be written ({target.parent} is no directory); make it or choose another place"
        )
    if not os.access(target.parent, os.W_OK):
        raise StateError(f"{target} cannot be written (its directory is read-only); choose another place")


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove_leftovers(folder: Path, prefix: str) -> None:
    with contextlib.suppress(OSError):
        for file in folder.iterdir():
            ours = file.name.startswith(prefix) and file.name.endswith(".tmp")
            if ours and time.time() - file.stat().st_mtime > _LEFTOVER_SECONDS:
                file.unlink(missing_ok=True)
