"""The longest beginning of a conversation that was read before, so that only what is new has to be read.

Clients send the whole history with every request. What a stream is after a message is kept under the hash of all
messages so far, in memory and, for as long as `lives`, in the store. Only the same API key finds it. Knows hashes and
sessions. Does not know how messages become tokens.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Executor

import msgspec

from titans_runtime import Session, StateError
from titans_serve.memories import Saved, Sessions
from titans_serve.stores import ConflictError, Key, Store


def message_hash(role: str, content: str) -> bytes:
    """What stands for a message: equal for equal messages only."""
    return hashlib.sha256(msgspec.msgpack.encode((role, content))).digest()


class Prefixes:
    """Streams by what they have read.

    entries: streams kept in memory at most, over all keys.
    lives: seconds that one is found in the store, also by another server or after a restart.
    int8: store eight bits a number, and go on from what was stored.
    """

    def __init__(
        self, sessions: Sessions, store: Store, executor: Executor, entries: int, lives: float, int8: bool = False
    ) -> None:
        self._sessions, self._store, self._executor = sessions, store, executor
        self._entries, self._lives, self._int8 = entries, lives, int8
        self._open: OrderedDict[Key, Session] = OrderedDict()

    async def find(self, namespace: str, said: Sequence[bytes]) -> tuple[int, Session | None]:
        """How many of the messages are known, and a stream of the caller's own that stands after them."""
        loop = asyncio.get_running_loop()
        for known in range(len(said), 0, -1):
            key = _key(namespace, said[:known])
            session = self._open.get(key)
            if session is not None:
                if await loop.run_in_executor(self._executor, self._store.version, key) is not None:
                    self._open.move_to_end(key)
                    return known, session.fork()
                self._open.pop(key, None)  # expired, or deleted by another server
                continue
            session = await loop.run_in_executor(self._executor, self._stored, key)
            if session is not None:
                self._keep(key, session)
                return known, session.fork()
        return 0, None

    async def remember(self, namespace: str, said: Sequence[bytes], session: Session) -> None:
        """Keep a stream that has read these messages; `session` goes on to be the caller's."""
        key, branch = _key(namespace, said), session.fork()
        if not self._int8:
            self._keep(key, branch)
        await asyncio.get_running_loop().run_in_executor(self._executor, self._write, key, branch)

    def forget(self, namespace: str) -> None:
        """Drop what is open of one API key."""
        for key in [key for key in self._open if key.namespace == namespace]:
            del self._open[key]

    async def delete(self, namespace: str, said: Sequence[bytes]) -> None:
        """Drop one beginning, open and stored."""
        key = _key(namespace, said)
        self._open.pop(key, None)
        await asyncio.get_running_loop().run_in_executor(self._executor, self._store.delete, key)

    async def release(self) -> int:
        """Let go of open streams that the store no longer has; how many."""
        loop, count = asyncio.get_running_loop(), 0
        for key in list(self._open):
            if await loop.run_in_executor(self._executor, self._store.version, key) is None:
                count += self._open.pop(key, None) is not None
        return count

    def _keep(self, key: Key, session: Session) -> None:
        self._open[key] = session
        self._open.move_to_end(key)
        while len(self._open) > self._entries:
            self._open.popitem(last=False)

    def _stored(self, key: Key) -> Session | None:
        try:
            record = self._store.get(key)
            if record is None:
                return None
            return self._sessions.restore_bytes(msgspec.msgpack.decode(record.data, type=Saved).state)
        except (StateError, msgspec.MsgspecError):  # of another model, or damaged: then it is read again
            return None

    def _write(self, key: Key, session: Session) -> None:
        data = msgspec.msgpack.encode(Saved(session.to_bytes(int8=self._int8)))
        try:
            self._store.put(key, data, self._store.version(key), self._lives)
        except ConflictError:  # another server was quicker with the same
            return


def _key(namespace: str, said: Sequence[bytes]) -> Key:
    return Key(namespace, "prefix", hashlib.sha256(b"".join(said)).hexdigest())
