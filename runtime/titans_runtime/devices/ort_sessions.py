"""ONNX Runtime sessions over one mapping of the weights, and the import of ONNX Runtime itself.

Knows how graphs and weights are handed over, and what a refusal means. Does not know which provider a session is for
(`host`, `ort_providers`), or what it runs on.

How weights are shared, measured with onnxruntime 1.32 on 216 MiB of weights and four graphs:
`SessionOptions.add_initializer` uses the mapped array in place (RSS + 236 MiB in all), whereas
`add_external_initializers` copies it into every session (+ 1101 MiB), and so does pre-packing (+ 1101 MiB).
Leaving the loading to ONNX Runtime maps the file once per session, and each mapping counts in RSS (+ 452 MiB
once two graphs have run).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from titans_format.errors import BundleError
from titans_format.install import install
from titans_format.specs import GraphSpec
from titans_runtime.arrays import FloatArray
from titans_runtime.bundle import Bundle, Form, file_of
from titans_runtime.errors import ProviderError
from titans_runtime.tensorfile import MappedTensor

if TYPE_CHECKING:
    import onnxruntime as ort

QUIET = 3  # errors only; they come back as exceptions as well
_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16
# Where a graph that is given as bytes has its external data
_FOLDER = "session.model_external_initializers_file_folder_path"
_TELEMETRY = "ORT_DISABLE_TELEMETRY"


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
    message = str(error).lower()
    return isinstance(error, MemoryError) or any(
        words in message for words in ("bad_alloc", "allocate", "out of memory")
    )


def widened(tensor: MappedTensor) -> FloatArray:
    """The numbers of a half-precision tensor as float32. A bfloat16 is the upper half of a float32."""
    if tensor.dtype == "BF16":
        return (tensor.array.astype(np.uint32) << 16).view(np.float32)
    return tensor.array.astype(np.float32)


def import_onnxruntime() -> ModuleType:
    """The onnxruntime module, imported when first needed (0.07 s).

    From version 1.29 on it writes a device id and a database of events into the user's cache, and starts a thread,
    unless a variable of the environment forbids it before the import. It is set here, unless the user has set it.

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
