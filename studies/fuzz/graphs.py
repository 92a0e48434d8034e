"""Graphs that say something else than they should, each part of them well formed: types, operators, external data.

Bytes that are damaged at random are rarely a graph still. These cases are: a real graph is read with the onnx library,
one thing in it is changed, and it is written again. Knows ONNX. Does not know what must hold (`targets`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from titans_runtime.graphs.operators import OPERATORS

Case = dict[str, Any]
TYPES = sorted(TensorProto.DataType.values())
PLACES = ("reference", "constant", "input", "output", "information")
STANDARD = sorted({schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""})
FOREIGN = [["", name] for name in STANDARD] + [["ai.onnx.ml", "Scaler"], ["com.microsoft", "FusedMatMul"], ["x", "Y"]]
OURS = sorted([list(key) for key in OPERATORS])
LOCATIONS = (
    "../secret",
    "/etc/passwd",
    "*/_ORT_MEM_ADDR_/*",
    "manifest.json",
    "./weights.safetensors",
    "weights.safetensors/",
    "link",
    "hard",
    "unlisted",
    "initial_state.safetensors",
    "",
)
NUMBERS = ("0", "-1", "1", "8", "64", str(2**31), str(2**63), str(2**64), "0x10", " 64", "", "1e3", "nan")

_place = st.integers(0, 10**6)
_value = st.sampled_from([0, 1, -1, 2, 3, 64, 2**31 - 1, 2**31, -(2**31), 2**62, -(2**63), 2**63 - 1])


def cases(files: list[str]) -> dict[str, st.SearchStrategy[Case]]:
    """Cases by target; a place is taken modulo the number of places there are."""
    file = st.sampled_from(files)
    kind = st.sampled_from
    types = {"file": file, "at": _place, "place": kind(PLACES), "type": kind(TYPES)}
    external = {"file": file, "at": _place}
    entry = st.tuples(kind(["location", "offset", "length", "checksum"]), kind(LOCATIONS + NUMBERS)).map(list)
    change = st.one_of(
        st.tuples(st.just("operator"), _place, kind(FOREIGN + OURS)),
        st.tuples(st.just("attribute"), _place, _value),
        st.tuples(st.just("float"), _place, st.floats(width=32)),
        st.tuples(st.just("input"), _place, _place),
        st.tuples(st.just("output"), _place, _place),
        st.tuples(st.just("constant"), _place, _value),
        st.tuples(st.just("dims"), _place, st.lists(st.integers(0, 17), max_size=4)),
        st.tuples(st.just("size"), _place, _value),
        st.tuples(st.just("drop"), _place, _place),
        st.tuples(st.just("swap"), _place, _place),
    ).map(list)
    return {
        "types": st.fixed_dictionaries(types),
        "operators": st.fixed_dictionaries({"file": file, "changes": st.lists(change, min_size=1, max_size=3)}),
        "external": st.fixed_dictionaries({**external, "entries": st.lists(entry, min_size=1, max_size=3)}),
    }


def retyped(content: bytes, case: Case) -> bytes:
    """The graph with another type at one place; the same graph where there is no such place."""
    model = onnx.load_from_string(content)
    graph = model.graph
    tensors = [tensor for tensor in graph.initializer if bool(tensor.data_location) == (case["place"] == "reference")]
    values = {"input": graph.input, "output": graph.output, "information": graph.value_info}.get(case["place"])
    if values:
        values[case["at"] % len(values)].type.tensor_type.elem_type = case["type"]
    elif values is None and tensors:
        tensors[case["at"] % len(tensors)].data_type = case["type"]
    return bytes(model.SerializeToString())


def relocated(content: bytes, case: Case) -> bytes:
    """The graph with other entries at one of its references."""
    model = onnx.load_from_string(content)
    tensors = [tensor for tensor in model.graph.initializer if tensor.data_location]
    if tensors:
        tensor = tensors[case["at"] % len(tensors)]
        for key, value in case["entries"]:
            found = next((entry for entry in tensor.external_data if entry.key == key), None)
            (found or tensor.external_data.add(key=key)).value = value
    return bytes(model.SerializeToString())


def lay_traps(folder: Path) -> Callable[[], None]:
    """Put beside a bundle's files what no graph may read; returns what takes it away again."""
    secret = folder.parent / "secret"
    secret.write_bytes(bytes(4096))
    (folder / "link").symlink_to(secret)
    (folder / "unlisted").write_bytes(bytes(4096))
    os.link(secret, folder / "hard")

    def remove() -> None:
        for path in (folder / "link", folder / "unlisted", folder / "hard", secret):
            path.unlink(missing_ok=True)

    return remove


