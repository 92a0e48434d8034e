"""A store as files in a folder, one for each value: easy to look at and to back up.

A value is replaced by renaming a file, under a lock on a file beside it, so that several processes of one machine may
share the folder. The first line of a file is its header, as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from titans_runtime import StateError
from titans_runtime.atomic import replace_file
from titans_serve.stores.base import KINDS, Key, Record, conflict, new_version

_LONGEST_HEADER = 512  # bytes


class FolderStore:
    """Values in files. `now` is a clock in seconds."""

    def __init__(self, path: str | os.PathLike[str], now: Callable[[], float] = time.time) -> None:
        self.path = Path(path)
        self._now = now
        self._lock = threading.Lock()
        with self._errors():
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def get(self, key: Key) -> Record | None:
        """See `Store`."""
        with self._errors():
            found = self._read(self._file(key))
        return None if found is None else found[0]

    def version(self, key: Key) -> str | None:
        """See `Store`."""
        found = self.get(key)
        return None if found is None else found.version

    def put(self, key: Key, data: bytes, replaces: str | None, lives: float | None = None) -> str:
        """See `Store`."""
        file, version = self._file(key), new_version()
        expires = None if lives is None else self._now() + lives
        header = json.dumps({"version": version, "expires": expires}).encode()
        with self._errors(), self._alone(file):
            found = self._read(file)
            if (None if found is None else found[0].version) != replaces:
                raise conflict(key)
            replace_file(file, header + b"\n" + data, durable=True, private=True)
        return version

    def delete(self, key: Key) -> bool:
        """See `Store`."""
        file = self._file(key)
        with self._errors():
            if not file.parent.is_dir():
                return False
            with self._alone(file):
                return _remove(file)

    def names(self, namespace: str, kind: str) -> list[str]:
        """See `Store`."""
        folder = self.path / Key(namespace, kind, "x").namespace / kind
        with self._errors():
            files = list(folder.glob("*.value")) if folder.is_dir() else []
            return sorted(file.name.removesuffix(".value") for file in files if self._read(file) is not None)

    def delete_namespace(self, namespace: str) -> int:
        """See `Store`."""
        folder = self.path / Key(namespace, KINDS[0], "x").namespace
        with self._errors(), self._lock:
            count = len(list(folder.glob("*/*.value")))
            if folder.is_dir():
                shutil.rmtree(folder)
        return count

    def expire(self) -> int:
        """See `Store`."""
        count = 0
        with self._errors():
            for file in list(self.path.glob("*/*/*.value")):
                with self._alone(file):
                    if file.exists() and self._read(file) is None:
                        count += _remove(file)
        return count

    def close(self) -> None:
        """See `Store`."""

    def _file(self, key: Key) -> Path:
        return self.path / key.namespace / key.kind / f"{key.name}.value"

    def _read(self, file: Path) -> tuple[Record, float | None] | None:
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            return None
        head, _, data = content.partition(b"\n")
        try:
            header = json.loads(head[:_LONGEST_HEADER])
            version, expires = str(header["version"]), header["expires"]
            over = expires is not None and float(expires) <= self._now()
        except (ValueError, KeyError, TypeError) as error:
            raise StateError(f"{file} is not a file of this store", "move it elsewhere") from error
        return None if over else (Record(data, version), expires)

    @contextlib.contextmanager
    def _alone(self, file: Path) -> Iterator[None]:
        """Nobody else writes this value, in no thread and in no process."""
        import fcntl

        with self._lock:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with file.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StateError(
                f"the store {self.path} failed ({error.strerror or error})", "name a folder that can be written"
            ) from error


def _remove(file: Path) -> bool:
    try:
        file.unlink()
    except FileNotFoundError:
        return False
    return True
