"""One user at a time, held in code: a session that is in use says so instead of being corrupted.

Knows threads. Does not know sessions.
"""

from __future__ import annotations

import threading
from types import TracebackType

from titans_runtime.errors import SessionBusyError

_SHORT = 0.01  # seconds between two looks at whether it is still housekeeping


class Guard:
    """`with guard:` around every use; a second use while the first lasts raises `SessionBusyError`."""

    __slots__ = ("_housekeeping", "_lock", "_user")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._user = ""
        self._housekeeping = False

    def __enter__(self) -> None:
        self.enter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def enter(self) -> None:
        """Begin a use. Waits for housekeeping, which is short and not the user's doing; raises `SessionBusyError`."""
        while not self._lock.acquire(blocking=False):
            if not self._housekeeping:
                raise SessionBusyError(
                    f"this session {self._who()}; use it from one place at a time, or fork() it first"
                )
            if self._lock.acquire(timeout=_SHORT):
                break
        self._user = threading.current_thread().name

    def leave(self) -> None:
        """End a use, from whichever thread."""
        self._lock.release()

    def enter_to_keep_house(self) -> bool:
        """Begin a use that the user is not to notice, if nobody is inside; then `leave_house` is owed."""
        self._housekeeping = True  # before the lock is taken and until it is free: nobody may see it locked without
        if self._lock.acquire(blocking=False):
            return True
        self._housekeeping = False
        return False

    def leave_house(self) -> None:
        """End what `enter_to_keep_house` began."""
        self._lock.release()
        self._housekeeping = False

    def _who(self) -> str:
        if self._user == threading.current_thread().name:
            return "is already inside a call of this thread, such as one that is running an observer"
        return f"is in use by thread {self._user!r}"
