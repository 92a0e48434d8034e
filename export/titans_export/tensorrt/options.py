"""What an engine is built for, and how that is said to each TensorRT module.

`tensorrt` and `tensorrt_rtx` share their Python interface, but not what it does: TensorRT-RTX accepts some settings and
ignores them, or fails for want of a library it does not ship. Here a wish that the module does not fulfil is an error.
Knows the modules' names for settings. Does not build.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titans_export.errors import ExportError
from titans_format.files import MIB, read_regular, shown
from titans_format.install import install
from titans_runtime.errors import os_remedy

_MOST_TIMINGS = 256 * MIB

MODULES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}

# Seen with 1.7.1: the first two are accepted with a warning and do nothing, the last ends in a missing library.
_NOT_IN_RTX = {
    "hardware_compatible": "its engines run on every GPU of the targets that --sm names, or on any without --sm",
    "timing_cache": "it times nothing when it builds; the finished engine is compiled where it runs, and cached there",
    "version_compatible": "the library for that is not part of it",
}
_FLAGS = {"version_compatible": "VERSION_COMPATIBLE", "refit": "REFIT", "strip_weights": "STRIP_PLAN"}


@dataclass(frozen=True)
class BuildOptions:
    """What to build for.

    Attributes:
        batch: smallest, usual and largest number of streams.
        sm: compute capabilities such as 86; none is whatever GPU runs it (TensorRT-RTX) or the one here (TensorRT).
        workspace_mib: limit of the builder's scratch memory; None is TensorRT's own.
        level: the builder's optimisation level, 0 to 5; None is TensorRT's own.
        version_compatible: the engine runs with later TensorRTs too.
        hardware_compatible: the engine runs on every GPU from Ampere on.
        refit: weights can be replaced later.
        strip_weights: the engine holds no weights; they are put in from the ONNX file before it runs. Implies refit.
        timing_cache: a file of tactic timings to read if it is there, and to write.
    """

    batch: tuple[int, int, int] = (1, 1, 8)
    sm: tuple[int, ...] = ()
    workspace_mib: int | None = None
    level: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    refit: bool = False
    strip_weights: bool = False
    timing_cache: Path | None = None

    def __post_init__(self) -> None:
        low, usual, high = self.batch
        if not 1 <= low <= usual <= high:
            raise ExportError(
                f"batch sizes {low}, {usual}, {high} are not in order", "give them as 1 <= min <= opt <= max"
            )
        if len(set(self.sm)) != len(self.sm):
            raise ExportError(f"--sm names a target twice: {', '.join(map(str, self.sm))}", "name each once")

    @property
    def needs_gpu(self) -> tuple[str, ...]:
        """Options that TensorRT-RTX fulfils only where there is a GPU."""
        return tuple(f"--{name.replace('_', '-')}" for name in ("refit", "strip_weights") if getattr(self, name))


def import_module(backend: str) -> Any:
    """The TensorRT module of a backend. Raises `ExportError`."""
    if backend not in MODULES:
        raise ExportError(f"unknown backend {backend!r}", f"use one of {', '.join(MODULES)}")
    try:
        return importlib.import_module(MODULES[backend])
    except (ImportError, OSError) as error:  # OSError: the bindings are there, the libraries are not
        raise ExportError(f"{MODULES[backend]} cannot be imported ({error})", f"run: {install(backend)}") from error


def check_offered(module: Any, backend: str, options: BuildOptions) -> None:
    """Raise `ExportError` for a wish that the module would refuse or ignore."""
    for name, reason in _NOT_IN_RTX.items():
        if backend == "tensorrt-rtx" and getattr(options, name):
            raise _not_offered(module, backend, name, reason)
    for name, flag in _FLAGS.items():
        if getattr(options, name) and not hasattr(module.BuilderFlag, flag):
            raise _not_offered(module, backend, name, "this version does not have it")
    if options.hardware_compatible and not hasattr(module, "HardwareCompatibilityLevel"):
        raise _not_offered(module, backend, "hardware_compatible", "this version does not have it")
    if options.sm:
        _targets(module, backend, options.sm)


def configure(module: Any, backend: str, config: Any, options: BuildOptions) -> None:
    """Say everything but the timing cache and the profile to a builder configuration."""
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if options.level is not None:
        config.builder_optimization_level = options.level
    wanted = {name for name in _FLAGS if getattr(options, name)}
    if options.strip_weights:
        wanted.add("refit")
    for name in sorted(wanted):
        config.set_flag(getattr(module.BuilderFlag, _FLAGS[name]))
    if options.hardware_compatible:
        config.hardware_compatibility_level = module.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.sm:
        targets = _targets(module, backend, options.sm)
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            config.set_compute_capability(target, index)


def load_timing_cache(config: Any, path: Path | None) -> None:
    """Let a configuration use the timings of a file; a missing file is an empty one. Raises `ExportError`."""
    if path is None:
        return
    try:
        data = read_regular(path, _MOST_TIMINGS) if path.exists() else b""
    except OSError as error:
        raise ExportError(shown(path, error), os_remedy(error)) from error
    if not config.set_timing_cache(config.create_timing_cache(data), False):
        raise ExportError(f"{path} was made by another TensorRT or on another GPU", "name another file, or remove it")


def timings(config: Any) -> bytes:
    """What a configuration's timing cache holds after a build."""
    return bytes(memoryview(config.get_timing_cache().serialize()))


def _not_offered(module: Any, backend: str, name: str, reason: str) -> ExportError:
    option = f"--{name.replace('_', '-')}"
    return ExportError(f"{backend} {module.__version__} does not offer {option}: {reason}", "leave it out")


def _targets(module: Any, backend: str, capabilities: Sequence[int]) -> list[Any]:
    offered = vars(getattr(module, "ComputeCapability", object)).items()
    known = {name[2:]: value for name, value in offered if name.startswith("SM")}
    unknown = [sm for sm in capabilities if str(sm) not in known]
    if unknown:
        knows = f"it knows {', '.join(sorted(known, key=int))}" if known else "it builds for the GPU that it runs on"
        raise ExportError(
            f"{backend} {module.__version__} cannot target SM {', '.join(map(str, unknown))}",
            f"{knows}; {'choose among these' if known else 'leave --sm out, and build on such a machine'}",
        )
    return [known[str(sm)] for sm in capabilities]
