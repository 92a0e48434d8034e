"""Opening files that somebody else chose: regular ones alone, and no more of them than was expected.

A pipe would wait for ever, a device can give bytes for ever, and some devices do something when they are opened. Knows
the system's files. Does not know what is in them; `OSError` is raised as it comes, and whoever calls says what to do
about it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

BLOCK = 1 << 20  # reading in pieces of 1 MiB keeps a large file out of this process's memory
MIB = 2**20
MOST_PIPED = 4096 * MIB  # of a pipe that a person named; what gzip holds may become as large


class Readable(Protocol):
    """An open stream of bytes."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at its end."""


class RefusedFileError(OSError):
    """A file that is there and is not read: it is no regular file, or too large.

    remedy: what to do about it.
    """

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(errno.EINVAL, what)
        self.remedy = remedy


def open_regular(path: str | os.PathLike[str]) -> int:
    """A descriptor of a regular file, links followed. The caller closes it.

    Raises:
        OSError: it cannot be opened; `RefusedFileError` for a directory, a pipe, a socket or a device.
    """
    _regular(os.stat(path).st_mode)  # noqa: PTH116  # before it is opened: opening a device can do something
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        _regular(os.fstat(handle).st_mode)  # and after, for what may have changed in between
    except OSError:
        os.close(handle)
        raise
    return handle


def read_regular(path: str | os.PathLike[str], limit: int) -> bytes:
    """The bytes of a regular file, at most `limit`. Raises `OSError`, and `RefusedFileError` for a larger file."""
    handle = open_regular(path)
    try:
        return read_all(handle, limit)
    finally:
        os.close(handle)


def read_given(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file that a person named: all of a regular one, and of a pipe, such as `<(zcat x.gz)`, 4 GiB.

    Raises:
        OSError: it cannot be read; `RefusedFileError` for a directory, a device, or a longer pipe.
    """
    if stat.S_ISFIFO(os.stat(path).st_mode):  # noqa: PTH116
        with open(path, "rb") as pipe:  # noqa: PTH123
            return read_piped(pipe)
    handle = open_regular(path)
    try:
        return b"".join(blocks(handle))
    finally:
        os.close(handle)


def read_piped(stream: Readable, limit: int = MOST_PIPED) -> bytes:
    """What is left in a stream, at most `limit`. Raises `OSError`, and `RefusedFileError` for more."""
    parts: list[bytes] = []
    held = 0
    while block := stream.read(BLOCK):
        held += len(block)
        if held > limit:
            raise _too_large(limit)
        parts.append(block)
    return b"".join(parts)


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raise `OSError` unless a path leads to a regular file."""
    _regular(os.stat(path).st_mode)  # noqa: PTH116


def read_all(handle: int, limit: int) -> bytes:
    """The bytes of an open file from its beginning, at most `limit`. Raises as `read_regular`."""
    size = os.fstat(handle).st_size
    if size > limit:
        raise _too_large(limit)
    parts: list[bytes] = []
    held = 0
    for block in blocks(handle):
        held += len(block)
        if held > limit:  # it grew, or is one of the system's own, which have no size
            raise _too_large(limit)
        parts.append(block)
    return b"".join(parts)


def blocks(handle: int) -> Iterator[bytes]:
    """The bytes of an open file from its beginning, in pieces. Raises `OSError`."""
    at = 0
    while block := os.pread(handle, BLOCK, at):
        at += len(block)
        yield block


def shown(path: Path, error: OSError) -> str:
    """What is wrong with a file, as an error's first half says it."""
    return f"{path} cannot be read ({error.strerror or error})"


def _regular(mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kinds = ((stat.S_ISDIR, "directory"), (stat.S_ISFIFO, "pipe"), (stat.S_ISSOCK, "socket"))
    kind = next((name for test, name in kinds if test(mode)), "device")
    raise RefusedFileError(f"it is a {kind}, not a file", "name a regular file")


def _too_large(limit: int) -> RefusedFileError:
    return RefusedFileError(f"it is larger than {limit:,} bytes, which no such file is", "check which file it is")
