"""The fused kernels for CPUs: a library of ONNX Runtime operators, if this installation has one.

It is compiled when the package is built and there is a C++ compiler. Where there was none, or `TITANS_KERNELS=off` is
set, the portable graphs of a bundle run instead, and compute the same. Knows where the library is and whether it may be
used. Does not know what is in it, nor bundles.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from titans_format.install import reinstall
from titans_runtime.errors import InputError

LIBRARY = Path(__file__).with_name("titans_kernels.so")
SWITCH = "TITANS_KERNELS"  # off, or the highest of the levels below that may be used
ISAS = {"v1": "any machine of its kind", "v3": "AVX2", "v4": "AVX-512"}


@dataclass(frozen=True)
class Kernels:
    """The library.

    Attributes:
        path: the file, which ONNX Runtime loads too.
        isa: the instruction set it chose for this machine: v1 the plain one, v3 AVX2, v4 AVX-512.
        finite: whether so many float32 numbers at an address are all finite.
    """

    path: Path
    isa: str
    finite: Callable[[int, int], int]


def kernels() -> Kernels | None:
    """The library of fused kernels, or None where there is none or it is switched off.

    The switch is read at every call, the level once for each process.

    Raises:
        InputError: the switch is something that it cannot mean.
    """
    return None if switched_off() else found()[0]


def switched_off() -> bool:
    """Whether the environment says that no kernels are wanted. Raises `InputError` for what it cannot mean."""
    wanted = os.environ.get(SWITCH, "")
    if wanted.lower() in {"off", "0"}:
        return True
    if wanted not in {"", *ISAS}:
        raise InputError(f"{SWITCH} is {wanted!r}", f"set it to off or one of {', '.join(ISAS)}, or leave it out")
    return False


def described() -> str:
    """Whether there are kernels, in half a sentence."""
    library, why = found()
    try:
        off = switched_off()
    except InputError as error:
        return f"but none is loaded: {error}"
    if library is not None and off:
        return f"without fused kernels: {SWITCH} is off"
    return f"without fused kernels: {why}" if library is None else f"with fused kernels for {ISAS[library.isa]}"


@cache
def found() -> tuple[Kernels | None, str]:
    """The library that was compiled, or None and why there is none."""
    if not LIBRARY.is_file():
        return None, f"not compiled; install g++ or clang++, and {reinstall(source=True)}"
    try:
        library = ctypes.CDLL(str(LIBRARY))
        isa, finite = library.titans_isa, library.titans_finite
    except (OSError, AttributeError) as error:
        return None, f"{LIBRARY.name} does not load here ({error}); {reinstall()}"
    isa.restype = ctypes.c_char_p
    finite.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return Kernels(LIBRARY, isa().decode(), finite), ""
