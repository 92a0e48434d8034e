"""Host memory for state: tensors that change together in one block, laid out for NumPy and for ONNX Runtime.

Knows layout. Does not know when a block is reused (`pool`), ONNX Runtime's bindings or what the tensors mean.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from titans_format.specs import StateSpec, TensorSpec
from titans_runtime.arrays import Array, FloatArray
from titans_runtime.native import kernels
from titans_runtime.state.blocks import Lease, Pool, Shapes, Table, TablePool

if TYPE_CHECKING:
    import onnxruntime as ort

_ALIGNMENT = 64  # bytes: a cache line, and the widest vector register

_ids = itertools.count()


class Block:
    """Named tensors in one piece of memory, float32 ones first, all of it zero at the beginning."""

    def __init__(self, shapes: Shapes) -> None:
        self.id = next(_ids)
        ordered = sorted(shapes, key=lambda item: item[2] != "float32")
        sizes = [math.prod(shape) * np.dtype(dtype).itemsize for _, shape, dtype in ordered]
        starts = [0, *itertools.accumulate(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes)]
        memory = np.zeros(starts[-1] + _ALIGNMENT, np.uint8)
        skip = -memory.ctypes.data % _ALIGNMENT
        self._data = memory[skip : skip + starts[-1]]
        self.tensors: dict[str, Array] = {
            name: self._data[start : start + size].view(dtype).reshape(shape)
            for (name, shape, dtype), start, size in zip(ordered, starts, sizes, strict=False)
        }
        floats = sum(dtype == "float32" for _, _, dtype in ordered)
        self._floats: FloatArray = self._data[: starts[floats]].view(np.float32)
        self._at = self._floats.ctypes.data
        self._others = [self.tensors[name] for name, _, dtype in ordered if dtype in ("float16", "float64")]
        self._native = kernels()  # asked once: the environment is read for it, and `finite` runs at every token

    @cached_property
    def values(self) -> dict[str, ort.OrtValue]:
        """The tensors as ONNX Runtime takes them, over the same memory."""
        from onnxruntime import OrtValue

        return {name: OrtValue.ortvalue_from_numpy(array) for name, array in self.tensors.items()}

    def finite(self) -> bool:
        """Whether every number is finite. Reads the block once: without kernels, as NaN and infinity survive a sum."""
        if self._native is not None:
            told = self._native.finite(self._at, self._floats.size)
            return bool(told) and all(np.isfinite(other).all() for other in self._others)
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(np.add.reduce(self._floats)) and all(np.isfinite(other).all() for other in self._others):
                return True
        return bool(np.isfinite(self._floats).all()) and all(np.isfinite(other).all() for other in self._others)


class Slot(Lease[Block]):
    """A block in use by one or more states."""

    __slots__ = ()

    @property
    def tensors(self) -> dict[str, Array]:
        """The block's tensors by state name."""
        return self.block.tensors


class RowsSlot(Slot, Table[Block]):
    """A table of rows that is only ever appended to."""

    __slots__ = ()


class Group(Pool[Block]):
    """State tensors that are written together, in host memory; see `pool.Pool`."""

    def __init__(self, specs: Sequence[StateSpec], batch: int, on_drop: Callable[[int], None]) -> None:
        super().__init__(specs, batch, Block, on_drop)

    def take(self) -> Slot:
        """A slot of this state's own; what is in it is finite and otherwise undefined."""
        return Slot(self, self._block())


class RowsGroup(TablePool[Block]):
    """Tables of equally many rows, in host memory."""

    def __init__(self, specs: Sequence[StateSpec], batch: int, on_drop: Callable[[int], None]) -> None:
        super().__init__(specs, batch, Block, on_drop)

    def take(self) -> RowsSlot:
        """An empty table."""
        return RowsSlot(self, self._block())

    def append(self, slot: RowsSlot, start: int, count: int, results: dict[str, Array]) -> RowsSlot:
        """The table with rows `start .. start + count - 1` set to the first rows of `results` (by state name).

        It is `slot` itself unless another state counts rows from `start` on; then its rows before `start` are copied.
        """
        if not self.claim(slot, start, count):
            fresh = self.take()
            for name in self.names:
                fresh.tensors[name][:start] = slot.tensors[name][:start]
            fresh.filled = start + count
            slot = fresh
        for name in self.names:
            slot.tensors[name][start : start + count] = results[name][:count]
        return slot


def scratch(tensors: Sequence[TensorSpec], batch: int) -> Block:
    """Memory for a graph's data inputs or outputs, symbolic dimensions at `batch`."""
    return Block(
        [(t.name, tuple(batch if isinstance(size, str) else size for size in t.shape), t.dtype) for t in tensors]
    )
