"""Engines on an NVIDIA device, through TensorRT or TensorRT-RTX themselves: no ONNX Runtime, no torch.

Knows engines, execution contexts and CUDA graphs. Memory and copies are `cuda`'s, engine files `engine_files`'. Both
modules share their Python interface. Exercised against a stand-in of both libraries' calls that enforces their contract
(`tests/standin`); no engine has run on a GPU yet, which is what `pytest -m gpu` is for.

The addresses of all inputs and outputs are set in every run. A step that meets the same blocks for the third time is
captured as a CUDA graph, so that its hundreds of launches become one. Captures, and the runs before them, execute the
model more often than the stream advances. That does no harm here, because no run writes what it reads: carried tensors
go to other blocks, rows to a place of their own, and the state that came in is its own backup.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from titans_format.dtypes import BY_TENSORRT
from titans_format.errors import BundleError
from titans_format.specs import GraphSpec
from titans_runtime.arrays import Array, FloatArray, IdArray
from titans_runtime.bundle import Bundle
from titans_runtime.devices.tensorrt.cuda import Cuda, CudaBuffer, Pinned
from titans_runtime.devices.tensorrt.engine_files import EngineFile, EngineFiles, Environment
from titans_runtime.devices.tensorrt.top_k import TopKEngine
from titans_runtime.devices.tensorrt.top_k_graph import top_k_graph
from titans_runtime.errors import ExecutionError, ProviderError
from titans_runtime.state.blocks import Block, Buffer, Shapes
from titans_runtime.state.device import Traffic

# TensorRT allocates on the first runs of a context; what has run this often launches nothing but kernels.
_RUNS_BEFORE_CAPTURE = 2


class CudaMemory:
    """A CUDA device's memory, and moves in it; what `state.device.Device` asks for but programs."""

    scans_steps = False

    def __init__(self, cuda: Cuda) -> None:
        self.lock = threading.RLock()
        self.traffic = Traffic()
        self._cuda = cuda

    def block(self, shapes: Shapes) -> Block:
        """Tensors of zeros."""
        return Block({name: self.allocate(shape, dtype) for name, shape, dtype in shapes})

    def allocate(self, shape: tuple[int, ...], dtype: str) -> CudaBuffer:
        """A tensor of zeros, which the device writes itself."""
        return self._cuda.zeros(shape, dtype)

    def upload(self, buffer: Buffer, array: Array) -> None:
        """Set a tensor from host memory."""
        target, source = cast(CudaBuffer, buffer), np.ascontiguousarray(array)
        self._cuda.to_device(target.address, source.ctypes.data, target.nbytes)
        self._cuda.wait()
        self.traffic.uploads += 1

    def download(self, buffer: Buffer) -> Array:
        """A copy in host memory."""
        source = cast(CudaBuffer, buffer)
        array = np.empty(source.shape, source.dtype)
        self._cuda.to_host(array.ctypes.data, source.address, source.nbytes)
        self._cuda.wait()
        self.traffic.downloads += 1
        return array

    def finite(self, blocks: Sequence[Block]) -> bool | None:
        """None: only engines compute here."""
        return None

    def rows(self, head: Buffer, first: int, count: int) -> FloatArray:
        """Some tokens' outputs."""
        source = cast(CudaBuffer, head)
        streams, tokens, width = source.shape
        rows = np.empty((streams, count, width), np.float32)
        pieces = [rows] if count == tokens else list(rows)  # what lies in one piece is one copy
        for stream, target in enumerate(pieces):
            start = source.address + (stream * tokens + first) * width * rows.itemsize
            self._cuda.to_host(target.ctypes.data, start, target.nbytes)
        self._cuda.wait()
        self.traffic.outputs += rows.size
        return rows

    def top_k(self, head: Buffer, row: int, count: int) -> tuple[IdArray, FloatArray, FloatArray] | None:
        """None, as `finite`."""
        return None

    def append(
        self, source: Sequence[Buffer], target: Sequence[Buffer], rows: Sequence[Buffer], start: int, count: int
    ) -> None:
        """Put rows into their tables; where the table is another one, with the rows before them."""
        for before, table, fresh in zip(_cuda(source), _cuda(target), _cuda(rows), strict=True):
            row = table.nbytes // table.shape[0]
            if before is not table:
                self._cuda.move(table.address, before.address, start * row)
            self._cuda.move(table.address + start * row, fresh.address, count * row)

    def seat(self, wide: Sequence[Buffer], solo: Sequence[Buffer], lane: int, rows: int | None = None) -> None:
        """Copy one stream's tensors into a lane."""
        for many, one in zip(_cuda(wide), _cuda(solo), strict=True):
            item, pitch, height = _lane(many, 0 if rows is None else 1)
            self._cuda.move_columns(many.address + lane * item, pitch, one.address, item, item, height)

    def pick(self, wide: Sequence[Buffer], solo: Sequence[Buffer], lane: int, rows: int | None = None) -> None:
        """Copy a lane's tensors out."""
        for many, one in zip(_cuda(wide), _cuda(solo), strict=True):
            item, pitch, height = _lane(many, 0 if rows is None else 1)
            self._cuda.move_columns(one.address, item, many.address + lane * item, pitch, item, height)

    def place(
        self, tables: Sequence[Buffer], rows: Sequence[Buffer], places: Sequence[int], lanes: Sequence[int]
    ) -> None:
        """Put one row for each of these lanes into the tables."""
        for table, fresh in zip(_cuda(tables), _cuda(rows), strict=True):
            item, pitch, _ = _lane(table, 1)
            for lane in lanes:
                self._cuda.move(table.address + places[lane] * pitch + lane * item, fresh.address + lane * item, item)

    def keep(self, new: Sequence[Buffer], old: Sequence[Buffer], lanes: Sequence[int]) -> None:
        """Copy lanes from one set of tensors to another."""
        for one, other in zip(_cuda(new), _cuda(old), strict=True):
            item, _, _ = _lane(one, 0)
            for lane in lanes:
                self._cuda.move(one.address + lane * item, other.address + lane * item, item)


