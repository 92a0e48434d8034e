"""A stand-in for `tensorrt` and `tensorrt_rtx` whose engines are run by ONNX Runtime, in a `FakeCuda`'s streams.

It keeps TensorRT's contract strictly: an address for every input and output, aligned to 256 bytes and with room for the
tensor; shapes inside the profile, for every input; outputs apart from inputs; a first run before a capture. What
TensorRT answers with False or None is answered so here, and what it calls undefined is a `Violation`.

An engine file is a line of JSON that names the ONNX graph; `write_engines` makes them, with the sidecars of the real
builder's own types.
"""

from __future__ import annotations

import enum
import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from tests.standin.cuda import ALIGNMENT, FakeCuda, Span, Violation, Work
from titans_export.tensorrt.engines import SIDECAR_FORMAT, Engine
from titans_format.manifest import Manifest
from titans_runtime.bundle import open_bundle
from titans_runtime.devices.denormals import with_denormals_as_zero
from titans_runtime.devices.ort_sessions import wrap_weights
from titans_runtime.devices.tensorrt.engine_key import signed
from titans_runtime.devices.tensorrt.top_k_graph import top_k_graph

TINY = b"an engine that does nothing"
MAGIC = b"standin engine "


class DataType(enum.Enum):
    FLOAT, HALF, INT64, INT32, BOOL = "float32", "float16", "int64", "int32", "bool"


class TensorIOMode(enum.Enum):
    INPUT, OUTPUT = 1, 2


class TensorLocation(enum.Enum):
    DEVICE, HOST = 0, 1


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING = 0, 1, 2

    def log(self, severity: int, message: str) -> None:
        raise NotImplementedError


class FakeTensorRT:
    """The module. `capturable`: what contexts answer when asked; `supported`: whether the device takes engines."""

    __name__ = "tensorrt_rtx"

    DataType, TensorIOMode, TensorLocation, ILogger = DataType, TensorIOMode, TensorLocation, ILogger

    def __init__(self, cuda: FakeCuda, version: str = "1.7.1") -> None:
        self.__version__ = version
        self.cuda = cuda
        self.capturable = True
        self.supported = True
        self.out_of_memory = False
        self.executions = 0

    def Runtime(self, logger: ILogger) -> FakeRuntime:
        return FakeRuntime(self, logger)

    def Builder(self, logger: ILogger) -> FakeTinyBuilder:
        return FakeTinyBuilder()

    def Refitter(self, engine: FakeEngine, logger: ILogger) -> FakeRefitter:
        return FakeRefitter(engine, logger)

    def OnnxParserRefitter(self, refitter: FakeRefitter, logger: ILogger) -> FakeOnnxParserRefitter:
        return FakeOnnxParserRefitter(refitter)


class FakeTinyBuilder:
    """As much of a builder as an engine takes whose output is its input."""

    def create_network(self, flags: int) -> FakeTinyBuilder:
        assert flags == 0
        return self

    def add_input(self, name: str, dtype: DataType, shape: tuple[int, ...]) -> str:
        return name

    def add_identity(self, tensor: str) -> FakeTinyBuilder:
        return self

    def get_output(self, index: int) -> str:
        return "y"

    def mark_output(self, tensor: str) -> None:
        assert tensor == "y"

    def create_builder_config(self) -> None: ...

    def build_serialized_network(self, network: FakeTinyBuilder, config: None) -> bytes:
        return TINY


class FakeRuntime:
    def __init__(self, module: FakeTensorRT, logger: ILogger) -> None:
        self.module, self.logger = module, logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, data: bytes) -> FakeEngine | object | None:
        if not self.module.supported:
            self.logger.log(ILogger.ERROR, "TensorRT-RTX does not support this compute capability")
            return None
        if data == TINY:
            return object()
        if not data.startswith(MAGIC):
            self.logger.log(ILogger.ERROR, "magic tag\nis wrong")
            return None
        facts = json.loads(data[len(MAGIC) :])
        if facts["version_compatible"] and not self.engine_host_code_allowed:
            self.logger.log(ILogger.ERROR, "engine contains host code")
            return None
        return FakeEngine(self, facts)


