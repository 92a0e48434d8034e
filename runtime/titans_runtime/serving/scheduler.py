"""What a batch's thread does: those that decode step side by side, prompts go piece by piece in between.

Knows turns. Does not check what users pass in, does not know sessions beyond their jobs, nor the batch it works for:
when that is gone, the thread ends.

Each round steps every waiting decoder that has a lane, in one call, and then runs one call of one prompt, in turn;
so a decoder waits for one chunk of somebody's prompt at most, and a prompt for one step. A decoder without a lane gets
one as soon as somebody who had a full turn, or sits idle, can give his up.
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
from titans_format.manifest import Manifest
from titans_format.specs import GraphSpec
from titans_runtime.errors import ExecutionError
from titans_runtime.serving.completion import Flag, Question
from titans_runtime.serving.lane_table import Seat, Seated, Seats
from titans_runtime.serving.offload import Residency, Spilled
from titans_runtime.serving.run import Job, JobAbandonedError, JobFailedError
from titans_runtime.state.backend import Backend
from titans_runtime.state.calls import CallInputs, Stepped, StreamState, WantedOutputs
from titans_runtime.state.layout import State
from titans_runtime.stream.observe import record
from titans_runtime.stream.plan import Call, Planner

_TURN = 32  # steps in a lane before somebody who waits may have it; a change costs a copy of two states
_CALM = 64  # rounds with few decoders before the lanes become fewer
# After a round its callers sample and come back one by one. Starting without them would split them into groups that
# never meet again, so the thread waits this share of a round's time for as many as there were.
_PATIENCE = 0.5
_RETRY = 0.001  # seconds
_LEAST_PATIENCE = 0.0005  # seconds: what 16 threads need to take a result and come back

# What comes in: jobs that arrive together, a question, or None, after which nothing new is begun. `SimpleQueue` is C:
# to put something in is one instruction.
Letter: TypeAlias = "Sequence[Job] | Question[Any] | None"
Mail: TypeAlias = "SimpleQueue[Letter]"


class Rounds:
    """The jobs of one batch, in turn.

    Args:
        manifest, backend: the model.
        lanes: decoders that are stepped together at most.
        resident: sessions whose state is in memory at most; None for no limit.
        folder: where the others' states go; None for the system's temporary folder.
        mail: where jobs and questions come in.
    """

    def __init__(
        self, manifest: Manifest, backend: Backend, lanes: int, resident: int | None, folder: Path | None, mail: Mail
    ) -> None:
        self._backend = backend
        self._planner = Planner(manifest)
        step = manifest.graph("step")  # what lanes run
        if step is None:
            raise ValueError("a manifest without a step graph, which Manifest.from_json would have refused")
        self._step = step
        self._most = lanes if resident is None else min(lanes, resident)
        self.seats = Seats(backend, self._most)
        self.residency = Residency(manifest, backend, self.seats.brought_home, resident, folder)
        self.ended = False  # set before the last look at the mail: who puts something in and finds it unset is heard
        self.gone = Flag()  # the thread is as good as gone
        self.at_once = False  # when the end comes, what was begun is not finished
        self._mail = mail
        self._closing = False
        self._waiting: deque[Job] = deque()
        self._stuck = False  # jobs wait for room and nothing runs that could make some
        self._steps: list[Job] = []
        self._prompts: deque[Job] = deque()
        self._running: list[Job] = []  # those of the call under way
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
                    self.residency.shrink()
                except BaseException as error:  # a defect here must not leave callers waiting for ever
                    record(logging.CRITICAL, "batch.failed", error=repr(error))
                    self._fail_all(error)
        finally:
            self._end()

    def home(self, state: StreamState) -> State:
        """A state as the backend's own value: had back from disk, or from the lane, which the stream then leaves."""
        if isinstance(state, Spilled):
            return self.residency.load(state)
        return self.seats.brought_home(state)

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
        """Begin the jobs that wait, as far as there is room for their states."""
        left: deque[Job] = deque()
        while self._waiting:
            job = self._waiting.popleft()
            try:
                if not self.residency.make_room(job.session):
                    left.append(job)
                elif job.begin():
                    self.residency.touch(job.session)
                    if isinstance(job.state, Spilled):
                        job.state = self.residency.load(job.state)
                    self._sort_in(job)
            except Exception as error:
                if job.task.begun or job.begin():
                    job.fail(error)
        self._stuck = bool(left)
        self._waiting = left

    def _sort_in(self, job: Job) -> None:
        # A step graph of the schedule's may write big tensors.
        if job.tokens == 1 and self._planner.single(job.state.position) is self._step:
            self._steps.append(job)
        else:
            job.state = self.home(job.state)
            self._prompts.append(job)

    def _one_round(self) -> None:
        self._round += 1
        if self._steps:
            start = time.perf_counter()
            self._last_steps = len(self._steps)
            self._step_round()
            self._last_seconds = time.perf_counter() - start
        if self._prompts:
            job = self._prompts.popleft()
            self._running = [job]
            self._continue(job)
        self._running = []

    def _fail_all(self, error: BaseException) -> None:
        """Fail what was begun and what waited until now; what comes in meanwhile is the next round's."""
        waiting, self._waiting = self._waiting, deque()
        while self._take(0):
            pass
        waiting, self._waiting = deque((*waiting, *self._waiting)), deque()
        begun = [*self._running, *(job for job in (*self._steps, *self._prompts) if job not in self._running)]
        self._running, self._steps = [], []
        self._prompts.clear()
        for job in begun:
            if not job.task.done:
                job.fail(error)
        for job in waiting:
            if job.begin():
                job.fail(error)

    def _end(self) -> None:
        closed = TitansError("this batch was closed before the feed began", "the session is as it was")
        try:
            self._fail_all(closed)
            self.seats.close()
        except BaseException as error:  # a state that cannot be had out of its lane now is asked for again
            record(logging.CRITICAL, "batch.failed", error=repr(error))
        self.ended = True
        self._fail_all(closed)
        self.gone.set()

    # -- prompts -----------------------------------------------------------------------------------------------------

    def _continue(self, job: Job) -> None:
        """Run one call of a job on its own, and put it at the end of the queue if there is more."""
        if job.task.abandoned:
            job.fail(JobAbandonedError())
            return
        if job.calls is None:
            job.calls = self._planner.calls(job.state.position, job.tokens)
        call = next(job.calls)
        done = job.ends(call)
        try:
            self._call(job, call)
            if done:
                for commit in job.calls:  # what is due after the last token belongs to it
                    self._call(job, commit)
        except Exception as error:
            job.fail(error)
            return
        if done:
            with contextlib.suppress(JobFailedError):  # its state was a value of its own; the session's is untouched
                job.succeed()
        else:
            self._prompts.append(job)

    def _call(self, job: Job, call: Call) -> None:
        data = job.inputs[None, call.offset : call.offset + call.length] if call.length else None
        rows: WantedOutputs = "every" if job.every else "last" if job.ends(call) else "none"
        with self._backend.executor(1) as executor:
            told, job.state = executor.run(
                call.graph, cast(State, job.state), CallInputs(data, call.length, rows, job.top_k)
            )
            job.collect(
                call,
                None if told.head is None else told.head[0],
                None if told.surprise is None else told.surprise[0],
                told.top_k,
            )

    # -- decoders ----------------------------------------------------------------------------------------------------

    def _step_round(self) -> None:
        """Step every decoder that has or gets a lane."""
        if len(self._steps) == 1 and self._round - self._busy_round > _CALM:
            job = self._steps[0]
            job.state = self.home(job.state)
            self._prompts.appendleft(self._steps.pop())  # alone: a call of its own is cheaper than lanes
            return
        if len(self._steps) > max(1, self.seats.width // 2):
            self._busy_round = self._round
        if len(self._steps) > self.seats.width or self._round - self._busy_round > _CALM:
            self.seats.resize(len(self._steps))
            self._busy_round = self._round
        chosen = self._choose()
        self._running = [job for job, _ in chosen]
        self._steps = [job for job in self._steps if job not in self._running]
        lanes = [lane for _, seat in chosen if (lane := seat.lane) is not None]
        try:
            inputs = np.stack([job.inputs[0] for job, _ in chosen])
            told = self.seats.lanes.step(lanes, inputs, _most_wanted(self._running))
        except Exception as error:
            for job, _ in chosen:
                job.fail(error)
            return
        stepped = [(job, lane) for (job, _), lane in zip(chosen, lanes, strict=True) if lane not in told.failed]
        try:
            together = self._commit(stepped)
            for (job, seat), lane in zip(chosen, lanes, strict=True):
                if lane in told.failed:
                    job.fail(told.failed[lane])
                    continue
                self._finish_step(job, seat, lane, told, lane in together)
        except BaseException:  # a defect: nobody's lane may be a step ahead of his session
            for job, lane in stepped:
                if not job.task.done:
                    self.seats.lanes.undo(lane)
            raise

    def _commit(self, stepped: list[tuple[Job, int]]) -> set[int]:
        """Run what is due after a step at once where it is for many lanes; the lanes for which that was done."""
        due: dict[tuple[str, ...], tuple[list[GraphSpec], list[int]]] = {}
        for job, lane in stepped:
            graphs = self._planner.due(job.state.position + 1)
            if graphs:
                due.setdefault(tuple(graph.name for graph in graphs), (graphs, []))[1].append(lane)
        done: set[int] = set()
        for graphs, lanes in due.values():
            if 2 * len(lanes) > self.seats.width:  # one by one, few are cheaper: all lanes do the work
                with contextlib.suppress(ExecutionError):  # which it is shows one by one
                    if self.seats.lanes.commit(graphs, lanes):
                        done |= set(lanes)
        return done

    def _choose(self) -> list[tuple[Job, Seat]]:
        """Jobs and their seats for this round: seated ones with turns left, then the others in order of arrival."""
        waiting = sorted(self._steps, key=self._precedence)[: self.seats.width]
        chosen: list[tuple[Job, Seat]] = []
        staying = {id(job.state.seat) for job in waiting if isinstance(job.state, Seated)}
        idle = [seat for seat in self.seats.idle(self._round) if id(seat) not in staying]
        for job in waiting:
            seat = job.state.seat if isinstance(job.state, Seated) else None
            if seat is None or seat.lane is None:
                state = cast(State, job.state) if seat is None else self.seats.home(seat)
                seat = self.seats.take(state)
                if seat is None:
                    self.seats.leave(idle.pop(0))
                    seat = self.seats.take(state)
            if seat is None:
                raise RuntimeError("no lane is free although one was given up")
            seat.turns += 1
            seat.used = self._round
            chosen.append((job, seat))
        return chosen

    def _precedence(self, job: Job) -> int:
        seated = isinstance(job.state, Seated) and job.state.seat.lane is not None
        if seated and isinstance(job.state, Seated) and job.state.seat.turns % _TURN:
            return 0
        return 1

    def _finish_step(self, job: Job, seat: Seat, lane: int, told: Stepped, done: bool) -> None:
        """Run what is due after a step and was not run, and make the result the session's; undo all if that fails."""
        before, lanes = job.state.position, self.seats.lanes
        alone = False
        try:
            outputs = told.outputs[lane, None] if told.top_k is None else None
            surprise = None if told.surprise is None else told.surprise[lane, None]
            top_k = None if told.top_k is None else told.top_k.of(lane)
            job.collect_step(outputs, surprise, top_k)
            for graph in () if done else self._planner.due(before + 1):
                if not alone:
                    job.state, alone = lanes.copy(lane, before_commit=True), True
                self._call(job, Call(graph, before + 1, 1, 0))
            if not alone:
                job.state = Seated(seat, before + 1)
            job.succeed()
        except Exception as error:
            lanes.undo(lane)
            if not isinstance(error, JobFailedError):
                job.fail(error)
            return
        if alone:  # it sits down again before its next step
            self.seats.drop(seat)


def _most_wanted(jobs: list[Job]) -> int | None:
    """How many of the largest outputs do for all of these; None if somebody wants all of them."""
    counts = [job.top_k for job in jobs if job.top_k is not None]
    return max(counts) if len(counts) == len(jobs) else None
