"""What this machine can do at all: matrix products and reading memory, with as many threads as the bundle gets.

Knows two probes. Does not know models.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from titans_measure.speed.timing import Work
from titans_runtime.devices.cores import usable_cores
from titans_runtime.devices.onnx_writer import Node, Value, model
from titans_runtime.devices.ort_sessions import import_onnxruntime

SIZE = 2048  # rows of the matrices, 16 MiB each: beyond a core's caches
READ_BYTES = 256 * 2**20
READ_TIMES = 5  # in a turn: one alone takes 10 ms, too short to have met what else the machine is doing
SGEMM, READ = "sgemm", "read"


@dataclass(frozen=True)
class Roofline:
    """Gigaflops per second of fp32 matrix products, and gigabytes per second read from memory."""

    sgemm_gflops: float
    read_gb_per_second: float


class Probes:
    """The two pieces of work, to be measured in turns with everything else.

    Products go through ONNX Runtime, whose kernels the bundle uses as well. Reading is a dot product of a large vector
    with itself, a part of it to each thread: the fastest way to look at every number once that was found.
    """

    def __init__(self, threads: int | None) -> None:
        self._threads = threads or usable_cores()
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        # A pause between two rounds of blocks costs a third of the speed if the threads sleep; as the runtime's, they
        # wait for 1 ms.
        options.add_session_config_entry("session.intra_op.spin_duration_us", "1000")
        matrices = [Value(name, "float32", 2) for name in "aby"]
        product = model(matrices[:2], matrices[2:], [Node("MatMul", ["a", "b"], "y")])
        self._session = ort.InferenceSession(product, options, providers=["CPUExecutionProvider"])
        a, b = np.random.default_rng(0).standard_normal((2, SIZE, SIZE)).astype(np.float32)
        self._matrices = {"a": ort.OrtValue.ortvalue_from_numpy(a), "b": ort.OrtValue.ortvalue_from_numpy(b)}
        self._parts = np.array_split(np.ones(READ_BYTES // 4, np.float32), self._threads)
        self._pool = ThreadPoolExecutor(self._threads)

    def work(self) -> dict[str, Work]:
        """Name and work of each probe."""
        return {
            SGEMM: lambda: self._session.run_with_ort_values(None, self._matrices),
            READ: self._read,
        }

    def _read(self) -> None:
        for _ in range(READ_TIMES):
            list(self._pool.map(lambda part: np.dot(part, part), self._parts))

    def roofline(self, seconds: Mapping[str, float]) -> Roofline:
        """What the probes' seconds mean."""
        return Roofline(2 * SIZE**3 / seconds[SGEMM] / 1e9, READ_TIMES * READ_BYTES / seconds[READ] / 1e9)
