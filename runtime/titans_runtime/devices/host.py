"""ONNX Runtime on the CPU: graphs loaded when first used, all of them over one mapping of the weights.

Knows sessions, their options and how weights are handed over. Does not know state (`cpu_state`) or plans.

How weights are shared, measured with onnxruntime 1.32 on 216 MiB of weights and four graphs:
`SessionOptions.add_initializer` uses the mapped array in place (RSS + 236 MiB in all), whereas
`add_external_initializers` copies it into every session (+ 1101 MiB), and so does pre-packing (+ 1101 MiB).
Leaving the loading to ONNX Runtime maps the file once per session, and each mapping counts in RSS (+ 452 MiB
once two graphs have run).
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, cast

import numpy as np

from titans_format.errors import BundleError
from titans_format.install import install
from titans_format.specs import GraphSpec
from titans_runtime import forks
from titans_runtime.arrays import Array, FloatArray
from titans_runtime.bundle import Bundle, Form, file_of
from titans_runtime.devices.cores import usable_cores
from titans_runtime.devices.cpu_lanes import CpuLanes
from titans_runtime.devices.cpu_state import CpuExecutor, HostState, Layout
from titans_runtime.devices.denormals import with_denormals_as_zero
from titans_runtime.errors import ProviderError
from titans_runtime.native import Kernels, kernels
from titans_runtime.state.calls import Executor, Lanes, LoadOptions, State
from titans_runtime.stream.observe import record
from titans_runtime.tensorfile import MappedTensor

if TYPE_CHECKING:
    import onnxruntime as ort

# Pre-packing re-orders a weight matrix for the matmul kernel and keeps that copy per session. A product with few rows
# then takes half the time or less. A large bundle has nothing worth packing: its matrices are left operands
# (`titans_export.passes.weights_on_left`), which are used in place.
_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16
_QUIET = 3  # errors only; they come back as exceptions as well
# Where a graph that is given as bytes has its external data
_FOLDER = "session.model_external_initializers_file_folder_path"
_TELEMETRY = "ORT_DISABLE_TELEMETRY"


class CpuBackend:
    """The graphs of one bundle on the CPU.

    Raises:
        ProviderError: onnxruntime is not installed.
    """

    provider = "cpu"

    def __init__(self, bundle: Bundle, options: LoadOptions) -> None:
        self._ort = import_onnxruntime()
        self._bundle = bundle
        self._options = options
        self._lock = threading.Lock()
        self._made_in = forks.generation
        forks.keep(self)
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._wide: dict[str, ort.OrtValue] = {}
        self._layouts: dict[int, Layout] = {}
        self._idle: dict[int, list[CpuExecutor]] = {}
        self._weights = wrap_weights(self._ort, bundle)  # must outlive the sessions, which use the memory in place
        for graph in bundle.manifest.graphs:  # all of them now: a stream must not meet a refusal half way
            bundle.graph(graph, self._form(graph))

    def initial(self, batch: int) -> HostState:
        """The beginning of `batch` streams; the same object each time."""
        return self.layout(batch).initial

    def executor(self, batch: int) -> AbstractContextManager[Executor]:
        """An executor, lent for the length of the block."""
        return self.lend(batch)

    @contextmanager
    def lend(self, batch: int) -> Iterator[CpuExecutor]:
        """The executor that was used last, whose bindings are most likely to fit."""
        layout = self.layout(batch)
        idle = self._idle.setdefault(batch, [])
        try:
            executor = idle.pop()
        except IndexError:  # all of them are lent
            executor = CpuExecutor(self, layout)
        try:
            yield executor
        finally:
            idle.append(executor)

    def lanes(self, width: int) -> Lanes:
        """Lanes for `width` streams of different positions."""
        step = self._bundle.manifest.graph("step")
        if step is None:
            raise ValueError("a manifest without a step graph, which Manifest.from_json would have refused")
        return CpuLanes(self, step, width)

    def read(self, state: State) -> dict[str, Array]:
        """Copies of all state tensors."""
        return self.layout(state.batch).read(cast(HostState, state))

    def write(self, tensors: Mapping[str, Array], batch: int, position: int) -> HostState:
        """The state that `read` gave."""
        return self.layout(batch).write(tensors, position)

    def layout(self, batch: int) -> Layout:
        """Where the tensors of `batch` streams are, worked out when first needed."""
        if self._made_in != forks.generation:
            forks.check(self._made_in, "this model")
        found = self._layouts.get(batch)
        if found is None:
            with self._lock:
                found = self._layouts[batch] = self._layouts.get(batch) or Layout(self._bundle, batch)
        return found

    def session(self, graph: GraphSpec) -> ort.InferenceSession:
        """The ONNX Runtime session of a graph, created by whoever needs it first.

        Raises:
            BundleError: ONNX Runtime refuses the graph.
        """
        found = self._sessions.get(graph.name)
        if found is None:
            with self._lock:
                found = self._sessions[graph.name] = self._sessions.get(graph.name) or self._load(graph)
        return found

    def finish_profiles(self) -> dict[str, Path]:
        """End profiling; the file of each graph that ran, by name. Empty unless `LoadOptions.profiles` was given."""
        if self._options.profiles is None:
            return {}
        with self._lock:
            return {name: Path(session.end_profiling()) for name, session in self._sessions.items()}

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

    def weight_inputs(self, session: ort.InferenceSession) -> dict[str, ort.OrtValue]:
        """The half-precision weights that a graph for CPUs takes as float32 inputs, widened once for all graphs."""
        names = [value.name for value in session.get_inputs() if value.name in self._weights]
        if not names:
            return {}
        with self._lock:
            for name in names:
                if name not in self._wide:
                    wide = _float32(self._bundle.weights[name])
                    self._wide[name] = self._ort.OrtValue.ortvalue_from_numpy(wide)
            return {name: self._wide[name] for name in names}

    def _session_options(self) -> ort.SessionOptions:
        options = self._ort.SessionOptions()
        options.log_severity_level = _QUIET
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


def wrap_weights(module: ModuleType, bundle: Bundle) -> dict[str, ort.OrtValue]:
    """The mapped weights as ONNX Runtime takes them, in place, by initializer name."""
    wrap = module.OrtValue
    return {
        name: wrap.ortvalue_from_numpy_with_onnx_type(tensor.array, _BFLOAT16)
        if tensor.dtype == "BF16"
        else wrap.ortvalue_from_numpy(tensor.array)
        for name, tensor in bundle.weights.items()
    }


def create_session(
    module: ModuleType,
    bundle: Bundle,
    graph: GraphSpec,
    form: Form,
    weights: Mapping[str, ort.OrtValue],
    options: ort.SessionOptions,
    **choices: object,
) -> ort.InferenceSession:
    """A session of one of a graph's files, over the bytes that were hashed.

    The weights are used where they are mapped; ONNX Runtime opens their file besides only where it computes something
    with them once and for all. Should that file no longer be the one that is mapped, it gets the mapped bytes instead.

    Args:
        weights: as `wrap_weights` gave them.
        options: what the session is to be; it is changed.
        choices: further arguments of `InferenceSession`.

    Raises:
        BundleError: the graph is not what the manifest says, or ONNX Runtime refuses it.
    """
    checked = bundle.graph(graph, form)
    for name in checked.weights:
        options.add_initializer(name, weights[name])
    replaced = [name for name in checked.weights if name in bundle.replaced]
    if replaced:  # from the beginning: constants are folded before initializers are added
        options.add_external_initializers(replaced, [weights[name] for name in replaced])
    options.add_session_config_entry(_FOLDER, str(bundle.path))
    file = bundle.manifest.weights.file
    try:
        if bundle.weights_in_place():
            session = module.InferenceSession(checked.content, options, **choices)
            if bundle.weights_in_place():  # so they were, all the time
                return session
        data = bundle.weight_file.data
        options.add_external_initializers_from_files_in_memory([file], [data], [len(data)])
        return module.InferenceSession(checked.content, options, **choices)
    except BundleError:
        raise
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        raise BundleError(
            f"{bundle.path / file_of(graph, form)} cannot be loaded by onnxruntime {module.__version__}"
            f" ({first_line(error)})",
            load_remedy(error),
        ) from error


def load_remedy(error: BaseException) -> str:
    """What to do about a session that ONNX Runtime does not make."""
    if out_of_memory(error):
        return "free some memory, or use a smaller model"
    return "upgrade onnxruntime, or export the bundle again"


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was refused."""
    told = str(error).lower()
    return isinstance(error, MemoryError) or any(words in told for words in ("bad_alloc", "allocate", "out of memory"))


def _portable(graph: GraphSpec) -> Form:
    """The file that runs on a CPU without kernels."""
    return "file" if graph.cpu is None else "cpu"


def _float32(tensor: MappedTensor) -> FloatArray:
    """The numbers of a half-precision tensor as float32. A bfloat16 is the upper half of a float32."""
    if tensor.dtype == "BF16":
        return (tensor.array.astype(np.uint32) << 16).view(np.float32)
    return tensor.array.astype(np.float32)


def import_onnxruntime() -> ModuleType:
    """The onnxruntime module, imported when first needed (0.07 s).

    From version 1.29 on it writes a device id and a database of events into the user's cache, and starts a thread,
    unless it is told before its import not to. It is told, unless the user says otherwise in the environment.

    Raises:
        ProviderError: it is not installed.
    """
    os.environ.setdefault(_TELEMETRY, "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise ProviderError(
            f"onnxruntime cannot be imported ({error})", f"run: {install('cpu')}", "not installed"
        ) from error
    module: ModuleType = onnxruntime
    return module


def first_line(error: BaseException) -> str:
    """The first line of an error, without the rest of onnxruntime's report."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
