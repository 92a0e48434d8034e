"""Who may use the server: API keys, each with a namespace of memories of its own.

A key file has one `NAME KEY` a line; `#` begins a comment. The name is the namespace, so a key can be replaced without
losing its memories. Keys are compared as hashes in constant time. Does not know HTTP.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from titans_format.names import PLAIN, is_plain
from titans_runtime import InputError

SHORTEST = 16  # characters of a key; shorter ones can be guessed
LARGEST_FILE = 1 << 20  # bytes
OPEN_NAMESPACE = "default"


class Keys:
    """The keys of a server; without any, everybody is `default`."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        self._digests = {name: _digest(key) for name, key in keys.items()}

    @property
    def required(self) -> bool:
        """Whether a request has to carry a key."""
        return bool(self._digests)

    def namespace(self, authorization: str | None) -> str | None:
        """Whose request it is by its `Authorization` header, or None where the key is wrong or missing."""
        if not self._digests:
            return OPEN_NAMESPACE
        scheme, _, key = (authorization or "").partition(" ")
        given, found = _digest(key.strip()), None
        for name, digest in self._digests.items():  # all of them, so that the time says nothing
            if hmac.compare_digest(given, digest):
                found = name
        return found if scheme.lower() == "bearer" else None


def read_keys(path: Path) -> Keys:
    """Read a key file.

    Raises:
        InputError: it cannot be read, anybody may read it, or a line is not `NAME KEY`.
    """
    try:
        mode, owner = path.stat().st_mode, path.stat().st_uid
        if not stat.S_ISREG(mode) or path.stat().st_size > LARGEST_FILE:
            raise InputError(f"{path} is not a regular file of at most {LARGEST_FILE} bytes", "name a key file")
        # A file of somebody else, such as a secret of Kubernetes, reaches this user through its group.
        if mode & stat.S_IROTH or (mode & stat.S_IRGRP and owner == os.getuid()):
            raise InputError(f"{path} can be read by other users of this machine", "run chmod 600 on it")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error})", "name a text file with one 'NAME KEY' a line") from error
    keys: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or not is_plain(words[0]):
            raise InputError(f"{path}, line {number} is not 'NAME KEY' with {PLAIN} first", "correct it")
        name, key = words
        if len(key) < SHORTEST:
            raise InputError(
                f"{path}, line {number}: the key of {name} is shorter than {SHORTEST} characters", "make a longer one"
            )
        if name in keys or key in keys.values():
            raise InputError(f"{path}, line {number}: the name or the key is there twice", "keep one of them")
        keys[name] = key
    if not keys:
        raise InputError(f"{path} holds no key", "add a line 'NAME KEY', or leave the option out")
    return Keys(keys)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
