"""A bundle with one small graph, changed at will and signed anew: what somebody can make who knows every rule.

Knows ONNX and how a manifest is sealed. Does not know what is to be refused.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

VOCABULARY = 256
WEIGHTS = "weights.safetensors"
STORED: dict[str, int] = {
    "F64": TensorProto.DOUBLE,
    "F32": TensorProto.FLOAT,
    "F16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "I64": TensorProto.INT64,
    "I32": TensorProto.INT32,
    "I8": TensorProto.INT8,
    "U8": TensorProto.UINT8,
    "BOOL": TensorProto.BOOL,
}
ITEM = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I8": 1, "U8": 1, "BOOL": 1}


def safetensors(tensors: dict[str, tuple[str, Sequence[int], bytes]], padding: int = 64) -> bytes:
    """A safetensors file, by hand."""
    header, body = {}, b""
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % padding)
    return len(text).to_bytes(8, "little") + text + body


def table(dtype: str = "F32", rows: int = VOCABULARY, columns: int = VOCABULARY) -> bytes:
    """The weight file of `model`, whose one tensor is of any type; as float32 it is an identity matrix."""
    identity = np.eye(rows, columns, dtype=np.float32).tobytes()
    return safetensors(
        {"w": (dtype, (rows, columns), identity if dtype == "F32" else bytes(rows * columns * ITEM[dtype]))}
    )


def start(weights: bytes) -> int:
    """Where the first tensor's bytes begin."""
    return 8 + int.from_bytes(weights[:8], "little")


def reference(
    dtype: int = TensorProto.FLOAT,
    dims: Sequence[int] = (VOCABULARY, VOCABULARY),
    name: str = "w",
    **external: object,
) -> TensorProto:
    """An initializer that refers into a file."""
    tensor = TensorProto(name=name, data_type=dtype, data_location=TensorProto.EXTERNAL, dims=list(dims))
    for key, value in external.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def model(
    initializers: Sequence[TensorProto],
    nodes: Sequence[onnx.NodeProto] | None = None,
    inputs: Sequence[onnx.ValueInfoProto] = (),
    opsets: Sequence[onnx.OperatorSetIdProto] = (),
    **more: Any,
) -> onnx.ModelProto:
    """logits = w[input_ids], unless `nodes` say something else."""
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", 1])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1, VOCABULARY])
    nodes = nodes if nodes is not None else [helper.make_node("Gather", ["w", "input_ids"], ["logits"])]
    graph = helper.make_graph(list(nodes), "step", [ids, *inputs], [logits], list(initializers))
    opset = [helper.make_opsetid("", 20), *opsets]
    return helper.make_model(graph, opset_imports=opset, ir_version=10, **more)


def sound(weights: bytes) -> TensorProto:
    """The initializer as it should be."""
    size = VOCABULARY * VOCABULARY * 4
    return reference(location=WEIGHTS, offset=start(weights), length=size)


def constant(name: str, value: Any) -> TensorProto:
    """An initializer with its data in the graph."""
    return numpy_helper.from_array(np.asarray(value), name)


def write(
    folder: Path, content: bytes | None = None, weights: bytes | None = None, form: str = "file", **changes: Any
) -> Path:
    """The bundle, signed.

    Args:
        content: the graph; None: the one that should be.
        weights: the weight file; None: an identity matrix.
        form: which of the graph's files it is: "file", or a twin beside a sound one, "cpu" or "fused".
        changes: fields of the manifest.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    weights = table() if weights is None else weights
    good = model([sound(weights)]).SerializeToString()
    (folder / WEIGHTS).write_bytes(weights)
    (folder / "step.onnx").write_bytes(content if content is not None and form == "file" else good)
    graph: dict[str, Any] = {
        "name": "step",
        "kind": "step",
        "file": "step.onnx",
        "tokens": 1,
        "inputs": [{"name": "input_ids", "dtype": "int64", "shape": ["batch", 1]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 1, VOCABULARY]}],
    }
    if form != "file":
        (folder / "twin.onnx").write_bytes(good if content is None else content)
        graph[form] = {"file": "twin.onnx"}
    document: dict[str, Any] = {
        "format": "titans-bundle",
        "format_version": 1,
        "model": {"name": "forged", "variant": "mac", "parameters": 1},
        "dtype": "fp32",
        "opset": 20,
        "inputs": {"kind": "tokens", "vocab_size": VOCABULARY},
        "chunk": 4,
        "tokenizer": {"kind": "byte"},
        "states": [],
        "graphs": [graph],
        "schedule": [],
        "weights": {"file": WEIGHTS},
        "initial_state": None,
        "engines": [],
    }
    sign(folder, {**document, **changes})
    return folder


def sign(folder: Path, document: dict[str, Any]) -> None:
    """Write a manifest in which every hash is right."""
    document = {key: value for key, value in document.items() if key != "sha256"}
    entries = [*document["graphs"], document["weights"]]
    entries += [graph[form] for graph in document["graphs"] for form in ("cpu", "fused") if form in graph]
    entries += [document[name] for name in ("initial_state", "tokenizer") if "file" in (document[name] or {})]
    for entry in entries:
        if (folder / entry["file"]).is_file():
            content = (folder / entry["file"]).read_bytes()
            entry["sha256"] = hashlib.sha256(content).hexdigest()
            if "bytes" in entry:
                entry["bytes"] = len(content)
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    sealed = {**document, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(sealed), encoding="utf-8")
