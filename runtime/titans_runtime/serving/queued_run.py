"""A run that waits its turn in a batch: whose it is, who wants it, and how its result gets back.

Knows one stream's run. Does not know which one is next (`scheduler`), or how its calls are made (`stream.run`).
"""

from __future__ import annotations

import logging
import time
from types import FrameType

from titans_format.errors import TitansError
from titans_runtime.arrays import FloatArray
from titans_runtime.errors import NonFiniteError
from titans_runtime.logs import record
from titans_runtime.serving.completion import FeedFuture, Outcome, Request
from titans_runtime.stream.guard import Use
from titans_runtime.stream.run import Run
from titans_runtime.stream.stream import Stream

_SHORT = 0.001  # seconds between two looks at a run that ends with the call under way


class Task(Use):
    """A queued run's use of its stream: over once the batch is done with it, or has not begun it and nobody wants it.

    Args:
        call: the frame of the call that wants it, for as long as it is not handed over.
    """

    __slots__ = ("_future", "_request", "abandoned", "done")

    def __init__(self, call: FrameType) -> None:
        super().__init__(call)
        self._request = Request()
        self._future: FeedFuture | None = None
        self.abandoned = False  # nobody waits for it any more; set by any thread at any time
        self.done = False

    def begin(self) -> bool:
        """Begin, on the batch's thread; False if nobody wants it."""
        return self._request.begin()

    @property
    def begun(self) -> bool:
        """Whether the batch's thread is at it, or done."""
        return self._request.begun

    def withdraw(self) -> None:
        """Have it end as if it had not been asked for: now, or if it was begun with its next call."""
        self.abandoned = True
        self.short = True
        if self._request.withdraw():
            self.leave()

    def hand_over(self, future: FeedFuture) -> None:
        """From now on it does not matter whether the call that wanted it still runs."""
        self._future = future
        self._call = None

    def leave(self) -> None:
        """End the use."""
        self.done = True
        super().leave()

    def over(self) -> bool:
        """See `Use`. A run whose caller was stopped is withdrawn by the next user."""
        if self.done:
            return True
        if self._future is not None:
            return self._future.cancelled()
        if self.stopped():
            self.withdraw()
        return self.done


class QueuedRun:
    """One stream's run, between its caller and the batch's thread.

    Args:
        stream: whose; it is in use by `task`, and stays where it is until the run succeeds.
        run: what is to be done.
        outcome: how the caller hears what came of it.
        task: the use of the stream.
    """

    def __init__(self, stream: Stream, run: Run, outcome: Outcome | FeedFuture, task: Task) -> None:
        self.stream, self.run, self.outcome, self.task = stream, run, outcome, task

    def begin(self) -> bool:
        """Begin; False if nobody wants it any more."""
        if self.task.begin():
            if self.outcome.begin():
                return True
            self.task.leave()
        return False

    def abandon(self) -> None:
        """Have it end early, as if it had not been asked for, and wait until it has."""
        self.task.withdraw()
        while not self.task.done:
            time.sleep(_SHORT)

    def succeed(self) -> bool:
        """Make the result the stream's and tell the caller. False if that raises; the caller is told what it raised."""
        try:
            if self.task.abandoned:
                raise given_up()
            outputs = self.stream.accept(self.run)
        except BaseException as error:  # an observer's error is the caller's
            self.fail(error)
            return False
        self._settle(outputs, None)
        return True

    def fail(self, error: BaseException) -> None:
        """Tell the caller; the stream stands where it stood."""
        if isinstance(error, NonFiniteError):
            self.stream.poison(error)
        self._settle(None, error)

    def _settle(self, outputs: FloatArray | None, error: BaseException | None) -> None:
        self.task.leave()
        try:
            self.outcome.settle(outputs, error)
        except BaseException as raised:  # by a callback: nothing of it reaches the batch
            record(logging.ERROR, "batch.callback_failed", session=self.stream.name, error=repr(raised))


def given_up() -> TitansError:
    """What ends a run that nobody waits for any more: its stream is to stand where it stood."""
    return TitansError("nobody waits for this feed any more", "feed the session again")
