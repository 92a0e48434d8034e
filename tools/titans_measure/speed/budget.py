"""How much memory a bundle takes on the CPU of this machine, and so how many streams fit.

The formula is: runtime + weights + float32 copies + working + streams x stream. Weights, copies and state follow from
the bundle. The runtime before it loads anything, and what it works with besides (graphs, packed copies of weights, ONNX
Runtime's arena, places for what goes in and comes out), are measured: the bundle is loaded and read with, in a process
of its own. Knows sizes. Does not know how they are shown.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from titans_format.document import JsonObject
from titans_runtime.bundle import open_bundle
from titans_runtime.errors import ExecutionError

FORMULA = "bytes = runtime + weights + float32_copies + working + streams * max(state_per_stream, measured_per_stream)"
_STREAMS = 5  # that are opened to see what one more takes
_HALVES = ("F16", "BF16")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Bytes, and streams.

    runtime: of a process with Python, NumPy and ONNX Runtime in it. Measured.
    weights: the weight file, mapped once for all graphs and streams.
    float32_copies: of half-precision weights, which CPUs compute with in float32.
    working: everything else that one stream took at its peak. Measured.
    state_per_stream: all tensors of the state table.
    measured_per_stream: what each further stream took, read with as the first one was.
    measured: what a process with `measured_streams` took.
    """

    runtime: int
    weights: int
    float32_copies: int
    working: int
    state_per_stream: int
    measured_per_stream: int
    measured_streams: int
    measured: int

    @property
    def stream(self) -> int:
        """What one stream takes: its state, or more where sessions of a small model do."""
        return max(1, self.state_per_stream, self.measured_per_stream)

    def bytes(self, streams: int) -> int:
        """What so many streams take."""
        fixed = self.runtime + self.weights + self.float32_copies + self.working
        return fixed + streams * self.stream

    def streams(self, memory: int) -> int:
        """How many fit."""
        return max(0, (memory - self.bytes(0)) // self.stream)

    def as_json(self) -> JsonObject:
        """The same as a JSON object, with the formula."""
        return cast(JsonObject, {"formula": FORMULA, **asdict(self)})


def budget(path: Path) -> Budget:
    """Read a bundle's sizes, and measure the rest. Needs Linux.

    Raises:
        BundleError: it is not a sound bundle.
        ExecutionError: it does not run here.
    """
    bundle = open_bundle(path)
    manifest = bundle.manifest
    weights = manifest.weights.bytes or (path / manifest.weights.file).stat().st_size
    halves = sum(tensor.array.nbytes for tensor in bundle.weights.values() if tensor.dtype in _HALVES)
    copies = 2 * halves if any(graph.cpu is not None for graph in manifest.graphs) else 0
    found = measured(path)
    state = manifest.stream_bytes
    return Budget(
        runtime=found["runtime"],
        weights=weights,
        float32_copies=copies,
        working=max(0, found["peak"] - found["runtime"] - weights - copies - state),
        state_per_stream=state,
        measured_per_stream=(found["all_streams"] - found["one_stream"]) // (found["streams"] - 1),
        measured_streams=found["streams"],
        measured=found["all_streams"],
    )


def measured(path: Path) -> dict[str, int]:
    """What `resident` saw. Raises `ExecutionError`."""
    command = [sys.executable, "-m", "titans_measure.speed.resident", str(path), str(_STREAMS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        raise ExecutionError(f"{path} cannot be measured here ({said})", "see whether `titans run` runs it, on Linux")
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found
