"""Replacing a file so that whoever reads it finds all of the old or all of the new.

Knows files and the system's calls for them. Does not know what is in them. `titans_format.folders` replaces folders.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from titans_runtime.arguments import checked_path
from titans_runtime.errors import StateError, os_remedy

_TEMPORARY = ".titans-tmp"  # the end of a temporary file's name
_cleaned: set[Path] = set()  # folders where this process has looked for such files: once is enough

_PRIVATE = 0o600  # the mode of a new file that is its user's alone


def write_atomically(path: str | os.PathLike[str], data: bytes, *, durable: bool = True) -> None:
    """Replace a memory by `data`: whoever reads it, now or after a crash, finds all of the old or all of the new.

    A symbolic link is followed: the file it leads to is replaced, and the link stays. Without `durable` the promise
    holds as long as the machine itself does not stop. A new file is its user's alone.

    Raises:
        InputError: the path cannot name a file.
        StateError: it cannot be written, or is a directory, a pipe or a device; what was there is as it was.
    """
    target = regular_target(path)
    try:
        replace_file(target, data, durable=durable, private=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        missing = isinstance(error, FileNotFoundError)
        remedy = "make its directory or choose another place" if missing else os_remedy(error)
        raise StateError(f"{target} cannot be written ({reason})", remedy) from error
    if durable:
        _remove_leftovers(target.parent)


def replace_file(target: Path, data: bytes, *, durable: bool = False, private: bool = False) -> None:
    """Replace a file by `data` in one step; it keeps its mode.

    Args:
        target: the file, which may be missing. Of a symbolic link, the link itself would be replaced.
        data: all of its content.
        durable: flush it to the disk first, so that it holds after a crash of the machine too.
        private: a new file is readable by its user alone.

    Raises:
        OSError: what was there is as it was.
    """
    temporary = target.with_name(f".{target.name[:40]}.{secrets.token_hex(4)}{_TEMPORARY}")
    try:
        with temporary.open("xb") as file:
            if target.exists():
                os.fchmod(file.fileno(), target.stat().st_mode & 0o777)
            elif private:
                os.fchmod(file.fileno(), _PRIVATE)
            lock_of_nobody(file.fileno())  # before the first byte is there, and until it has its name
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
            temporary.replace(target)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    if durable:
        _sync_folder(target.parent)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise `StateError` where a file plainly cannot be written, before work is done that is to end in it."""
    target = regular_target(path)
    if not target.parent.is_dir():
        raise StateError(
            f"{target} cannot be written ({target.parent} is no directory)", "make it or choose another place"
        )
    if not os.access(target.parent, os.W_OK):
        raise StateError(f"{target} cannot be written (its directory is read-only)", "choose another place")


def regular_target(path: str | os.PathLike[str]) -> Path:
    """Where a path leads, links followed.

    Raises:
        InputError: it cannot name a file.
        StateError: something else than a file is there, which would be replaced by one.
    """
    target = Path(os.path.realpath(checked_path(path)))
    try:
        mode = target.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return target
    except OSError as error:
        raise StateError(f"{target} cannot be written ({error.strerror})", os_remedy(error)) from None
    if stat.S_ISDIR(mode):
        raise StateError(f"{target} is a directory", "name a file")
    if not stat.S_ISREG(mode):
        raise StateError(f"{target} is a device or a pipe, which cannot be replaced in one step", "name a file")
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
