"""Replacing a folder so that its name leads to the old one or the new one, both whole.

Knows folders and the system's calls for them. The runtime has its own (`titans_runtime.atomic`): the two packages know
nothing of each other.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of linux/fcntl.h and linux/fs.h


def replace_folder(new: Path, target: Path) -> None:
    """Have `target` lead to the folder `new`; `new` then leads to what `target` was, if it was there.

    Where the system cannot exchange two names, `target` is missing for the time between two renames, of which the
    first is undone if the second fails.

    Raises:
        OSError: both are as they were.
    """
    if not target.exists():
        new.rename(target)
        return
    if exchange(new, target):
        return
    old = new.with_name(f"{new.name}.old")
    target.rename(old)
    try:
        new.rename(target)
    except BaseException:
        old.rename(target)
        raise
    old.rename(new)


def exchange(first: Path, second: Path) -> bool:
    """Exchange what two names lead to, in one step; False where the system cannot. Raises `OSError`."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if renameat2 is None:
        return False
    names = os.fsencode(first), os.fsencode(second)
    if renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], ctypes.c_uint(_RENAME_EXCHANGE)) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM):
        return False
    raise OSError(code, os.strerror(code), str(second))
