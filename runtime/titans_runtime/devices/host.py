"""The host as a device: its memory is NumPy's, its programs are ONNX Runtime's on the CPU.

Knows copies between arrays, bindings, and how a graph is loaded for the CPU. Does not know states or plans.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from titans_format.specs import GraphSpec
from titans_runtime.arrays import Array, FloatArray, IdArray
from titans_runtime.bundle import Bundle, Form
from titans_runtime.devices.cores import usable_cores
from titans_runtime.devices.denormals import with_denormals_as_zero
from titans_runtime.devices.ort_sessions import (
    QUIET,
    create_session,
    first_line,
    import_onnxruntime,
    out_of_memory,
    widened,
    wrap_weights,
)
from titans_runtime.errors import ExecutionError
from titans_runtime.logs import record
from titans_runtime.native import Kernels, kernels
from titans_runtime.state.blocks import Block, Buffer, Shapes
from titans_runtime.state.calls import LoadOptions
from titans_runtime.state.host_memory import HostBlock, HostTensor

if TYPE_CHECKING:
    import onnxruntime as ort


class HostMemory:
    """The host's memory, and copies in it; what `state.device.Device` asks for but programs."""

    scans_steps = True  # a block is read once, at the speed of memory

    def __init__(self) -> None:
        self.lock = contextlib.nullcontext()

    def block(self, shapes: Shapes) -> HostBlock:
        """Tensors of zeros in one allocation."""
        return HostBlock(shapes)

    def upload(self, buffer: Buffer, array: Array) -> None:
        """Set a tensor."""
        _array(buffer)[...] = array

    def download(self, buffer: Buffer) -> Array:
        """A copy of a tensor."""
        return _array(buffer).copy()

    def finite(self, blocks: Sequence[Block]) -> bool:
        """Whether all numbers are finite; reads every block once."""
        return all(block.finite() for block in cast(Sequence[HostBlock], blocks))

    def rows(self, head: Buffer, first: int, count: int) -> FloatArray:
        """A view of some tokens' outputs."""
        return _array(head)[:, first : first + count]

    def top_k(self, head: Buffer, row: int, count: int) -> tuple[IdArray, FloatArray, FloatArray] | None:
        """None: all outputs are at hand, and sampling chooses among them."""
        return None

    def append(
        self, source: Sequence[Buffer], target: Sequence[Buffer], rows: Sequence[Buffer], start: int, count: int
    ) -> None:
        """Put rows into their tables; where the table is another one, with the rows before them."""
        end = start + count
        for before, table, fresh in zip(_host(source), _host(target), _host(rows), strict=True):
            if before is not table:
                table.array[:start] = before.array[:start]
            table.array[start:end] = fresh.array[:count]

    def seat(self, wide: Sequence[Buffer], solo: Sequence[Buffer], lane: int, rows: int | None = None) -> None:
        """Copy one stream's tensors into a lane."""
        for many, one in zip(_host(wide), _host(solo), strict=True):
            if rows is None:
                many.array[lane] = one.array[0]
            else:
                many.array[:rows, lane] = one.array[:rows, 0]

    def pick(self, wide: Sequence[Buffer], solo: Sequence[Buffer], lane: int, rows: int | None = None) -> None:
        """Copy a lane's tensors out."""
        for many, one in zip(_host(wide), _host(solo), strict=True):
            if rows is None:
                one.array[0] = many.array[lane]
            else:
                one.array[:rows, 0] = many.array[:rows, lane]

    def place(
        self, tables: Sequence[Buffer], rows: Sequence[Buffer], places: Sequence[int], lanes: Sequence[int]
    ) -> None:
        """Put one row for each of these lanes into the tables."""
        # Lanes that are stepped together mostly stand at one position: their rows are one piece of memory then.
        together = len(lanes) == len(places) and len(set(places)) == 1
        where = [places[lane] for lane in lanes]
        for table, fresh in zip(_host(tables), _host(rows), strict=True):
            if together:
                table.array[where[0]] = fresh.array[0]
            else:
                table.array[where, lanes] = fresh.array[0, lanes]

    def keep(self, new: Sequence[Buffer], old: Sequence[Buffer], lanes: Sequence[int]) -> None:
        """Copy lanes from one set of tensors to another."""
        for one, other in zip(_host(new), _host(old), strict=True):
            for lane in lanes:  # one by one: nothing is allocated, so nothing can fail
                one.array[lane] = other.array[lane]


