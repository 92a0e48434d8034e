"""Replacing a folder so that its name leads to the old one or the new one, both whole.

Checkpoints and bundles are such folders. Knows the system's calls for them. Does not know what is in them.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of linux/fcntl.h and linux/fs.h
# The system, or this file system, cannot exchange two names.
_CANNOT_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}


def replace_folder(new: Path, target: Path) -> None:
    """Have `target` lead to the folder `new`; `new` then leads to what `target` was, if it was there.

    Both are on one file system. Where the system can exchange two names (Linux, most file systems), `target` leads to
    one of both at every moment. Elsewhere it is missing for the time between two renames, of which the first is undone
    if the second fails.

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
    if code in _CANNOT_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(second))
