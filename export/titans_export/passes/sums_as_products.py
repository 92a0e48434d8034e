"""Division by sums, said to TensorRT as products.

A chain of normalisations, each reducing one axis and dividing by the result, alternating between the axes (Sinkhorn's
iterations in hyper-connections are hundreds of them), takes TensorRT-RTX minutes and more to build: its time grows
steeply with the length of the chain. Said as a product with a matrix of ones the same chain takes a fraction of a
second. ONNX Runtime runs the normalisation faster than the product, so the file of a bundle keeps the
normalisation and only the parser is given the product. Knows ONNX's protobuf. Knows nothing of TensorRT.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from titans_export.errors import ExportError
from titans_export.passes.replacement import Replacement


def sums_as_products(content: bytes, file: str) -> bytes | None:
    """The ONNX model with every L1 normalisation over one of the two last axes as `x / (|x| @ ones)`.

    Returns:
        The model's bytes, its weights still external; None where there is nothing to say differently.

    Raises:
        ExportError: the size of a normalised axis is unknown.
    """
    model = ir.from_proto(onnx.load_from_string(content))
    sums = [node for node in model.graph if _is_sum(node)]
    for node in sums:
        _replace(model.graph, node, file)
    return bytes(ir.to_proto(model).SerializeToString()) if sums else None


def _replace(graph: ir.Graph, node: ir.Node, file: str) -> None:
    """`x / (|x| @ ones)`, or `x / (ones @ |x|)` for the axis before the last."""
    x = node.inputs[0]
    if x is None or x.shape is None or x.dtype is None:
        raise ExportError(f"{node.name} normalises a tensor of unknown shape", "report this", where=file)
    axis = node.attributes.get_int("axis", -1)
    axis -= len(x.shape) if axis >= 0 else 0
    size = x.shape[axis]
    if axis not in (-1, -2) or not isinstance(size, int) or size <= 0:
        raise ExportError(f"{node.name} normalises axis {axis}, of size {size}", "report this", where=file)
    made = Replacement(graph, node)
    ones = made.constant(f"normalisation/ones_{size}_{int(x.dtype)}", np.ones((size, size), x.dtype.numpy()))
    magnitudes = made.step("Abs", [x])
    total = made.step("MatMul", [ones, magnitudes] if axis == -2 else [magnitudes, ones])
    made.step("Div", [x, total])
    made.finish()


def _is_sum(node: ir.Node) -> bool:
    return node.op_type == "LpNormalization" and node.attributes.get_int("p", 2) == 1
