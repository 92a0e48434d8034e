"""One user at a time, held in code: a session that is in use says so instead of being corrupted.

Knows threads and calls. Does not know sessions.

A call may be stopped between any two of its instructions, also before it can say that its use is over: Ctrl-C raises
wherever the main thread happens to be. So nobody relies on being told. Whoever comes next asks whether the call still
runs, and there is no lock that a stopped call could leave locked.
"""

from __future__ import annotations

import sys
import threading
import time
from types import FrameType, TracebackType

from titans_runtime import forks
from titans_runtime.errors import SessionBusyError

_SHORT = 0.001  # seconds between two looks at something that ends soon


class Use:
    """One use of a session, from the moment a guard takes it in.

    Args:
        call: the frame of the call that uses it; None is a use that is over.
        short: it ends by itself and soon, and is waited for.
    """

    __slots__ = ("_call", "short", "successor", "thread")

    def __init__(self, call: FrameType | None, short: bool = False) -> None:
        self.thread = threading.get_ident()
        self.successor: dict[int, Use] = {}  # whoever came next; `setdefault` lets one in and is a single instruction
        self.short = short
        self._call = call

    def leave(self) -> None:
        """It is over."""
        self._call = None

    def over(self) -> bool:
        """Whether it is over: by `leave`, or because its call was stopped."""
        return self._call is None or self.stopped()

    def stopped(self) -> bool:
        """Whether the call is no longer running. Only a frame that runs no more can be cleared."""
        call = self._call
        if call is not None:
            try:
                call.clear()
            except RuntimeError:
                return False
        return True


class Guard:
    """`with guard:` around every use; a second use while the first lasts raises `SessionBusyError`."""

    __slots__ = ("_last", "_made_in")

    def __init__(self) -> None:
        self._last = Use(None)
        self._made_in = forks.generation

    def __enter__(self) -> None:
        self.enter(Use(sys._getframe(1)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._last.leave()

    def enter(self, use: Use) -> None:
        """Begin a use. Waits for what is short and not the user's doing, such as housekeeping.

        Raises:
            SessionBusyError: somebody else is inside.
            ForkError: the session is another process's.
        """
        if self._made_in != forks.generation:
            forks.check(self._made_in, "this session")
        while (inside := self._take(use)) is not None:
            if not inside.short:
                raise SessionBusyError(
                    f"this session {_said(inside)}", "use it from one place at a time, or fork() it first"
                )
            time.sleep(_SHORT)

    def enter_to_keep_house(self) -> Use | None:
        """Begin a use that the user is not to notice, and whose `leave` is owed; None if somebody is inside."""
        use = Use(sys._getframe(1), short=True)
        return use if self._take(use) is None else None

    def _take(self, use: Use) -> Use | None:
        """Go inside; or, if somebody is, whose use that is."""
        last = self._last
        while (newer := last.successor.get(0)) is not None:  # its call was stopped before it could note itself here
            last = newer
        if not last.over():
            return last
        first = last.successor.setdefault(0, use)
        if first is not use:
            return first
        self._last = use
        return None


def _said(inside: Use) -> str:
    if inside.thread == threading.get_ident():
        return "is already inside a call of this thread, such as one that is running an observer"
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return f"is in use by thread {names.get(inside.thread, inside.thread)!r}"