class FakeEngine:
    def __init__(self, runtime: FakeRuntime, facts: dict[str, Any]) -> None:
        self.runtime = runtime
        bundle = open_bundle(facts["bundle"])
        top_k = top_k_graph(bundle.manifest)
        graphs = [*bundle.manifest.graphs, *([] if top_k is None else [top_k.spec])]
        graph = next(graph for graph in graphs if graph.name == facts["graph"])
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        self._weights = wrap_weights(onnxruntime, bundle)
        for name, value in self._weights.items():
            options.add_initializer(name, value)
        self.session = with_denormals_as_zero(  # the first session would set it for this thread for good
            lambda: onnxruntime.InferenceSession(
                top_k.onnx if top_k is not None and graph is top_k.spec else str(bundle.path / graph.file),
                options,
                providers=["CPUExecutionProvider"],
            )
        )
        self.batch: tuple[int, int, int] = tuple(facts["batch"])
        self.inputs = {tensor.name: tensor for tensor in graph.inputs}
        self.outputs = {tensor.name: tensor for tensor in graph.outputs}
        self.tensors = {**self.inputs, **self.outputs}
        self.retyped: dict[str, str] = facts.get("retyped", {})
        self.graph_file = bundle.path / graph.file
        self.weightless: bool = facts["strip_weights"]

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType(self.retyped.get(name, self.tensors[name].dtype))

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.DEVICE

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(-1 if isinstance(size, str) else size for size in self.tensors[name].shape)

    def create_execution_context(self) -> FakeContext | None:
        if self.weightless:
            raise Violation("an engine without weights is run before it is refitted")
        if self.runtime.module.out_of_memory:
            self.runtime.logger.log(ILogger.ERROR, "out of memory")
            return None
        return FakeContext(self)


class FakeRefitter:
    def __init__(self, engine: FakeEngine, logger: ILogger) -> None:
        self.engine, self.logger, self.filled = engine, logger, False

    def refit_cuda_engine(self) -> bool:
        if not self.filled:
            self.logger.log(ILogger.ERROR, "missing weights")
            return False
        self.engine.weightless = False
        return True


