"""A feed that waits its turn: what it needs, how far it is, and how its result gets back.

Knows one feed. Does not know which one runs next (`rounds`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

import numpy as np

from titans_runtime.arrays import Array, FloatArray
from titans_runtime.serving.completion import Errand, Promise, Ticket
from titans_runtime.state.calls import StreamState, TopK
from titans_runtime.stream.driver import FeedResult
from titans_runtime.stream.guard import Use
from titans_runtime.stream.observe import record
from titans_runtime.stream.plan import Call

if TYPE_CHECKING:
    from titans_runtime.stream.session import Session

Finish = Callable[[FeedResult, StreamState], FloatArray]
_SHORT = 0.001  # seconds between two looks at a job that ends with the call under way


class Task(Use):
    """A job's use of its session: over once the batch is done with the job, or has not begun it and nobody wants it.

    Args:
        call: the frame of the call that wants it, for as long as it is not handed over.
    """

    __slots__ = ("_errand", "_promise", "abandoned", "done")

    def __init__(self, call: FrameType) -> None:
        super().__init__(call)
        self._errand = Errand()
        self._promise: Promise | None = None
        self.abandoned = False  # nobody waits for it any more; set by any thread at any time
        self.done = False

    def begin(self) -> bool:
        """Begin, on the batch's thread; False if nobody wants it."""
        return self._errand.begin()

    @property
    def begun(self) -> bool:
        """Whether the batch's thread is at it, or done."""
        return self._errand.begun

    def withdraw(self) -> None:
        """Have it end as if it had not been asked for: now, or if it was begun with its next call."""
        self.abandoned = True
        self.short = True
        if self._errand.withdraw():
            self.leave()

    def hand_over(self, promise: Promise) -> None:
        """From now on it does not matter whether the call that wanted it still runs."""
        self._promise = promise
        self._call = None

    def leave(self) -> None:
        """It is over."""
        self.done = True
        super().leave()

    def over(self) -> bool:
        """See `Use`. A job whose caller was stopped is withdrawn by whoever asks."""
        if self.done:
            return True
        if self._promise is not None:
            return self._promise.cancelled()
        if self.stopped():
            self.withdraw()
        return self.done


class Job:
    """One session's feed of T tokens.

    Args:
        session: whose.
        state: where the session stands; the job's progress replaces it, the session's own is untouched until `finish`.
        inputs: `[T]` ids or `[T, F]` vectors.
        every: every token's outputs are wanted, not only the last one's.
        finish: makes the result the session's, and returns what the caller asked for; if it raises, nothing has
            happened.
        failed: told what went wrong, before the session may be used again.
        outcome: how the caller hears of either.
        task: the use of the session.
        top_k: of the last token's outputs only so many of the largest need to be seen; None: all.
    """

    def __init__(
        self,
        session: Session,
        state: StreamState,
        inputs: Array,
        every: bool,
        finish: Finish,
        failed: Callable[[BaseException], None],
        outcome: Ticket | Promise,
        task: Task,
        top_k: int | None = None,
    ) -> None:
        self.session, self.state, self.inputs, self.every, self.top_k = session, state, inputs, every, top_k
        self.outcome, self.task = outcome, task
        self._finish, self._failed = finish, failed
        self.calls: Iterator[Call] | None = None
        self._outputs: list[FloatArray] = []
        self._surprise: list[FloatArray] = []
        self._chosen: TopK | None = None

    @property
    def tokens(self) -> int:
        """How many there are to consume."""
        return len(self.inputs)

    def ends(self, call: Call) -> bool:
        """Whether a call consumes the last token."""
        return call.offset + call.length == self.tokens

    def begin(self) -> bool:
        """Begin; False if nobody wants it any more."""
        if self.task.begin():
            if self.outcome.begin():
                return True
            self.task.leave()
        return False

    def collect(
        self, call: Call, head: FloatArray | None, surprise: FloatArray | None, top_k: TopK | None = None
    ) -> None:
        """Keep what a call said, outputs `[n, O]` of its last n tokens and surprise `[length, M]`."""
        if call.length == 0:
            return
        self._chosen = top_k
        if head is not None and (self.every or self.ends(call)):
            self._outputs.append((head if self.every else head[-1:]).copy())
        self._surprise.append(np.zeros((call.length, 0), np.float32) if surprise is None else surprise.copy())

    def collect_step(self, head: FloatArray | None, surprise: FloatArray | None, top_k: TopK | None) -> None:
        """Keep what the step of the only token said, outputs `[1, O]` and surprise `[1, M]`."""
        self._chosen = top_k
        if head is not None:
            self._outputs.append(head.copy())
        self._surprise.append(np.zeros((1, 0), np.float32) if surprise is None else surprise.copy())

    def fed(self) -> FeedResult:
        """Everything that was kept."""
        outputs = _joined(self._outputs) if self._outputs else np.zeros((0, 0), np.float32)
        return FeedResult(outputs[None], _joined(self._surprise)[None], self._chosen)

    def abandon(self) -> None:
        """Have it end early, as if it had not been asked for, and wait until it has."""
        self.task.withdraw()
        while not self.task.done:
            time.sleep(_SHORT)

    def succeed(self) -> None:
        """Make the result the session's and tell the caller; if that raises, fail with what it raised."""
        try:
            if self.task.abandoned:
                raise JobAbandonedError
            outputs = self._finish(self.fed(), self.state)
        except BaseException as error:  # an observer's error is the caller's
            self.fail(error)
            raise JobFailedError from error
        self._tell(outputs, None)

    def fail(self, error: BaseException) -> None:
        """Tell the caller; the session stands where it stood."""
        self._failed(error)
        self._tell(None, error)

    def _tell(self, outputs: FloatArray | None, error: BaseException | None) -> None:
        self.task.leave()
        try:
            self.outcome.tell(outputs, error)
        except BaseException as raised:  # by a callback: nothing of it reaches the batch
            record(logging.ERROR, "batch.callback_failed", session=self.session.name, error=repr(raised))


def _joined(pieces: list[FloatArray]) -> FloatArray:
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


class JobAbandonedError(Exception):
    """Nobody waits for the job any more: its session is to stand where it stood."""


class JobFailedError(Exception):
    """A job's result was refused by its session; what the job did is to be undone. Never leaves the batch's thread."""