class TensorRtDevice(CudaMemory):
    """A device with one bundle's engines. See `state.device.Device` for the contract.

    Args:
        module: `tensorrt` or `tensorrt_rtx`.
        cuda: the device.
        bundle: the model, with engines for this provider.
        backend: the provider's name.

    Raises:
        ProviderError: the bundle has no engines that fit.
    """

    def __init__(self, module: Any, cuda: Cuda, bundle: Bundle, backend: str) -> None:
        super().__init__(cuda)
        self._module = module
        self._log = Log(module)
        self._runtime = module.Runtime(self._log.logger)
        self._bundle = bundle
        top_k = top_k_graph(bundle.manifest)
        extra = [] if top_k is None else [top_k.spec]
        self._files = EngineFiles(bundle, Environment(backend, module.__version__, cuda.capability), extra)
        self._top_k_graph = top_k if top_k is not None and top_k.spec in self._files else None
        self._top_k_engines: dict[int, TopKEngine] = {}  # by the number of streams
        self._engines: dict[str, tuple[EngineFile, Any]] = {}
        for graph in (*bundle.manifest.graphs, *extra):  # all of them now: a stream must not meet a refusal half way
            if graph in self._files:
                self._engines[graph.name] = self._load(graph)

    def program(self, graph: GraphSpec, batch: int) -> EngineProgram:
        """An execution context of its own for so many streams. Raises `ProviderError` if the engine takes fewer."""
        file, engine = self._engines[graph.name]
        self._files.check_batch(file, batch)
        context = engine.create_execution_context()
        if context is None:
            raise ExecutionError(
                f"graph {graph.name!r} gets no execution context ({self._log.last or 'TensorRT gave no reason'})",
                "free some of the device's memory, or use provider='cpu'",
            )
        return EngineProgram(graph, batch, context, self._cuda, self._log, self.traffic)

    def top_k(self, head: Buffer, row: int, count: int) -> tuple[IdArray, FloatArray, FloatArray] | None:
        """The largest outputs of one token, chosen on the device; None without an engine that finds so many."""
        if self._top_k_graph is None or count > self._top_k_graph.count:
            return None
        streams = head.shape[0]
        if streams not in self._top_k_engines:
            self._top_k_engines[streams] = TopKEngine(
                self._cuda, self._top_k_graph, self.program(self._top_k_graph.spec, streams), streams
            )
        found = self._top_k_engines[streams].of(cast(CudaBuffer, head), row, count)
        self.traffic.outputs += sum(array.size for array in found)
        return found

    def _load(self, graph: GraphSpec) -> tuple[EngineFile, Any]:
        file, data = self._files.read(graph)
        self._log.last = ""
        if file.version_compatible:  # it has code for the host; `EngineFiles` saw to it that its maker is trusted
            self._runtime.engine_host_code_allowed = True
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None or (file.strip_weights and not self._refit(engine, graph)):
            refusal = self._files.refused(file, self._log.last or "it gave no reason")
            if engine is None:
                prove_engine(self._module)  # building again is no remedy where no engine runs
            raise refusal
        if wrong := _misfits(self._module, engine, graph):
            raise self._files.refused(file, f"its inputs and outputs are not the graph's: {', '.join(wrong[:5])}")
        return file, engine

    def _refit(self, engine: Any, graph: GraphSpec) -> bool:
        """Give a stripped engine the bundle's weights, those that were hashed."""
        content, bundle = self._bundle.graph(graph).content, self._bundle
        refitter = self._module.Refitter(engine, self._log.logger)
        parser = self._module.OnnxParserRefitter(refitter, self._log.logger)
        done = bundle.weights_in_place() and parser.refit_from_bytes(content, str(bundle.path / graph.file))
        if not bundle.weights_in_place():
            raise BundleError(f"{bundle.path} was replaced while it was loaded", "load it again")
        return bool(done and refitter.refit_cuda_engine())