def rebuilt(content: bytes, changes: list[list[Any]]) -> bytes:
    """The graph after every change in turn."""
    model = onnx.load_from_string(content)
    for name, at, what in changes:
        _CHANGES[name](model.graph, at, what)
    return bytes(model.SerializeToString())


def _operator(graph: onnx.GraphProto, at: int, what: list[str]) -> None:
    node = graph.node[at % len(graph.node)]
    node.domain, node.op_type = what


def _numbers(graph: onnx.GraphProto, kind: int) -> list[onnx.AttributeProto]:
    return [attribute for node in graph.node for attribute in node.attribute if attribute.type == kind]


def _attribute(graph: onnx.GraphProto, at: int, what: int) -> None:
    if found := _numbers(graph, onnx.AttributeProto.INT):
        found[at % len(found)].i = what


def _float(graph: onnx.GraphProto, at: int, what: float) -> None:
    if found := _numbers(graph, onnx.AttributeProto.FLOAT):
        found[at % len(found)].f = what


def _input(graph: onnx.GraphProto, at: int, what: int) -> None:
    """A node reads another value."""
    node = graph.node[at % len(graph.node)]
    names = [value.name for value in (*graph.input, *graph.initializer)]
    names += [name for other in graph.node for name in other.output]
    if node.input:
        node.input[what % len(node.input)] = names[(at + what) % len(names)]


def _output(graph: onnx.GraphProto, at: int, what: int) -> None:
    """A node is called as another value is."""
    node = graph.node[at % len(graph.node)]
    names = [value.name for value in (*graph.output, *graph.input)]
    node.output[0] = names[what % len(names)]


def _own(graph: onnx.GraphProto, at: int) -> TensorProto | None:
    own = [tensor for tensor in graph.initializer if not tensor.data_location]
    return own[at % len(own)] if own else None


def _constant(graph: onnx.GraphProto, at: int, what: int) -> None:
    """A number of a constant is another one."""
    tensor = _own(graph, at)
    if tensor is not None:
        array = np.array(numpy_helper.to_array(tensor))
        if array.size:
            array.reshape(-1)[at % array.size] = what if array.dtype == np.int64 else np.float32(what)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _dims(graph: onnx.GraphProto, at: int, what: list[int]) -> None:
    """A constant of another shape, as much data as that takes."""
    tensor = _own(graph, at)
    if tensor is not None:
        array = np.resize(np.array(numpy_helper.to_array(tensor)), what)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _size(graph: onnx.GraphProto, at: int, what: int) -> None:
    """A value in between is said to have another size."""
    sizes = [dim for value in graph.value_info for dim in value.type.tensor_type.shape.dim]
    if sizes:
        sizes[at % len(sizes)].dim_value = what


def _drop(graph: onnx.GraphProto, at: int, what: int) -> None:
    parts = (graph.node, graph.initializer, graph.input, graph.output)[what % 4]
    if len(parts):
        del parts[at % len(parts)]


def _swap(graph: onnx.GraphProto, at: int, what: int) -> None:
    node = graph.node[at % len(graph.node)]
    if len(node.input) > 1:
        names = list(node.input)
        turn = what % len(names)
        node.input[:] = names[turn:] + names[:turn]


_CHANGES: dict[str, Callable[[onnx.GraphProto, int, Any], None]] = {
    "operator": _operator,
    "attribute": _attribute,
    "float": _float,
    "input": _input,
    "output": _output,
    "constant": _constant,
    "dims": _dims,
    "size": _size,
    "drop": _drop,
    "swap": _swap,
}
