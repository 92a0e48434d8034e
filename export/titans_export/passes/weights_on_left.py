"""Large weight matrices as the left operand of their products, stored transposed: `x W = (W^T x^T)^T`.

A matrix product on a CPU copies its right operand into panels first, unless a packed copy was made when the graph was
loaded. Few rows cannot pay for that copy, and a packed copy of every weight for every graph takes the memory of the
model again and again. The left operand is read as it lies. Measured with onnxruntime 1.32 on two cores, a chain of 48
matrices [1024, 1024] in ms, by the number of rows of x:

    rows                        1     8    16    64
    right, as it lies         5.1  11.0  12.3  21.0
    right, packed             4.4   6.1   7.4  16.7
    left                      5.2   5.6   5.8  14.5

So a bundle whose packed copies would be large keeps its matrices on the left; a small one is better off packed.
Knows ONNX. Does not know which models or files there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import onnx
from onnx import TensorProto, helper
from torch import Tensor

from titans_export.graph.fused_ops import DOMAIN

LARGE_BUNDLE = 64 * 2**20  # bytes of weights from which packed copies cost more than they are worth
FEW_ROWS = 2  # of each stream: the tokens of a step, and in mac the answers before them
LARGE_MATRIX = 2**16  # numbers; below, the transposes around the product take longer than the copy


def weights_on_left(
    models: Iterable[onnx.ModelProto], weights: Mapping[str, Tensor], fused: Iterable[onnx.ModelProto] = ()
) -> dict[str, Tensor]:
    """Turn the products with large matrices around, in place.

    Args:
        models: graphs over shared weights, with value infos.
        fused: more of them, for runtimes with fused kernels: of these, products of few rows become single operators.
        weights: by initializer name.

    Returns:
        What to store: a turned matrix transposed, under `transposed_name`; all else as it is.
    """
    models, fused = list(models), list(fused)
    if sum(value.nbytes for value in weights.values()) < LARGE_BUNDLE:
        return dict(weights)
    large = {name for name, value in weights.items() if value.dim() == 2 and value.numel() >= LARGE_MATRIX}
    turned = large.difference(*(_read_otherwise(model.graph, large) for model in (*models, *fused)))
    for model in models:
        _turn(model.graph, turned)
    for model in fused:
        _turn(model.graph, turned, fused=True)
    return {
        transposed_name(name) if name in turned else name: value.T.contiguous() if name in turned else value
        for name, value in weights.items()
    }


def transposed_name(weight: str) -> str:
    """The stored name of a transposed weight."""
    return f"{weight}.T"


def _read_otherwise(graph: onnx.GraphProto, weights: set[str]) -> set[str]:
    """Which of the weights a graph reads in another way than by multiplying rows of known rank with them."""
    known, found = _shapes(graph), set[str]()
    for node in graph.node:
        read = weights.intersection(node.input)
        if node.op_type == "MatMul" and node.input[0] in known:
            read -= {node.input[1]} - {node.input[0]}
        found |= read
    return found


def _shapes(graph: onnx.GraphProto) -> dict[str, list[int | None]]:
    """Static sizes by value; None for an axis that depends on the batch."""
    return {
        value.name: [dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.input, *graph.output)
    }


def _turn(graph: onnx.GraphProto, turned: set[str], fused: bool = False) -> None:
    shapes = _shapes(graph)
    weights = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    # What stands on the left instead of a right operand, and its height. A tied embedding is transposed in the graph.
    left = {name: (transposed_name(name), weights[name][1]) for name in turned if name in weights}
    for node in graph.node:
        if node.op_type == "Transpose" and len(weights.get(node.input[0], [])) == 2:
            left[node.output[0]] = (node.input[0], weights[node.input[0]][0])
    integers: dict[tuple[int, ...], str] = {}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in left and node.input[0] in shapes:
            rows = shapes[node.input[0]]
            if fused and len(rows) == 3 and rows[1] is not None and rows[1] <= FEW_ROWS:
                inputs = [node.input[0], left[node.input[1]][0]]
                nodes.append(helper.make_node("Linear", inputs, list(node.output), name=node.name, domain=DOMAIN))
            else:
                nodes += _turned(node, shapes[node.input[0]], *left[node.input[1]], integers)
        else:
            nodes.append(node)
    read = {name for node in nodes for name in node.input}
    nodes = [node for node in nodes if node.op_type != "Transpose" or node.output[0] in read | _outputs(graph)]
    kept = []
    for tensor in graph.initializer:
        if tensor.name in turned:
            dims = list(tensor.dims)[::-1]
            kept.append(TensorProto(name=transposed_name(tensor.name), data_type=tensor.data_type, dims=dims))
        else:
            kept.append(tensor)
    kept += [helper.make_tensor(name, TensorProto.INT64, [len(key)], key) for key, name in integers.items()]
    made = {name for node in nodes for name in node.output}
    info = [value for value in graph.value_info if value.name in made]
    for field, items in ((graph.node, nodes), (graph.initializer, kept), (graph.value_info, info)):
        del field[:]
        field.extend(items)


def _outputs(graph: onnx.GraphProto) -> set[str]:
    return {value.name for value in graph.output}


def _turned(
    node: onnx.NodeProto,
    shape: list[int | None],
    weight: str,
    height: int,
    integers: dict[tuple[int, ...], str],
) -> list[onnx.NodeProto]:
    """`[..., n] @ [n, m]` with the matrix on the left, `[m, n]`; `shape` is that of the rows, `height` is m."""
    rows, result = node.input[0], node.output[0]
    made: list[onnx.NodeProto] = []

    def step(operator: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        name = output or f"{result}/{len(made)}"
        made.append(
            helper.make_node(operator, inputs, [name], name=f"{node.name}/{operator}_{len(made)}", **attributes)
        )
        return name

    def integer(*values: int) -> str:
        return integers.setdefault(values, f"left/{'_'.join(map(str, values))}")

    width = int(shape[-1] or 0)
    if len(shape) > 2 and all(size == 1 for size in shape[1:-1]):
        # One row per stream. ONNX Runtime would fuse a transpose into the product behind it, and then not find the
        # kernel for a single column: a step of 170 M weights took an eighth longer. So a reshape stands between them.
        columns = step("Transpose", [rows], perm=[len(shape) - 1, *range(len(shape) - 1)])
        columns = step("Reshape", [columns, integer(width, -1)])
    else:
        flat = rows if len(shape) == 2 else step("Reshape", [rows, integer(-1, width)])
        columns = step("Transpose", [flat], perm=[1, 0])
    product = step("MatMul", [weight, columns])
    if len(shape) == 2:
        step("Transpose", [product], result, perm=[1, 0])
    else:
        back = integer(*(-1 if size is None else size for size in shape[:-1]), height)
        step("Reshape", [step("Transpose", [product], perm=[1, 0]), back], result)
    return made
