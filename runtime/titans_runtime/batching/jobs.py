"""A feed that waits its turn: what it needs, how far it is, and how its result gets back.

Knows one feed. Does not know which one runs next (`engine`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from titans_runtime.arrays import Array, FloatArray
from titans_runtime.backends.base import Best, State
from titans_runtime.batching.tickets import Ticket
from titans_runtime.driver import Fed
from titans_runtime.plan import Call

if TYPE_CHECKING:
    from titans_runtime.session import Session

Finish = Callable[[Fed, State], FloatArray]


@dataclass(eq=False)
class Job:
    """One session's feed of T tokens.

    session: whose.
    state: where the session stands; the job's progress replaces it, the session's own is untouched until `finish`.
    inputs: `[T]` ids or `[T, F]` vectors.
    finish: makes the result the session's, and returns what the caller asked for; if it raises, nothing has happened.
    release: lets the session be used again; called once, after success or failure.
    future: how the caller hears of either.
    best: of the last token's outputs only so many of the largest need to be seen; None: all.
    """

    session: Session
    state: State
    inputs: Array
    every: bool
    finish: Finish
    release: Callable[[BaseException | None], None]
    future: Future[FloatArray] | Ticket
    best: int | None = None
    calls: Iterator[Call] | None = None
    outputs: list[FloatArray] = field(default_factory=list)
    surprise: list[FloatArray] = field(default_factory=list)
    chosen: Best | None = None
    abandoned: bool = False  # whoever waited for it was interrupted; set by another thread, at any time

    @property
    def tokens(self) -> int:
        """How many there are to consume."""
        return len(self.inputs)

    def ends(self, call: Call) -> bool:
        """Whether a call consumes the last token."""
        return call.offset + call.length == self.tokens

    def collect(
        self, call: Call, head: FloatArray | None, surprise: FloatArray | None, best: Best | None = None
    ) -> None:
        """Keep what a call said, outputs `[n, O]` of its last n tokens and surprise `[length, M]`."""
        if call.length == 0:
            return
        self.chosen = best
        if head is not None and (self.every or self.ends(call)):
            self.outputs.append((head if self.every else head[-1:]).copy())
        self.surprise.append(np.zeros((call.length, 0), np.float32) if surprise is None else surprise.copy())

    def collect_step(self, head: FloatArray | None, surprise: FloatArray | None, best: Best | None) -> None:
        """Keep what the step of the only token said, outputs `[1, O]` and surprise `[1, M]`."""
        self.chosen = best
        if head is not None:
            self.outputs.append(head.copy())
        self.surprise.append(np.zeros((1, 0), np.float32) if surprise is None else surprise.copy())

    def fed(self) -> Fed:
        """Everything that was kept."""
        outputs = _joined(self.outputs) if self.outputs else np.zeros((0, 0), np.float32)
        return Fed(outputs[None], _joined(self.surprise)[None], self.chosen)

    def abandon(self) -> None:
        """Have it end early, as if it had not been asked for, and wait until it has."""
        self.abandoned = True
        if not self.future.cancel():  # begun: it ends with its next call, and the session is in use until then
            self.future.exception()

    def succeed(self) -> None:
        """Make the result the session's and tell the caller; if that raises, fail with what it raised."""
        try:
            if self.abandoned:
                raise JobAbandonedError
            outputs = self.finish(self.fed(), self.state)
        except BaseException as error:  # an observer's error is the caller's
            self.fail(error)
            raise JobFailedError from error
        self.release(None)
        self.future.set_result(outputs)

    def fail(self, error: BaseException) -> None:
        """Tell the caller; the session stands where it stood."""
        self.release(error)
        self.future.set_exception(error)


def _joined(pieces: list[FloatArray]) -> FloatArray:
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


class JobAbandonedError(Exception):
    """Nobody waits for the job any more: its session is to stand where it stood."""


class JobFailedError(Exception):
    """A job's result was refused by its session; what the job did is to be undone. Never leaves the engine."""
