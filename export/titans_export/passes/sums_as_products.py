"""Division by sums, said to TensorRT as products.

A chain of normalisations, each reducing one axis and dividing by the result, alternating between the axes (Sinkhorn's
iterations in hyper-connections are hundreds of them), takes TensorRT-RTX minutes and more to build: its time grows
steeply with the length of the chain. Said as a product with a matrix of ones the same chain takes a fraction of a
second. ONNX Runtime runs the normalisation faster than the product, so the file of a bundle keeps the
normalisation and only the parser is given the product. Knows ONNX's protobuf. Knows nothing of TensorRT.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import helper, numpy_helper

from titans_export.errors import ExportError

_ONES = "normalisation/ones"


def sums_as_products(content: bytes, file: str) -> bytes | None:
    """The ONNX model with every L1 normalisation over one of the two last axes as `x / (|x| @ ones)`.

    Returns:
        The model's bytes, its weights still external; None where there is nothing to say differently.

    Raises:
        ExportError: the size of a normalised axis is unknown.
    """
    model = onnx.load_from_string(content)
    if not any(_is_sum(node) for node in model.graph.node):
        return None
    values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    shapes = {value.name: value.type.tensor_type for value in values}
    ones: dict[tuple[int, int], str] = {}
    nodes = []
    for node in model.graph.node:
        if not _is_sum(node):
            nodes.append(node)
            continue
        kind = shapes[node.input[0]]
        axis = _attribute(node, "axis", -1)
        axis -= len(kind.shape.dim) if axis >= 0 else 0
        size = kind.shape.dim[axis].dim_value
        if axis not in (-1, -2) or size <= 0:
            raise ExportError(f"{node.name} normalises axis {axis}, of size {size}", "report this", where=file)
        if (kind.elem_type, size) not in ones:
            ones[kind.elem_type, size] = name = f"{_ONES}_{size}_{kind.elem_type}"
            filled = np.ones((size, size), helper.tensor_dtype_to_np_dtype(kind.elem_type))
            model.graph.initializer.append(numpy_helper.from_array(filled, name))
        nodes += _products(node, ones[kind.elem_type, size], first=axis == -2)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return bytes(model.SerializeToString())


def _products(node: onnx.NodeProto, ones: str, *, first: bool) -> Iterator[onnx.NodeProto]:
    """`x / (|x| @ ones)`, or `x / (ones @ |x|)` for the axis before the last."""
    (x,), (y,) = node.input, node.output
    size, total = f"{y}/size", f"{y}/total"
    yield helper.make_node("Abs", [x], [size], name=f"{node.name}/Abs")
    yield helper.make_node("MatMul", [ones, size] if first else [size, ones], [total], name=f"{node.name}/MatMul")
    yield helper.make_node("Div", [x, total], [y], name=f"{node.name}/Div")


def _is_sum(node: onnx.NodeProto) -> bool:
    return node.op_type == "LpNormalization" and _attribute(node, "p", 2) == 1


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)
