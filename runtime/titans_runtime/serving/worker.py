"""A batch's thread, as its streams see it: runs and questions go in, and it ends when nobody can ask any more.

Knows the border between callers and the thread. Does not know turns (`scheduler`).

Only the thread touches lanes, and only it decides which states are in memory; everybody else asks it. So a caller who
is interrupted leaves nothing half done, and no lock locked. The thread does not know this object: when the last session
of a batch is gone the thread ends, and it ends before the interpreter does.
"""

from __future__ import annotations

import atexit
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from types import FrameType
from typing import TypeVar, cast

from titans_format.errors import TitansError
from titans_runtime import forks
from titans_runtime.arrays import Array, FloatArray
from titans_runtime.errors import InputError, SessionBusyError, out_of_memory
from titans_runtime.serving.completion import Countdown, FeedFuture, Outcome, Question
from titans_runtime.serving.lane_table import InLane
from titans_runtime.serving.offload import OnDisk
from titans_runtime.serving.queued_run import QueuedRun, Task
from titans_runtime.serving.scheduler import Letter, Scheduler
from titans_runtime.state.backend import Backend
from titans_runtime.state.calls import StreamState
from titans_runtime.state.layout import State
from titans_runtime.stream.plan import Planner
from titans_runtime.stream.stream import Stream

_LAST_WAIT = 10.0  # seconds that the interpreter's end waits for a call under way, which takes a fraction of one
_CLOSED = ("this batch is closed", "restore its sessions with model.restore, or in another batch")
A = TypeVar("A")


class Worker:
    """Makes the calls of many streams on a thread of its own until it is closed. See `stream.stream.Feeder`.

    Arguments as of `Scheduler`.
    """

    def __init__(
        self, planner: Planner, backend: Backend, lanes: int, resident: int | None, folder: Path | None
    ) -> None:
        self.planner, self.backend = planner, backend
        self._made_in = forks.generation
        self._mail: SimpleQueue[Letter] = SimpleQueue()
        self._limited = resident is not None
        self._scheduler = Scheduler(planner, backend, lanes, resident, folder, self._mail)
        self._thread = threading.Thread(target=self._scheduler.serve, name="titans-batch", daemon=True)
        # Ends the thread however early this object goes: also if its making is interrupted on the next line.
        weakref.finalize(self, self._mail.put, None).atexit = False
        self._thread.start()
        _running.add(self)

    def feed(self, stream: Stream, array: Array, all_outputs: bool, top_k: int | None = None) -> FloatArray:
        """Queue a run and wait for it."""
        self.refuse_to_wait()
        outcome = Outcome(Countdown(1))
        queued: QueuedRun | None = None
        try:
            queued = self.prepare(stream, array, all_outputs, outcome, sys._getframe(), top_k)
            self.submit([queued])
            return outcome.wait()
        except MemoryError as error:
            if queued is not None:
                queued.abandon()
            raise out_of_memory() from error
        except BaseException:  # interrupted at any point: before the run is begun, or until its next call has ended
            if queued is not None:
                queued.abandon()
            raise

    def prepare(
        self,
        stream: Stream,
        array: Array,
        all_outputs: bool,
        outcome: Outcome | FeedFuture,
        call: FrameType,
        top_k: int | None = None,
    ) -> QueuedRun:
        """A run that is not queued yet; the stream is in use from now on, for as long as `call` runs.

        Raises:
            SessionPoisonedError, SessionBusyError, ForkError: the stream cannot be fed now.
            InputError: the stream is in a lane of another batch.
        """
        task = Task(call)
        stream.guard.enter(task)
        try:
            run = stream.begin(array, all_outputs, top_k)
            self._check_owner(run.state)
            return QueuedRun(stream, run, outcome, task)
        except BaseException:
            task.leave()
            raise

    def submit(self, runs: Sequence[QueuedRun]) -> None:
        """Queue runs, all of them at once. Raises `TitansError` if the batch is closed; then none is queued."""
        self.check()
        if self._scheduler.ended:
            raise TitansError(*_CLOSED)
        self._mail.put(runs)
        if self._scheduler.ended:  # perhaps too late: those that the thread did not see are taken back
            for queued in runs:
                queued.task.withdraw()
            if any(not queued.task.begun for queued in runs):
                raise TitansError(*_CLOSED)

    def refuse_to_wait(self) -> None:
        """Raise `SessionBusyError` on the batch's own thread, which would wait for itself for ever."""
        if self._is_here:
            raise SessionBusyError(
                "an observer, or a callback of a future, cannot wait for a feed of its own batch",
                "use submit(), or hand the work to another thread",
            )

    def home(self, state: StreamState) -> State:
        """A state in blocks: had back from disk, or from the lane, which the stream then leaves."""
        if isinstance(state, OnDisk):
            return self._scheduler.offloader.load(state)
        if isinstance(state, InLane):
            self._check_owner(state)
            return self._ask(lambda: self._scheduler.home(state))
        return cast(State, state)

    def _check_owner(self, state: StreamState) -> None:
        """Raise `InputError` for the state of a stream that is in a lane of another batch."""
        if isinstance(state, InLane) and state.slot.owner is not self._scheduler.table:
            raise InputError(
                "this stream is in a lane of another batch",
                "use its session there, or bring it here with batch.restore_bytes(session.to_bytes())",
            )

    def placed(self, stream: Stream) -> None:
        """Count a stream that has a state of its own among those in memory."""
        found, offloader = weakref.ref(stream), self._scheduler.offloader

        def count() -> None:
            if (known := found()) is not None:
                offloader.touch(known)
            del known
            offloader.shrink()

        if self._limited:
            self._ask(count)
        else:
            self.check()
            self._mail.put(Question(count))  # nothing depends on when

    @property
    def resident(self) -> int:
        """Sessions whose state is in memory."""
        return self._ask(lambda: self._scheduler.offloader.resident)

    @property
    def offloads(self) -> int:
        """How often a state went to disk."""
        return self._scheduler.offloader.offloads

    def close(self) -> None:
        """Finish what was begun, fail what waits, and give every stream its state. In a forked child: nothing."""
        if self._made_in == forks.generation:
            self.refuse_to_wait()
            self._mail.put(None)
            self._scheduler.gone.wait()
            self._thread.join()

    def check(self) -> None:
        """Raise `ForkError` in a process that was forked after the batch was made."""
        if self._made_in != forks.generation:
            forks.check(self._made_in, "this batch")

    @property
    def _is_here(self) -> bool:
        return threading.current_thread() is self._thread

    def _ask(self, ask: Callable[[], A]) -> A:
        """What `ask` returns on the batch's thread; once that has ended, on this one."""
        self.check()
        if self._is_here or self._scheduler.ended:
            return ask()
        question = Question(ask)
        self._mail.put(question)
        if self._scheduler.ended and question.withdraw():
            return ask()
        return question.wait()

    def _end(self) -> None:
        """Stop after the call under way."""
        if self._made_in == forks.generation:
            self._scheduler.at_once = True
            self._mail.put(None)
            self._scheduler.gone.wait(_LAST_WAIT)


_running: weakref.WeakSet[Worker] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    for worker in list(_running):
        worker._end()
