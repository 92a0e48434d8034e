"""ONNX Runtime's execution providers as targets: which there are, their options, and how a plugin is found.

Knows names and options. Does not know states or bindings (`ort`).

WebGPU runs on a software device in the test suite, and with CUDA's on an NVIDIA GPU in `pytest -m gpu`. The options of
the two TensorRT providers follow ONNX Runtime's documentation and have not run on a GPU yet.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from titans_format.install import install
from titans_format.specs import BATCH, GraphSpec
from titans_runtime.devices.ort import OrtTarget
from titans_runtime.devices.ort_sessions import first_line
from titans_runtime.devices.tensorrt import nvidia
from titans_runtime.errors import ProviderError

if TYPE_CHECKING:
    import onnxruntime as ort

SOFTWARE_WEBGPU = "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER"
_NVIDIA, _ANY_VENDOR = 0x10DE, 0  # PCI vendors
_PROFILE = 16  # streams that an engine is built for; more get one of their own, for the next power of two
_PLUGINS: dict[str, str] = {}  # module -> execution provider; registration is for the whole process
_registering = threading.Lock()

# CUDA's TensorFloat-32 rounds the factors of a matmul to 10 bits; a memory that is written over and over shows it.
_CUDA = {"device_id": "0", "use_tf32": "0"}
# Before, a captured run read host memory again in each replay that was long given back (pull request 32121).
_REPLAYS_FROM = (1, 31)
# CUDA has its kernel for a bfloat16 input with a bfloat16 scale only; ours is float32.
_BFLOAT16 = frozenset({"SimplifiedLayerNormFusion"})


def cuda(module: ModuleType, weights: str) -> OrtTarget:
    """CUDAExecutionProvider, of onnxruntime-gpu."""
    _built_in(module, "CUDAExecutionProvider")

    def configure(session: ort.SessionOptions, graph: GraphSpec | None, size: int) -> None:
        session.add_provider("CUDAExecutionProvider", _CUDA)

    def replays(session: ort.SessionOptions) -> None:
        session.add_provider("CUDAExecutionProvider", _CUDA | {"enable_cuda_graph": "1"})

    return OrtTarget(
        name="cuda",
        execution_provider="CUDAExecutionProvider",
        memory=("cuda", 0, -1),
        configure=configure,
        sizes=lambda batch: 0,
        in_place=True,
        spread=True,
        replays=replays if _version(module) >= _REPLAYS_FROM else None,
        broken_fusions={"bf16": _BFLOAT16},
        remedy="install CUDA and cuDNN in the versions that this onnxruntime-gpu was built for",
    )


def ort_tensorrt(module: ModuleType, weights: str) -> OrtTarget:
    """TensorrtExecutionProvider, of onnxruntime-gpu: it builds engines when first used, and keeps them.

    Copies run on the CUDA provider, which shares its memory.
    """
    _built_in(module, "TensorrtExecutionProvider")

    def configure(session: ort.SessionOptions, graph: GraphSpec | None, size: int) -> None:
        if graph is not None:
            folder = str(cache_folder("tensorrt", weights, graph))
            options = {
                "device_id": "0",
                "trt_engine_cache_enable": "1",
                "trt_engine_cache_path": folder,
                "trt_timing_cache_enable": "1",
                "trt_timing_cache_path": folder,
            }
            session.add_provider("TensorrtExecutionProvider", options | profiles("trt_profile", graph, size))
        session.add_provider("CUDAExecutionProvider", _CUDA)

    def itself(session: ort.SessionOptions) -> None:
        session.add_provider("TensorrtExecutionProvider", {"device_id": "0"})
        session.add_provider("CUDAExecutionProvider", _CUDA)

    return OrtTarget(
        name="ort-tensorrt",
        execution_provider="TensorrtExecutionProvider",
        memory=("cuda", 0, -1),
        configure=configure,
        sizes=profile_size,
        in_place=True,
        spread=True,
        copies_on="CUDAExecutionProvider",
        itself=itself,
        remedy="install CUDA, cuDNN and TensorRT in the versions that this onnxruntime-gpu was built for",
    )


def ort_tensorrt_rtx(module: ModuleType, weights: str) -> OrtTarget:
    """NvTensorRTRTXExecutionProvider, a plugin. It compiles copies too, so a table cannot be written in place."""
    device = _plugin(module, "onnxruntime_ep_nv_tensorrt_rtx", "an NVIDIA RTX GPU and its driver")

    def configure(session: ort.SessionOptions, graph: GraphSpec | None, size: int) -> None:
        options = {"device_id": "0"}
        if graph is not None:
            options["nv_runtime_cache_path"] = str(cache_folder("tensorrt-rtx", weights, graph))
            options |= profiles("nv_profile", graph, size)
        session.add_provider_for_devices([device], options)

    return OrtTarget(
        name="ort-tensorrt-rtx",
        execution_provider=device.ep_name,
        memory=("gpu", 0, _NVIDIA),
        configure=configure,
        sizes=profile_size,
        in_place=False,
        remedy="update the NVIDIA driver",
    )


def webgpu(module: ModuleType, weights: str) -> OrtTarget:
    """WebGpuExecutionProvider, a plugin."""
    needs = f"a GPU driver with Vulkan (on Linux libvulkan.so.1), or {SOFTWARE_WEBGPU}=1 for a software device"
    device = _plugin(module, "onnxruntime_ep_webgpu", needs)

    def configure(session: ort.SessionOptions, graph: GraphSpec | None, size: int) -> None:
        session.add_provider_for_devices([device], {})

    return OrtTarget(
        name="webgpu",
        execution_provider=device.ep_name,
        memory=("gpu", 0, _ANY_VENDOR),
        configure=configure,
        sizes=lambda batch: 0,
        in_place=True,
        software="CPU" in str(device.device.type),
        remedy="update the GPU's driver",
    )


# By the name that users give.
TARGETS: dict[str, Callable[[ModuleType, str], OrtTarget]] = {
    "cuda": cuda,
    "webgpu": webgpu,
    "ort-tensorrt": ort_tensorrt,
    "ort-tensorrt-rtx": ort_tensorrt_rtx,
}
EXTRAS = {"cuda": "cuda", "webgpu": "webgpu", "ort-tensorrt": "cuda", "ort-tensorrt-rtx": "ort-tensorrt-rtx"}
_MODULES = {"onnxruntime_ep_webgpu": "webgpu", "onnxruntime_ep_nv_tensorrt_rtx": "ort-tensorrt-rtx"}


def profiles(prefix: str, graph: GraphSpec, size: int) -> dict[str, str]:
    """An optimisation profile as provider options: shapes of every input for 1 to `size` streams, usually 1."""

    def shapes(batch: int) -> str:
        sizes = ((t.name, [batch if axis == BATCH else axis for axis in t.shape]) for t in graph.inputs)
        return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in sizes)

    return {f"{prefix}_{which}_shapes": shapes(n) for which, n in (("min", 1), ("opt", 1), ("max", size))}


def profile_size(batch: int) -> int:
    """The largest number of streams of the engine that takes `batch`."""
    size = _PROFILE
    while size < batch:
        size *= 2
    return size


def cache_folder(provider: str, weights: str, graph: GraphSpec) -> Path:
    """Where engines of one graph are kept, made if need be. The weights are in the name: providers' keys omit them."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "titans-deploy" / provider / f"{weights[:16]}-{graph.sha256[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ProviderError(
            f"{folder}, where {provider} keeps its engines, cannot be made ({error.strerror})",
            "set XDG_CACHE_HOME to a folder that can be written",
        ) from error
    return folder


