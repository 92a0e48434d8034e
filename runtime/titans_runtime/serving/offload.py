"""A limit on how many streams' states are in memory: those used longest ago wait in files, and come back on demand.

Knows which streams were used when, and how a state becomes a file and a state again. Does not know runs or lanes.
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
from titans_runtime.logs import record
from titans_runtime.serving.offload_folder import OffloadFolder
from titans_runtime.state.backend import Backend
from titans_runtime.state.calls import StreamState
from titans_runtime.state.layout import State
from titans_runtime.stream import state_file
from titans_runtime.stream.snapshot import Snapshot

if TYPE_CHECKING:
    from titans_runtime.stream.stream import Stream


class OnDisk:
    """The state of a stream that waits in a file, which goes when nothing refers to it any more. Immutable."""

    def __init__(self, folder: OffloadFolder, path: Path, position: int) -> None:
        self.position = position
        self.path = path
        self._folder = folder  # the folder outlives the batch for as long as one of its files is needed
        self._remove = weakref.finalize(self, folder.remove, path)


class Offloader:
    """Keeps at most `limit` streams' states in memory.

    Args:
        manifest, backend: the model.
        home: gives a state in blocks.
        limit: streams; None for as many as there are.
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
        self._folder = None if limit is None else OffloadFolder(folder)
        self._streams: OrderedDict[int, weakref.ref[Stream]] = OrderedDict()  # by id(), least recently used first
        self._files = 0
        self.offloads = 0

    @property
    def resident(self) -> int:
        """Streams whose state is in memory."""
        for key in [key for key, ref in self._streams.items() if ref() is None]:
            del self._streams[key]
        return len(self._streams)

    def holds(self, stream: Stream) -> bool:
        """Whether a stream's state is in memory, as far as this knows."""
        return id(stream) in self._streams

    def touch(self, stream: Stream) -> None:
        """The stream was used just now."""
        self._streams[id(stream)] = weakref.ref(stream)
        self._streams.move_to_end(id(stream))

    def make_room(self, stream: Stream) -> bool:
        """Whether `stream` may have its state in memory, after moving others that nobody uses to files if need be.

        Raises:
            StateError: a state cannot be written; nothing is lost.
        """
        if self._limit is None or self.holds(stream):
            return True
        while self.resident >= self._limit:
            if not self._offload_one():
                return False
        return True

    def shrink(self) -> None:
        """Move states to files until the limit holds, as far as streams are not in use."""
        while self._limit is not None and self.resident > self._limit and self._offload_one():
            pass

    def load(self, state: OnDisk) -> State:
        """The state back in memory. Raises `StateError` if the file was damaged meanwhile."""
        saved = state_file.unpack(self._manifest, state_file.read_file(state.path, self._manifest), str(state.path))
        return self._backend.write(saved.tensors, 1, saved.header.position)

    def _offload_one(self) -> bool:
        for key, ref in list(self._streams.items()):
            stream = ref()
            if stream is None:
                del self._streams[key]
                return True
            if not stream.move(self._offloaded):
                continue  # in use
            del self._streams[key]
            self.offloads += 1
            record(logging.DEBUG, "session.spilled", session=stream.name, position=stream.now.position)
            return True
        return False

    def _offloaded(self, now: Snapshot) -> Snapshot:
        if isinstance(now.state, OnDisk):
            return now
        if self._folder is None:
            raise StateError("this batch has no folder for states", "make it with a limit on resident sessions")
        tensors = self._backend.read(self._home(now.state))
        self._files += 1
        path = self._folder.path / f"{self._files}.state"
        write_atomically(path, state_file.pack(self._manifest, tensors, now), durable=False)
        return replace(now, state=OnDisk(self._folder, path, now.position), last=now.outputs)
