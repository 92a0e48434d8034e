"""Numbers too small for full precision count as zero while a graph runs, and only then.

A decayed memory reaches denormals, and the processor handles each of them many times slower. ONNX Runtime can
switch them off for the threads it owns, but of the caller's threads only for the one that created the first session,
and there for good: afterwards NumPy in the host program flushes as well. So on x86-64 Linux the switch is set
here around each use, on whichever thread it is, and put back afterwards (5 us). Elsewhere it stays with
ONNX Runtime's own setting.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable
from typing import TypeVar

# glibc's fenv_t on x86-64: 28 bytes of x87 environment, then MXCSR.
_FENV_BYTES = 32
_MXCSR = 28
_FLUSH_TO_ZERO = 0x8000
_DENORMALS_ARE_ZERO = 0x0040


def _libm() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return None
    try:
        library = ctypes.CDLL("libm.so.6")
    except OSError:  # not glibc
        return None
    return library if hasattr(library, "fegetenv") and hasattr(library, "fesetenv") else None


_LIBM = _libm()

R = TypeVar("R")


def with_denormals_as_zero(run: Callable[[], R]) -> R:
    """What `run` returns; this thread flushes denormals meanwhile, and its own setting comes back after it.

    In one frame, so that no interrupt comes between the switch and the block that puts it back.
    """
    if _LIBM is None:
        return run()
    before, inside = ctypes.create_string_buffer(_FENV_BYTES), ctypes.create_string_buffer(_FENV_BYTES)
    _LIBM.fegetenv(before)
    ctypes.memmove(inside, before, _FENV_BYTES)
    mode = ctypes.c_uint32.from_buffer(inside, _MXCSR)
    mode.value |= _FLUSH_TO_ZERO | _DENORMALS_ARE_ZERO
    try:
        _LIBM.fesetenv(inside)
        return run()
    finally:
        _LIBM.fesetenv(before)
