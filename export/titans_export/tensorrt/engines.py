"""TensorRT engines from a bundle's graphs, built ahead of time, on a machine that need not have a GPU.

One builder for TensorRT and TensorRT-RTX. Networks are strongly typed: precision is what the ONNX graph says, never a
flag. Every engine gets a sidecar that says what it was built from and for; the runtime refuses an engine that does not
fit. Knows the order of a build and the files. `options` knows settings, `network` what is compared.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from titans_export.errors import ExportError
from titans_export.tensorrt.memory import check_memory
from titans_export.tensorrt.network import EngineIO, Log, check_io, check_precision, parse, profile, read_back
from titans_export.tensorrt.options import (
    BuildOptions,
    check_offered,
    configure,
    import_module,
    load_timing_cache,
    timings,
)
from titans_format.manifest import Manifest
from titans_format.progress import ReportProgress
from titans_format.specs import GraphSpec
from titans_runtime.atomic import replace_file
from titans_runtime.bundle import open_bundle
from titans_runtime.devices.tensorrt import modules as tensorrt_modules
from titans_runtime.devices.tensorrt import nvidia
from titans_runtime.devices.tensorrt.engine_key import signed
from titans_runtime.devices.tensorrt.top_k_graph import top_k_graph
from titans_runtime.errors import ProviderError

ENGINES = "engines"
SIDECAR_FORMAT = {"format": "titans-engine", "format_version": 1}
STEPS = 1000  # parts of a graph that progress is told in


@dataclass(frozen=True)
class Engine:
    """One built engine and what its sidecar says.

    Attributes:
        sm: compute capabilities it was built for; () where the builder named none.
        read_back: what `io` was taken from and compared with the manifest: the finished "engine", where a GPU is at
            hand, or the strongly typed "network" it was built from.
        layers: how many layers compute in each type.
    """

    backend: str
    tensorrt: str  # version that built it, and must run it
    graph: str
    file: str
    sha256: str
    bytes: int
    onnx_sha256: str
    weights_sha256: str
    batch: tuple[int, int, int]
    sm: tuple[int, ...]
    io: tuple[EngineIO, ...]
    dtype: str = "fp32"
    version_compatible: bool = False
    hardware_compatible: bool = False
    refit: bool = False
    strip_weights: bool = False
    seconds: float = 0.0
    read_back: str = "network"
    layers: dict[str, int] = field(default_factory=dict)


def build_engines(
    bundle: Path,
    *,
    backend: str,
    options: BuildOptions | None = None,
    ignore_memory: bool = False,
    progress: ReportProgress | None = None,
) -> list[Engine]:
    """Build an engine for every graph of a bundle, into `engines/<target>/` inside it.

    Args:
        bundle: the bundle directory; its hashes are checked first.
        backend: `tensorrt-rtx` or `tensorrt`.
        options: what to build for.
        ignore_memory: build even where memory will hardly do.
        progress: called with (parts done, parts).

    Returns:
        What was built, one entry per graph, and for a token model the engine that top_k among its logits.

    Raises:
        BundleError: the bundle is damaged.
        ExportError: the module is missing or does not offer an option, the bundle is not for GPUs, memory will not do,
            TensorRT refuses a graph (the node is named), or an engine is not what the manifest says.
    """
    options = options or BuildOptions()
    module = import_module(backend)
    opened = open_bundle(bundle)
    manifest = opened.manifest
    if manifest.providers is not None and backend not in manifest.providers:
        raise ExportError(
            f"{bundle} is a {manifest.dtype} bundle for {', '.join(manifest.providers)} only",
            "export the checkpoint with --dtype fp16, bf16 or fp32",
        )
    check_offered(module, backend, options)
    if missing := sorted({graph.file for graph in manifest.graphs} & set(manifest.omitted)):
        raise ExportError(
            f"{bundle} was slimmed to its engines and has no {missing[0]}", "build in the bundle that it was made from"
        )
    contents = [opened.graph(graph).content for graph in manifest.graphs]
    if not ignore_memory:
        check_memory(contents)
    directory = f"{ENGINES}/{_target(backend, options)}"
    built = []
    for number, graph in enumerate(manifest.graphs):

        def tell(share: float, number: int = number) -> None:
            if progress is not None:
                progress(int((number + share) * STEPS), len(manifest.graphs) * STEPS)

        engine, data = _Build(module, backend, options, tell).build(
            bundle, manifest, graph, directory, contents[number]
        )
        _write_engine(bundle, engine, data)
        built.append(engine)
        tell(1.0)
    if (top_k := top_k_graph(manifest)) is not None:
        whole = replace(options, refit=False, strip_weights=False)  # it has no weights
        build = _Build(module, backend, whole, lambda share: None)
        engine, data = build.build(bundle, manifest, top_k.spec, directory, top_k.onnx)
        _write_engine(bundle, engine, data)
        built.append(engine)
    return built


def _write_engine(bundle: Path, engine: Engine, data: bytes) -> None:
    """An engine and its sidecar, which this user signs."""
    _write(bundle / engine.file, data)
    sidecar = json.dumps(signed(json.loads(json.dumps(SIDECAR_FORMAT | asdict(engine)))), indent=1) + "\n"
    _write((bundle / engine.file).with_suffix(".json"), sidecar.encode())


def _target(backend: str, options: BuildOptions) -> str:
    """The folder of engines for one purpose: engines for other purposes stay."""
    parts = [backend, *(f"sm{sm}" for sm in options.sm)]
    parts += [name.replace("_", "-") for name in ("version_compatible", "hardware_compatible", "refit", "strip_weights")
              if getattr(options, name)]  # fmt: skip
    return "-".join(parts)


@dataclass
class _Build:
    """One build, and how it goes."""

    module: Any
    backend: str
    options: BuildOptions
    tell: Callable[[float], None]

    def build(
        self, bundle: Path, manifest: Manifest, graph: GraphSpec, directory: str, content: bytes
    ) -> tuple[Engine, bytes]:
        """An engine and its bytes; `content` is the graph."""
        module, started = self.module, time.perf_counter()
        log = Log(module)
        builder = module.Builder(log.logger)
        network = parse(module, self.backend, builder, log.logger, bundle / graph.file, content)
        io = check_io(module, network, graph)
        layers = check_precision(module, network, graph, manifest.dtype)
        data = self._serialised(builder, network, graph, log)
        with_gpu = nvidia.has_driver() and not self.options.strip_weights
        loaded = with_gpu and read_back(module, log.logger, data, graph)
        return Engine(
            backend=self.backend,
            tensorrt=module.__version__,
            graph=graph.name,
            file=f"{directory}/{graph.name}.engine",
            sha256=hashlib.sha256(data).hexdigest(),
            bytes=len(data),
            onnx_sha256=graph.sha256,
            weights_sha256=manifest.weights.sha256,
            batch=self.options.batch,
            sm=self._targets(),
            dtype=manifest.dtype,
            version_compatible=self.options.version_compatible,
            hardware_compatible=self.options.hardware_compatible,
            refit=self.options.refit or self.options.strip_weights,
            strip_weights=self.options.strip_weights,
            seconds=round(time.perf_counter() - started, 2),
            read_back="engine" if loaded else "network",
            layers=layers,
            io=io,
        ), data

    def _targets(self) -> tuple[int, ...]:
        """What the engine is for: what was asked for, or the GPU here where TensorRT builds for that alone."""
        if self.backend == "tensorrt" and nvidia.has_driver():
            with contextlib.suppress(ProviderError):
                return (tensorrt_modules.capability(self.backend),)
        return self.options.sm

    def _serialised(self, builder: Any, network: Any, graph: GraphSpec, log: Log) -> bytes:
        config = builder.create_builder_config()
        config.add_optimization_profile(profile(builder, network, self.options.batch))
        configure(self.module, self.backend, config, self.options)
        load_timing_cache(config, self.options.timing_cache)
        if hasattr(self.module, "IProgressMonitor"):
            config.progress_monitor = monitor(self.module, self.tell)
        data = builder.build_serialized_network(network, config)
        if data is None:
            reason = log.last or "TensorRT gave no reason"
            if self.options.needs_gpu and not nvidia.has_driver():
                raise ExportError(
                    f"{self.backend} builds {' and '.join(self.options.needs_gpu)} only where there is a"
                    f" GPU, and there is none here ({reason})",
                    "leave that out, or build on such a machine",
                    where=graph.file,
                )
            raise ExportError(
                f"the build failed ({reason})",
                "try a smaller --batch or another --sm, and see that there is enough memory",
                where=graph.file,
            )
        if self.options.timing_cache is not None:
            _write(self.options.timing_cache, timings(config))
        return bytes(memoryview(data))


def monitor(module: Any, tell: Callable[[float], None]) -> Any:
    """TensorRT's progress monitor, told as the share of the outermost phase that is done."""

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]  # the base class is known at run time only
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self.open: list[tuple[str, int]] = []  # phases from the outermost in, and their steps
            self.done: dict[str, int] = {}
            self.reported = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            while self.open and self.open[-1][0] != parent_phase:
                self.open.pop()
            self.open.append((phase_name, max(1, num_steps)))
            self.done[phase_name] = 0

        def phase_finish(self, phase_name: str) -> None:
            self.open = [phase for phase in self.open if phase[0] != phase_name]

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.done[phase_name] = step + 1
            share, width = 0.0, 1.0
            for name, steps in self.open:
                share += width * min(self.done[name], steps) / steps
                width /= steps
            if share >= self.reported + 1 / STEPS:  # a phase may begin anew inside the same step of the one around it
                self.reported = min(share, 1.0)
                tell(self.reported)
            return True  # go on

    return Monitor()


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all. Raises `ExportError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, data)
    except OSError as error:
        raise ExportError(
            f"cannot write {path} ({error.strerror})", "free some space or check the permissions"
        ) from error
