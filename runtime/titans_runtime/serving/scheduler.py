"""What a batch's thread does: streams that decode are stepped together, prompts go piece by piece in between.

Knows turns. Does not check what users pass in, does not know sessions, nor the batch it works for: when that is gone,
the thread ends.

Each round steps every waiting decoder that has a lane, in one call, and then makes one call of one prompt, in turn.
So a decoder waits for one chunk of another stream's prompt at most, and a prompt for one step. A decoder without a lane
gets one as soon as a stream that had a full turn, or is idle, can leave its own.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias, cast

import numpy as np

from titans_format.errors import TitansError
from titans_format.specs import GraphSpec
from titans_runtime.errors import ExecutionError
from titans_runtime.logs import record
from titans_runtime.serving.completion import Flag, Question
from titans_runtime.serving.lane_table import InLane, LaneSlot, LaneTable
from titans_runtime.serving.offload import Offloader, OnDisk
from titans_runtime.serving.queued_run import QueuedRun, given_up
from titans_runtime.state.backend import Backend
from titans_runtime.state.calls import Stepped, StreamState
from titans_runtime.state.layout import State
from titans_runtime.stream.plan import Planner

_TURN = 32  # steps in a lane before a stream that waits may have it; a change costs a copy of two states
_CALM = 64  # rounds with few decoders before the lanes become fewer
# After a round its callers sample and come back one by one. Starting without them would split them into groups that
# never meet again, so the thread waits this share of a round's time for as many as there were.
_PATIENCE = 0.5
_RETRY = 0.001  # seconds
_LEAST_PATIENCE = 0.0005  # seconds: what 16 threads need to take a result and come back

# What comes in: runs that arrive together, a question, or None, after which nothing new is begun. `SimpleQueue` is C:
# to put something in is one instruction.
Letter: TypeAlias = "Sequence[QueuedRun] | Question[Any] | None"


class Scheduler:
    """The runs of one batch, in turn.

    Args:
        planner, backend: the model.
        lanes: decoders that are stepped together at most.
        resident: sessions whose state is in memory at most; None for no limit.
        folder: where the others' states go; None for the system's temporary folder.
        mail: where runs and questions come in.
    """

    def __init__(
        self,
        planner: Planner,
        backend: Backend,
        lanes: int,
        resident: int | None,
        folder: Path | None,
        mail: SimpleQueue[Letter],
    ) -> None:
        self._backend = backend
        self._planner = planner
        step = planner.manifest.graph("step")  # what lanes run
        if step is None:
            raise ValueError("a manifest without a step graph, which Manifest.from_json would have refused")
        self._step = step
        self._most = lanes if resident is None else min(lanes, resident)
        self.table = LaneTable(backend, self._most)
        self.offloader = Offloader(planner.manifest, backend, self.table.brought_home, resident, folder)
        self.ended = False  # set before the last look at the mail: who puts something in and finds it unset is heard
        self.gone = Flag()  # the thread is as good as gone
        self.at_once = False  # when the end comes, what was begun is not finished
        self._mail = mail
        self._closing = False
        self._waiting: deque[QueuedRun] = deque()
        self._stuck = False  # runs wait for room and nothing runs that could make some
        self._steps: list[QueuedRun] = []
        self._prompts: deque[QueuedRun] = deque()
        self._running: list[QueuedRun] = []  # those of the call under way
        self._round = 0
        self._busy_round = -_CALM - 1  # the last round in which so many decoders wanted lanes
        self._last_steps, self._last_seconds = 0, 0.0

    def serve(self) -> None:
        """Work until told to end; then every stream has its state, and nobody waits for anything."""
        try:
            while self._wait():
                try:
                    self._admit()
                    self._one_round()
                    self.offloader.shrink()
                except BaseException as error:  # a defect here must not leave callers waiting for ever
                    record(logging.CRITICAL, "batch.failed", error=repr(error))
                    self._fail_all(error)
        finally:
            self._end()

    def home(self, state: StreamState) -> State:
        """A state in blocks: had back from disk, or from the lane, which the stream then leaves."""
        if isinstance(state, OnDisk):
            return self.offloader.load(state)
        return self.table.brought_home(state)

    # -- what comes in -----------------------------------------------------------------------------------------------

    def _wait(self) -> bool:
        """Until there is something to do; False when the thread is to end."""
        if not (self._steps or self._prompts or self._waiting):
            self._last_steps = 0
            while not (self._waiting or self._closing):
                self._take(None)
        elif self._stuck and not (self._steps or self._prompts):
            self._take(_RETRY)  # every session in memory is in use outside of the batch
        while self._take(0):
            pass
        if not self._prompts and not self._all_are_back():
            patience = time.perf_counter() + max(_LEAST_PATIENCE, _PATIENCE * self._last_seconds)
            while not self._all_are_back() and (left := patience - time.perf_counter()) > 0:
                self._take(left)
        return not self._closing or (bool(self._steps or self._prompts) and not self.at_once)

    def _take(self, seconds: float | None) -> bool:
        """Take in what has come, or comes within so many seconds; None waits for it."""
        try:
            letter = self._mail.get_nowait() if seconds == 0 else self._mail.get(timeout=seconds)
        except Empty:
            return False
        if letter is None:
            self._closing = True
        elif isinstance(letter, Question):
            letter.run()
        else:
            self._waiting.extend(letter)
        return True

    def _all_are_back(self) -> bool:
        waiting = len(self._steps) + len(self._waiting)
        return self._closing or waiting >= min(self._last_steps, self._most)

    def _admit(self) -> None:
        """Begin the runs that wait, as far as there is room for their states."""
        left: deque[QueuedRun] = deque()
        while self._waiting:
            queued = self._waiting.popleft()
            try:
                if not self.offloader.make_room(queued.stream):
                    left.append(queued)
                elif queued.begin():
                    self.offloader.touch(queued.stream)
                    if isinstance(queued.run.state, OnDisk):
                        queued.run.state = self.offloader.load(queued.run.state)
                    self._sort_in(queued)
            except Exception as error:
                if queued.task.begun or queued.begin():
                    queued.fail(error)
        self._stuck = bool(left)
        self._waiting = left

    def _sort_in(self, queued: QueuedRun) -> None:
        # A step graph of the schedule's may write big tensors.
        if queued.run.tokens == 1 and self._planner.single(queued.run.state.position) is self._step:
            self._steps.append(queued)
        else:
            queued.run.state = self.home(queued.run.state)
            self._prompts.append(queued)

    def _one_round(self) -> None:
        self._round += 1
        if self._steps:
            start = time.perf_counter()
            self._last_steps = len(self._steps)
            self._step_round()
            self._last_seconds = time.perf_counter() - start
        if self._prompts:
            queued = self._prompts.popleft()
            self._running = [queued]
            self._continue(queued)
        self._running = []

    def _fail_all(self, error: BaseException) -> None:
        """Fail what was begun and what waited until now; what comes in meanwhile is the next round's."""
        waiting, self._waiting = self._waiting, deque()
        while self._take(0):
            pass
        waiting, self._waiting = deque((*waiting, *self._waiting)), deque()
        begun = [*self._running, *(queued for queued in (*self._steps, *self._prompts) if queued not in self._running)]
        self._running, self._steps = [], []
        self._prompts.clear()
        for queued in begun:
            if not queued.task.done:
                queued.fail(error)
        for queued in waiting:
            if queued.begin():
                queued.fail(error)

    def _end(self) -> None:
        closed = TitansError("this batch was closed before the feed began", "the session is as it was")
        try:
            self._fail_all(closed)
            self.table.close()
        except BaseException as error:  # a state that cannot be had out of its lane now is asked for again
            record(logging.CRITICAL, "batch.failed", error=repr(error))
        self.ended = True
        self._fail_all(closed)
        self.gone.set()

    # -- prompts -----------------------------------------------------------------------------------------------------

    def _continue(self, queued: QueuedRun) -> None:
        """Make one call of a run on its own, and put it at the end of the queue if there is more."""
        if queued.task.abandoned:
            queued.fail(given_up())
            return
        try:
            with self._backend.executor(1) as executor:
                queued.run.advance(executor)
        except Exception as error:
            queued.fail(error)
            return
        if queued.run.done:
            queued.succeed()  # if not, the stream is untouched: the run's state was a value of its own
        else:
            self._prompts.append(queued)

    # -- decoders ----------------------------------------------------------------------------------------------------

    def _step_round(self) -> None:
        """Step every decoder that has or gets a lane."""
        if len(self._steps) == 1 and self._round - self._busy_round > _CALM:
            queued = self._steps[0]
            queued.run.state = self.home(queued.run.state)
            self._prompts.appendleft(self._steps.pop())  # alone: a call of its own is cheaper than lanes
            return
        if len(self._steps) > max(1, self.table.width // 2):
            self._busy_round = self._round
        if len(self._steps) > self.table.width or self._round - self._busy_round > _CALM:
            self.table.resize(len(self._steps))
            self._busy_round = self._round
        chosen = self._choose()
        self._running = [queued for queued, _ in chosen]
        self._steps = [queued for queued in self._steps if queued not in self._running]
        lanes = [lane for _, slot in chosen if (lane := slot.lane) is not None]
        try:
            inputs = np.stack([queued.run.inputs[0, 0] for queued, _ in chosen])
            stepped = self.table.lanes.step(lanes, inputs, _most_wanted(self._running))
        except Exception as error:
            for queued, _ in chosen:
                queued.fail(error)
            return
        moved = [(queued, lane) for (queued, _), lane in zip(chosen, lanes, strict=True) if lane not in stepped.failed]
        try:
            together = self._commit(moved)
            for (queued, slot), lane in zip(chosen, lanes, strict=True):
                if lane in stepped.failed:
                    queued.fail(stepped.failed[lane])
                    continue
                self._finish_step(queued, slot, lane, stepped, lane in together)
        except BaseException:  # a defect: no lane may be a step ahead of its session
            for queued, lane in moved:
                if not queued.task.done:
                    self.table.lanes.undo(lane)
            raise

    def _commit(self, moved: list[tuple[QueuedRun, int]]) -> set[int]:
        """Run what is due after a step at once where it is for many lanes; the lanes for which that was done."""
        due: dict[tuple[str, ...], tuple[list[GraphSpec], list[int]]] = {}
        for queued, lane in moved:
            graphs = self._planner.due(queued.run.state.position + 1)
            if graphs:
                due.setdefault(tuple(graph.name for graph in graphs), (graphs, []))[1].append(lane)
        done: set[int] = set()
        for graphs, lanes in due.values():
            if 2 * len(lanes) > self.table.width:  # one by one, few are cheaper: all lanes do the work
                with contextlib.suppress(ExecutionError):  # which it is shows one by one
                    if self.table.lanes.commit(graphs, lanes):
                        done |= set(lanes)
        return done

    def _choose(self) -> list[tuple[QueuedRun, LaneSlot]]:
        """Runs and their slots for this round: those in a lane with turns left, then the others in order of arrival."""
        waiting = sorted(self._steps, key=self._precedence)[: self.table.width]
        chosen: list[tuple[QueuedRun, LaneSlot]] = []
        staying = {id(queued.run.state.slot) for queued in waiting if isinstance(queued.run.state, InLane)}
        idle = [slot for slot in self.table.idle(self._round) if id(slot) not in staying]
        for queued in waiting:
            slot = queued.run.state.slot if isinstance(queued.run.state, InLane) else None
            if slot is None or slot.lane is None:
                state = cast(State, queued.run.state) if slot is None else self.table.home(slot)
                slot = self.table.take(state)
                if slot is None:
                    self.table.leave(idle.pop(0))
                    slot = self.table.take(state)
            if slot is None:
                raise RuntimeError("no lane is free although one was given up")
            slot.turns += 1
            slot.used = self._round
            chosen.append((queued, slot))
        return chosen

    def _precedence(self, queued: QueuedRun) -> int:
        in_lane = isinstance(queued.run.state, InLane) and queued.run.state.slot.lane is not None
        if in_lane and isinstance(queued.run.state, InLane) and queued.run.state.slot.turns % _TURN:
            return 0
        return 1

    def _finish_step(self, queued: QueuedRun, slot: LaneSlot, lane: int, stepped: Stepped, done: bool) -> None:
        """Run what is due after a step and was not run, and make the result the stream's; undo all if that fails."""
        run, lanes = queued.run, self.table.lanes
        after = run.state.position + 1
        alone = False
        try:
            run.collect(stepped.of(lane), 1)
            due = () if done else self._planner.due(after)
            if due:
                run.state, alone = lanes.copy(lane, before_commit=True), True
                with self._backend.executor(1) as executor:
                    for graph in due:
                        run.commit(executor, graph)
            else:
                run.state = InLane(slot, after)
            if not queued.succeed():
                lanes.undo(lane)
                return
        except Exception as error:
            lanes.undo(lane)
            queued.fail(error)
            return
        if alone:  # it gets a lane again before its next step
            self.table.drop(slot)


def _most_wanted(runs: list[QueuedRun]) -> int | None:
    """How many of the largest outputs do for all of these; None if one needs all of them."""
    counts = [queued.run.top_k for queued in runs if queued.run.top_k is not None]
    return max(counts) if len(counts) == len(runs) else None
