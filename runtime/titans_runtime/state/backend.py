"""A loaded model on a device: layouts, executors and lanes over any `device.Device`, the host included.

Knows who owns what. Does not know which device it is, nor which call comes next (`plan`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from titans_runtime import forks
from titans_runtime.arrays import Array
from titans_runtime.bundle import Bundle
from titans_runtime.state.device import Device
from titans_runtime.state.executor import Executor
from titans_runtime.state.lanes import Lanes
from titans_runtime.state.layout import Layout, State


class Backend:
    """The graphs of one bundle on a device, shared by all sessions of a model. Safe to use from several threads.

    Args:
        provider: the name that selects it.
        bundle: the model.
        device: where it runs.
    """

    def __init__(self, provider: str, bundle: Bundle, device: Device) -> None:
        self.provider = provider
        self.device = device
        self._bundle = bundle
        self._lock = threading.Lock()
        self._made_in = forks.generation
        forks.keep(self)
        self._layouts: dict[int, Layout] = {}
        self._idle: dict[int, list[Executor]] = {}

    def initial(self, batch: int) -> State:
        """The beginning of `batch` streams; the same object each time."""
        return self.layout(batch).initial

    @contextmanager
    def executor(self, batch: int) -> Iterator[Executor]:
        """An executor for states of `batch` streams, lent to this caller for the length of the block.

        It is the one that was used last, whose bindings are most likely to fit.
        """
        layout = self.layout(batch)
        idle = self._idle.setdefault(batch, [])
        try:
            executor = idle.pop()
        except IndexError:  # all of them are lent
            executor = Executor(layout)
        try:
            yield executor
        finally:
            idle.append(executor)

    def lanes(self, width: int) -> Lanes:
        """Lanes for `width` streams of different positions."""
        step = self._bundle.manifest.graph("step")
        if step is None:
            raise ValueError("a manifest without a step graph, which Manifest.from_json would have refused")
        return Lanes(self.layout, self.executor, step, width)

    def read(self, state: State) -> dict[str, Array]:
        """Copies of all state tensors in host memory, shaped as the state table says; rows not yet written are 0."""
        return self.layout(state.batch).read(state)

    def write(self, tensors: Mapping[str, Array], batch: int, position: int) -> State:
        """The state that `read` gave, or one like it. Rows at and after the position count as not written.

        Raises:
            InputError: a tensor is missing or unknown, or has another shape or dtype than the state table's.
        """
        return self.layout(batch).write(tensors, position)

    def layout(self, batch: int) -> Layout:
        """Where the tensors of `batch` streams are, worked out when first needed."""
        if self._made_in != forks.generation:
            forks.check(self._made_in, "this model")
        found = self._layouts.get(batch)
        if found is None:
            with self._lock:
                found = self._layouts.get(batch) or Layout(self._bundle, self.device, batch)
                self._layouts[batch] = found
        return found
