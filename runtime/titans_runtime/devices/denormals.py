"""Numbers too small for full precision count as zero while a graph runs, and only then.

A decayed memory reaches denormals, and the processor handles each of them many times slower. ONNX Runtime can
switch them off for the threads it owns, but of the caller's threads only for the one that created the first session,
and there for good: afterwards NumPy in the host program flushes as well. So on x86-64 Linux the switch is set
here around each use, on whichever thread it is, and put back afterwards (2 us). Elsewhere it stays with
ONNX Runtime's own setting.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable
from typing import TypeVar

_FLUSH_TO_ZERO = 0x8000
_DENORMALS_ARE_ZERO = 0x0040


class _Environment(ctypes.Structure):
    """glibc's fenv_t on x86-64: 28 bytes of x87 environment, then MXCSR."""

    _fields_ = (("x87", ctypes.c_uint8 * 28), ("mxcsr", ctypes.c_uint32))


def _libm() -> ctypes.PyDLL | None:
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return None
    try:
        library = ctypes.PyDLL("libm.so.6")  # keeps the interpreter's lock: each call takes nanoseconds
        for function in (library.fegetenv, library.fesetenv):
            function.argtypes = [ctypes.POINTER(_Environment)]
    except (OSError, AttributeError):  # not glibc
        return None
    return library


_LIBM = _libm()

R = TypeVar("R")


def with_denormals_as_zero(run: Callable[[], R]) -> R:
    """What `run` returns; this thread flushes denormals meanwhile, and its own setting comes back after it.

    In one frame, so that no interrupt comes between the switch and the block that puts it back.
    """
    if _LIBM is None:
        return run()
    before, inside = _Environment(), _Environment()
    _LIBM.fegetenv(before)
    _LIBM.fegetenv(inside)
    inside.mxcsr |= _FLUSH_TO_ZERO | _DENORMALS_ARE_ZERO
    try:
        _LIBM.fesetenv(inside)
        return run()
    finally:
        _LIBM.fesetenv(before)
