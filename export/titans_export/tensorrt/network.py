"""From an ONNX file to a TensorRT network that is what the manifest says: names, shapes, types, places.

Networks are strongly typed, so their types are the engine's. Where a GPU is at hand the finished engine is read back as
well. Knows the parser and how tensors are asked. Does not build.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titans_export.errors import ExportError
from titans_export.passes.sums_as_products import sums_as_products
from titans_format.dtypes import BY_TENSORRT
from titans_format.specs import GraphSpec, TensorSpec

_SHOWN = 3  # parser errors told; the rest follow from them


@dataclass(frozen=True)
class EngineIO:
    """One input or output as TensorRT sees it; -1 is the batch.

    location: "device", or "host" for a tensor that shapes are computed from.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    location: str


class Log:
    """Keeps TensorRT's last error instead of printing it."""

    def __init__(self, module: Any) -> None:
        self.last = ""
        log = self

        class Logger(module.ILogger):  # type: ignore[misc]  # the base class is known at run time only
            def __init__(self) -> None:
                module.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in (module.ILogger.ERROR, module.ILogger.INTERNAL_ERROR) and "cudaError 35" not in message:
                    log.last = " ".join(message.split())  # 35: there is no GPU here, which is no reason

        self.logger = Logger()


def parse(module: Any, backend: str, builder: Any, logger: Any, path: Path, content: bytes) -> Any:
    """The strongly typed network of an ONNX model. Raises `ExportError` with the node, operator and place at fault.

    path: its file, beside which its weights are, and what errors call it.
    """
    flag = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # since 11 there is no other kind
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = module.OnnxParser(network, logger)
    if not parser.parse(sums_as_products(content, path.name) or content, str(path)):
        raise ExportError(
            f"{backend} {module.__version__} refuses {_refusals(parser)}",
            "export the bundle again, and report it if it recurs",
            where=path.name,
        )
    return network


def _refusals(parser: Any) -> str:
    """The first parser errors; a node's name starts with the path of the module that made it."""
    refusals = []
    for error in (parser.get_error(index) for index in range(min(_SHOWN, parser.num_errors))):
        place, _, _ = error.node_name().rpartition("/")
        where = f" in {place}" if place else ""
        refusals.append(
            f"node {error.node()}, {error.node_name()} ({error.node_operator()}){where}: {error.desc().strip()}"
        )
    return "; ".join(refusals) or "the file"


def check_io(module: Any, network: Any, graph: GraphSpec) -> tuple[EngineIO, ...]:
    """The network's inputs and outputs, which must be the manifest's. Raises `ExportError`."""
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    found = tuple(
        EngineIO(t.name, type_name(module, t.dtype), tuple(t.shape), "host" if t.is_shape_tensor else "device")
        for t in tensors
    )
    _compare(graph, found, "TensorRT's network")
    return found


def read_back(module: Any, logger: Any, data: bytes, graph: GraphSpec) -> bool:
    """Compare a finished engine with the manifest; False where this machine cannot load it. Raises `ExportError`."""
    runtime = module.Runtime(logger)
    runtime.engine_host_code_allowed = True  # it was built a moment ago, here
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        return False
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    found = [
        EngineIO(
            name,
            type_name(module, engine.get_tensor_dtype(name)),
            tuple(engine.get_tensor_shape(name)),
            "host" if engine.get_tensor_location(name) == module.TensorLocation.HOST else "device",
        )
        for name in names
    ]
    _compare(graph, found, "the finished engine")
    return True


def check_precision(module: Any, network: Any, graph: GraphSpec, dtype: str) -> dict[str, int]:
    """How many layers compute in each type. Raises `ExportError` if a half-precision graph has none that do."""
    layers = (network.get_layer(index) for index in range(network.num_layers))
    counts = Counter(type_name(module, layer.get_output(0).dtype) for layer in layers)
    wanted = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}[dtype]
    if graph.tokens and not counts[wanted]:  # a commit is memory alone, and that is fp32
        raise ExportError(
            f"the manifest says {dtype}, and no layer computes in {wanted} (there are {dict(counts)})",
            "export the bundle again",
            where=graph.file,
        )
    return dict(sorted(counts.items()))


def profile(builder: Any, network: Any, batch: tuple[int, int, int]) -> Any:
    """Shapes from the smallest to the largest batch; everything else is static."""
    made = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(tensor.shape)
        made.set_shape(tensor.name, *(tuple(size if axis == -1 else axis for axis in shape) for size in batch))
    return made


def type_name(module: Any, dtype: Any) -> str:
    """The manifest's name of a TensorRT type."""
    for name, each in BY_TENSORRT.items():
        if dtype == getattr(module.DataType, name, None):
            return each.name
    return str(dtype)


def _compare(graph: GraphSpec, found: Iterable[EngineIO], what: str) -> None:
    there = {item.name: item for item in found}
    wanted = {tensor.name: _wanted(tensor) for tensor in (*graph.inputs, *graph.outputs)}
    for name in sorted({*there, *wanted}):
        if there.get(name) != wanted.get(name):
            raise ExportError(
                f"{name} is {_text(there.get(name))} in {what} and {_text(wanted.get(name))} in the manifest",
                "export the bundle again, and report it if it recurs",
                where=graph.file,
            )


def _wanted(tensor: TensorSpec) -> EngineIO:
    shape = tuple(-1 if isinstance(size, str) else size for size in tensor.shape)
    return EngineIO(tensor.name, tensor.dtype, shape, "device")


def _text(item: EngineIO | None) -> str:
    return "missing" if item is None else f"{item.dtype} {list(item.shape)} on the {item.location}"
