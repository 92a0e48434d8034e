"""The folder in which a batch's states wait, and those that processes left behind when they were killed.

Knows folders, locks and processes. Does not know states.

A process holds a lock on a file in its folder for as long as it lives. Whether a folder was left behind is asked of
that lock, which the system lets go of with the process, and never of a clock: a batch may sleep for a week.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
import weakref
from pathlib import Path

from titans_runtime import forks
from titans_runtime.atomic import left_behind, lock_of_nobody
from titans_runtime.errors import StateError, os_remedy

_PREFIX = "titans-spill-"
_LOCK = "in-use"
_cleaned: set[Path] = set()  # places where this process has looked for such folders: once is enough


class OffloadFolder:
    """A folder of this process's own, which goes when nothing refers to it any more, and with the process.

    Args:
        place: where; None for the system's temporary folder.

    Raises:
        StateError: no folder can be made there.
    """

    def __init__(self, place: Path | None) -> None:
        where = Path(tempfile.gettempdir()) if place is None else place
        self._made_in = forks.generation
        self.path = where / f"{_PREFIX}{secrets.token_hex(8)}"
        self._finalizer = weakref.finalize(self, _remove_folder, self.path, self._made_in)  # before there is one
        try:
            self.path.mkdir(0o700)
            self._lock = (self.path / _LOCK).open("xb")
        except OSError as error:
            self._finalizer.detach()
            raise StateError(
                f"no folder for states can be made in {where} ({error.strerror})", os_remedy(error)
            ) from error
        lock_of_nobody(self._lock.fileno())
        self._lock.write(b"as long as the process that made this folder lives, it holds a lock on this file\n")
        self._lock.flush()
        _remove_leftovers(where)

    def remove(self, file: Path) -> None:
        """Remove one of its files, unless this is a child that was forked later: they are the parent's."""
        if self._made_in == forks.generation:
            file.unlink(missing_ok=True)


def _remove_folder(path: Path, made_in: int) -> None:
    if made_in == forks.generation:
        shutil.rmtree(path, ignore_errors=True)


def _remove_leftovers(where: Path) -> None:
    """Remove folders of this user's whose processes are gone."""
    if where in _cleaned:
        return
    _cleaned.add(where)
    with contextlib.suppress(OSError):
        for folder in where.glob(f"{_PREFIX}*"):
            with contextlib.suppress(OSError):
                if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
                    continue
                with left_behind(folder / _LOCK) as gone:
                    if gone:
                        shutil.rmtree(folder, ignore_errors=True)
