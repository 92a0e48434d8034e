"""Faults put into an executor or a batch: a graph call fails, is interrupted or not finite; a thread stands still."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pytest

from titans_runtime import ExecutionError
from titans_runtime.serving.batch import Batch
from titans_runtime.state.blocks import Lease
from titans_runtime.state.executor import BoundGraph

Fault = Callable[[BoundGraph, Mapping[int, Lease]], None]


def boom(graph: BoundGraph, written: Mapping[int, Lease]) -> None:
    """The graph fails."""
    raise ExecutionError("the graph failed", "try again")


def interrupt(graph: BoundGraph, written: Mapping[int, Lease]) -> None:
    """Ctrl-C arrives while the graph runs; Python sees it afterwards."""
    raise KeyboardInterrupt


def not_finite(graph: BoundGraph, written: Mapping[int, Lease]) -> None:
    """The graph wrote NaN into one number of the state, or of its outputs if it writes no carried state."""
    for slot in written.values():
        next(iter(slot.block.tensors.values())).array.reshape(-1)[0] = np.nan
        return
    next(iter(graph._results.arrays.values())).reshape(-1)[0] = np.nan


class Sabotage:
    """Within a monkeypatch context, the `fail_at`-th graph call (from 1) ends in `fault`, after it has run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail_at: int, fault: Fault) -> None:
        self.left = fail_at
        run = BoundGraph.run

        def sabotaged(graph: BoundGraph, slots: Sequence[Lease], written: Mapping[int, Lease]) -> None:
            run(graph, slots, written)
            self.left -= 1
            if self.left == 0:
                fault(graph, written)

        monkeypatch.setattr(BoundGraph, "run", sabotaged)


@contextlib.contextmanager
def standing_still(batch: Batch) -> Iterator[None]:
    """The batch's thread begins nothing inside the block."""
    still, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        still.set()
        go_on.wait()

    asker = threading.Thread(target=lambda: batch._worker._ask(wait))
    asker.start()
    still.wait()
    try:
        yield
    finally:
        go_on.set()
        asker.join()
