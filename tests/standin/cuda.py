"""A stand-in for `cuda.bindings.runtime` that keeps CUDA's contract strictly, without a GPU.

Work put into a stream is not done before somebody waits for it: whoever looks earlier sees what was there, or NaN.
Addresses are never used twice, so a stale one is always found out. What CUDA calls undefined is a `Violation` here: use
of freed memory, freeing what a stream still uses, two streams in each other's way, changing host memory that is being
copied, memory that a capture changes.
"""

from __future__ import annotations

import ctypes
import enum
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

ALIGNMENT = 256


class Violation(BaseException):
    """The contract was broken. Not an `Exception`: nothing may take it for a failing device and go on."""


class Error(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


class cudaDeviceAttr(enum.IntEnum):
    cudaDevAttrComputeCapabilityMajor = 75
    cudaDevAttrComputeCapabilityMinor = 76


@dataclass(frozen=True)
class Span:
    """Bytes of device memory."""

    address: int
    nbytes: int

    def meets(self, other: Span) -> bool:
        return self.address < other.address + other.nbytes and other.address < self.address + self.nbytes


@dataclass
class Work:
    """Something in a stream: what it reads and writes on the device, and what does it."""

    what: str
    reads: list[Span]
    writes: list[Span]
    do: Callable[[], None]

    def conflicts(self, other: Work) -> bool:
        mine, theirs = [*self.reads, *self.writes], [*other.reads, *other.writes]
        return any(w.meets(s) for w in self.writes for s in theirs) or any(
            w.meets(s) for w in other.writes for s in mine
        )


@dataclass(eq=False)
class Stream:
    handle: int
    waiting: list[Work] = field(default_factory=list)
    capturing: list[Work] | None = None
    digest: int = 0  # of all device memory when the capture began

    def __int__(self) -> int:
        return self.handle


@dataclass(eq=False)
class Graph:
    works: list[Work]
    alive: bool = True


class FakeCuda:
    """The module. `launches` counts graphs launched, `frees` memory given back, `capability` is the device's."""

    cudaMemcpyKind = cudaMemcpyKind
    cudaStreamCaptureMode = cudaStreamCaptureMode
    cudaDeviceAttr = cudaDeviceAttr

    def __init__(self, capability: int = 86, memory: int = 1 << 30) -> None:
        self.capability = capability
        self.left = memory
        self.launches = self.frees = self.captures = 0
        self._blocks: dict[int, np.ndarray] = {}
        self._pinned: dict[int, Any] = {}
        self._streams: dict[int, Stream] = {}
        self._next = 1 << 40

    # Memory

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        self._not_capturing("cudaMalloc")
        if size > self.left:
            return Error.cudaErrorMemoryAllocation, None
        self.left -= size
        address = self._next
        self._next += math.ceil(size / ALIGNMENT + 1) * ALIGNMENT  # a gap, so that a run past the end is found
        self._blocks[address] = np.full(size, 0xFF, np.uint8)  # memory is not cleared: NaN in every float type
        return Error.cudaSuccess, address

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        self._not_capturing("cudaFree")
        block = self._blocks.get(address)
        if block is None:
            raise Violation("cudaFree of what is no allocation")
        span = Span(address, block.size)
        for stream in self._streams.values():
            for work in stream.waiting:
                if any(span.meets(other) for other in (*work.reads, *work.writes)):
                    raise Violation(f"cudaFree of memory that {work.what} has yet to use")
        del self._blocks[address]
        self.left += block.size
        self.frees += 1
        return (Error.cudaSuccess,)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Any, ...]:
        memory = (ctypes.c_uint8 * max(1, size))()
        self._pinned[ctypes.addressof(memory)] = memory
        return Error.cudaSuccess, ctypes.addressof(memory)

    def cudaFreeHost(self, address: int) -> tuple[Any, ...]:
        if any(stream.waiting for stream in self._streams.values()):
            raise Violation("cudaFreeHost while a stream is at work")
        del self._pinned[address]
        return (Error.cudaSuccess,)

    def cudaMemsetAsync(self, address: int, value: int, size: int, stream: Stream) -> tuple[Any, ...]:
        span = Span(address, size)
        return self.put(stream, Work("cudaMemsetAsync", [], [span], lambda: self.view(span).fill(value)))

    def cudaMemcpyAsync(
        self, target: int, source: int, size: int, kind: cudaMemcpyKind, stream: Stream
    ) -> tuple[Any, ...]:
        here, there = Span(target, size), Span(source, size)
        if kind == cudaMemcpyKind.cudaMemcpyDeviceToDevice:
            if here.meets(there):
                raise Violation("cudaMemcpyAsync between places that overlap")
            work = Work("a copy", [there], [here], lambda: self.view(here).__setitem__(slice(None), self.view(there)))
            return self.put(stream, work)
        host = self._host(source if kind == cudaMemcpyKind.cudaMemcpyHostToDevice else target, size)
        pinned = any(base <= host.ctypes.data < base + len(memory) for base, memory in self._pinned.items())
        if not pinned and stream.capturing is not None:
            raise Violation("a capture with a copy of host memory that is not pinned")
        if kind == cudaMemcpyKind.cudaMemcpyHostToDevice:
            seen = None if stream.capturing is not None else host.copy()  # a launch sends what is there by then

            def send() -> None:
                if pinned and seen is not None and not np.array_equal(seen, host):
                    raise Violation("host memory was changed while it was being copied")
                self.view(here)[:] = host if seen is None else seen

            return self.put(stream, Work("a copy from the host", [], [here], send))

        def bring() -> None:
            host[:] = self.view(there)

        code = self.put(stream, Work("a copy to the host", [there], [], bring))
        if not pinned:
            self.cudaStreamSynchronize(stream)  # as CUDA does for pageable memory
        elif stream.capturing is None:
            host.fill(0xFF)  # whoever looks before the stream was waited for sees NaN
        return code

    def cudaMemcpy2DAsync(
        self,
        target: int,
        pitch: int,
        source: int,
        spitch: int,
        width: int,
        height: int,
        kind: int,
        stream: Stream,
    ) -> tuple[Any, ...]:
        if kind != cudaMemcpyKind.cudaMemcpyDeviceToDevice or min(pitch, spitch) < width:
            raise Violation("cudaMemcpy2DAsync with a pitch below its width, or off the device")
        here = [Span(target + i * pitch, width) for i in range(height)]
        there = [Span(source + i * spitch, width) for i in range(height)]

        def copy() -> None:
            for one, other in zip(here, there, strict=True):
                self.view(one)[:] = self.view(other)

        return self.put(stream, Work("a copy of columns", there, here, copy))

    # Streams and graphs

    def cudaStreamCreate(self) -> tuple[Any, ...]:
        stream = Stream(0x5000 + len(self._streams))
        self._streams[stream.handle] = stream
        return Error.cudaSuccess, stream

    def cudaStreamSynchronize(self, stream: Stream) -> tuple[Any, ...]:
        self._not_capturing("cudaStreamSynchronize")
        while stream.waiting:
            work = stream.waiting[0]
            self._check(work)
            work.do()
            stream.waiting.pop(0)
        return (Error.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: Stream, mode: cudaStreamCaptureMode) -> tuple[Any, ...]:
        self._not_capturing("cudaStreamBeginCapture")
        stream.capturing, stream.digest = [], self._digest()
        return (Error.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: Stream) -> tuple[Any, ...]:
        works, stream.capturing = stream.capturing, None
        if works is None:
            raise Violation("cudaStreamEndCapture outside a capture")
        if self._digest() != stream.digest:
            raise Violation("a capture changed device memory")
        self.captures += 1
        return Error.cudaSuccess, Graph(works)

    def cudaGraphInstantiate(self, graph: Graph, flags: int) -> tuple[Any, ...]:
        # Harsher than CUDA: the model is run while it is being set up, as frameworks do around a capture. What it
        # reads must be the same afterwards, or the step that follows starts from another state.
        reads = [span for work in graph.works for span in work.reads]
        writes = [span for work in graph.works for span in work.writes]
        first = [span for span in reads if not any(span.meets(other) for other in writes)]
        for stream in self._streams.values():
            self.cudaStreamSynchronize(stream)
        before = [self.view(span).copy() for span in first]
        for work in graph.works:
            self._check(work)
            work.do()
        for span, was in zip(first, before, strict=True):
            if not np.array_equal(self.view(span), was):
                raise Violation("a capture did not leave the state as it was")
        for work in graph.works:
            if work.what.startswith("engine") and any(r.meets(w) for r in work.reads for w in work.writes):
                raise Violation("a captured step writes what it reads, so running it again gives another result")
        return Error.cudaSuccess, Graph(list(graph.works))

    def cudaGraphDestroy(self, graph: Graph) -> tuple[Any, ...]:
        graph.alive = False
        return (Error.cudaSuccess,)

    def cudaGraphLaunch(self, graph: Graph, stream: Stream) -> tuple[Any, ...]:
        if not graph.alive:
            raise Violation("cudaGraphLaunch of a graph that was destroyed")
        self.launches += 1
        for work in graph.works:
            self.put(stream, work)
        return (Error.cudaSuccess,)

    def cudaGraphExecDestroy(self, graph: Graph) -> tuple[Any, ...]:
        graph.alive = False
        return (Error.cudaSuccess,)

    def cudaDeviceGetAttribute(self, attribute: cudaDeviceAttr, device: int) -> tuple[Any, ...]:
        major, minor = divmod(self.capability, 10)
        return Error.cudaSuccess, major if "Major" in attribute.name else minor

    # For the TensorRT stand-in and the tests

    def stream(self, handle: int) -> Stream:
        if handle not in self._streams:
            raise Violation("an engine was put into the default stream, or into none")
        return self._streams[handle]

    def put(self, stream: Stream, work: Work) -> tuple[Any, ...]:
        """Put work into a stream, or into its capture."""
        self._check(work)
        if stream.capturing is not None:
            stream.capturing.append(work)
            return (Error.cudaSuccess,)
        for other in self._streams.values():
            if other is not stream and any(work.conflicts(waiting) for waiting in other.waiting):
                raise Violation(f"{work.what} meets work of another stream that nobody waited for")
        stream.waiting.append(work)
        return (Error.cudaSuccess,)

    def view(self, span: Span) -> np.ndarray:
        """The bytes there. Raises `Violation` unless all of them are in one live allocation."""
        for base, block in self._blocks.items():
            if base <= span.address and span.address + span.nbytes <= base + block.size:
                return block[span.address - base : span.address - base + span.nbytes]
        raise Violation(f"{span.nbytes} bytes at {span.address:#x} are freed, or past the end of an allocation")

    def _check(self, work: Work) -> None:
        for span in (*work.reads, *work.writes):
            self.view(span)

    def _not_capturing(self, what: str) -> None:
        if any(stream.capturing is not None for stream in self._streams.values()):
            raise Violation(f"{what} during a capture")

    def _digest(self) -> int:
        return hash(tuple((base, block.tobytes()) for base, block in self._blocks.items()))

    @staticmethod
    def _host(address: int, size: int) -> np.ndarray:
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
