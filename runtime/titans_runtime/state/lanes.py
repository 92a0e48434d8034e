"""Streams of different positions side by side in one batch on a device, so that one call steps all of them.

Knows how a stream's state is copied into a lane and out, and what happens to lanes that sit a step out; all of it
between tensors of the device. Does not know who sits where, or why (`serving`). The host twin is `cpu_lanes`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import cast

import numpy as np

from titans_format.specs import GraphSpec
from titans_runtime.arrays import Array
from titans_runtime.errors import NonFiniteError
from titans_runtime.state.blocks import Lease, Pool
from titans_runtime.state.calls import Feed, State, Stepped
from titans_runtime.state.device import Buffer, DeviceBlock
from titans_runtime.state.executor import DeviceExecutor, DeviceLayout, DeviceState


class DeviceLanes:
    """`width` lanes. For one caller at a time. See `base.Lanes` for the contract.

    Args:
        layout: gives the layout of so many streams.
        lend: lends an executor for so many.
        step: the graph.
        width: how many lanes.
    """

    def __init__(
        self,
        layout: Callable[[int], DeviceLayout],
        lend: Callable[[int], AbstractContextManager[DeviceExecutor]],
        step: GraphSpec,
        width: int,
    ) -> None:
        self.width = width
        self._step = step
        self._wide, self._solo = layout(width), layout(1)
        self._device = self._wide.device
        self._stack = ExitStack()
        self._executor = self._stack.enter_context(lend(width))
        self._positions = np.zeros(width, np.int64)
        self._before: dict[int, Lease[DeviceBlock]] = {}
        with self._device.lock:
            self._carried = [pool.take() for pool in self._wide.carried]
            self._rows = [pool.take() for pool in self._wide.rows]
        for lane in range(width):
            self.seat(lane, self._solo.initial)

    def seat(self, lane: int, state: State) -> None:
        """Copy a single stream's state into a lane."""
        solo = cast(DeviceState, state)
        self._solo.check_owner(solo)
        self._positions[lane] = solo.position
        with self._device.lock:
            for wide, one in self._pairs(solo):
                self._device.seat(wide, one, lane, 0)
            for wide, one in self._row_pairs(solo):
                self._device.seat(wide, one, lane, 1)

    def copy(self, lane: int, before_commit: bool = False) -> DeviceState:
        """The state of a lane as a single stream's; the lane keeps it."""
        position = int(self._positions[lane])
        with self._device.lock:
            carried = tuple(pool.take() for pool in self._solo.carried)
            rows = tuple(pool.take() for pool in self._solo.rows)
            solo = DeviceState(1, position, carried, rows)
            for wide, one in self._pairs(solo):
                self._device.pick(wide, one, lane, 0)
            for wide, one in self._row_pairs(solo):
                self._device.pick(wide, one, lane, 1)
        for pool, table in zip(self._solo.rows, rows, strict=True):
            table.filled = position % pool.length
            if before_commit and table.filled == 0:
                table.filled = pool.length  # the table is full, and what is due has yet to read it
        return solo

    def step(self, lanes: Sequence[int], inputs: Array, best: int | None = None) -> Stepped:
        """One token for each of `lanes`; the others stay as they are."""
        data = np.zeros((self.width, 1, *inputs.shape[1:]), inputs.dtype)
        data[list(lanes), 0] = inputs
        with self._device.lock:
            bound = self._executor.graph(self._step)
            written = {i: self._wide.carried[i].take() for i in bound.writes}
            feed = Feed(data, 1, "last", best)
            bound.load(feed, self._positions)
            bound.run((*self._carried, *self._rows), written)
            told, bad = bound.tell(feed)
            failed = {
                lane: NonFiniteError(self._step.name, int(self._positions[lane]), None) for lane in lanes if bad[lane]
            }
            moving = [lane for lane in lanes if lane not in failed]
            before = {i: self._carried[i] for i in written}
            self._restore([lane for lane in range(self.width) if lane not in moving], written, before)
            if bound.appends:
                # A lane that sits out gets a row too, at its position, where its rows count as not written.
                for pool, table in zip(self._wide.rows, self._rows, strict=True):
                    places = [int(place) for place in self._positions % pool.length]
                    self._device.place(_all(table, pool), bound.rows(pool), places)
        positions = self._positions.copy()
        positions[moving] += 1
        # Only now, when nothing can fail any more.
        self._carried = [written.get(i, lease) for i, lease in enumerate(self._carried)]
        self._positions, self._before = positions, before
        head = np.zeros((self.width, 0), np.float32) if told.head is None else told.head[:, 0]
        return Stepped(head, None if told.surprise is None else told.surprise[:, 0], failed, told.best)

    def commit(self, graphs: Sequence[GraphSpec], lanes: Sequence[int]) -> bool:
        """Run what is due, for these lanes; the others stay as they are."""
        carried = list(self._carried)
        with self._device.lock:
            for graph in graphs:
                bound = self._executor.graph(graph)
                written = {i: self._wide.carried[i].take() for i in bound.writes}
                feed = Feed(None, 0, "none")
                bound.load(feed, self._positions)
                bound.run((*carried, *self._rows), written)
                told, bad = bound.tell(feed)
                try:
                    bound.check_finite(told, bad, written, int(self._positions.min()), feed)
                except NonFiniteError:
                    return False
                for i, lease in written.items():
                    carried[i] = lease
            changed = {i: old for i, old in enumerate(self._carried) if carried[i] is not old}
            resting = [lane for lane in range(self.width) if lane not in lanes]
            self._restore(resting, {i: carried[i] for i in changed}, changed)
            self._carried, self._before = carried, changed | self._before
        return True

    def undo(self, lane: int) -> None:
        """Take the last step of a lane back, commits included, which must have been part of the last call of `step`."""
        with self._device.lock:
            self._restore([lane], {i: self._carried[i] for i in self._before}, self._before)
        self._positions[lane] -= 1

    def close(self) -> None:
        """Give the memory back."""
        self._stack.close()

    def _restore(
        self, lanes: list[int], after: Mapping[int, Lease[DeviceBlock]], before: Mapping[int, Lease[DeviceBlock]]
    ) -> None:
        """Give these lanes what they held before."""
        if not lanes:
            return
        for i, old in before.items():
            pool = self._wide.carried[i]
            self._device.keep(_all(after[i], pool), _all(old, pool), lanes)

    def _pairs(self, solo: DeviceState) -> list[tuple[list[Buffer], list[Buffer]]]:
        """Carried tensors of all lanes beside those of a single stream."""
        pools = self._wide.carried
        return [(_all(wide, p), _all(one, p)) for p, wide, one in zip(pools, self._carried, solo.carried, strict=True)]

    def _row_pairs(self, solo: DeviceState) -> list[tuple[list[Buffer], list[Buffer]]]:
        pools = self._wide.rows
        return [(_all(wide, p), _all(one, p)) for p, wide, one in zip(pools, self._rows, solo.rows, strict=True)]


def _all(lease: Lease[DeviceBlock], pool: Pool[DeviceBlock]) -> list[Buffer]:
    return [lease.block.tensors[name] for name in pool.names]