class HostDevice(HostMemory):
    """The graphs of one bundle on the CPU. See `state.device.Device` for the contract.

    Raises:
        ProviderError: onnxruntime is not installed.
        BundleError: a graph is not what the manifest says.
    """

    def __init__(self, bundle: Bundle, options: LoadOptions) -> None:
        super().__init__()
        self._ort = import_onnxruntime()
        self._bundle = bundle
        self._options = options
        self._loading = threading.Lock()
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._wide: dict[str, ort.OrtValue] = {}
        self._weights = wrap_weights(self._ort, bundle)  # must outlive the sessions, which use the memory in place
        for graph in bundle.manifest.graphs:  # all of them now: a stream must not meet a refusal half way
            bundle.graph(graph, self._form(graph))

    def program(self, graph: GraphSpec, batch: int) -> HostProgram:
        """A graph, its session created when it is first needed. Raises `BundleError` if ONNX Runtime refuses it."""
        session = self._session(graph)
        return HostProgram(graph.name, session, self._weight_inputs(session))

    def finish_profiles(self) -> dict[str, Path]:
        """End profiling; the file of each graph that ran, by name. Empty unless `LoadOptions.profiles` was given."""
        if self._options.profiles is None:
            return {}
        with self._loading:
            return {name: Path(session.end_profiling()) for name, session in self._sessions.items()}

    def _session(self, graph: GraphSpec) -> ort.InferenceSession:
        """The ONNX Runtime session of a graph, created when it is first needed.

        Raises:
            BundleError: ONNX Runtime refuses the graph.
        """
        found = self._sessions.get(graph.name)
        if found is None:
            with self._loading:
                found = self._sessions[graph.name] = self._sessions.get(graph.name) or self._load(graph)
        return found

    def _load(self, graph: GraphSpec) -> ort.InferenceSession:
        options = self._session_options()
        library = self._kernels(graph)
        form = self._form(graph)
        if library is not None:
            try:
                options.register_custom_ops_library(str(library.path))
            except Exception as error:  # onnxruntime's exceptions have no common base of their own
                form = _portable(graph)
                record(logging.WARNING, "kernels.refused", path=str(library.path), reason=first_line(error))
        if self._options.profiles is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(self._options.profiles / graph.name)
        create = partial(
            create_session,
            self._ort,
            self._bundle,
            graph,
            form,
            self._weights,
            options,
            providers=["CPUExecutionProvider"],
        )
        session: ort.InferenceSession = with_denormals_as_zero(create)
        return session

    def _form(self, graph: GraphSpec) -> Form:
        """The file that a graph is run from, if the kernels load."""
        return _portable(graph) if self._kernels(graph) is None else "fused"

    def _kernels(self, graph: GraphSpec) -> Kernels | None:
        """The library that the fused form of a graph needs, where both are there and wanted."""
        if graph.fused is None or not self._options.fused or graph.fused.file in self._bundle.manifest.omitted:
            return None
        return kernels()

    def _weight_inputs(self, session: ort.InferenceSession) -> dict[str, ort.OrtValue]:
        """The half-precision weights that a graph for CPUs takes as float32 inputs, widened once for all graphs."""
        names = [value.name for value in session.get_inputs() if value.name in self._weights]
        if not names:
            return {}
        with self._loading:
            for name in names:
                if name not in self._wide:
                    wide = widened(self._bundle.weights[name])
                    self._wide[name] = self._ort.OrtValue.ortvalue_from_numpy(wide)
            return {name: self._wide[name] for name in names}

    def _session_options(self) -> ort.SessionOptions:
        options = self._ort.SessionOptions()
        options.log_severity_level = QUIET
        threads = self._options.threads
        if threads is None and (cores := usable_cores()) < (os.cpu_count() or 1):
            threads = cores  # onnxruntime counts the machine's
        if threads is not None:
            options.intra_op_num_threads = threads
        # For onnxruntime's own threads; `denormals` does it for the caller's.
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        # A thread that fell asleep between two steps takes longer to wake than to do its share. Waiting 1 ms, longer
        # than sampling takes, gave 1.2 to 1.4 times the tokens per second; waiting for 5 ms gave no more.
        options.add_session_config_entry("session.intra_op.spin_duration_us", "1000")
        return options


class HostProgram:
    """A session, with the host's places for the data that goes in and comes out."""

    def __init__(self, graph: str, session: ort.InferenceSession, weights: Mapping[str, ort.OrtValue]) -> None:
        self._graph = graph
        self._session = session
        self._weights = weights
        self._places: dict[str, HostTensor] = {}

    def bind(
        self,
        data: Mapping[str, Array],
        results: Mapping[str, Array],
        inputs: Mapping[str, Buffer],
        outputs: Mapping[str, Buffer],
    ) -> Callable[[], None]:
        """Give every input and output its place."""
        binding = self._session.io_binding()
        for name, value in self._weights.items():
            binding.bind_ortvalue_input(name, value)
        for name, array in data.items():
            binding.bind_ortvalue_input(name, self._place(name, array).value)
        for name, array in results.items():
            binding.bind_ortvalue_output(name, self._place(name, array).value)
        for name, buffer in inputs.items():
            binding.bind_ortvalue_input(name, cast(HostTensor, buffer).value)
        for name, buffer in outputs.items():
            binding.bind_ortvalue_output(name, cast(HostTensor, buffer).value)
        return partial(self._run, partial(self._session.run_with_iobinding, binding))

    def _run(self, once: Callable[[], None]) -> None:
        try:
            with_denormals_as_zero(once)
        except Exception as error:  # onnxruntime's exceptions have no common base of their own
            remedy = "try again, and if it fails again check the bundle with `titans verify`"
            if out_of_memory(error):
                remedy = "free some memory, and try again"
            raise ExecutionError(
                f"graph {self._graph!r} failed on the CPU ({first_line(error)})", f"nothing has changed: {remedy}"
            ) from error

    def _place(self, name: str, array: Array) -> HostTensor:
        if name not in self._places:
            self._places[name] = HostTensor(array)
        return self._places[name]


def _portable(graph: GraphSpec) -> Form:
    """The file that runs on a CPU without kernels."""
    return "file" if graph.cpu is None else "cpu"


def _array(buffer: Buffer) -> Array:
    return cast(HostTensor, buffer).array


def _host(buffers: Sequence[Buffer]) -> Sequence[HostTensor]:
    return cast(Sequence[HostTensor], buffers)
