"""Which stream is in which lane, and how its state is had back.

Knows lanes, and the value that a stream holds while it is in one. Does not know runs or files.
All of it is used on the batch's thread, and by others only once that has ended.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from titans_runtime.errors import InputError
from titans_runtime.state.backend import Backend
from titans_runtime.state.calls import StreamState
from titans_runtime.state.lanes import Lanes
from titans_runtime.state.layout import State


class LaneSlot:
    """One stream's stay in a lane of `owner`. `home` is its state once it has left."""

    def __init__(self, owner: LaneTable, lane: int) -> None:
        self.owner = owner
        self.lane: int | None = lane
        self.home: State | None = None
        self.used = 0  # the round in which it was last stepped
        self.turns = 0  # steps since it was taken


@dataclass(frozen=True)
class InLane:
    """The state of a stream that is in a lane: what the stream holds meanwhile."""

    slot: LaneSlot
    position: int


class LaneTable:
    """Lanes for up to `most` streams, as few as will do.

    Lanes come in widths of 1, 2, 4, ... so that few streams do not pay for many lanes.
    """

    def __init__(self, backend: Backend, most: int) -> None:
        self._backend = backend
        self._most = most
        self._lanes: Lanes | None = None
        self._taken: list[LaneSlot | None] = []

    @property
    def width(self) -> int:
        """Lanes that there are now."""
        return len(self._taken)

    @property
    def lanes(self) -> Lanes:
        """The lanes; there are some once a stream was put in one."""
        if self._lanes is None:
            raise RuntimeError("no stream is in a lane yet")
        return self._lanes

    def resize(self, streams: int) -> None:
        """Have lanes for `streams` streams; all streams leave if the width changes."""
        width = 1
        while width < min(streams, self._most):
            width *= 2
        if width != self.width:
            self.close()  # before there are new ones, so that a failure here leaves no lanes rather than closed ones
            self._lanes = self._backend.lanes(width)
            self._taken = [None] * width

    def take(self, state: State) -> LaneSlot | None:
        """Put a stream in a lane; None if all are taken."""
        try:
            lane = self._taken.index(None)
        except ValueError:
            return None
        self.lanes.seat(lane, state)
        slot = self._taken[lane] = LaneSlot(self, lane)
        return slot

    def leave(self, slot: LaneSlot) -> State:
        """Take a stream out of its lane; its state from now on."""
        self._check_owner(slot)
        if slot.lane is not None:
            slot.home = self.lanes.copy(slot.lane)
            self._free(slot)
        return self.home(slot)

    def brought_home(self, state: StreamState) -> State:
        """A state in blocks: of a stream in a lane, which it then leaves, or as it is."""
        return self.leave(state.slot) if isinstance(state, InLane) else cast(State, state)

    def drop(self, slot: LaneSlot) -> None:
        """Free the lane of a stream that nobody wants back."""
        self._check_owner(slot)
        self._free(slot)

    def home(self, slot: LaneSlot) -> State:
        """The state of a stream that is or was in a lane; it stays there."""
        self._check_owner(slot)
        if slot.lane is not None:
            return self.lanes.copy(slot.lane)
        if slot.home is None:
            raise RuntimeError("a lane was dropped while its state was still wanted")
        return slot.home

    def _check_owner(self, slot: LaneSlot) -> None:
        """Raise `InputError` for a slot of another batch; its lane number is another stream's here."""
        if slot.owner is not self:
            raise InputError(
                "this stream is in a lane of another batch",
                "use its session in the batch that made it, or bring it here with"
                " batch.restore_bytes(session.to_bytes())",
            )

    def _free(self, slot: LaneSlot) -> None:
        lane, slot.lane = slot.lane, None
        if lane is not None:
            self._taken[lane] = None

    def idle(self, before: int) -> list[LaneSlot]:
        """Slots not used since round `before`, longest first."""
        found = [slot for slot in self._taken if slot is not None and slot.used < before]
        return sorted(found, key=lambda slot: slot.used)

    @property
    def occupied(self) -> int:
        """How many lanes are taken."""
        return sum(slot is not None for slot in self._taken)

    def close(self) -> None:
        """All streams leave."""
        for slot in list(self._taken):
            if slot is not None:
                self.leave(slot)
        if self._lanes is not None:
            self._lanes.close()
            self._lanes = None
        self._taken = []
