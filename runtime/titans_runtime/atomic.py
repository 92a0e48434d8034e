"""Replacing a file so that whoever reads it, now or after a crash, finds all of the old or all of the new.

Knows files. Does not know what is in them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from titans_runtime.errors import StateError, os_remedy

_TEMPORARY = ".titans-tmp"  # the end of a temporary file's name
_cleaned: set[Path] = set()  # folders where this process has looked for such files: once is enough


def write_atomically(path: str | os.PathLike[str], data: bytes, *, durable: bool = True) -> None:
    """Replace a file by `data`: whoever reads it, now or after a crash, finds all of the old or all of the new.

    A symbolic link is followed: the file it leads to is replaced, and the link stays. Without `durable` the promise
    holds as long as the machine itself does not stop.

    Raises:
        StateError: it cannot be written, or is a directory, a pipe or a device; what was there is as it was.
    """
    target = _regular(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}{_TEMPORARY}")
    try:
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o600  # a memory is its user's alone
        with temporary.open("xb") as file:
            os.fchmod(file.fileno(), mode)
            lock_of_nobody(file.fileno())  # before the first byte is there, and until it has its name
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
            temporary.replace(target)
        if durable:
            _sync_folder(target.parent)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        missing = isinstance(error, FileNotFoundError)
        remedy = "make its directory or choose another place" if missing else os_remedy(error)
        raise StateError(f"{target} cannot be written ({reason}); {remedy}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    if durable:
        _remove_leftovers(target.parent)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise `StateError` where a file plainly cannot be written, before work is done that is to end in it."""
    target = _regular(path)
    if not target.parent.is_dir():
        raise StateError(
            f"{target} cannot be written ({target.parent} is no directory); make it or choose another place"
        )
    if not os.access(target.parent, os.W_OK):
        raise StateError(f"{target} cannot be written (its directory is read-only); choose another place")


def _regular(path: str | os.PathLike[str]) -> Path:
    """Where a path leads, links followed. What is there and is no file would be replaced by one: it is refused."""
    target = Path(os.path.realpath(path))
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


def lock_of_nobody(handle: int) -> bool:
    """Take the lock of an open file if no process holds it; it is let go when the file is closed, or the process ends.

    False where somebody holds it, and where there are no such locks.
    """
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


@contextlib.contextmanager
def left_behind(file: Path) -> Iterator[bool]:
    """Whether a file's process, which locked it before it wrote to it, is gone. Raises `OSError`."""
    handle = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        about = os.fstat(handle)
        yield stat.S_ISREG(about.st_mode) and about.st_size > 0 and lock_of_nobody(handle)
    finally:
        os.close(handle)


def _remove_leftovers(folder: Path) -> None:
    """Remove temporary files whose processes are gone: nobody holds their lock."""
    if folder in _cleaned:
        return
    _cleaned.add(folder)
    with contextlib.suppress(OSError):
        for file in folder.iterdir():
            if file.name.endswith(_TEMPORARY):
                with contextlib.suppress(OSError):
                    _remove_if_left(file)


def _remove_if_left(file: Path) -> None:
    with left_behind(file) as gone:
        if gone:
            file.unlink(missing_ok=True)
