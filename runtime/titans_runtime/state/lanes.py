"""Streams of different positions side by side in one batch, so that one call steps all of them, on any device.

Knows how a stream's state is copied into a lane and out, and what happens to lanes that sit a step out; all of it
between tensors of the device. Does not know which session is in which lane, or why (`serving`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack

import numpy as np

from titans_format.specs import GraphSpec
from titans_runtime.arrays import Array
from titans_runtime.errors import NonFiniteError
from titans_runtime.state.blocks import Lease
from titans_runtime.state.calls import CallInputs, Stepped
from titans_runtime.state.executor import BoundGraph, Executor
from titans_runtime.state.layout import Layout, State


class Lanes:
    """Memory in which `width` streams of different positions are stepped by one call. For one caller at a time.

    Args:
        layout: gives the layout of so many streams.
        lend: lends an executor for so many.
        step: the graph.
        width: how many lanes.
    """

    def __init__(
        self,
        layout: Callable[[int], Layout],
        lend: Callable[[int], AbstractContextManager[Executor]],
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
        self._before: dict[int, Lease] = {}
        with self._device.lock:
            self._carried = [pool.take() for pool in self._wide.carried]
            self._rows = [pool.take() for pool in self._wide.rows]
        for lane in range(width):
            self.seat(lane, self._solo.initial)

    def seat(self, lane: int, state: State) -> None:
        """Copy a single stream's state into a lane."""
        self._solo.check_owner(state)
        self._positions[lane] = state.position
        with self._device.lock:
            for wide, one in zip(self._carried, state.carried, strict=True):
                self._device.seat(wide.block.buffers, one.block.buffers, lane)
            for pool, table, rows in zip(self._wide.rows, self._rows, state.rows, strict=True):
                filled = state.position % pool.length
                self._device.seat(table.block.buffers, rows.block.buffers, lane, filled)

    def copy(self, lane: int, before_commit: bool = False) -> State:
        """The state of a lane as a single stream's; the lane keeps it.

        `before_commit`: what is due at its position has not run yet.
        """
        position = int(self._positions[lane])
        with self._device.lock:
            carried = tuple(pool.take() for pool in self._solo.carried)
            rows = tuple(pool.take() for pool in self._solo.rows)
            for wide, one in zip(self._carried, carried, strict=True):
                self._device.pick(wide.block.buffers, one.block.buffers, lane)
            for pool, wide_table, table in zip(self._solo.rows, self._rows, rows, strict=True):
                table.filled = position % pool.length
                if before_commit and table.filled == 0:
                    table.filled = pool.length  # the table is full, and what is due has yet to read it
                self._device.pick(wide_table.block.buffers, table.block.buffers, lane, table.filled)
        return State(1, position, carried, rows)

    def step(self, lanes: Sequence[int], inputs: Array, top_k: int | None = None) -> Stepped:
        """One token for each of `lanes`; the others stay as they are.

        Args:
            lanes: which.
            inputs: `[len(lanes)]` ids or `[len(lanes), F]` vectors.
            top_k: as in `CallInputs`.

        Raises:
            ExecutionError: the graph failed; no lane has changed.
        """
        data = np.zeros((self.width, 1, *inputs.shape[1:]), inputs.dtype)
        data[list(lanes), 0] = inputs
        call = CallInputs(data, 1, "last", top_k)
        with self._device.lock:
            bound = self._executor.graph(self._step)
            written = {i: self._wide.carried[i].take() for i in bound.writes}
            bound.load(call, self._positions)
            bound.run((*self._carried, *self._rows), written)
            outputs, finite = bound.outputs(call)
            failed = {} if finite and bound.finite(written.values()) else self._failures(bound, written, lanes)
            moving = [lane for lane in lanes if lane not in failed]
            before = {i: self._carried[i] for i in written}
            self._restore([lane for lane in range(self.width) if lane not in moving], written, before)
            if bound.appends:
                for pool, table in zip(self._wide.rows, self._rows, strict=True):
                    places = (self._positions % pool.length).tolist()
                    self._device.place(table.block.buffers, bound.rows(pool), places, moving)
        positions = self._positions.copy()
        positions[moving] += 1
        # From here on nothing can fail: whatever stopped us before has changed no row that counts.
        self._carried = [written.get(i, lease) for i, lease in enumerate(self._carried)]
        self._positions, self._before = positions, before
        head = np.zeros((self.width, 0), np.float32) if outputs.head is None else outputs.head[:, 0]
        return Stepped(head, None if outputs.surprise is None else outputs.surprise[:, 0], failed, outputs.top_k)

    def commit(self, graphs: Sequence[GraphSpec], lanes: Sequence[int]) -> bool:
        """Run what is due after the last call of `step`, for these lanes of it; the others stay as they are.

        False, and no lane has changed, if not all numbers are finite: which lane it is shows one by one.

        Raises:
            ExecutionError: a graph failed; no lane has changed.
        """
        carried = list(self._carried)
        call = CallInputs(None, 0, "none")
        with self._device.lock:
            for graph in graphs:
                bound = self._executor.graph(graph)
                written = {i: self._wide.carried[i].take() for i in bound.writes}
                bound.load(call, self._positions)
                bound.run((*carried, *self._rows), written)
                _, finite = bound.outputs(call)
                if not (finite and bound.finite(written.values())) and _any(bound.not_finite(written, 0)):
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

    def _failures(
        self, bound: BoundGraph, written: Mapping[int, Lease], lanes: Sequence[int]
    ) -> dict[int, NonFiniteError]:
        """The lanes with numbers that are not finite, and the first state tensor of each that has them."""
        bad = bound.not_finite(written, 1)
        failed: dict[int, NonFiniteError] = {}
        for lane in lanes:
            names = [name for name, flags in bad.items() if flags[lane]]
            if names:
                state = next((name for name in names if name), None)
                failed[lane] = NonFiniteError(self._step.name, int(self._positions[lane]), state)
        return failed

    def _restore(self, lanes: list[int], after: Mapping[int, Lease], before: Mapping[int, Lease]) -> None:
        """Give these lanes what they held before."""
        if not lanes:
            return
        for i, old in before.items():
            self._device.keep(after[i].block.buffers, old.block.buffers, lanes)


def _any(flags: Mapping[str, Array]) -> bool:
    return any(bool(each.any()) for each in flags.values())
