"""What a device must offer so that streams can live on it: memory, programs, and copies between its own tensors.

Knows the vocabulary between the state machinery (`executor`, `lanes`) and a device (`devices.host`, `devices.ort`,
`devices.tensorrt.device`). Does not know states or plans.

No state tensor moves between the host and another device except by `upload` and `download`; `Traffic` counts those.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from titans_format.specs import GraphSpec
from titans_runtime.arrays import Array, FloatArray, IdArray
from titans_runtime.state.blocks import Block, Buffer, Shapes


@dataclass
class Traffic:
    """What has crossed the bus to a device so far.

    uploads, downloads: state tensors copied to and from the device.
    cleared: state tensors that were sent zeros when their memory was first taken.
    calls: graphs run. Each takes its tokens and positions along and brings surprise back.
    outputs: numbers of outputs that were brought back because they were wanted: logits, or ids and scores.
    """

    uploads: int = 0
    downloads: int = 0
    cleared: int = 0
    calls: int = 0
    outputs: int = 0

    @property
    def state_copies(self) -> int:
        """State tensors that crossed the bus, either way."""
        return self.uploads + self.downloads + self.cleared


class Program(Protocol):
    """A graph, loaded on the device."""

    def bind(
        self,
        data: Mapping[str, Array],
        results: Mapping[str, Array],
        inputs: Mapping[str, Buffer],
        outputs: Mapping[str, Buffer],
    ) -> Callable[[], None]:
        """Give every input and output of the graph its place.

        Returns:
            Runs the graph once, on what the places hold then. What it wrote is there, for the host too, when it
            returns. It raises `ExecutionError` where the device refuses or fails.

        Args:
            data, results: inputs read from and outputs brought to host memory, which stays where it is; the same arrays
                in every call.
            inputs, outputs: those that are on the device. No tensor is in both.
        """
        ...


class Device(Protocol):
    """One device. Callers hold `lock` around every call."""

    @property
    def lock(self) -> AbstractContextManager[object]:
        """Held around every use: a device has one queue. The host's is free for any number of threads."""
        ...

    @property
    def scans_steps(self) -> bool:
        """Whether `finite` is cheap enough to look at everything that a step wrote.

        Elsewhere a step's own outputs, which come to the host, show what it wrote.
        """
        ...

    def block(self, shapes: Shapes) -> Block:
        """Tensors of finite numbers, given back when nothing refers to them any more."""
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

    def finite(self, blocks: Sequence[Block]) -> bool | None:
        """Whether all numbers of these blocks are finite. None where only engines compute.

        False may be a false alarm, such as a sum of large numbers.
        """
        ...

    def rows(self, head: Buffer, first: int, count: int) -> FloatArray:
        """The outputs of some tokens, head[:, first:first+count] of `[B, T, O]`, in host memory.

        It may be a view, valid for as long as the tensor is not written.
        """
        ...

    def top_k(self, head: Buffer, row: int, count: int) -> tuple[IdArray, FloatArray, FloatArray] | None:
        """The largest outputs of one token: their places and values `[B, count]`, and the sum of all `[B]`.

        In descending order, equal ones by their place. None where the device does not choose.
        """
        ...

    def append(
        self, source: Sequence[Buffer], target: Sequence[Buffer], rows: Sequence[Buffer], start: int, count: int
    ) -> None:
        """target[start:start+count] = rows[:count] for each, and before that as source, which may be target itself.

        Tables `[R, B, ...]`, rows `[T, B, ...]`. Rows beyond are not written yet, and may be anything finite.
        """
        ...

    def seat(self, wide: Sequence[Buffer], solo: Sequence[Buffer], lane: int, rows: int | None = None) -> None:
        """wide[lane] = solo[0], lanes along the first axis.

        With `rows` they are tables, lanes along the second axis, of which at least so many rows are copied.
        """
        ...

    def pick(self, wide: Sequence[Buffer], solo: Sequence[Buffer], lane: int, rows: int | None = None) -> None:
        """solo[0] = wide[lane], as in `seat`."""
        ...

    def place(
        self, tables: Sequence[Buffer], rows: Sequence[Buffer], places: Sequence[int], lanes: Sequence[int]
    ) -> None:
        """tables[places[l], l] = rows[0, l] for these lanes l.

        `places` has one for every lane; the row there of a lane that is not named does not count, and may be written.
        """
        ...

    def keep(self, new: Sequence[Buffer], old: Sequence[Buffer], lanes: Sequence[int]) -> None:
        """new[l] = old[l] for these lanes l, along the first axis. Allocates nothing in host memory."""
        ...
