"""Encryption at rest: a store that gives its values to a cipher before another store sees them.

What is sealed are the values. Namespaces, kinds, names and times to live stay readable, because stores find values by
them. A value is bound to its key, so that nobody who can write to the store can put one memory in place of another.
Knows the `cryptography` package only inside of `AesCipher`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from titans_format.install import install
from titans_runtime import InputError, StateError
from titans_serve.stores.base import Key, Record, Store

_NONCE, _TAG = 12, 16  # bytes, as NIST SP 800-38D has them
_MAGIC = b"titans-sealed-1\n"
_LARGEST_FILE = 1 << 16  # bytes of a key file


class Cipher(Protocol):
    """What encrypts values. Write one for your key management; both methods may be called from any thread."""

    def seal(self, data: bytes, about: bytes) -> bytes:
        """Encrypt `data`, bound to `about`."""
        ...

    def open(self, data: bytes, about: bytes) -> bytes:
        """What was sealed. Raises `StateError` where it was altered, or sealed for something else or by others."""
        ...


class AesCipher:
    """AES-256-GCM with a nonce of its own for every value.

    Args:
        keys: 32 bytes each. The first one seals; all of them open, so that keys can be changed.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        if not keys or any(len(key) != 32 for key in keys):
            raise InputError("an encryption key is not 32 bytes", "make one with: openssl rand -hex 32")
        self._ciphers = [AESGCM(key) for key in keys]

    def seal(self, data: bytes, about: bytes) -> bytes:
        """See `Cipher`."""
        nonce = os.urandom(_NONCE)
        return _MAGIC + nonce + self._ciphers[0].encrypt(nonce, data, about)

    def open(self, data: bytes, about: bytes) -> bytes:
        """See `Cipher`."""
        from cryptography.exceptions import InvalidTag

        if not data.startswith(_MAGIC) or len(data) < len(_MAGIC) + _NONCE + _TAG:
            raise StateError("a stored value is not encrypted", "open this store without --encrypt, or delete it")
        nonce, sealed = data[len(_MAGIC) :][:_NONCE], data[len(_MAGIC) + _NONCE :]
        for cipher in self._ciphers:
            try:
                return cipher.decrypt(nonce, sealed, about)
            except InvalidTag:
                continue
        raise StateError(
            "a stored value cannot be decrypted: it was altered, or its key is missing",
            "add the key that it was written with to the key file",
        )


class SealedStore:
    """Another store whose values nobody reads without the cipher."""

    def __init__(self, store: Store, cipher: Cipher) -> None:
        self._store, self._cipher = store, cipher

    def get(self, key: Key) -> Record | None:
        """See `Store`. Raises `StateError` also for a value that cannot be decrypted."""
        found = self._store.get(key)
        return None if found is None else Record(self._cipher.open(found.data, _about(key)), found.version)

    def version(self, key: Key) -> str | None:
        """See `Store`."""
        return self._store.version(key)

    def put(self, key: Key, data: bytes, replaces: str | None, lives: float | None = None) -> str:
        """See `Store`."""
        return self._store.put(key, self._cipher.seal(data, _about(key)), replaces, lives)

    def delete(self, key: Key) -> bool:
        """See `Store`."""
        return self._store.delete(key)

    def names(self, namespace: str, kind: str) -> list[str]:
        """See `Store`."""
        return self._store.names(namespace, kind)

    def delete_namespace(self, namespace: str) -> int:
        """See `Store`."""
        return self._store.delete_namespace(namespace)

    def expire(self) -> int:
        """See `Store`."""
        return self._store.expire()

    def close(self) -> None:
        """See `Store`."""
        self._store.close()


def read_cipher(path: Path) -> AesCipher:
    """The cipher of a key file: one key of 64 hexadecimal digits a line, the one that encrypts first.

    Raises:
        InputError: it cannot be read, others may read it, or a line is not a key.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST_FILE:
            raise InputError(f"{path} is not a regular file of at most {_LARGEST_FILE} bytes", "name a key file")
        # A file of somebody else, such as a secret of Kubernetes, reaches this user through its group.
        if status.st_mode & stat.S_IROTH or (status.st_mode & stat.S_IRGRP and status.st_uid == os.getuid()):
            raise InputError(f"{path} can be read by other users of this machine", "run chmod 600 on it")
        lines = [line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error})", "make it with: openssl rand -hex 32") from error
    try:
        keys = [bytes.fromhex(line) for line in lines if line]
    except ValueError as error:
        raise InputError(f"{path} has a line that is not hexadecimal", "make it with: openssl rand -hex 32") from error
    try:
        return AesCipher(keys)
    except ImportError as error:
        raise InputError(
            f"encryption needs a package that is missing ({error})", f"run: {install('encrypt')}"
        ) from error


def _about(key: Key) -> bytes:
    return "\0".join((key.namespace, key.kind, key.name)).encode()
