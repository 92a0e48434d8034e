"""Memories that outlive turns and servers: opened from the store, changed by one turn at a time, written back.

A turn works on a fork. Only when it has succeeded, and the store has taken the result in place of exactly what was
read, does the fork become the memory; anything else changes nothing. Another server that shares the store is noticed
by its version. Knows sessions and stores. Does not know HTTP or conversations.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol, TypeVar

import msgspec

from titans_runtime import InputError, Session, StateError
from titans_runtime.stream import journal
from titans_serve.errors import RefusalError, busy, not_found
from titans_serve.stores import ConflictError, Key, Store

R = TypeVar("R")


class Sessions(Protocol):
    """What makes sessions: a model, or a batch of one."""

    def session(self, name: str | None = None) -> Session:
        """A stream at its beginning."""
        ...

    def restore_bytes(self, data: bytes, name: str | None = None) -> Session:
        """A stream as it was saved."""
        ...


class Saved(msgspec.Struct, frozen=True, array_like=True):
    """A memory as the store keeps it.

    state: of the session.
    said: hashes of the messages of its last conversation, one after the other.
    ids: its journal, as `titans_runtime.stream.journal` packs it; None where it has none.
    """

    state: bytes
    said: tuple[bytes, ...] = ()
    ids: bytes | None = None

    @staticmethod
    def read(data: bytes, key: Key) -> Saved:
        """What the store has under a key. Raises `StateError` where it is damaged."""
        try:
            return msgspec.msgpack.decode(data, type=Saved)
        except msgspec.MsgspecError as error:
            raise StateError(
                f"the stored {key.kind} {key.name!r} is damaged ({error})", "delete it, or restore it from a backup"
            ) from error


OtherModel = Callable[[Saved, str], Session]


@dataclass(frozen=True)
class Memory:
    """One moment of a memory.

    session: its stream; a turn forks it.
    said: hashes of the messages of its last conversation.
    ids: its packed journal, or None.
    version: of what the store has; None where it has nothing yet.
    """

    session: Session
    said: tuple[bytes, ...] = ()
    ids: bytes | None = None
    version: str | None = None


@dataclass
class _Slot:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0
    memory: Memory | None = None


class Memories:
    """All memories of a server, by key. For one event loop; blocking work goes to `executor`.

    resident: memories kept open at most; the rest are read from the store again.
    queue: turns that may wait for one memory.
    int8: store eight bits a number. What goes on is then what was stored, so that all servers go on alike.
    journal: keep the ids of all that a new memory reads and writes.
    other_model: makes a session of a memory that another model has saved; None refuses it.
    """

    def __init__(
        self,
        sessions: Sessions,
        store: Store,
        executor: Executor,
        resident: int = 64,
        queue: int = 8,
        int8: bool = False,
        journal: bool = False,
        other_model: OtherModel | None = None,
    ) -> None:
        self._sessions, self._store, self._executor = sessions, store, executor
        self._resident, self._queue, self._int8 = resident, queue, int8
        self._journal, self._other_model = b"" if journal else None, other_model
        self._slots: OrderedDict[Key, _Slot] = OrderedDict()

    @property
    def resident(self) -> int:
        """Memories that are open."""
        return sum(slot.memory is not None for slot in self._slots.values())

    async def names(self, namespace: str, kind: str = "memory") -> list[str]:
        """What is stored of one kind."""
        return await self._blocking(self._store.names, namespace, kind)

    async def create(self, key: Key) -> Memory:
        """Store an empty memory. Raises `RefusalError` (409) where the name is taken."""
        async with self._alone(key) as slot:
            fresh = await self._fresh(key)
            try:
                return await self._replace(key, slot, fresh)
            except ConflictError as error:
                raise RefusalError(
                    409, "conflict_error", f"there is a memory {key.name!r} already; choose another name", code="exists"
                ) from error

    async def get(self, key: Key) -> Memory:
        """The memory as it is now. Raises `RefusalError` (404)."""
        async with self._alone(key) as slot:
            return await self._current(key, slot)

    @asynccontextmanager
    async def turn(self, key: Key, create: bool = False) -> AsyncIterator[Change]:
        """Change a memory: all of it or nothing. Turns of one memory wait for each other.

        Raises:
            RefusalError: there is no such memory (404), or too many turns wait for it (429).
            ConflictError: another server has changed it in the meantime.
        """
        async with self._alone(key) as slot:
            try:
                memory = await self._current(key, slot)
            except RefusalError:
                if not create:
                    raise
                memory = await self._fresh(key)
            yield Change(self, key, slot, memory, await self._blocking(memory.session.fork), memory.ids)

    async def put(self, key: Key, memory: Memory, lives: float | None = None) -> Memory:
        """Store a moment under a key of its own, in place of what was read; what the store has now."""
        async with self._alone(key) as slot:
            written = await self._write(key, memory, lives)
            slot.memory = None  # opened again from the store, if it is ever wanted
            return written

    async def delete(self, key: Key) -> bool:
        """Forget a memory: what is open, and what is stored."""
        async with self._alone(key) as slot:
            slot.memory = None
            return await self._blocking(self._store.delete, key)

    async def delete_namespace(self, namespace: str) -> int:
        """Forget everything of one API key."""
        for key in [key for key in self._slots if key.namespace == namespace]:
            async with self._alone(key) as slot:
                slot.memory = None
        return await self._blocking(self._store.delete_namespace, namespace)

    async def release(self) -> int:
        """Let go of open memories that the store no longer has; how many. Another server may have deleted them."""
        count = 0
        for key in [key for key, slot in self._slots.items() if slot.memory is not None and slot.waiting == 0]:
            async with self._alone(key) as slot:
                if slot.memory is None or await self._blocking(self._store.version, key) == slot.memory.version:
                    continue
                slot.memory = None
                count += 1
        return count

    def restored(self, data: bytes, name: str) -> Session:
        """A session of saved bytes. Raises `RefusalError` (422) where they are no state of this model."""
        try:
            return self._sessions.restore_bytes(data, name)
        except StateError as error:
            raise RefusalError(422, "memory_error", str(error), code="not_a_state") from error

    async def bytes_of(self, memory: Memory) -> bytes:
        """The state file of a memory."""
        return await self._blocking(memory.session.to_bytes)

    async def _current(self, key: Key, slot: _Slot) -> Memory:
        """What the store has, opened already where nobody else has changed it."""
        if slot.memory is not None:
            version = await self._blocking(self._store.version, key)
            if version is not None and version == slot.memory.version:
                return slot.memory
            slot.memory = None
        record = await self._blocking(self._store.get, key)
        if record is None:
            raise not_found(key.kind, key.name)
        saved = Saved.read(record.data, key)
        session = await self._blocking(self._opened, saved, key.name)
        slot.memory = Memory(session, saved.said, saved.ids, record.version)
        return slot.memory

    def _opened(self, saved: Saved, name: str) -> Session:
        try:
            if self._other_model is not None:
                return self._other_model(saved, name)
            return self._sessions.restore_bytes(saved.state, name)
        except InputError as error:
            raise StateError(error.what, error.remedy, where=error.where) from error

    async def _fresh(self, key: Key) -> Memory:
        return Memory(await self._blocking(self._sessions.session, key.name), ids=self._journal)

    async def _replace(self, key: Key, slot: _Slot, memory: Memory) -> Memory:
        """Write a memory, and keep it open unless the store has rounded it."""
        written = await self._write(key, memory)
        slot.memory = None if self._int8 else written
        return written

    async def _write(self, key: Key, memory: Memory, lives: float | None = None) -> Memory:
        state = await self._blocking(partial(memory.session.to_bytes, int8=self._int8))
        data = msgspec.msgpack.encode(Saved(state, memory.said, memory.ids))
        version = await self._blocking(self._store.put, key, data, memory.version, lives)
        return replace(memory, version=version)

    @asynccontextmanager
    async def _alone(self, key: Key) -> AsyncIterator[_Slot]:
        slot = self._slots.setdefault(key, _Slot())
        if slot.waiting > self._queue:
            raise busy(f"{slot.waiting} requests wait for {key.kind} {key.name!r}; send one after the other")
        slot.waiting += 1
        try:
            async with slot.lock:
                yield slot
        finally:
            slot.waiting -= 1
            self._slots.move_to_end(key)
            self._make_room()

    def _make_room(self) -> None:
        """Let go of the memories that were used longest ago; they are in the store."""
        idle = [key for key, slot in self._slots.items() if slot.waiting == 0]
        for key in idle[: max(0, len(self._slots) - self._resident)]:
            del self._slots[key]

    async def _blocking(self, function: Callable[..., R], *arguments: object) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._executor, partial(function, *arguments))


@dataclass
class Change:
    """A memory during a turn.

    memory: what it was.
    session: a fork of it, which the turn may feed.
    ids: the journal until here.
    """

    memories: Memories
    key: Key
    slot: _Slot
    memory: Memory
    session: Session
    ids: bytes | None

    async def keep(self, said: tuple[bytes, ...], read: Sequence[int] = ()) -> Memory:
        """Make the fork the memory, once the store has it. Raises `ConflictError`; nothing has changed then.

        Args:
            said: hashes of the messages of its last conversation.
            read: the ids that the fork has read and written since the turn began.
        """
        ids = None if self.ids is None else self.ids + journal.packed(read)
        if ids is not None and journal.length(ids) != self.session.position:
            raise RuntimeError(f"a journal of {journal.length(ids)} ids at position {self.session.position}")
        after = Memory(self.session, said, ids, self.memory.version)
        return await self.memories._replace(self.key, self.slot, after)
