"""A limit on how many sessions' states are in memory: those used longest ago wait on disk, and come back by themselves.

Knows which sessions were used when, and how a state becomes a file and a state again. Does not know jobs or lanes.
"""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from titans_format.manifest import Manifest
from titans_runtime.atomic import write_atomically
from titans_runtime.errors import StateError
from titans_runtime.serving.offload_folder import SpillFolder
from titans_runtime.state.backend import Backend
from titans_runtime.state.calls import StreamState
from titans_runtime.state.layout import State
from titans_runtime.stream import state_file
from titans_runtime.stream.observe import record
from titans_runtime.stream.snapshot import Moment

if TYPE_CHECKING:
    from titans_runtime.stream.session import Session


class Spilled:
    """The state of a stream that waits in a file, which goes when nothing refers to it any more. Immutable."""

    def __init__(self, folder: SpillFolder, path: Path, position: int) -> None:
        self.position = position
        self.path = path
        self._folder = folder  # the folder outlives the batch for as long as one of its files is needed
        self._remove = weakref.finalize(self, folder.remove, path)


class Residency:
    """Keeps at most `limit` sessions' states in memory.

    Args:
        manifest, backend: the model.
        home: gives a state as the backend's own value.
        limit: sessions; None for as many as there are.
        folder: where files go; None for the system's temporary folder. Each batch makes a folder of its own there.
    """

    def __init__(
        self,
        manifest: Manifest,
        backend: Backend,
        home: Callable[[StreamState], State],
        limit: int | None,
        folder: Path | None,
    ) -> None:
        self._manifest, self._backend, self._home = manifest, backend, home
        self._limit = limit
        self._folder = None if limit is None else SpillFolder(folder)
        self._sessions: OrderedDict[int, weakref.ref[Session]] = OrderedDict()  # by id(), least recently used first
        self._files = 0
        self.spills = 0

    @property
    def resident(self) -> int:
        """Sessions whose state is in memory."""
        for key in [key for key, ref in self._sessions.items() if ref() is None]:
            del self._sessions[key]
        return len(self._sessions)

    def holds(self, session: Session) -> bool:
        """Whether a session's state is in memory, as far as this knows."""
        return id(session) in self._sessions

    def touch(self, session: Session) -> None:
        """This session was used just now."""
        self._sessions[id(session)] = weakref.ref(session)
        self._sessions.move_to_end(id(session))

    def make_room(self, session: Session) -> bool:
        """Whether `session` may have its state in memory, after spilling others that nobody uses if need be.

        Raises:
            StateError: a state cannot be written; nothing is lost.
        """
        if self._limit is None or self.holds(session):
            return True
        while self.resident >= self._limit:
            if not self._spill_one():
                return False
        return True

    def shrink(self) -> None:
        """Spill until the limit holds, as far as sessions are not in use."""
        while self._limit is not None and self.resident > self._limit and self._spill_one():
            pass

    def load(self, state: Spilled) -> State:
        """The state back in memory. Raises `StateError` if the file was damaged meanwhile."""
        saved = state_file.unpack(self._manifest, state_file.read_file(state.path, self._manifest), str(state.path))
        return self._backend.write(saved.tensors, 1, saved.header.position)

    def _spill_one(self) -> bool:
        for key, ref in list(self._sessions.items()):
            session = ref()
            if session is None:
                del self._sessions[key]
                return True
            use = session._guard.enter_to_keep_house()
            if use is None:
                continue  # in use
            try:
                session._now = self._spilled(session._now)
            finally:
                use.leave()
            del self._sessions[key]
            self.spills += 1
            record(logging.DEBUG, "session.spilled", session=session.name, position=session.position)
            return True
        return False

    def _spilled(self, now: Moment) -> Moment:
        if isinstance(now.state, Spilled):
            return now
        if self._folder is None:
            raise StateError("this batch has no folder to spill to", "make it with a limit on resident sessions")
        tensors = self._backend.read(self._home(now.state))
        self._files += 1
        path = self._folder.path / f"{self._files}.state"
        write_atomically(path, state_file.pack(self._manifest, tensors, now), durable=False)
        return replace(now, state=Spilled(self._folder, path, now.position), last=now.outputs)
