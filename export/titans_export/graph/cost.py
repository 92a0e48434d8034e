"""What one call of a graph costs at least: its products, and the bytes it must move.

Counted from the ONNX graph for one stream, so that a benchmark can say what share of a machine's speed it reaches.
Knows operators and shapes. Does not know machines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx
from onnx import TensorProto, helper

from titans_export.errors import ExportError
from titans_format.specs import Cost

Shapes = Mapping[str, tuple[int, ...]]


def cost(model: onnx.ModelProto, weights: Mapping[str, int]) -> Cost:
    """The cost of one call with one stream.

    Args:
        model: a checked model, whose only symbolic dimension is the batch.
        weights: bytes of each stored weight by name.

    Returns:
        Multiplications and additions of all products, and bytes of weights, inputs and outputs. A table of which
        rows are gathered, and nothing else is done with, counts with those rows.

    Raises:
        ExportError: the shape of a product's operand cannot be worked out.
    """
    graph = onnx.shape_inference.infer_shapes(_for_one_stream(model), data_prop=True).graph
    shapes = {value.name: _shape(value) for value in (*graph.value_info, *graph.input, *graph.output)}
    shapes |= {item.name: tuple(item.dims) for item in graph.initializer}
    return Cost(
        flops=sum(_flops(node, shapes) for node in graph.node),
        weight_bytes=sum(_read(item, graph, shapes, weights) for item in graph.initializer if item.name in weights),
        read_bytes=sum(_bytes(value) for value in graph.input),
        written_bytes=sum(_bytes(value) for value in graph.output),
    )


def _for_one_stream(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a batch of 1, so that every shape can be worked out."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in (*fixed.graph.input, *fixed.graph.output, *fixed.graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if not axis.HasField("dim_value"):
                axis.dim_value = 1
    return fixed


def _flops(node: onnx.NodeProto, shapes: Shapes) -> int:
    if node.op_type not in ("MatMul", "MatMulNBits"):
        return 0
    missing = [name for name in node.input[:2] if name not in shapes]
    if missing:
        raise ExportError(f"the shape of {missing[0]}, which {node.name} multiplies, is unknown", "report this")
    left, right = shapes[node.input[0]], shapes[node.input[1]]
    if node.op_type == "MatMulNBits":
        columns = next(int(attribute.i) for attribute in node.attribute if attribute.name == "N")
        return 2 * math.prod(left) * columns
    batch, other = left[:-2], right[:-2]
    rank = max(len(batch), len(other))
    sizes = zip((1,) * (rank - len(batch)) + batch, (1,) * (rank - len(other)) + other, strict=True)
    rows = left[-2] if len(left) > 1 else 1
    columns = right[-1] if len(right) > 1 else 1
    return 2 * math.prod(max(pair) for pair in sizes) * rows * left[-1] * columns


def _read(item: TensorProto, graph: onnx.GraphProto, shapes: Shapes, weights: Mapping[str, int]) -> int:
    """Bytes of a weight that are read."""
    users = [node for node in graph.node if item.name in node.input]
    if not all(node.op_type == "Gather" and node.input[0] == item.name for node in users):
        return weights[item.name]
    elements = sum(math.prod(shapes[node.output[0]]) for node in users)
    return min(weights[item.name], weights[item.name] * elements // max(1, int(math.prod(item.dims))))


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim)


def _bytes(value: onnx.ValueInfoProto) -> int:
    kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    return math.prod(_shape(value)) * int(kind.itemsize)
