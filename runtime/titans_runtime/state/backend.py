"""A loaded model on a device: layouts, executors and lanes over any `device.Device`.

Knows who owns what. Does not know which device it is; the host twin is `devices.host.CpuBackend`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import cast

from titans_runtime import forks
from titans_runtime.arrays import Array
from titans_runtime.bundle import Bundle
from titans_runtime.state.calls import Executor, State
from titans_runtime.state.device import Device, Traffic
from titans_runtime.state.executor import DeviceExecutor, DeviceLayout, DeviceState
from titans_runtime.state.lanes import DeviceLanes


class DeviceBackend:
    """The graphs of one bundle on a device; see `base.Backend` for the contract.

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
        self._layouts: dict[int, DeviceLayout] = {}
        self._idle: dict[int, list[DeviceExecutor]] = {}

    @property
    def traffic(self) -> Traffic:
        """What has crossed the bus so far."""
        return self.device.traffic

    def initial(self, batch: int) -> DeviceState:
        """The beginning of `batch` streams; the same object each time."""
        return self.layout(batch).initial

    def executor(self, batch: int) -> AbstractContextManager[Executor]:
        """An executor, lent for the length of the block."""
        return self.lend(batch)

    @contextmanager
    def lend(self, batch: int) -> Iterator[DeviceExecutor]:
        """The executor that was used last, whose bindings are most likely to fit."""
        layout = self.layout(batch)
        idle = self._idle.setdefault(batch, [])
        try:
            executor = idle.pop()
        except IndexError:  # all of them are lent
            executor = DeviceExecutor(layout)
        try:
            yield executor
        finally:
            idle.append(executor)

    def lanes(self, width: int) -> DeviceLanes:
        """Lanes for `width` streams of different positions."""
        step = self._bundle.manifest.graph("step")
        if step is None:
            raise ValueError("a manifest without a step graph, which Manifest.from_json would have refused")
        return DeviceLanes(self.layout, self.lend, step, width)

    def read(self, state: State) -> dict[str, Array]:
        """Copies of all state tensors in host memory."""
        return self.layout(state.batch).read(cast(DeviceState, state))

    def write(self, tensors: Mapping[str, Array], batch: int, position: int) -> DeviceState:
        """The state that `read` gave."""
        return self.layout(batch).write(tensors, position)

    def layout(self, batch: int) -> DeviceLayout:
        """Where the tensors of `batch` streams are, worked out when first needed."""
        if self._made_in != forks.generation:
            forks.check(self._made_in, "this model")
        found = self._layouts.get(batch)
        if found is None:
            with self._lock:
                found = self._layouts.get(batch) or DeviceLayout(self._bundle, self.device, batch)
                self._layouts[batch] = found
        return found