class FakeOnnxParserRefitter:
    def __init__(self, refitter: FakeRefitter) -> None:
        self.refitter = refitter

    def refit_from_bytes(self, content: bytes, path: str) -> bool:
        file = self.refitter.engine.graph_file
        self.refitter.filled = Path(path) == file and content == file.read_bytes()
        return self.refitter.filled


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.module = engine.runtime.module
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.warm: tuple[Any, ...] | None = None  # the shapes of the last run outside a capture

    def is_stream_capturable(self, stream: int) -> bool:
        self.module.cuda.stream(stream)
        return self.module.capturable

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self.engine.batch
        sizes = self.engine.get_tensor_shape(name) if name in self.engine.inputs else ()
        fits = len(sizes) == len(shape) and all(
            low <= given <= high if size == -1 else size == given for size, given in zip(sizes, shape, strict=True)
        )
        if not fits:
            self.engine.runtime.logger.log(ILogger.ERROR, f"shape {shape} of {name} is outside the profile")
            return False
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self.engine.tensors:
            return False
        if memory % ALIGNMENT:
            raise Violation(f"the address of {name} is not aligned to {ALIGNMENT} bytes")
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream: int) -> bool:
        cuda, engine = self.module.cuda, self.engine
        if missing := [name for name in engine.inputs if name not in self.shapes]:
            raise Violation(f"no shape was set for {missing}")
        if missing := [name for name in engine.tensors if name not in self.addresses]:
            raise Violation(f"no address was set for {missing}")
        batch = {
            size
            for name, shape in self.shapes.items()
            for size, asked in zip(shape, engine.get_tensor_shape(name), strict=True)
            if asked == -1
        }
        if len(batch) != 1:
            raise Violation(f"inputs disagree on the number of streams: {batch}")
        spans = {name: self._span(name, batch.copy().pop()) for name in engine.tensors}
        reads, writes = [spans[n] for n in engine.inputs], [spans[n] for n in engine.outputs]
        for i, one in enumerate(writes):
            if any(one.meets(other) for other in (*reads, *writes[i + 1 :])):
                raise Violation("an output lies over an input or another output")
        where = cuda.stream(stream)
        shapes = tuple(sorted(self.shapes.items()))
        if where.capturing is not None and self.warm != shapes:
            raise Violation("a capture of shapes that the context has not run before")
        feeds = {name: (spans[name], self.shapes[name]) for name in engine.inputs}
        if where.capturing is None:
            self.warm = shapes

        def run() -> None:
            self.module.executions += 1
            arrays = {
                name: cuda.view(span).copy().view(engine.inputs[name].dtype).reshape(shape)
                for name, (span, shape) in feeds.items()
            }
            results = with_denormals_as_zero(lambda: engine.session.run(list(engine.outputs), arrays))
            for name, value in zip(engine.outputs, results, strict=True):
                data = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
                if data.size != spans[name].nbytes:
                    raise Violation(f"{name} has {data.size} bytes, and its place {spans[name].nbytes}")
                cuda.view(spans[name])[:] = data

        cuda.put(where, Work(f"engine {engine.session.get_modelmeta().graph_name}", reads, writes, run))
        return True

    def _span(self, name: str, batch: int) -> Span:
        shape = [batch if size == -1 else size for size in self.engine.get_tensor_shape(name)]
        size = int(np.prod(shape)) * np.dtype(self.engine.tensors[name].dtype).itemsize
        return Span(self.addresses[name], size)


def write_engines(
    bundle: Path,
    *,
    backend: str = "tensorrt-rtx",
    version: str = "1.7.1",
    sm: tuple[int, ...] = (86,),
    batch: tuple[int, int, int] = (1, 1, 8),
    retyped: dict[str, str] | None = None,
    **compatible: bool,
) -> list[Path]:
    """Engines for every graph of a bundle, as `titans build` would leave them; returns their paths.

    compatible: `Engine`'s version_compatible, hardware_compatible, strip_weights.
    """
    manifest = Manifest.from_json((bundle / "manifest.json").read_text())
    top_k = top_k_graph(manifest)
    paths = []
    for graph in (*manifest.graphs, *([] if top_k is None else [top_k.spec])):
        if top_k is not None and graph is top_k.spec and "strip_weights" in compatible:
            compatible = {**compatible, "strip_weights": False}  # it has none
        facts = {"bundle": str(bundle), "graph": graph.name, "batch": batch, "retyped": retyped or {}}
        facts |= {name: compatible.get(name, False) for name in ("version_compatible", "strip_weights")}
        data = MAGIC + json.dumps(facts).encode()
        engine = Engine(
            backend=backend,
            tensorrt=version,
            graph=graph.name,
            file=f"engines/{backend}-{'-'.join(map(str, sm)) or 'here'}/{graph.name}.engine",
            sha256=hashlib.sha256(data).hexdigest(),
            bytes=len(data),
            onnx_sha256=graph.sha256,
            weights_sha256=manifest.weights.sha256,
            batch=batch,
            sm=sm,
            io=(),
            **compatible,
        )
        path = bundle / engine.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        write_sidecar(path, engine)
        paths.append(path)
    return paths


def write_sidecar(path: Path, engine: Engine, **changes: Any) -> None:
    """The sidecar of an engine, with some fields changed, signed as `titans build` signs it."""
    text = json.dumps(signed(json.loads(json.dumps(SIDECAR_FORMAT | asdict(replace(engine, **changes))))), indent=1)
    path.with_suffix(".json").write_text(text + "\n")
