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

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import Tensor

from titans_export.graph.builder import dims, weight_value
from titans_export.graph.fused_ops import DOMAIN, VERSION
from titans_export.passes.replacement import Replacement, initializer

LARGE_BUNDLE = 64 * 2**20  # bytes of weights from which packed copies cost more than they are worth
FEW_ROWS = 2  # of each stream: the tokens of a step, and in mac the answers before them
LARGE_MATRIX = 2**16  # numbers; below, the transposes around the product take longer than the copy


def weights_on_left(
    models: Iterable[ir.Model], weights: Mapping[str, Tensor], fused: Iterable[ir.Model] = ()
) -> dict[str, Tensor]:
    """Turn the products with large matrices around, in place.

    Args:
        models: graphs over shared weights, with shapes.
        fused: more of them, for runtimes with fused kernels: of these, products of few rows become single operators.
        weights: by initializer name.

    Returns:
        What to store: a turned matrix transposed, under `transposed_name`; all else as it is.
    """
    models, fused = list(models), list(fused)
    if sum(value.nbytes for value in weights.values()) < LARGE_BUNDLE:
        return dict(weights)
    large = {name for name, value in weights.items() if value.dim() == 2 and value.numel() >= LARGE_MATRIX}
    turned = {name for name in large if all(_only_right(model.graph, name) for model in (*models, *fused))}
    for model in models:
        _turn(model, turned)
    for model in fused:
        _turn(model, turned, few_rows=FEW_ROWS)
    return {
        transposed_name(name) if name in turned else name: value.T.contiguous() if name in turned else value
        for name, value in weights.items()
    }


def transposed_name(weight: str) -> str:
    """The stored name of a transposed weight."""
    return f"{weight}.T"


def _only_right(graph: ir.Graph, name: str) -> bool:
    """Whether all that a graph does with a weight is to multiply rows of known rank with it."""
    weight = graph.initializers.get(name)
    return weight is None or all(_multiplies(node, weight) for node in weight.consumers())


def _multiplies(node: ir.Node, weight: ir.Value) -> bool:
    rows = node.inputs[0]
    return node.op_type == "MatMul" and node.inputs[1] is weight and rows is not None and rows.shape is not None


def _turn(model: ir.Model, turned: set[str], few_rows: int = 0) -> None:
    """Let a graph read the `turned` matrices transposed, and transposed ones (a tied embedding) as they are."""
    graph = model.graph
    for name, weight in list(graph.initializers.items()):
        tensor = weight.const_value
        if tensor is None or len(tensor.shape) != 2:
            continue
        if name in turned:
            left = initializer(graph, weight_value(transposed_name(name), tensor.dtype, dims(tensor)[::-1]))
            users = weight.consumers()
        else:
            left, transposes = weight, [node for node in weight.consumers() if node.op_type == "Transpose"]
            users = tuple(user for node in transposes for user in node.outputs[0].consumers())
        for node in users:
            right = node.inputs[1] if len(node.inputs) > 1 else None
            if right is not None and right is not left and _multiplies(node, right):
                _turn_product(graph, node, left, few_rows)
    RemoveUnusedNodesPass()(model)


def _turn_product(graph: ir.Graph, node: ir.Node, left: ir.Value, few_rows: int) -> None:
    """`[..., n] @ [n, m]` as a product with `left`, the matrix as `[m, n]`."""
    rows = node.inputs[0]
    if rows is None or rows.shape is None or left.const_value is None:
        raise TypeError(f"{node.name} is not a product of rows with a weight")
    sizes = [size if isinstance(size, int) else None for size in rows.shape]
    height, width = dims(left.const_value)
    made = Replacement(graph, node)

    def transposed(value: ir.Value, *order: int) -> ir.Value:
        return made.step("Transpose", [value], attributes={"perm": order})

    def reshaped(value: ir.Value, *shape: int) -> ir.Value:
        name = f"left/{'_'.join(map(str, shape))}"
        return made.step("Reshape", [value, made.constant(name, np.array(shape, np.int64))])

    if len(sizes) == 3 and sizes[1] is not None and sizes[1] <= few_rows:
        made.step("Linear", [rows, left], domain=DOMAIN)
        graph.opset_imports.setdefault(DOMAIN, VERSION)
    elif len(sizes) == 2:
        transposed(made.step("MatMul", [left, transposed(rows, 1, 0)]), 1, 0)
    else:
        if all(size == 1 for size in sizes[1:-1]):
            # One row per stream. ONNX Runtime would fuse a transpose into the product behind it, and then not find the
            # kernel for a single column: a step of 170 M weights took an eighth longer. So a reshape stands between.
            last = len(sizes) - 1
            columns = reshaped(transposed(rows, last, *range(last)), width, -1)
        else:
            columns = transposed(reshaped(rows, -1, width), 1, 0)
        product = transposed(made.step("MatMul", [left, columns]), 1, 0)
        reshaped(product, *(-1 if size is None else size for size in sizes[:-1]), height)
    made.finish()
