"""One thread or several for a training run: whichever is quicker now, on this machine and beside what else runs on it.

An operator of a small model is over before a second thread has woken up, and threads that share a core with another
process wait for one another at every barrier. So a run tries both on its first batch, without learning from it, and
keeps the quicker. Knows torch's threads. Does not know the loop.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import torch

MANY_THREADS = 64  # may be asked for on any machine; thousands end the process before they compute anything
_TRIALS = 3  # of each, in turns; the quickest of each counts
_LONG = 3.0  # seconds of a pass beyond which a trial would cost more than it gives, and several threads are worth it
_GAIN = 1.1  # by how much several threads have to be quicker than one


@contextlib.contextmanager
def own_threads() -> Iterator[None]:
    """Give the caller's number of threads back at the end."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def quicker(once: Callable[[], None], most: int, clock: Callable[[], float] = time.perf_counter) -> int:
    """1 or `most`: the number of threads with which `once` takes less time.

    Args:
        once: a pass over a batch; called a few times, with the threads set.
        most: threads that may be used.
        clock: seconds.
    """
    if most <= 1:
        return 1

    def timed(threads: int) -> float:
        torch.set_num_threads(threads)
        began = clock()
        once()
        return clock() - began

    timed(1)  # memory is allocated and kernels are chosen
    alone = timed(1)
    if alone > _LONG:
        return most
    several = timed(most)
    for _ in range(_TRIALS - 1):
        alone, several = min(alone, timed(1)), min(several, timed(most))
    return most if several * _GAIN < alone else 1
