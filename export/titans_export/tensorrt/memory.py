"""How much memory a build will take, before it takes it: a machine that runs out kills the builder without a word.

Knows the weights of a graph and what the builder made of such weights elsewhere. Does not know TensorRT.
"""

from __future__ import annotations

import math
from pathlib import Path

import onnx
from onnx import TensorProto

from titans_export.errors import ExportError

# Peak resident memory of `titans build`, TensorRT-RTX 1.7.1, 170m mac: 2.7 GB with 319 MiB of fp16 weights, 4.0 GB with
# 638 MiB of fp32. A base, and seven times the weights where they are halves; with fp32 it was a little less.
BASE_BYTES = 600 * 2**20
TIMES_WEIGHTS = 7.0


def estimate(graph: bytes) -> int:
    """Bytes that building an engine for an ONNX model will take at its peak."""
    weights = 0
    for tensor in onnx.load_from_string(graph).graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            weights += math.prod(tensor.dims) * _item_bytes(tensor.data_type)
    return BASE_BYTES + int(TIMES_WEIGHTS * weights)


def available() -> int | None:
    """Bytes that can be had without swapping, of the machine or of the container; None where that is not known."""
    found = []
    meminfo = _read("/proc/meminfo").splitlines()
    found += [int(line.split()[1]) * 1024 for line in meminfo if line.startswith("MemAvailable:")]
    limit, used = _read("/sys/fs/cgroup/memory.max").strip(), _read("/sys/fs/cgroup/memory.current").strip()
    if limit.isdigit() and used.isdigit():
        found.append(int(limit) - int(used))
    return min(found, default=None)


def check_memory(graphs: list[bytes]) -> None:
    """Raise `ExportError` if the largest of the graphs will hardly fit."""
    needed, there = max(map(estimate, graphs), default=0), available()
    if there is not None and needed > there:
        raise ExportError(
            f"building needs about {needed / 2**30:.1f} GiB of memory, {there / 2**30:.1f} GiB are free",
            "free some,"
            " build on another machine, export with a smaller --dtype, or try all the same with --ignore-memory",
        )


def _item_bytes(dtype: int) -> int:
    return onnx.helper.tensor_dtype_to_np_dtype(dtype).itemsize


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""