class EngineProgram:
    """An execution context, with places on both sides of the bus for the data that goes in and comes out."""

    def __init__(self, graph: GraphSpec, batch: int, context: Any, cuda: Cuda, log: Log, traffic: Traffic) -> None:
        self.graph = graph
        self.traffic = traffic
        self.context = context
        self.cuda = cuda
        self.log = log
        self.captures = graph.kind == "step"
        self.shapes = {t.name: tuple(batch if isinstance(n, str) else n for n in t.shape) for t in graph.inputs}
        self._staged: dict[str, tuple[Pinned, CudaBuffer]] = {}

    def bind(
        self,
        data: Mapping[str, Array],
        results: Mapping[str, Array],
        inputs: Mapping[str, Buffer],
        outputs: Mapping[str, Buffer],
    ) -> Callable[[], None]:
        """Give every input and output its place."""
        uploads = [(array, *self._stage(name, array)) for name, array in data.items()]
        downloads = [(array, *self._stage(name, array)) for name, array in results.items()]
        places = {name: cast(CudaBuffer, buffer) for name, buffer in {**inputs, **outputs}.items()}
        places |= {name: self._stage(name, array)[1] for name, array in {**data, **results}.items()}
        return EngineBound(self, uploads, downloads, places).run

    def _stage(self, name: str, array: Array) -> tuple[Pinned, CudaBuffer]:
        if name not in self._staged:
            self._staged[name] = self.cuda.pinned(array), self.cuda.zeros(array.shape, str(array.dtype))
        return self._staged[name]


