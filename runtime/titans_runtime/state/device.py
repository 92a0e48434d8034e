"""What a device must offer so that streams can live on it: memory, programs, and moves between its own tensors.

Knows the vocabulary between the state machinery (`device_state`, `device_lanes`) and a device (`ort_device`,
`cuda_device`). Does not know states or plans.

Nothing here moves a state tensor between host and device except `upload` and `download`, and `Traffic` counts those.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from titans_format.specs import GraphSpec
from titans_runtime.arrays import Array, FloatArray, IdArray
from titans_runtime.state.blocks import Shapes

_ids = itertools.count()


class Buffer(Protocol):
    """One tensor in the device's memory."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape; row-major."""
        ...

    @property
    def dtype(self) -> str:
        """NumPy's name of its type."""
        ...


@dataclass
class Traffic:
    """What has crossed the bus so far.

    uploads, downloads: state tensors copied to and from the device.
    cleared: state tensors that were sent zeros when their memory was first taken.
    calls: graphs run. Each takes its tokens and positions along and brings surprise back.
    told: outputs that were brought back because somebody wanted to see them, in numbers: logits, or ids and scores.
    """

    uploads: int = 0
    downloads: int = 0
    cleared: int = 0
    calls: int = 0
    told: int = 0

    @property
    def state_copies(self) -> int:
        """State tensors that crossed the bus, either way."""
        return self.uploads + self.downloads + self.cleared


class Bound(Protocol):
    """A program with its places: the same tensors in every run."""

    def run(self) -> None:
        """Run once, on what the places hold now. What was written is there, for the host too, when this returns.

        Raises:
            ExecutionError: the device refused or failed.
        """
        ...


class Program(Protocol):
    """A graph, loaded on the device."""

    def bind(
        self,
        data: Mapping[str, Array],
        results: Mapping[str, Array],
        inputs: Mapping[str, Buffer],
        outputs: Mapping[str, Buffer],
    ) -> Bound:
        """Give every input and output of the graph its place.

        Args:
            data, results: inputs read from and outputs brought to host memory, which stays where it is.
            inputs, outputs: those that are on the device. No tensor is in both.
        """
        ...


class Device(Protocol):
    """One device. Callers hold `lock` around everything but reading `traffic`."""

    @property
    def lock(self) -> threading.RLock:
        """Held by whoever uses the device; its queue is one."""
        ...

    @property
    def traffic(self) -> Traffic:
        """What has crossed the bus so far."""
        ...

    def allocate(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        """A tensor of zeros, given back when nothing refers to it any more."""
        ...

    def upload(self, buffer: Buffer, array: Array) -> None:
        """Set a tensor from host memory."""
        ...

    def download(self, buffer: Buffer) -> Array:
        """A copy in host memory."""
        ...

    def program(self, graph: GraphSpec, batch: int) -> Program:
        """A graph for so many streams. Raises `BundleError` if it cannot be loaded for them."""
        ...

    def sums(self, buffers: Sequence[Buffer]) -> Array | None:
        """The sum of each tensor, which shows whether all its numbers are finite; None where only engines compute."""
        ...

    def rows(self, head: Buffer, first: int, count: int) -> FloatArray:
        """The outputs of some tokens, head[:, first:first+count] of `[B, T, O]`, in host memory."""
        ...

    def best(self, head: Buffer, row: int, count: int) -> tuple[IdArray, FloatArray, FloatArray] | None:
        """The largest outputs of one token: their places and values `[B, count]`, and the sum of all `[B]`.

        In descending order, equal ones by their place. None where only engines compute.
        """
        ...

    def append(
        self, source: Sequence[Buffer], target: Sequence[Buffer], rows: Sequence[Buffer], start: int, count: int
    ) -> None:
        """target[start:start+count] = rows[:count] for each, and before that as source, which may be target itself.

        Tables `[R, B, ...]`, rows `[T, B, ...]`. Rows beyond are not written yet, and may be anything finite.
        """
        ...

    def seat(self, wide: Sequence[Buffer], solo: Sequence[Buffer], lane: int, axis: int) -> None:
        """wide[lane] = solo[0], lanes along `axis`."""
        ...

    def pick(self, wide: Sequence[Buffer], solo: Sequence[Buffer], lane: int, axis: int) -> None:
        """solo[0] = wide[lane], lanes along `axis`."""
        ...

    def place(self, tables: Sequence[Buffer], rows: Sequence[Buffer], places: Sequence[int]) -> None:
        """tables[places[l], l] = rows[0, l] for each lane l."""
        ...

    def keep(self, new: Sequence[Buffer], old: Sequence[Buffer], lanes: Sequence[int]) -> None:
        """new[l] = old[l] for these lanes l, along the first axis."""
        ...


class DeviceBlock:
    """The tensors of one pool entry, by state name."""

    def __init__(self, device: Device, shapes: Shapes) -> None:
        self.id = next(_ids)
        self.tensors = {name: device.allocate(shape, dtype) for name, shape, dtype in shapes}
