"""What a caller who waits for several feeds at once holds instead of as many futures; the last of them wakes it up.

Knows threads. Does not know feeds. A ticket has those methods of a `Future` that the engine and its callers use, in
less time: a batch of small models is bound by such things.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from titans_runtime.arrays import FloatArray

# Seconds. A Ctrl-C that comes as a thread begins to wait does not end the wait; Python sees to it between two of them.
_LOOK = 0.05
_WAITING, _RUNNING, _CANCELLED, _DONE = range(4)


class Tally:
    """How many tickets are still open."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._open = 0
        self._none = threading.Event()
        self._none.set()

    def add(self) -> None:
        """One more."""
        with self.lock:
            self._open += 1
            self._none.clear()

    def close(self) -> None:
        """One less; `lock` is held."""
        self._open -= 1
        if self._open == 0:
            self._none.set()

    def wait(self) -> None:
        """Until none is open."""
        while not self._none.wait(_LOOK):
            pass


class Ticket:
    """One feed's outcome.

    Args:
        tally: that it is counted in, from now until it is done or cancelled.
        cancelled: called once if it is cancelled.
    """

    def __init__(self, tally: Tally, cancelled: Callable[[], None]) -> None:
        self._tally = tally
        self._cancelled = cancelled
        self._state = _WAITING
        self._result: FloatArray | None = None
        self._error: BaseException | None = None
        tally.add()

    def set_running_or_notify_cancel(self) -> bool:
        """Begin; False if it was cancelled."""
        with self._tally.lock:
            if self._state == _CANCELLED:
                return False
            self._state = _RUNNING
            return True

    def running(self) -> bool:
        """Whether it was begun and is not done."""
        return self._state == _RUNNING

    def done(self) -> bool:
        """Whether there is an outcome."""
        return self._state in (_CANCELLED, _DONE)

    def cancel(self) -> bool:
        """Whether it is cancelled; what was begun cannot be."""
        with self._tally.lock:
            if self._state != _WAITING:
                return self._state == _CANCELLED
            self._state = _CANCELLED
            self._tally.close()
        self._cancelled()
        return True

    def set_result(self, result: FloatArray) -> None:
        """Done."""
        self._result = result
        self._close()

    def set_exception(self, error: BaseException) -> None:
        """Done, and wrong."""
        self._error = error
        self._close()

    def exception(self) -> BaseException | None:
        """What went wrong, or None; waits for all that are counted with it."""
        self._tally.wait()
        return self._error

    def result(self) -> FloatArray:
        """The result, or raise what went wrong; waits for all that are counted with it."""
        self._tally.wait()
        if self._error is not None:
            raise self._error
        if self._result is None:
            raise RuntimeError("a ticket that was cancelled has no result")
        return self._result

    def _close(self) -> None:
        with self._tally.lock:
            self._state = _DONE
            self._tally.close()