class EngineBound:
    """A context with all its addresses; a step's is captured once it is warm."""

    def __init__(
        self,
        program: EngineProgram,
        uploads: list[tuple[Array, Pinned, CudaBuffer]],
        downloads: list[tuple[Array, Pinned, CudaBuffer]],
        places: dict[str, CudaBuffer],
    ) -> None:
        self._program = program
        self._uploads, self._downloads = uploads, downloads
        self._places = places  # holds the memory for as long as this binding, and so its captured graph, may be run
        self._runs = 0
        self._captured: Any = None

    def run(self) -> None:
        """Run once."""
        cuda = self._program.cuda
        self._program.traffic.calls += 1
        for array, pinned, _ in self._uploads:
            pinned.array[...] = array
        if self._captured is None and self._program.captures and self._runs >= _RUNS_BEFORE_CAPTURE:
            self._capture()
        if self._captured is None:
            self._enqueue()
        else:
            cuda.launch(self._captured)
        cuda.wait()
        self._runs += 1
        for array, pinned, _ in self._downloads:
            array[...] = pinned.array

    def __del__(self) -> None:
        if self._captured is not None:
            self._program.cuda.drop(self._captured)

    def _capture(self) -> None:
        capturable = getattr(self._program.context, "is_stream_capturable", None)  # TensorRT-RTX asks to be asked
        if capturable is not None and not capturable(self._program.cuda.stream):
            self._program.captures = False
            return
        self._captured = self._program.cuda.capture(self._enqueue)

    def _enqueue(self) -> None:
        """Put everything that a run does into the stream."""
        program, cuda = self._program, self._program.cuda
        for _, pinned, buffer in self._uploads:
            cuda.to_device(buffer.address, pinned.address, buffer.nbytes)
        program.log.last = ""
        ready = [program.context.set_input_shape(name, shape) for name, shape in program.shapes.items()]
        ready += [program.context.set_tensor_address(name, place.address) for name, place in self._places.items()]
        if not (all(ready) and program.context.execute_async_v3(cuda.stream)):
            raise ExecutionError(
                f"graph {program.graph.name!r} failed in TensorRT ({program.log.last or 'it gave no reason'})",
                "nothing has changed: try again, and if it fails again build the engines again or use provider='cpu'",
            )
        for _, pinned, buffer in self._downloads:
            cuda.to_host(pinned.address, buffer.address, buffer.nbytes)


class Log:
    """Keeps TensorRT's last error instead of printing it."""

    def __init__(self, module: Any) -> None:
        self.last = ""
        log = self

        class Logger(module.ILogger):  # type: ignore[misc]  # the base class is known at run time only
            def __init__(self) -> None:
                module.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in (module.ILogger.ERROR, module.ILogger.INTERNAL_ERROR):
                    log.last = " ".join(message.split())

        self.logger = Logger()


def prove_engine(module: Any) -> None:
    """Build an engine that does nothing, and load it. Raises `ProviderError` if this device takes none."""
    log = Log(module)
    builder = module.Builder(log.logger)
    network = builder.create_network(0)
    same = network.add_identity(network.add_input("x", module.DataType.FLOAT, (1,)))
    network.mark_output(same.get_output(0))
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    if plan is None or module.Runtime(log.logger).deserialize_cuda_engine(plan) is None:
        raise ProviderError(
            f"{module.__name__}'s engines do not run on this device ({log.last or 'it gave no reason'})",
            "use another provider, such as cuda",
        )


def _misfits(module: Any, engine: Any, graph: GraphSpec) -> list[str]:
    """The tensors that differ in name, direction, type, shape or place from what the manifest says of the graph."""
    found = set()
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        kind = engine.get_tensor_dtype(name)
        each = BY_TENSORRT.get(getattr(kind, "name", ""))
        dtype = str(kind) if each is None else each.name
        side = "input" if engine.get_tensor_mode(name) == module.TensorIOMode.INPUT else "output"
        place = "device" if engine.get_tensor_location(name) == module.TensorLocation.DEVICE else "host"
        found.add((name, side, dtype, tuple(engine.get_tensor_shape(name)), place))
    wanted = {
        (t.name, side, str(t.dtype), tuple(-1 if isinstance(n, str) else n for n in t.shape), "device")
        for side, tensors in (("input", graph.inputs), ("output", graph.outputs))
        for t in tensors
    }
    return sorted({entry[0] for entry in found ^ wanted})


def _lane(buffer: CudaBuffer, axis: int) -> tuple[int, int, int]:
    """Bytes of one lane's piece, bytes from one piece to the next of the same lane, and how many pieces."""
    if axis == 0:
        item = buffer.nbytes // buffer.shape[0]
        return item, item, 1
    pitch = buffer.nbytes // buffer.shape[0]
    return pitch // buffer.shape[1], pitch, buffer.shape[0]


def _cuda(buffers: Sequence[Buffer]) -> list[CudaBuffer]:
    return cast(list[CudaBuffer], list(buffers))
