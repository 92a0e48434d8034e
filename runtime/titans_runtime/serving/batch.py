"""Many sessions of one model on one machine, as a user holds them.

Knows how several sessions are fed at once. Does not know in which order their calls are made (`worker`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from types import TracebackType
from typing import cast

from titans_runtime.arguments import checked_bytes, checked_path, instance, sequence, whole
from titans_runtime.arrays import FloatArray
from titans_runtime.errors import InputError
from titans_runtime.serving.completion import Countdown, FeedFuture, Outcome
from titans_runtime.serving.queued_run import QueuedRun
from titans_runtime.serving.worker import Worker
from titans_runtime.stream import state_file
from titans_runtime.stream.inputs import Inputs
from titans_runtime.stream.lineage import Lineage
from titans_runtime.stream.session import Session, snapshot_of
from titans_runtime.stream.stream import Shared

_POSITIVE = "use a whole number of 1 or above"


class Batch:
    """Sessions whose feeds run together. Made by `Model.batch`; a context manager, safe to share between threads.

    Its sessions are used like any other: each from one thread at a time, any number of them from any number of
    threads. Calls that arrive together are stepped together; prompts run chunk by chunk between the steps.
    """

    def __init__(
        self, shared: Shared, lanes: int = 16, resident: int | None = None, folder: str | os.PathLike[str] | None = None
    ) -> None:
        self._worker = Worker(
            shared.feeder.planner,
            shared.feeder.backend,
            whole("lanes", lanes, 1, _POSITIVE),
            None if resident is None else whole("resident", resident, 1, _POSITIVE),
            None if folder is None else checked_path(folder),
        )
        self._shared = replace(shared, feeder=self._worker)

    def session(self, name: str | None = None) -> BatchSession:
        """A stream of its own, at its beginning."""
        return BatchSession(self._shared, name)

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
        self._worker.refuse_to_wait()
        runs: list[QueuedRun] = []
        refused: Exception | None = None
        countdown = Countdown(0)
        outcomes = [Outcome(countdown) for _ in sessions]
        try:
            try:
                for session, each, outcome in zip(sessions, inputs, outcomes, strict=True):
                    array, every = session._checked(each)
                    runs.append(self._worker.prepare(session._stream, array, every, outcome, sys._getframe()))
            except Exception as wrong:  # nobody is left behind half fed
                refused = wrong
            if runs:
                countdown.open = len(runs)
                self._worker.submit(runs)
                countdown.wait()
        except BaseException:  # closed, or interrupted at any point
            _abandon(runs)
            raise
        if refused is not None:
            raise refused
        return [outcome.wait() for outcome in outcomes]

    @property
    def resident(self) -> int:
        """Sessions whose state is in memory now."""
        return self._worker.resident

    @property
    def spills(self) -> int:
        """How often a session's state went to disk."""
        return self._worker.offloads

    def close(self) -> None:
        """Finish what was begun and stop. Sessions keep their state: they can be saved and read, but not fed."""
        self._worker.close()

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
            if session._shared is not self._shared:
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
        snapshot = snapshot_of(self._shared.feeder, data, source)
        return BatchSession(self._shared, name, snapshot, Lineage(data, path))


class BatchSession(Session):
    """One stream of a batch. Made by `Batch.session()` and `Batch.restore()`, or of another by `fork()`."""

    def submit(self, inputs: Inputs, all_logits: bool = False) -> Future[FloatArray]:
        """`feed` without waiting: the session is in use until the future is done.

        Args and errors as in `feed`; what goes wrong later is the future's exception. A future that was not begun can
        be cancelled, and nothing has happened then.
        """
        worker = cast(Worker, self._shared.feeder)
        future = FeedFuture()
        queued: QueuedRun | None = None
        try:
            array, every = self._checked(inputs, all_logits)
            queued = worker.prepare(self._stream, array, every, future, sys._getframe())
            worker.submit([queued])
        except BaseException:  # as in `Batch.feed`
            if queued is not None:
                queued.abandon()
            raise
        queued.task.hand_over(future)
        return future


def _abandon(runs: list[QueuedRun]) -> None:
    for queued in runs:
        queued.task.withdraw()  # all of them, before `abandon` waits for the first
    for queued in runs:
        queued.abandon()
