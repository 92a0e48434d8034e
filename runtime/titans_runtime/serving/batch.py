"""Many sessions of one model on one machine, as a user holds them.

Knows how a session's calls become jobs. Does not know in which order they run (`engine`).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from types import FrameType, TracebackType

from titans_format.fields import TokenInputs
from titans_format.manifest import Manifest
from titans_runtime.arguments import checked_bytes, checked_path, flag, instance, sequence, whole
from titans_runtime.arrays import Array, FloatArray
from titans_runtime.errors import InputError, NonFiniteError, out_of_memory
from titans_runtime.serving.completion import Promise, Tally, Ticket
from titans_runtime.serving.run import Job, Task
from titans_runtime.serving.worker import Engine
from titans_runtime.state.backend import Backend
from titans_runtime.state.calls import StreamState
from titans_runtime.state.layout import State
from titans_runtime.stream import state_file
from titans_runtime.stream.driver import Feeder, FeedResult
from titans_runtime.stream.inputs import Inputs, checked_inputs
from titans_runtime.stream.lineage import Lineage
from titans_runtime.stream.plan import FASTEST, Policy
from titans_runtime.stream.session import Session, Shared, moment_of
from titans_runtime.stream.snapshot import Moment

_POSITIVE = "use a whole number of 1 or above"


class Batch:
    """Sessions whose feeds run together. Made by `Model.batch`; a context manager, safe to share between threads.

    Its sessions are used like any other: each from one thread at a time, any number of them from any number of
    threads. Calls that arrive together are stepped together; prompts run chunk by chunk between the steps.
    """

    def __init__(
        self, shared: Shared, lanes: int = 16, resident: int | None = None, folder: str | os.PathLike[str] | None = None
    ) -> None:
        engine = Engine(
            shared.manifest,
            shared.feeder.backend,
            whole("lanes", lanes, 1, _POSITIVE),
            None if resident is None else whole("resident", resident, 1, _POSITIVE),
            None if folder is None else checked_path(folder),
        )
        self._engine = engine
        self._shared = Shared(_EngineFeeder(shared.feeder, engine), shared.tokenizer, shared.observers, shared.silent)

    def session(self, name: str | None = None) -> BatchSession:
        """A stream of its own, at its beginning."""
        return BatchSession(self._shared, self._engine, name)

    def restore(self, path: str | os.PathLike[str], name: str | None = None) -> BatchSession:
        """A session as `Session.save` wrote it. Raises `StateError`."""
        file = checked_path(path)
        return self._restored(state_file.read_file(file, self._shared.manifest), str(file), name, file)

    def restore_bytes(self, data: bytes, name: str | None = None) -> BatchSession:
        """A session from what `Session.to_bytes` gave. Raises `StateError`."""
        return self._restored(checked_bytes("the state", data), "the state", name)

    def feed(self, sessions: Sequence[BatchSession], inputs: Sequence[Inputs]) -> list[FloatArray]:
        """Feed several sessions together, and wait for all of them.

        Args:
            sessions: of this batch, each at most once.
            inputs: for each of them what `Session.feed` takes.

        Returns:
            For each what `Session.feed` returns.

        Raises:
            What `Session.feed` raises, for the first session that failed; the others have moved on all the same. After
            Ctrl-C those that were not done are as they were.
        """
        sessions = sequence("sessions", sessions, "pass a list of sessions of this batch")
        inputs = sequence("inputs", inputs, "pass a list with the inputs of each session")
        if len(sessions) != len(inputs):
            raise InputError(f"there are {len(sessions)} sessions and {len(inputs)} inputs", "pass as many of both")
        self._check_members(sessions)
        self._engine.refuse_to_wait()
        jobs: list[Job] = []
        refused: Exception | None = None
        tally = Tally(0)
        tickets = [Ticket(tally) for _ in sessions]
        try:
            try:
                for session, each, ticket in zip(sessions, inputs, tickets, strict=True):
                    jobs.append(session._prepare(each, ticket, sys._getframe()))
            except Exception as wrong:  # nobody is left behind half fed
                refused = wrong
            if jobs:
                tally.open = len(jobs)
                self._engine.submit(jobs)
                tally.wait()
        except BaseException:  # closed, or interrupted at any point
            _abandon(jobs)
            raise
        if refused is not None:
            raise refused
        return [ticket.wait() for ticket in tickets]

    @property
    def resident(self) -> int:
        """Sessions whose state is in memory now."""
        return self._engine.resident

    @property
    def spills(self) -> int:
        """How often a session's state went to disk."""
        return self._engine.spills

    def close(self) -> None:
        """Finish what was begun and stop. Sessions keep their state: they can be saved and read, but not fed."""
        self._engine.close()

    def __enter__(self) -> Batch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_members(self, sessions: Sequence[BatchSession]) -> None:
        """Raise `InputError` for what is not a session of this batch, or is named twice."""
        seen: set[int] = set()
        for session in sessions:
            instance("a session", session, BatchSession, "make one with batch.session()")
            if session._engine is not self._engine:
                raise InputError(
                    f"session {session.name!r} is of another batch",
                    "feed it with the batch that made it, or bring it"
                    " here with batch.restore_bytes(session.to_bytes())",
                )
            if id(session) in seen:
                raise InputError(f"session {session.name!r} is named twice", "feed its tokens one after the other")
            seen.add(id(session))

    def _restored(
        self, data: bytes, source: str, name: str | None, path: str | os.PathLike[str] | None = None
    ) -> BatchSession:
        moment = moment_of(self._shared.feeder, data, source)
        return BatchSession(self._shared, self._engine, name, moment, Lineage(data, path))


