"""How much memory there is, so that what a file asks for is refused before it is taken.

Knows Linux's accounts: what is free, the limit of the control group, the limit of the address space. Elsewhere the size
of the machine's memory is all that is known. Does not know what the memory is for.
"""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path

_UNLIMITED = 2**62  # how it is said where there is no limit
_MEMINFO, _GROUP, _STATM = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max"), Path("/proc/self/statm")


def available() -> int:
    """Bytes that this process can still take, as far as the system says."""
    return max(0, min(_free(), _group(), _address_space()))


def shortage(needed: int) -> str | None:
    """None if so many bytes can be had; else what is wrong, as half a sentence."""
    there = available()
    if needed <= there:
        return None
    return f"{gib(needed)} of memory are needed, and {gib(there)} are there"


def gib(size: int) -> str:
    """A size for people."""
    whole, part = divmod(size, 2**30)  # a float cannot hold what somebody may ask for
    return f"{whole:,}.{part * 10 // 2**30} GiB" if whole < 10**15 else "more than a million GiB"


def _free() -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in _MEMINFO.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(OSError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return _UNLIMITED


def _group() -> int:
    with contextlib.suppress(OSError, ValueError):  # ValueError: "max"
        return int(_GROUP.read_text(encoding="ascii"))
    return _UNLIMITED


def _address_space() -> int:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return _UNLIMITED
    with contextlib.suppress(OSError, ValueError, IndexError):
        return limit - int(_STATM.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    return limit
