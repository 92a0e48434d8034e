"""How many cores this process may really use: not those of the machine, those that it is given.

A process may be bound to some cores (affinity), and a container may be given a share of the time of all of them (a
cgroup's quota). A thread more than that waits for the others at every barrier. Knows Linux's files and falls back to
the number of cores. Does not know what the threads are for.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

_MANY_THREADS = 64  # per graph; may be asked for on any machine
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_GROUP = Path("/proc/self/cgroup")


def usable_cores(root: Path = _CGROUPS, own: Path = _OWN_GROUP) -> int:
    """The cores that this process may be on, or fewer where its time is limited; at least 1.

    Args:
        root: where cgroups are mounted, version 1 or 2.
        own: the file that says which groups this process is in.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not Linux
        cores = os.cpu_count() or 1
    quotas = [quota for folder in _groups(root, own) if (quota := _quota(folder)) is not None]
    # Half a core more is worth a thread, a tenth is not.
    return max(1, min([cores, *(math.floor(quota + 0.5) for quota in quotas)]))


def most_threads() -> int:
    """The most threads that anybody may ask for; thousands end a process before they compute anything."""
    return max(_MANY_THREADS, 4 * (os.cpu_count() or 1))


def _groups(root: Path, own: Path) -> list[Path]:
    """The folders of this process's groups and of all groups around them."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    folders = [root, root / "cpu", root / "cpu,cpuacct"]  # what a container sees as its own
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        for top in (root, *([root / "cpu", root / controllers] if controllers else [])):
            parts = [part for part in path.split("/") if part not in ("", "..")]
            folders += [top.joinpath(*parts[:count]) for count in range(1, len(parts) + 1)]
    return list(dict.fromkeys(folders))


def _quota(folder: Path) -> float | None:
    """The cores that a group's time amounts to, or None where it is not limited."""
    try:
        if (folder / "cpu.max").is_file():  # version 2: "150000 100000", or "max 100000"
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii").strip()
            period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii").strip()
        cores = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
    return cores if cores > 0 else None