def plugin_devices(module: ModuleType, name: str) -> Sequence[ort.OrtEpDevice]:
    """The devices of a plugin's provider, which is registered if it was not: doing that twice is an error.

    Raises:
        ImportError: the plugin is not installed.
    """
    with _registering:
        if name not in _PLUGINS:
            plugin = importlib.import_module(name)
            module.register_execution_provider_library(name, plugin.get_library_path())
            _PLUGINS[name] = plugin.get_ep_name()
    return [device for device in module.get_ep_devices() if device.ep_name == _PLUGINS[name]]


def _version(module: ModuleType) -> tuple[int, ...]:
    return tuple(int(part) for part in module.__version__.split(".")[:2])


def _plugin(module: ModuleType, name: str, needs: str) -> ort.OrtEpDevice:
    try:
        devices = plugin_devices(module, name)
    except ImportError as error:
        raise ProviderError(
            f"{name} is not installed here ({error})",
            f"run: {install(EXTRAS[_MODULES[name]])}",
            "not installed",
        ) from error
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        raise ProviderError(
            f"{name} does not load into onnxruntime {module.__version__} ({first_line(error)})", "upgrade both"
        ) from error
    if not devices:
        raise ProviderError(f"{name} finds no device", f"it needs {needs}", "no device")
    return devices[0]


def _built_in(module: ModuleType, name: str) -> None:
    if name not in module.get_available_providers():
        raise ProviderError(
            f"the onnxruntime that is imported here has no {name}",
            f"run: pip uninstall onnxruntime; {install('cuda')}",
            "not installed",
        )
    nvidia.require_driver()
    preload = getattr(module, "preload_dlls", None)
    if preload is not None:
        preload()  # finds CUDA and cuDNN in NVIDIA's wheels, if that is where they are
