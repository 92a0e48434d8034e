"""The modules that native TensorRT needs, imported when asked for, with what to do where they are missing.

Knows packages and their names. Does not know engines (`device`).
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any

import numpy as np

from titans_format.install import install
from titans_runtime.bundle import Bundle
from titans_runtime.devices.tensorrt import nvidia
from titans_runtime.devices.tensorrt.cuda import Cuda
from titans_runtime.devices.tensorrt.device import CudaMemory, TensorRtDevice, prove_engine
from titans_runtime.errors import ExecutionError, ProviderError

_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_CUDA = "cuda.bindings.runtime"


def device(name: str, bundle: Bundle) -> TensorRtDevice:
    """The device with a bundle's engines. Raises `ProviderError` if anything for that is missing."""
    module, cuda = _load(name)
    return TensorRtDevice(module, cuda, bundle, name)


def prove(name: str) -> str:
    """Take memory, write to it and read it back; one line of evidence. Raises `ProviderError`."""
    module, cuda = _load(name)
    memory = CudaMemory(cuda)
    buffer = memory.allocate((2,), "float32")
    memory.upload(buffer, np.array([1, 2], np.float32))
    if memory.download(buffer).tolist() != [1, 2]:
        raise ProviderError("the device returns other numbers than it was given", "use provider='cpu' and report it")
    prove_engine(module)
    return f"compute capability {cuda.capability}; bundles run here once `titans build` made their engines"


def capability(name: str) -> int:
    """The device's compute capability, such as 86. Raises `ProviderError` where engines cannot run."""
    _, cuda = _load(name)
    return cuda.capability


def _load(name: str) -> tuple[Any, Cuda]:
    for needed in (_MODULES[name], _CUDA):
        if not _installed(needed):
            raise ProviderError(f"{needed} is not installed here", f"run: {install(name)}", "not installed")
    nvidia.require_driver()  # before the import, which loads hundreds of megabytes of libraries
    try:
        module, cuda = importlib.import_module(_MODULES[name]), importlib.import_module(_CUDA)
        return module, Cuda(cuda)
    except (ImportError, OSError) as error:  # OSError: the bindings are there, the libraries are not
        raise ProviderError(
            f"{_MODULES[name]} or {_CUDA} cannot be imported ({error})",
            f"run: {install(name, '--force-reinstall')}",
        ) from error
    except ExecutionError as error:
        raise ProviderError(error.finding, error.remedy) from error


def _installed(module: str) -> bool:
    if module in sys.modules:
        return sys.modules[module] is not None
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a parent package is missing or broken
        return False
