"""Named tensors in one piece of host memory, laid out for NumPy and for ONNX Runtime.

Knows layout, alignment and the scan for numbers that are not finite. Does not know when a block is reused (`blocks`),
ONNX Runtime's bindings (`devices.host`) or what the tensors mean.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from titans_format.specs import TensorSpec
from titans_runtime.arrays import Array, FloatArray
from titans_runtime.native import kernels
from titans_runtime.state.blocks import Block, Shapes

if TYPE_CHECKING:
    import onnxruntime as ort

_ALIGNMENT = 64  # bytes: a cache line, and the widest vector register


class HostTensor:
    """A tensor in host memory: `array` for NumPy, `value` for ONNX Runtime, over the same bytes."""

    def __init__(self, array: Array) -> None:
        self.array = array

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.array.shape

    @cached_property
    def value(self) -> ort.OrtValue:
        """The tensor as ONNX Runtime takes it."""
        from onnxruntime import OrtValue

        return OrtValue.ortvalue_from_numpy(self.array)


class HostBlock(Block):
    """Tensors in one allocation, float32 ones first, all of it zero at the beginning.

    arrays: the tensors for NumPy, by name.
    """

    def __init__(self, shapes: Shapes) -> None:
        ordered = sorted(shapes, key=lambda item: item[2] != "float32")
        sizes = [math.prod(shape) * np.dtype(dtype).itemsize for _, shape, dtype in ordered]
        starts = [0, *itertools.accumulate(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes)]
        memory = np.zeros(starts[-1] + _ALIGNMENT, np.uint8)
        skip = -memory.ctypes.data % _ALIGNMENT
        data = memory[skip : skip + starts[-1]]
        arrays: dict[str, Array] = {
            name: data[start : start + size].view(dtype).reshape(shape)
            for (name, shape, dtype), start, size in zip(ordered, starts, sizes, strict=False)
        }
        self.arrays = {name: arrays[name] for name, _, _ in shapes}
        super().__init__({name: HostTensor(array) for name, array in self.arrays.items()})
        floats = sum(dtype == "float32" for _, _, dtype in ordered)
        self._floats: FloatArray = data[: starts[floats]].view(np.float32)
        self._at = self._floats.ctypes.data
        self._others = [arrays[name] for name, _, dtype in ordered if dtype in ("float16", "float64")]
        self._native = kernels()  # looked up once: it reads the environment, and `finite` runs at every token

    def finite(self) -> bool:
        """Whether every number is finite. Reads the block once: without kernels, as NaN and infinity survive a sum."""
        if self._native is not None:
            finite = bool(self._native.finite(self._at, self._floats.size))
            return finite and (not self._others or all(np.isfinite(other).all() for other in self._others))
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(np.add.reduce(self._floats)) and all(np.isfinite(other).all() for other in self._others):
                return True
        return bool(np.isfinite(self._floats).all()) and all(np.isfinite(other).all() for other in self._others)


def scratch(tensors: Sequence[TensorSpec], batch: int) -> HostBlock:
    """Memory for a graph's data inputs or outputs, symbolic dimensions at `batch`."""
    return HostBlock([(t.name, concrete(t.shape, batch), t.dtype) for t in tensors])


def concrete(shape: Sequence[int | str], batch: int) -> tuple[int, ...]:
    """A shape with its symbolic dimensions at `batch`."""
    return tuple(batch if isinstance(size, str) else size for size in shape)
