"""Ctrl-C at a moment of one's choice: KeyboardInterrupt at the n-th place where CPython may raise it, on this thread.

CPython looks for signals between instructions: after a call, where a loop goes back, and where a function begins. The
harness raises at each of these places in turn, whichever file they are in, or on request between any two instructions
of the runtime's own.
"""

from __future__ import annotations

import dis
import functools
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Literal

import titans_runtime

Places = Literal["signals", "anywhere"]
OURS = str(Path(titans_runtime.__file__).parent)
# Nothing is raised out of destructors, nor where CPython starts a thread: interrupted there, it may keep a lock that
# the new thread waits for. What puts a thread's floating point back is safe from signals, not from more.
_SPARED = {"__del__", "_remove_folder", "with_denormals_as_zero"}


@functools.cache
def _looks(code: CodeType) -> frozenset[int]:
    """Offsets of the instructions after which CPython looks for signals."""
    names = ("CALL", "RESUME", "JUMP_BACKWARD")
    return frozenset(i.offset for i in dis.get_instructions(code) if i.opname.startswith(names))


@functools.cache
def _closed(code: CodeType) -> frozenset[int]:
    """Offsets at which a trace function must not raise: CPython 3.11 keeps something on the side there.

    Before a function has begun, and between the names of a call's keywords and the call.
    """
    found, begun = set(), False
    for instruction in dis.get_instructions(code):
        if not begun or instruction.opname.startswith(("PRECALL", "CALL")):
            found.add(instruction.offset)
        begun = begun or instruction.opname == "RESUME"
    return frozenset(found)


def _spared(frame: FrameType | None) -> bool:
    """Whether a frame belongs to something that is spared."""
    while frame is not None:
        if frame.f_code.co_name in _SPARED or frame.f_code is threading.Thread.start.__code__:
            return True
        frame = frame.f_back
    return False


class Interrupt:
    """Raises KeyboardInterrupt at the n-th place, counted from 1, while `run` runs. `raised`: there were so many."""

    def __init__(self, at: int, places: Places = "signals") -> None:
        self.raised = False
        self._left = at
        self._anywhere = places == "anywhere"

    def run(self, call: Callable[[], Any]) -> Any:
        """What `call` returns; the interrupt leaves as it would from a program."""
        before = sys.gettrace()
        sys.settrace(self._entered)
        try:
            return call()
        finally:
            sys.settrace(before)

    def _entered(self, frame: FrameType, event: str, _: object) -> Callable[[FrameType, str, object], Any] | None:
        code = frame.f_code
        if code.co_filename == __file__ or _spared(frame):
            return None
        if self._anywhere and not code.co_filename.startswith(OURS):
            return None
        frame.f_trace_opcodes = True
        looks, closed, last = _looks(code), _closed(code), -1

        def stepped(frame: FrameType, event: str, _: object) -> Any:
            nonlocal last
            if event == "opcode" and not self.raised:
                place = self._anywhere or last < 0 or last in looks
                last = frame.f_lasti
                if place and last not in closed:
                    self._left -= 1
                    if self._left == 0:
                        self.raised = True
                        raise KeyboardInterrupt
            return stepped

        return stepped


def interrupted(call: Callable[[], Any], at: int, places: Places = "signals") -> bool | None:
    """Run `call` with an interrupt at its n-th place. Whether it completed all the same; None: it has fewer places."""
    interrupt = Interrupt(at, places)
    try:
        interrupt.run(call)
    except BaseException:  # or what the standard library makes of it: a condition raises RuntimeError at some places
        if not interrupt.raised:
            raise
        return False
    return True if interrupt.raised else None
