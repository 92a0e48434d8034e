"""Triton's sequences as sessions of one batch: begun, gone on with, ended, and put away when nobody goes on.

A request changes its sequence as a whole or not at all. A sequence that names a memory begins with that memory of the
store and is written back there, as `titans serve` does it, so both can share a store. Knows sessions and stores. Does
not know Triton.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Literal

import msgspec
import numpy as np

from titans_format.errors import TitansError
from titans_runtime import InputError, Model, SamplingOptions
from titans_runtime.arrays import Array, FloatArray
from titans_runtime.serving.batch import BatchSession
from titans_runtime.stream import journal
from titans_serve.keys import OPEN_NAMESPACE
from titans_serve.memories import Saved
from titans_serve.stores import ConflictError, Key, Store

Keep = Literal["end", "always"]


@dataclass(frozen=True)
class Limits:
    """How sequences are kept.

    lanes: streams that one call of the step graph serves.
    threads: requests that are worked on at the same time.
    idle_seconds: after so long without a request a sequence is stored, if it has a memory, and let go.
    keep: when a memory is stored: when its sequence ends or idles, or after every request too.
    namespace: of the memories; that of `titans serve` without keys, or the name of one of its keys.
    """

    lanes: int = 16
    threads: int = 64
    idle_seconds: float = 60.0
    keep: Keep = "end"
    namespace: str = OPEN_NAMESPACE


@dataclass(frozen=True)
class Request:
    """One request of one sequence.

    id: of the sequence.
    inputs: token ids `[T]` int64, or vectors `[T, F]` float32; at least one.
    begins, ends: whether it is the first or the last of its sequence.
    memory: the memory that a first request goes on from and writes back to; None is none.
    generate: new tokens after the inputs, at most.
    options: how they are chosen; None is the model's own way.
    """

    id: str
    inputs: Array
    begins: bool = False
    ends: bool = False
    memory: str | None = None
    generate: int = 0
    options: SamplingOptions | None = None


@dataclass(frozen=True)
class Answer:
    """What a request gave.

    outputs: after the last input, `[V]` float32.
    generated: ids, `[n]` int64.
    surprise: of every input, `[T]` float32.
    position: of the stream, after the request.
    """

    outputs: FloatArray
    generated: np.ndarray[tuple[int], np.dtype[np.int64]]
    surprise: FloatArray
    position: int


@dataclass
class _Life:
    """A sequence that is open."""

    session: BatchSession
    memory: str | None = None
    version: str | None = None
    ids: bytes | None = None
    used: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)
    changed: bool = False


class Sequences:
    """All sequences of one model. Any thread may call; `close()` stores what has a memory."""

    def __init__(self, model: Model, store: Store | None = None, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._model, self._store = model, store
        self._batch = model.batch(lanes=self.limits.lanes)
        self._threads = ThreadPoolExecutor(self.limits.threads, thread_name_prefix="titans-sequence")
        self._lives: dict[str, _Life] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._sweeper = threading.Thread(target=self._sweep, name="titans-idle", daemon=True)
        self._sweeper.start()

    @property
    def open(self) -> int:
        """Sequences that are open."""
        return len(self._lives)

    def run(self, requests: Sequence[Request]) -> list[Answer | TitansError]:
        """Work on requests of different sequences together; an error is an answer, and changes nothing."""
        return list(self._threads.map(self._answer, requests))

    def put_away(self, idle_seconds: float) -> int:
        """Store and let go of the sequences that nobody has used for so long; how many."""
        before = time.monotonic() - idle_seconds
        with self._lock:
            idle = [(key, life) for key, life in self._lives.items() if life.used <= before]
        count = 0
        for key, life in idle:
            with life.lock:
                if life.used > before or self._lives.get(key) is not life:
                    continue
                with contextlib.suppress(ConflictError):  # what the store has since is what counts
                    self._store_memory(life)
                with self._lock:
                    del self._lives[key]
                count += 1
        return count

    def close(self) -> None:
        """Store every memory, then let go of everything. Raises the first `TitansError`, after trying them all."""
        self._closing.set()
        self._sweeper.join()
        self._threads.shutdown(wait=True)
        errors = []
        for life in self._lives.values():
            try:
                self._store_memory(life)
            except TitansError as error:
                errors.append(error)
        self._lives.clear()
        self._batch.close()
        if self._store is not None:
            self._store.close()
        if errors:
            raise errors[0]

    def _answer(self, request: Request) -> Answer | TitansError:
        try:
            life = self._begin(request) if request.begins else self._known(request.id)
            with life.lock:
                return self._go_on(request, life)
        except ConflictError as error:
            with self._lock:
                self._lives.pop(request.id, None)
            return error
        except TitansError as error:
            return error

    def _begin(self, request: Request) -> _Life:
        """A sequence at its beginning. One of the same id that nobody ended is stored first."""
        with self._lock:
            before = self._lives.get(request.id)
        if before is not None:
            with before.lock, contextlib.suppress(ConflictError):
                self._store_memory(before)
        if request.memory is None:
            return _Life(self._batch.session(request.id))
        if self._store is None:
            raise InputError(
                f"memory {request.memory!r} was named, and this repository has no store",
                "write it again with titans triton --store, or name no memory",
            )
        key = self._key(request.memory)
        record = self._store.get(key)
        if record is None:
            return _Life(self._batch.session(request.memory), request.memory)
        saved = Saved.read(record.data, key)
        session = self._batch.restore_bytes(saved.state, request.memory)
        return _Life(session, request.memory, record.version, saved.ids)

    def _known(self, key: str) -> _Life:
        with self._lock:
            life = self._lives.get(key)
        if life is None:
            raise InputError(
                f"sequence {key} is not open here: it has ended, or nobody used it for {self.limits.idle_seconds:g} s",
                "begin it again with sequence_start",
            )
        return life

    def _go_on(self, request: Request, life: _Life) -> Answer:
        """Read and generate on a fork, store what has to be stored, and only then let the fork be the sequence."""
        fork = life.session.fork()
        if not len(request.inputs):
            raise InputError("a request without inputs has nothing to read", "send at least one")
        outputs = fork.feed(request.inputs)
        surprise = fork.surprise
        generated: list[int] = []
        if request.generate:
            # The last input is read once: generation goes on from where the session stands.
            generated = list(fork.generate_tokens(None, request.generate, request.options))
        ids = None
        if life.ids is not None:
            ids = life.ids + journal.packed([*map(int, request.inputs), *generated])
        after = replace(life, session=fork, ids=ids, used=time.monotonic(), changed=True)
        if request.ends or self.limits.keep == "always":
            self._store_memory(after)
        with self._lock:
            if request.ends:
                self._lives.pop(request.id, None)
            else:
                self._lives[request.id] = after
        return Answer(outputs, np.array(generated, np.int64), surprise, fork.position)

    def _store_memory(self, life: _Life) -> None:
        """Write a memory in place of what was read. Raises `ConflictError`, `StateError`; nothing is stored then."""
        if life.memory is None or self._store is None or not life.changed:
            return
        data = msgspec.msgpack.encode(Saved(life.session.to_bytes(), (), life.ids))
        try:
            life.version = self._store.put(self._key(life.memory), data, life.version)
        except ConflictError as error:
            raise ConflictError(
                f"another sequence or server has changed memory {life.memory!r} in the meantime",
                "begin the sequence again; it then goes on from what is stored",
            ) from error
        life.changed = False

    def _key(self, memory: str) -> Key:
        return Key(self.limits.namespace, "memory", memory)

    def _sweep(self) -> None:
        while not self._closing.wait(self.limits.idle_seconds / 4):
            try:
                self.put_away(self.limits.idle_seconds)
            except TitansError:
                continue  # the sequence stays open, and is tried again
