"""One user at a time, held in code: a session that is in use says so instead of being corrupted.

Knows threads. Does not know sessions.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType

from titans_runtime.errors import SessionBusyError

_SHORT = 0.001  # seconds between two looks at whether it is still housekeeping
_HOUSE = object()


class Guard:
    """`with guard:` around every use; a second use while the first lasts raises `SessionBusyError`."""

    __slots__ = ("_inside", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()  # held to look at who is inside and to change it, never for the length of a use
        self._inside: object | None = None  # a user's thread by name, or _HOUSE

    def __enter__(self) -> None:
        self.enter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def enter(self) -> None:
        """Begin a use. Waits for housekeeping, which is short and not the user's doing; raises `SessionBusyError`."""
        while (inside := self._take(threading.current_thread().name)) is not None:
            if inside is not _HOUSE:
                raise SessionBusyError(
                    f"this session {_said(inside)}; use it from one place at a time, or fork() it first"
                )
            time.sleep(_SHORT)

    def leave(self) -> None:
        """End a use, from whichever thread."""
        self._inside = None

    def enter_to_keep_house(self) -> bool:
        """Begin a use that the user is not to notice, if nobody is inside; then `leave_house` is owed."""
        return self._take(_HOUSE) is None

    def leave_house(self) -> None:
        """End what `enter_to_keep_house` began."""
        self._inside = None

    def _take(self, who: object) -> object | None:
        """Go inside; or, if somebody is, who that is."""
        with self._lock:
            inside = self._inside
            if inside is None:
                self._inside = who
            return inside


def _said(inside: object) -> str:
    if inside == threading.current_thread().name:
        return "is already inside a call of this thread, such as one that is running an observer"
    return f"is in use by thread {inside!r}"
