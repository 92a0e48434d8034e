"""The machines that there is a wheel for, and the compiler of each one's kernels.

Zig, which is a package of the index, brings the headers and libraries of other systems with it, and asks for no newer C
library than its target names. Here g++ stays, because every figure of the documents is of what it compiled.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

# Exceptions and RTTI are off in the kernels: without guarded statics nothing of a C++ library is left in them.
_ZIG = (sys.executable, "-m", "ziglang", "c++", "-fno-threadsafe-statics", "-g0", "-s")


@dataclass(frozen=True)
class Platform:
    """A kind of machine.

    name: as the summary calls it.
    tag: of its wheel, before `auditwheel` says what it is good for.
    compiler: the words of `CXX`.
    magic: how its libraries begin.
    audited: whether it is for Linux, and so has a policy to keep.
    """

    name: str
    tag: str
    compiler: tuple[str, ...]
    magic: bytes
    audited: bool = True


X86_64 = Platform("x86-64 Linux", "linux_x86_64", ("g++",), b"\x7fELF")
AARCH64 = Platform("aarch64 Linux", "manylinux_2_28_aarch64", (*_ZIG, "-target", "aarch64-linux-gnu.2.28"), b"\x7fELF")
# Mach-O, 64 bits, little-endian, for ARM64.
MACOS = Platform(
    "arm64 macOS",
    "macosx_11_0_arm64",
    (*_ZIG, "-target", "aarch64-macos.11.0"),
    b"\xcf\xfa\xed\xfe\x0c\x00\x00\x01",
    audited=False,
)
PLATFORMS = (X86_64, AARCH64, MACOS)
