"""A batch's thread, as its sessions see it: jobs and questions go in, and it ends when nobody can ask any more.

Knows the border between callers and the thread. Does not know turns (`rounds`).

Only the thread touches lanes, and only it decides which states are in memory; everybody else asks it. So a caller who
is interrupted leaves nothing half done, and no lock locked. The thread does not know this object: when the last session
of a batch is gone the thread ends, and it ends before the interpreter does.
"""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeVar, cast

from titans_format.errors import TitansError
from titans_format.manifest import Manifest
from titans_runtime import forks
from titans_runtime.errors import InputError, SessionBusyError
from titans_runtime.serving.completion import Question
from titans_runtime.serving.lane_table import Seated
from titans_runtime.serving.offload import Spilled
from titans_runtime.serving.run import Job
from titans_runtime.serving.scheduler import Letter, Rounds
from titans_runtime.state.backend import Backend
from titans_runtime.state.calls import StreamState
from titans_runtime.state.layout import State

if TYPE_CHECKING:
    from titans_runtime.stream.session import Session

_LAST_WAIT = 10.0  # seconds that the interpreter's end waits for a call under way, which takes a fraction of one
_CLOSED = ("this batch is closed", "restore its sessions with model.restore, or in another batch")
A = TypeVar("A")


class Engine:
    """Runs jobs on a thread of its own until it is closed. Arguments as of `Rounds`."""

    def __init__(
        self, manifest: Manifest, backend: Backend, lanes: int, resident: int | None, folder: Path | None
    ) -> None:
        self._made_in = forks.generation
        self._mail: SimpleQueue[Letter] = SimpleQueue()
        self._limited = resident is not None
        self._rounds = Rounds(manifest, backend, lanes, resident, folder, self._mail)
        self._thread = threading.Thread(target=self._rounds.serve, name="titans-batch", daemon=True)
        # Ends the thread however early this object goes: also if its making is interrupted on the next line.
        weakref.finalize(self, self._mail.put, None).atexit = False
        self._thread.start()
        _running.add(self)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs, all of them at once. Raises `TitansError` if the batch is closed; then none is queued."""
        self.check()
        if self._rounds.ended:
            raise TitansError(*_CLOSED)
        self._mail.put(jobs)
        if self._rounds.ended:  # perhaps too late: those that the thread did not see are taken back
            for job in jobs:
                job.task.withdraw()
            if any(not job.task.begun for job in jobs):
                raise TitansError(*_CLOSED)

    def refuse_to_wait(self) -> None:
        """Raise `SessionBusyError` on the batch's own thread, which would wait for itself for ever."""
        if self._is_here:
            raise SessionBusyError(
                "an observer, or a callback of a future, cannot wait for a feed of its own batch",
                "use submit(), or hand the work to another thread",
            )

    def home(self, state: StreamState) -> State:
        """A state as the backend's own value: had back from disk, or from the lane, which the stream then leaves."""
        if isinstance(state, Spilled):
            return self._rounds.residency.load(state)
        if isinstance(state, Seated):
            self.check_owner(state)
            return self._ask(lambda: self._rounds.home(state))
        return cast(State, state)

    def check_owner(self, state: StreamState) -> None:
        """Raise `InputError` for the state of a stream that sits in another batch."""
        if isinstance(state, Seated) and state.seat.owner is not self._rounds.seats:
            raise InputError(
                "this stream sits in another batch",
                "use its session there, or bring it here with batch.restore_bytes(session.to_bytes())",
            )

    def enroll(self, session: Session) -> None:
        """Count a session that has a state of its own among those in memory."""
        found, residency = weakref.ref(session), self._rounds.residency

        def count() -> None:
            if (known := found()) is not None:
                residency.touch(known)
            del known
            residency.shrink()

        if self._limited:
            self._ask(count)
        else:
            self.check()
            self._mail.put(Question(count))  # nothing depends on when

    @property
    def resident(self) -> int:
        """Sessions whose state is in memory."""
        return self._ask(lambda: self._rounds.residency.resident)

    @property
    def spills(self) -> int:
        """How often a state went to disk."""
        return self._rounds.residency.spills

    def close(self) -> None:
        """Finish what was begun, fail what waits, and give every stream its state. In a forked child: nothing."""
        if self._made_in == forks.generation:
            self.refuse_to_wait()
            self._mail.put(None)
            self._rounds.gone.wait()
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
        if self._is_here or self._rounds.ended:
            return ask()
        question = Question(ask)
        self._mail.put(question)
        if self._rounds.ended and question.withdraw():
            return ask()
        return question.wait()

    def _end(self) -> None:
        """Stop after the call under way."""
        if self._made_in == forks.generation:
            self._rounds.at_once = True
            self._mail.put(None)
            self._rounds.gone.wait(_LAST_WAIT)


_running: weakref.WeakSet[Engine] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    for engine in list(_running):
        engine._end()
