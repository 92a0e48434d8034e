"""Who sits in which lane, and how a seated stream's state is had back.

Knows lanes and the values that sessions hold for a seated or a spilled stream. Does not know jobs or files.
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


class Seat:
    """One stream's stay in a lane of `owner`. `home` is its state from the moment it left."""

    def __init__(self, owner: Seats, lane: int) -> None:
        self.owner = owner
        self.lane: int | None = lane
        self.home: State | None = None
        self.used = 0  # the round in which it was last stepped
        self.turns = 0  # steps since it was taken


@dataclass(frozen=True)
class Seated:
    """The state of a stream that sits in a lane: what a session holds meanwhile."""

    seat: Seat
    position: int


class Seats:
    """Seats for up to `most` streams, in as narrow a set of lanes as will do.

    Lanes come in widths of 1, 2, 4, ... so that few streams do not pay for many lanes.
    """

    def __init__(self, backend: Backend, most: int) -> None:
        self._backend = backend
        self._most = most
        self._lanes: Lanes | None = None
        self._taken: list[Seat | None] = []

    @property
    def width(self) -> int:
        """Lanes that there are now."""
        return len(self._taken)

    @property
    def lanes(self) -> Lanes:
        """The lanes; there are some once a stream was seated."""
        if self._lanes is None:
            raise RuntimeError("no stream was seated yet")
        return self._lanes

    def resize(self, streams: int) -> None:
        """Have lanes for `streams` streams; everybody who is seated leaves if the width changes."""
        width = 1
        while width < min(streams, self._most):
            width *= 2
        if width != self.width:
            self.close()  # before there are new ones, so that a failure here leaves no lanes rather than closed ones
            self._lanes = self._backend.lanes(width)
            self._taken = [None] * width

    def take(self, state: State) -> Seat | None:
        """A seat for a stream, or None if all lanes are taken."""
        try:
            lane = self._taken.index(None)
        except ValueError:
            return None
        self.lanes.seat(lane, state)
        seat = self._taken[lane] = Seat(self, lane)
        return seat

    def leave(self, seat: Seat) -> State:
        """Take a stream out of its lane; its state from now on."""
        self._check_owner(seat)
        if seat.lane is not None:
            seat.home = self.lanes.copy(seat.lane)
            self._free(seat)
        return self.home(seat)

    def brought_home(self, state: StreamState) -> State:
        """A state as the backend's own value: of a seated stream, which then leaves its lane, or as it is."""
        return self.leave(state.seat) if isinstance(state, Seated) else cast(State, state)

    def drop(self, seat: Seat) -> None:
        """Free the lane of a stream that nobody wants back."""
        self._check_owner(seat)
        self._free(seat)

    def home(self, seat: Seat) -> State:
        """The state of a stream, seated or not; one that is seated stays so."""
        self._check_owner(seat)
        if seat.lane is not None:
            return self.lanes.copy(seat.lane)
        if seat.home is None:
            raise RuntimeError("a seat was dropped while its state was still wanted")
        return seat.home

    def _check_owner(self, seat: Seat) -> None:
        """Raise `InputError` for a seat of another batch, whose lane of that number is another stream's here."""
        if seat.owner is not self:
            raise InputError(
                "this stream sits in another batch",
                "use its session in the batch that made it, or bring it here"
                " with batch.restore_bytes(session.to_bytes())",
            )

    def _free(self, seat: Seat) -> None:
        lane, seat.lane = seat.lane, None
        if lane is not None:
            self._taken[lane] = None

    def idle(self, before: int) -> list[Seat]:
        """Seats not used since round `before`, longest first."""
        found = [seat for seat in self._taken if seat is not None and seat.used < before]
        return sorted(found, key=lambda seat: seat.used)

    @property
    def occupied(self) -> int:
        """How many lanes are taken."""
        return sum(seat is not None for seat in self._taken)

    def close(self) -> None:
        """Everybody leaves."""
        for seat in list(self._taken):
            if seat is not None:
                self.leave(seat)
        if self._lanes is not None:
            self._lanes.close()
            self._lanes = None
        self._taken = []