class BatchSession(Session):
    """One stream of a batch. Made by `Batch.session()` and `Batch.restore()`, or of another by `fork()`."""

    def __init__(
        self,
        shared: Shared,
        engine: Engine,
        name: str | None = None,
        moment: Moment | None = None,
        lineage: Lineage | None = None,
    ) -> None:
        super().__init__(shared, name, moment, lineage)
        self._engine = engine
        if moment is not None:
            engine.enroll(self)

    def submit(self, inputs: Inputs, all_logits: bool = False) -> Future[FloatArray]:
        """`feed` without waiting: the session is in use until the future is done.

        Args and errors as in `feed`; what goes wrong later is the future's exception. A future that was not begun can
        be cancelled, and nothing has happened then.
        """
        promise = Promise()
        job: Job | None = None
        try:
            job = self._prepare(inputs, promise, sys._getframe(), all_logits)
            self._engine.submit([job])
        except BaseException:  # as in `Batch.feed`
            if job is not None:
                job.abandon()
            raise
        job.task.hand_over(promise)
        return promise

    def _prepare(self, inputs: Inputs, outcome: Ticket | Promise, call: FrameType, all_logits: bool = False) -> Job:
        """A job that is not queued yet; the session is in use from now on, for as long as `call` runs."""
        array = checked_inputs(self._manifest.inputs, inputs)
        every = flag("all_logits", all_logits) or not isinstance(self._manifest.inputs, TokenInputs)
        return self._job(array, every, _as_they_are if every else _of_one, outcome, call)

    def _consume(self, array: Array, every: bool, top_k: int | None = None) -> FloatArray:
        self._engine.refuse_to_wait()
        ticket = Ticket(Tally(1))
        job: Job | None = None
        try:
            job = self._job(array, every, _as_they_are, ticket, sys._getframe(), top_k)
            self._engine.submit([job])
            return ticket.wait()
        except MemoryError as error:
            if job is not None:
                job.abandon()
            raise out_of_memory() from error
        except BaseException:  # interrupted at any point: before the job is begun, or until its next call has ended
            if job is not None:
                job.abandon()
            raise

    def _stands(self) -> None:
        self._engine.enroll(self)

    def _job(
        self,
        array: Array,
        every: bool,
        shape: Callable[[FloatArray], FloatArray],
        outcome: Ticket | Promise,
        call: FrameType,
        top_k: int | None = None,
    ) -> Job:
        task = Task(call)
        self._guard.enter(task)
        try:
            self._check()
            self._engine.check_owner(self._now.state)
            start = time.perf_counter()

            def finish(fed: FeedResult, state: StreamState) -> FloatArray:
                return shape(self._accept(array, fed, state, time.perf_counter() - start))

            return Job(self, self._now.state, array, every, finish, self._failed, outcome, task, top_k)
        except BaseException:
            task.leave()
            raise

    def _failed(self, error: BaseException) -> None:
        if isinstance(error, NonFiniteError):
            self._fall_ill(error)

    def _sibling(self, name: str | None, moment: Moment) -> BatchSession:
        return BatchSession(self._shared, self._engine, name, moment)


class _EngineFeeder:
    """The model's feeder, for sessions whose state may sit in a lane or on disk."""

    def __init__(self, feeder: Feeder, engine: Engine) -> None:
        self._feeder = feeder
        self._engine = engine

    @property
    def manifest(self) -> Manifest:
        """The model."""
        return self._feeder.manifest

    @property
    def backend(self) -> Backend:
        """Where states live."""
        return self._feeder.backend

    def feed(
        self,
        state: StreamState,
        inputs: Array,
        all_outputs: bool = False,
        policy: Policy = FASTEST,
        top_k: int | None = None,
    ) -> tuple[FeedResult, State]:
        """Feed on the caller's thread, outside of the engine."""
        return self._feeder.feed(self.home(state), inputs, all_outputs, policy, top_k)

    def home(self, state: StreamState) -> State:
        """The state as the backend's own value."""
        return self._engine.home(state)


def _as_they_are(outputs: FloatArray) -> FloatArray:
    return outputs


def _of_one(outputs: FloatArray) -> FloatArray:
    return outputs.reshape(-1)


def _abandon(jobs: list[Job]) -> None:
    for job in jobs:
        job.task.withdraw()  # all of them, before `abandon` waits for the first
    for job in jobs:
        job.abandon()
