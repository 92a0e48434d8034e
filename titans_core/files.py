"""Opening files that somebody else chose: regular ones alone, and no more of them than was expected.

A pipe would wait for ever, and a device can give bytes for ever. Knows the system's files. Does not know what is in
them; `OSError` is raised as it comes. `titans_runtime.files` is the same for the runtime, which shares no code with
this package.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

MIB = 2**20


def check_regular(path: Path) -> None:
    """Raise `OSError` unless a path leads to a regular file."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is a directory, a pipe or a device, not a file", str(path))


def read_regular(path: Path, limit: int) -> bytes:
    """The bytes of a regular file. Raises `OSError`, also for more than `limit` bytes."""
    check_regular(path)
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no longer a regular file", str(path))
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit:,} bytes, which no such file is", str(path))
    return data
