"""How a caller waits for what a batch's thread does, and hears what came of it.

Knows threads. Does not know feeds.

A caller may be interrupted between any two of its instructions, and the batch's thread must never wait for what an
interrupted caller holds. So nothing here takes a lock on the caller's side: who decides first is settled by one
instruction, `dict.setdefault`, and a caller that waits looks again every now and then.
"""

from __future__ import annotations

import _thread
import contextlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Generic, Literal, TypeVar, cast

from titans_runtime.arrays import FloatArray

# Seconds. A Ctrl-C that comes as a thread begins to wait does not end the wait; Python sees to it between two of them.
_LOOK = 0.05
_HELD = 1.0  # seconds after which a future's lock was left locked; it is held for microseconds

A = TypeVar("A")


class Flag:
    """Set once, by the batch's thread; waited for by any number of others."""

    def __init__(self) -> None:
        self.up = False
        self._lock = _thread.allocate_lock()
        self._lock.acquire()

    def set(self) -> None:
        """Everybody may go on."""
        self.up = True
        self._lock.release()

    def wait(self, seconds: float | None = None) -> bool:
        """Until it is set, or for so long; whether it is set."""
        while not self.up:
            if self._lock.acquire(timeout=_LOOK if seconds is None else seconds):
                self._lock.release()
            elif seconds is not None:
                break
        return self.up


class Request:
    """Something that the batch's thread is to do, unless the caller withdraws it first."""

    def __init__(self) -> None:
        self._fate: dict[int, Literal["begun", "withdrawn"]] = {}

    def begin(self) -> bool:
        """Begin, once; False if it was withdrawn."""
        return self._fate.setdefault(0, "begun") == "begun"

    def withdraw(self) -> bool:
        """Whether it will not be done; what was begun cannot be withdrawn."""
        return self._fate.setdefault(0, "withdrawn") == "withdrawn"

    @property
    def begun(self) -> bool:
        """Whether the batch's thread is at it, or done."""
        return self._fate.get(0) == "begun"


class Question(Request, Generic[A]):
    """A function that is to run on the batch's thread, between two rounds."""

    def __init__(self, ask: Callable[[], A]) -> None:
        super().__init__()
        self._ask = ask
        self._answer: list[A] = []
        self._error: BaseException | None = None
        self._done = Flag()

    def run(self) -> None:
        """What the batch's thread does."""
        if not self.begin():
            return
        try:
            self._answer.append(self._ask())
        except BaseException as error:
            self._error = error
        self._done.set()

    def wait(self) -> A:
        """The answer, or raise what went wrong."""
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._answer[0]


class Countdown:
    """So many outcomes that one caller waits for; the last of them wakes it up."""

    def __init__(self, outcomes: int) -> None:
        self.open = outcomes
        self._none = Flag()

    def close(self) -> None:
        """One less."""
        self.open -= 1
        if self.open == 0:
            self._none.set()

    def wait(self) -> None:
        """Until none is open; there has to have been one."""
        self._none.wait()


class Outcome:
    """One feed's outcome, of those counted in `countdown`, for a caller who waits."""

    def __init__(self, countdown: Countdown) -> None:
        self._countdown = countdown
        self._result: FloatArray | None = None
        self._error: BaseException | None = None

    def begin(self) -> bool:
        """Whether it is still wanted."""
        return True

    def settle(self, result: FloatArray | None, error: BaseException | None) -> None:
        """Say what came of it."""
        self._result, self._error = result, error
        self._countdown.close()

    def wait(self) -> FloatArray:
        """The result, or raise what went wrong; waits for all that are counted with it."""
        self._countdown.wait()
        if self._error is not None:
            raise self._error
        if self._result is None:
            raise RuntimeError("a feed ended without a result")
        return self._result


class _Condition(_thread.RLock):  # type: ignore[misc]  # only the stubs say that it is final
    """`threading.Condition` whose lock is entered and left in one instruction each, which nothing interrupts."""

    def __init__(self) -> None:
        self._waiting: deque[_thread.LockType] = deque()

    def wait(self, timeout: float | None = None) -> bool:
        """Until notified, or for so long. The lock is held, once."""
        waiter = _thread.allocate_lock()
        waiter.acquire()
        self._waiting.append(waiter)
        notified = False
        try:
            self.release()
            notified = waiter.acquire(timeout=-1 if timeout is None else max(timeout, 0))
        finally:
            try:
                self._have()
            finally:  # where the interrupt came just there
                self._have()
        if not notified:
            with contextlib.suppress(ValueError):
                self._waiting.remove(waiter)
        return notified

    def _have(self) -> None:
        if not self._is_owned():  # type: ignore[attr-defined]
            self.acquire()

    def notify_all(self) -> None:
        """Wake everybody who waits. The lock is held."""
        while self._waiting:
            self._waiting.popleft().release()


class FeedFuture(Future[FloatArray]):
    """One feed's outcome for the caller of `submit`. Only the batch's thread fulfils it, and never waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self._condition = _Condition()  # type: ignore[assignment]

    def begin(self) -> bool:
        """Whether it is still wanted: False if it was cancelled, or its holder has set it himself."""
        self._free()
        try:
            return self.set_running_or_notify_cancel()
        except (RuntimeError, InvalidStateError):
            return False

    def settle(self, result: FloatArray | None, error: BaseException | None) -> None:
        """Say what came of it; callbacks run here."""
        self._free()
        with contextlib.suppress(InvalidStateError):  # its holder has set it himself
            if error is not None:
                self.set_exception(error)
            else:
                self.set_result(cast(FloatArray, result))

    def _free(self) -> None:
        """Take another lock if a thread was stopped while it held this one."""
        if self._condition.acquire(timeout=_HELD):
            self._condition.release()
        else:
            self._condition = _Condition()  # type: ignore[assignment]
