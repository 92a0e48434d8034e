"""Replacing a file so that whoever reads it, now or after a crash, finds all of the old or all of the new.

Knows files. Does not know what is in them.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from pathlib import Path

from titans_runtime.errors import StateError, os_remedy
from titans_runtime.paths import checked_path

_TEMPORARY = ".titans-tmp"  # the end of a temporary file's name
_LEFTOVER_SECONDS = 3600.0  # a temporary file this old was left by a process that was killed
_cleaned: set[Path] = set()  # folders where this process has looked for such files: once is enough


def write_atomically(path: str | os.PathLike[str], data: bytes, *, durable: bool = True) -> None:
    """Replace a file by `data`: whoever reads it, now or after a crash, finds all of the old or all of the new.

    A symbolic link is followed: the file it leads to is replaced, and the link stays. Without `durable` the promise
    holds as long as the machine itself does not stop.

    Raises:
        StateError: it cannot be written, or is a directory, a pipe or a device; what was there is as it was.
    """
    target = regular_target(path)
    temporary: Path | None = None
    try:
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o600  # a memory is its user's alone
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=_TEMPORARY, dir=target.parent)
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
        missing = isinstance(error, FileNotFoundError)
        remedy = "make its directory or choose another place" if missing else os_remedy(error)
        raise StateError(f"{target} cannot be written ({reason}); {remedy}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    if durable:
        _remove_leftovers(target.parent)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise `StateError` where a file plainly cannot be written, before work is done that is to end in it."""
    target = regular_target(path)
    if not target.parent.is_dir():
        raise StateError(
            f"{target} cannot be written ({target.parent} is no directory); make it or choose another place"
        )
    if not os.access(target.parent, os.W_OK):
        raise StateError(f"{target} cannot be written (its directory is read-only); choose another place")


def regular_target(path: str | os.PathLike[str]) -> Path:
    """Where a path leads, links followed.

    Raises:
        InputError: it cannot name a file.
        StateError: something else than a file is there, which would be replaced by one.
    """
    target = Path(os.path.realpath(checked_path(path)))
    if target.is_dir():
        raise StateError(f"{target} is a directory; name a file")
    if target.exists() and not target.is_file():
        raise StateError(f"{target} is a device or a pipe, which cannot be replaced in one step; name a file")
    return target


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove_leftovers(folder: Path) -> None:
    if folder in _cleaned:
        return
    _cleaned.add(folder)
    with contextlib.suppress(OSError):
        for file in folder.iterdir():
            if file.name.endswith(_TEMPORARY) and time.time() - file.stat().st_mtime > _LEFTOVER_SECONDS:
                file.unlink(missing_ok=True)
