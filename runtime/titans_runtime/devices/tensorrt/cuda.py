"""CUDA's memory, copies and one stream, over the `cuda.bindings.runtime` module of NVIDIA's cuda-python.

Knows which calls there are and what they return: an error code first, then values. Does not know TensorRT or states.

Memory is given back between calls of a stream, never while something may still use it: a buffer that nothing refers to
any more is put on a list, and freed when the stream is known to be idle.
"""

from __future__ import annotations

import ctypes
import math
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from titans_runtime.arrays import Array
from titans_runtime.errors import ExecutionError

Frees: TypeAlias = "deque[tuple[str, int]]"  # what to call with which address once the stream is idle


class CudaBuffer:
    """A tensor in device memory, row-major. `address` is aligned to at least 256 bytes, as cudaMalloc's are."""

    __slots__ = ("_deferred_frees", "address", "dtype", "nbytes", "shape")

    def __init__(
        self, address: int, shape: tuple[int, ...], dtype: str, deferred_frees: deque[tuple[str, int]]
    ) -> None:
        self.address = address
        self.shape = shape
        self.dtype = dtype
        self.nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        self._deferred_frees = deferred_frees

    def __del__(self) -> None:
        self._deferred_frees.append(("cudaFree", self.address))


class Pinned:
    """Host memory that the device reads and writes by itself, as an array."""

    def __init__(
        self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any], deferred_frees: deque[tuple[str, int]]
    ) -> None:
        self.address = address
        self.nbytes = math.prod(shape) * dtype.itemsize
        memory = (ctypes.c_uint8 * self.nbytes).from_address(address)
        self.array: Array = np.ctypeslib.as_array(memory).view(dtype).reshape(shape)
        self._deferred_frees = deferred_frees

    def __del__(self) -> None:
        self._deferred_frees.append(("cudaFreeHost", self.address))


class Cuda:
    """One device and one stream of it. For one caller at a time.

    Args:
        runtime: the module `cuda.bindings.runtime`.

    Raises:
        ExecutionError: there is no device, or its driver is too old.
    """

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self._deferred_frees: Frees = deque()
        self._kinds = runtime.cudaMemcpyKind
        self._stream = self._call("cudaStreamCreate")

    @property
    def stream(self) -> int:
        """The stream's handle."""
        return int(self._stream)

    @property
    def capability(self) -> int:
        """The device's compute capability, such as 86."""
        attribute = self._runtime.cudaDeviceAttr
        major = self._call("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMajor, 0)
        return 10 * int(major) + int(
            self._call("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMinor, 0)
        )

    def zeros(self, shape: tuple[int, ...], dtype: str) -> CudaBuffer:
        """A tensor of zeros."""
        nbytes = max(1, math.prod(shape) * np.dtype(dtype).itemsize)
        buffer = CudaBuffer(int(self._call("cudaMalloc", nbytes)), shape, dtype, self._deferred_frees)
        self._call("cudaMemsetAsync", buffer.address, 0, nbytes, self._stream)
        return buffer

    def pinned(self, like: Array) -> Pinned:
        """Pinned host memory for an array like this one."""
        return Pinned(int(self._call("cudaHostAlloc", like.nbytes, 0)), like.shape, like.dtype, self._deferred_frees)

    def to_device(self, target: int, source: int, nbytes: int) -> None:
        """Put a copy from host memory into the stream."""
        self._call("cudaMemcpyAsync", target, source, nbytes, self._kinds.cudaMemcpyHostToDevice, self._stream)

    def to_host(self, target: int, source: int, nbytes: int) -> None:
        """Put a copy into host memory into the stream."""
        self._call("cudaMemcpyAsync", target, source, nbytes, self._kinds.cudaMemcpyDeviceToHost, self._stream)

    def move(self, target: int, source: int, nbytes: int) -> None:
        """Put a copy between two places of the device into the stream."""
        if nbytes:
            self._call("cudaMemcpyAsync", target, source, nbytes, self._kinds.cudaMemcpyDeviceToDevice, self._stream)

    def move_columns(self, target: int, pitch: int, source: int, source_pitch: int, width: int, height: int) -> None:
        """Put a copy of `height` pieces of `width` bytes, each so far from the one before, into the stream."""
        kind = self._kinds.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpy2DAsync", target, pitch, source, source_pitch, width, height, kind, self._stream)

    def wait(self) -> None:
        """Wait until the stream is idle, and give back memory that is no longer referred to."""
        self._call("cudaStreamSynchronize", self._stream)
        while self._deferred_frees:
            self._call(*self._deferred_frees.popleft())

    def capture(self, work: Callable[[], None]) -> Any:
        """Record what `work` puts into the stream, instead of running it."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self._stream, mode)
        try:
            work()
        except BaseException:
            self._runtime.cudaStreamEndCapture(self._stream)  # whatever it says: the stream must leave its capture
            raise
        graph = self._call("cudaStreamEndCapture", self._stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: Any) -> None:
        """Put everything that was captured into the stream."""
        self._call("cudaGraphLaunch", graph, self._stream)

    def drop(self, graph: Any) -> None:
        """Give a captured graph back."""
        self._runtime.cudaGraphExecDestroy(graph)

    def _call(self, name: str, *arguments: Any) -> Any:
        """A call's value, or None; its error code becomes an `ExecutionError`."""
        code, *values = getattr(self._runtime, name)(*arguments)
        if int(code) != 0:
            raise ExecutionError(
                f"CUDA: {name} failed ({getattr(code, 'name', code)})",
                "check the driver with nvidia-smi, free some of the device's memory, or use provider='cpu'",
            )
        return values[0] if values else None
