"""Seconds of pieces of work that take turns, so that a busy moment slows all of them alike.

Knows the clock. Does not know what is measured.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

from titans_format.progress import ReportProgress

Work = Callable[[], object]


def interleaved(
    work: Mapping[str, Work], rounds: int, progress: ReportProgress | None = None
) -> dict[str, list[float]]:
    """Run each piece of work once to warm up, then once in every round; its seconds in each round."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 1):
        for place, (name, function) in enumerate(work.items()):
            began = time.perf_counter()
            function()
            if number:
                times[name].append(time.perf_counter() - began)
            if progress is not None:
                progress(number * len(work) + place + 1, (rounds + 1) * len(work))
    return times


def medians(work: Mapping[str, Work], rounds: int, progress: ReportProgress | None = None) -> dict[str, float]:
    """The median of each piece's seconds; see `interleaved`."""
    return {name: statistics.median(seconds) for name, seconds in interleaved(work, rounds, progress).items()}
