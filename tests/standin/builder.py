"""A stand-in for the building half of `tensorrt`, as version 10 or 11 offers it: it records what it is told.

Networks are read from the ONNX file itself. Version 11 has no STRONGLY_TYPED flag any more, since there is no other
kind of network. An engine is a line of text that can be read back.
"""

from __future__ import annotations

import enum
import json
from types import SimpleNamespace
from typing import Any

import onnx

from tests.standin.tensorrt import ILogger, TensorLocation


class DataType(enum.Enum):
    FLOAT, HALF, BF16, INT64, INT32, BOOL = 1, 10, 16, 7, 6, 9  # numbered as in ONNX


class BuilderFlag(enum.Enum):
    REFIT, STRIP_PLAN, VERSION_COMPATIBLE = range(3)


class TypingFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class HardwareCompatibilityLevel(enum.Enum):
    NONE, AMPERE_PLUS = range(2)


class IProgressMonitor:
    pass


class FakeBuilderModule:
    """The module. `configs`: every configuration that was built with; `typed`: the flags networks were made with."""

    DataType, BuilderFlag, ILogger, TensorLocation = DataType, BuilderFlag, ILogger, TensorLocation
    HardwareCompatibilityLevel, IProgressMonitor = HardwareCompatibilityLevel, IProgressMonitor
    MemoryPoolType = enum.Enum("MemoryPoolType", ["WORKSPACE"])

    def __init__(self, version: str) -> None:
        self.__version__ = version
        weak = int(version.split(".")[0]) >= 11
        self.NetworkDefinitionCreationFlag = SimpleNamespace() if weak else TypingFlag
        self.configs: list[FakeConfig] = []
        self.typed: list[int] = []
        self.answer: dict[str, Any] = {}  # what a finished engine says about tensors, instead of the truth

    def Builder(self, logger: Any) -> FakeBuilder:
        return FakeBuilder(self)

    def OnnxParser(self, network: FakeNetwork, logger: Any) -> FakeParser:
        return FakeParser(network)

    def Runtime(self, logger: Any) -> FakeRuntime:
        return FakeRuntime(self)


class FakeConfig:
    def __init__(self) -> None:
        self.flags: set[BuilderFlag] = set()
        self.pools: dict[Any, int] = {}
        self.profiles: list[dict[str, tuple[tuple[int, ...], ...]]] = []
        self.cache: bytes | None = None
        self.progress_monitor: Any = None
        self.builder_optimization_level = 3
        self.hardware_compatibility_level = HardwareCompatibilityLevel.NONE

    def set_flag(self, flag: BuilderFlag) -> None:
        self.flags.add(flag)

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.pools[pool] = size

    def add_optimization_profile(self, profile: FakeProfile) -> None:
        self.profiles.append(profile.shapes)

    def create_timing_cache(self, data: bytes) -> bytes:
        return data

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return ignore_mismatch or not cache.startswith(b"other")

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: (self.cache or b"") + b"timed;")


class FakeProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        self.shapes[name] = shapes


class FakeNetwork:
    def __init__(self) -> None:
        self.graph = onnx.GraphProto()
        self.types: dict[str, int] = {}

    @property
    def num_inputs(self) -> int:
        return len(self.graph.input)

    @property
    def num_outputs(self) -> int:
        return len(self.graph.output)

    @property
    def num_layers(self) -> int:
        return len(self.graph.node)

    def get_input(self, index: int) -> Any:
        return _tensor(self.graph.input[index])

    def get_output(self, index: int) -> Any:
        return _tensor(self.graph.output[index])

    def get_layer(self, index: int) -> Any:
        dtype = DataType(self.types.get(self.graph.node[index].output[0], DataType.INT64.value))
        return SimpleNamespace(get_output=lambda place: SimpleNamespace(dtype=dtype))


def _tensor(value: onnx.ValueInfoProto) -> Any:
    kind = value.type.tensor_type
    shape = tuple(-1 if axis.dim_param else axis.dim_value for axis in kind.shape.dim)
    return SimpleNamespace(name=value.name, dtype=DataType(kind.elem_type), shape=shape, is_shape_tensor=False)


class FakeParser:
    num_errors = 0

    def __init__(self, network: FakeNetwork) -> None:
        self.network = network

    def parse(self, content: bytes, path: str) -> bool:
        graph = onnx.load_from_string(content).graph
        self.network.graph = graph
        known = (*graph.value_info, *graph.input, *graph.output)
        self.network.types = {value.name: value.type.tensor_type.elem_type for value in known}
        return True


class FakeBuilder:
    def __init__(self, module: FakeBuilderModule) -> None:
        self.module = module

    def create_network(self, flags: int) -> FakeNetwork:
        self.module.typed.append(flags)
        return FakeNetwork()

    def create_builder_config(self) -> FakeConfig:
        return FakeConfig()

    def create_optimization_profile(self) -> FakeProfile:
        return FakeProfile()

    def build_serialized_network(self, network: FakeNetwork, config: FakeConfig) -> bytes:
        self.module.configs.append(config)
        monitor = config.progress_monitor
        monitor.phase_start("Building engine", None, 2)
        for step in range(2):
            monitor.phase_start("Timing", "Building engine", 4)
            for part in range(4):
                assert monitor.step_complete("Timing", part)
            monitor.phase_finish("Timing")
            assert monitor.step_complete("Building engine", step)
        monitor.phase_finish("Building engine")
        tensors = [network.get_input(i) for i in range(network.num_inputs)]
        tensors += [network.get_output(i) for i in range(network.num_outputs)]
        return json.dumps({t.name: [t.dtype.name, t.shape] for t in tensors}).encode()


class FakeRuntime:
    def __init__(self, module: FakeBuilderModule) -> None:
        self.module = module

    def deserialize_cuda_engine(self, data: bytes) -> Any:
        facts = json.loads(data) | self.module.answer
        names = list(facts)
        return SimpleNamespace(
            num_io_tensors=len(names),
            get_tensor_name=lambda index: names[index],
            get_tensor_dtype=lambda name: DataType[facts[name][0]],
            get_tensor_shape=lambda name: tuple(facts[name][1]),
            get_tensor_location=lambda name: TensorLocation.DEVICE,
        )
