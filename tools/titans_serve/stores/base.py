"""What a store of memories promises: compare and swap, time to live, deletion that leaves nothing.

A store keeps bytes under keys. Every value has a version that its writer does not choose; a write names the version
that it replaces, so two servers never overwrite each other unseen. Knows nothing of what the bytes mean.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Protocol

from titans_format.names import PLAIN, is_plain
from titans_runtime import InputError, StateError

KINDS = ("memory", "mark", "prefix", "response")


class ConflictError(StateError):
    """The stored value is not the one that the writer has read; nothing was written."""


@dataclass(frozen=True, order=True)
class Key:
    """Whose value it is, what it is for, and its name; all three are plain names.

    namespace: of one API key, so that two of them never meet.
    kind: one of `KINDS`.
    name: chosen by the client, or a hash.
    """

    namespace: str
    kind: str
    name: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"a store keeps {', '.join(KINDS)}, not {self.kind!r}", "use one of these")
        for what, value in (("namespace", self.namespace), ("name", self.name)):
            if not is_plain(value):
                raise InputError(f"the {what} {value[:80]!r} is not {PLAIN}", "choose another one")


@dataclass(frozen=True)
class Record:
    """A stored value.

    data: its bytes.
    version: what a writer has to name to replace it.
    """

    data: bytes
    version: str


class Store(Protocol):
    """Values under keys. Every method may be called from any thread, and by several processes on one store.

    Each raises `StateError` where the store cannot be reached or written; nothing has changed then.
    """

    def get(self, key: Key) -> Record | None:
        """The value, or None where there is none or its time is over."""
        ...

    def version(self, key: Key) -> str | None:
        """The version of a value without reading it, or None where there is none."""
        ...

    def put(self, key: Key, data: bytes, replaces: str | None, lives: float | None = None) -> str:
        """Write a value in one step and return its version.

        Args:
            key: its place.
            data: its bytes.
            replaces: the version that is there, or None where nothing is.
            lives: seconds until it expires; None keeps it.

        Raises:
            ConflictError: something else is there.
        """
        ...

    def delete(self, key: Key) -> bool:
        """Remove a value for good; whether it was there."""
        ...

    def names(self, namespace: str, kind: str) -> list[str]:
        """The names of one kind in one namespace, sorted."""
        ...

    def delete_namespace(self, namespace: str) -> int:
        """Remove everything of one namespace for good; how many values that were."""
        ...

    def expire(self) -> int:
        """Remove all values whose time is over; how many."""
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...


def new_version() -> str:
    """A version that nobody has seen."""
    return secrets.token_hex(8)


def conflict(key: Key) -> ConflictError:
    """The error of a write that would replace what its writer has not read."""
    return ConflictError(
        f"{key.kind} {key.name!r} was changed by somebody else in the meantime", "read it and try again"
    )


def without_password(url: str) -> str:
    """An address as it may be printed and logged."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    place = rest.partition("?")[0]  # parameters may hold passwords too
    return f"{scheme}://{place.rpartition('@')[2]}"
