"""Streams of different positions side by side in one batch of host memory, so that one call steps all of them.

Knows how a stream's state is copied into a lane and out, and what happens to lanes that sit a step out. Does not know
who sits where, or why (`serving`).

A step reads the big tensors of every lane and writes only small ones, so lanes that sit out cost their share of the
arithmetic and a copy of those small tensors; nothing big moves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, cast

import numpy as np

from titans_format.specs import GraphSpec
from titans_runtime.arrays import Array, FloatArray
from titans_runtime.devices.arena import RowsSlot, Slot
from titans_runtime.devices.cpu_state import HostState
from titans_runtime.errors import NonFiniteError
from titans_runtime.state.calls import Feed, State, Stepped

if TYPE_CHECKING:
    from titans_runtime.devices.host import CpuBackend


class CpuLanes:
    """`width` lanes. For one caller at a time. See `base.Lanes` for the contract."""

    def __init__(self, backend: CpuBackend, step: GraphSpec, width: int) -> None:
        self.width = width
        self._step = step
        self._wide, self._solo = backend.layout(width), backend.layout(1)
        self._stack = ExitStack()
        self._executor = self._stack.enter_context(backend.lend(width))
        beginning = self._wide.initial
        self._positions = np.zeros(width, np.int64)
        self._carried = [group.take() for group in self._wide.carried]
        self._rows = [group.take() for group in self._wide.rows]
        for mine, start in zip((*self._carried, *self._rows), (*beginning.carried, *beginning.rows), strict=True):
            for name, array in mine.tensors.items():
                array[...] = start.tensors[name]
        self._before: dict[int, Slot] = {}

    def seat(self, lane: int, state: State) -> None:
        """Copy a single stream's state into a lane."""
        solo = cast(HostState, state)
        self._solo.check_owner(solo)
        self._positions[lane] = solo.position
        for mine, theirs in zip(self._carried, solo.carried, strict=True):
            for name, array in mine.tensors.items():
                array[lane] = theirs.tensors[name][0]
        for group, table, rows in zip(self._wide.rows, self._rows, solo.rows, strict=True):
            filled = solo.position % group.length
            for name, array in table.tensors.items():
                array[:filled, lane] = rows.tensors[name][:filled, 0]

    def copy(self, lane: int, before_commit: bool = False) -> HostState:
        """The state of a lane as a single stream's; the lane keeps it."""
        position = int(self._positions[lane])
        carried = tuple(group.take() for group in self._solo.carried)
        for mine, theirs in zip(self._carried, carried, strict=True):
            for name, array in theirs.tensors.items():
                array[0] = mine.tensors[name][lane]
        rows: list[RowsSlot] = []
        for group, table in zip(self._solo.rows, self._rows, strict=True):
            slot = group.take()
            slot.filled = position % group.length
            if before_commit and slot.filled == 0:
                slot.filled = group.length  # the table is full, and what is due has yet to read it
            for name, array in slot.tensors.items():
                array[: slot.filled, 0] = table.tensors[name][: slot.filled, lane]
            rows.append(slot)
        return HostState(1, position, carried, tuple(rows))

    def step(self, lanes: Sequence[int], inputs: Array, best: int | None = None) -> Stepped:
        """One token for each of `lanes`; the others stay as they are."""
        bound = self._executor.bound(self._step)
        written = {i: self._wide.carried[i].take() for i in bound.writes}
        data = np.zeros((self.width, 1, *inputs.shape[1:]), inputs.dtype)
        data[list(lanes), 0] = inputs
        bound.load(Feed(data, 1), self._positions)
        bound.execute((*self._carried, *self._rows), written)
        failed = {} if bound.finite(written.values()) else self._failures(bound.not_finite(written.values()), lanes)
        moving = [lane for lane in lanes if lane not in failed]
        before = {i: self._carried[i] for i in bound.writes}
        resting = [lane for lane in range(self.width) if lane not in moving]
        _restore(written, before, resting)
        # Lanes that are stepped together mostly stand at one position: their rows are one piece of memory then.
        together = not resting and bool((self._positions == self._positions[0]).all())
        for group, table in zip(self._wide.rows, self._rows, strict=True):
            places = int(self._positions[0]) % group.length if together else self._positions[moving] % group.length
            for name, result in bound.rows(group).items():
                if together:
                    table.tensors[name][places] = result[0]
                else:
                    table.tensors[name][places, moving] = result[0, moving]
        positions = self._positions.copy()
        positions[moving] += 1
        told = bound.outputs(1)
        head = cast(FloatArray, told.head)
        # From here on nothing can fail: whatever stopped us before has changed no row that counts.
        self._carried = [written.get(i, slot) for i, slot in enumerate(self._carried)]
        self._positions, self._before = positions, before
        return Stepped(head[:, 0], None if told.surprise is None else told.surprise[:, 0], failed)

    def commit(self, graphs: Sequence[GraphSpec], lanes: Sequence[int]) -> bool:
        """Run what is due, for these lanes; the others stay as they are."""
        carried = list(self._carried)
        for graph in graphs:
            bound = self._executor.bound(graph)
            written = {i: self._wide.carried[i].take() for i in bound.writes}
            bound.load(Feed(None, 0), self._positions)
            bound.execute((*carried, *self._rows), written)
            if not bound.finite(written.values()):
                return False
            for i, slot in written.items():
                carried[i] = slot
        changed = {i: old for i, old in enumerate(self._carried) if carried[i] is not old}
        resting = [lane for lane in range(self.width) if lane not in lanes]
        _restore({i: carried[i] for i in changed}, changed, resting)
        self._carried, self._before = carried, changed | self._before
        return True

    def undo(self, lane: int) -> None:
        """Take the last step of a lane back, commits included, which must have been part of the last call of `step`."""
        _restore({i: self._carried[i] for i in self._before}, self._before, [lane])
        self._positions[lane] -= 1

    def close(self) -> None:
        """Give the memory back."""
        self._stack.close()

    def _failures(self, bad: dict[str, Array], lanes: Sequence[int]) -> dict[int, NonFiniteError]:
        """The lanes with numbers that are not finite; `bad` has flags `[width]` by state, "" for the outputs."""
        failed: dict[int, NonFiniteError] = {}
        for lane in lanes:
            names = [name for name, flags in bad.items() if flags[lane]]
            if names:
                state = next((name for name in names if name), None)
                failed[lane] = NonFiniteError(self._step.name, int(self._positions[lane]), state)
        return failed


def _restore(after: Mapping[int, Slot], before: Mapping[int, Slot], lanes: list[int]) -> None:
    """Give these lanes what they held before."""
    for i, old in before.items():
        for name, array in after[i].tensors.items():
            for lane in lanes:  # one by one: nothing is allocated, so nothing can fail
                array[lane] = old.tensors[name][lane]
