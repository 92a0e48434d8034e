"""Weight matrices as integers of 8 or 4 bits in a graph, for the CPU kernels that multiply with them as they are.

Products become ONNX Runtime's MatMulNBits, which rounds the activations of a block to 8 bits too and multiplies
integers, and in graphs for our own kernels the fused BlockLinear, which reads the same bytes in place. Where a block
has a least number of its own, what its middle code means is multiplied with the sums of blocks of activations, in fp32:
MatMulNBits takes such numbers as zero points, but is 35 times slower with them. An embedding is looked up as integers
and scaled afterwards.

accuracy_level 4 is the integer kernel; any other computes in fp32. Measured with onnxruntime 1.32, two threads with
AVX-512, 48 matrices [576, 1536] in ms, the best or the
median of a few runs, so only large differences count:

    rows                                       1        64
    4 bits                                   1.2        42
    4 bits, sums of blocks besides           1.8        27
    4 bits, float32 zero points               35        62
    8 bits                                   1.8        22

Knows ONNX. Does not know how a matrix is cut into blocks (`blocks`), nor which models or files there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import Tensor

from titans_export.graph.builder import weight_value
from titans_export.graph.fused_ops import DOMAIN as FUSED_DOMAIN
from titans_export.graph.fused_ops import VERSION as FUSED_VERSION
from titans_export.passes.blocks import BLOCK, MIDDLE, Blocks, quantised
from titans_export.passes.replacement import Replacement, initializer

DOMAIN = "com.microsoft"
INTEGER_KERNEL = 4  # accuracy_level
LOOKED_UP_BITS: Literal[8] = 8  # of an embedding, and of a head that is tied to it: as in GGUF's files of 4 bits


def codes_name(weight: str) -> str:
    """The stored name of a weight's integers."""
    return f"{weight}.codes"


def scales_name(weight: str) -> str:
    """The stored name of its scales."""
    return f"{weight}.scales"


def least_name(weight: str) -> str:
    """The stored name of its blocks' least numbers."""
    return f"{weight}.least"


def quantise(
    models: Iterable[ir.Model],
    weights: Mapping[str, Tensor],
    bits: Literal[4, 8],
    *,
    fused: Iterable[ir.Model] = (),
    ready: Mapping[str, Blocks] | None = None,
) -> dict[str, Tensor]:
    """Let graphs use integers for the matrices that they multiply with or look up, in place.

    Args:
        models: graphs over shared weights.
        weights: by initializer name.
        bits: of the matrices that are multiplied with; those that are looked up have 8.
        fused: more graphs, for runtimes with fused kernels.
        ready: weights that are in blocks already, along the axis that they are used along.

    Returns:
        What to store: integers and scales, and the weights that stay as they are.
    """
    models, fused, ready = list(models), list(fused), ready or {}
    uses = {
        name: [(*use, model in fused) for model in (*models, *fused) for use in _uses(model.graph, name)]
        for name in weights
    }
    axes = {name: _axis(found) for name, found in uses.items() if weights[name].dim() == 2}
    stored = dict(weights)
    for name, axis in sorted(axes.items()):
        if axis is None:
            continue
        looked_up = any(node.op_type == "Gather" for node, _, _ in uses[name])
        weight = stored.pop(name)
        blocks = ready[name] if name in ready else quantised(weight, axis, LOOKED_UP_BITS if looked_up else bits)
        stored |= {codes_name(name): blocks.codes, scales_name(name): blocks.scales}
        if blocks.least is not None:
            stored[least_name(name)] = blocks.least
        for node, _, in_fused in uses[name]:
            _replace(node, name, blocks, in_fused)
    for model in (*models, *fused):
        used = {node.domain for node in model.graph}
        for domain, version in ((DOMAIN, 1), (FUSED_DOMAIN, FUSED_VERSION)):
            if domain in used:
                model.graph.opset_imports[domain] = version
        RemoveUnusedNodesPass()(model)  # transposes of what is integers now
    return stored


Use = tuple[ir.Node, ir.Value]  # a node and which of its inputs the weight is, as it lies or transposed


def _uses(graph: ir.Graph, weight: str) -> list[Use]:
    """Every use of a weight, also of its transpose."""
    if weight not in graph.initializers:
        return []
    found: list[Use] = []
    stored = graph.initializers[weight]
    for node in stored.consumers():
        if _transposes(node):
            found += [(consumer, node.outputs[0]) for consumer in node.outputs[0].consumers()]
        else:
            found.append((node, stored))
    return found


def _transposes(node: ir.Node) -> bool:
    return node.op_type == "Transpose" and list(node.attributes.get_ints("perm", ())) == [1, 0]


def _axis(uses: Iterable[tuple[ir.Node, ir.Value, bool]]) -> int | None:
    """The axis that a weight may be cut along for all of its uses, or None where it has to stay."""
    axes = {_axis_of(node, value) for node, value, _ in uses}
    return axes.pop() if len(axes) == 1 else None


def _axis_of(node: ir.Node, value: ir.Value) -> int | None:
    if node.op_type == "MatMul" and node.inputs[1] is value and node.inputs[0] is not value:
        return 0 if value.is_initializer() else 1
    looks_up = node.op_type == "Gather" and node.inputs[0] is value and node.attributes.get_int("axis", 0) == 0
    return 1 if looks_up and value.is_initializer() else None


class _Stored:
    """A weight's integers, scales and least numbers as values of a graph."""

    def __init__(self, made: Replacement, weight: str, blocks: Blocks) -> None:
        def value(name: str, dtype: ir.DataType, tensor: Tensor) -> ir.Value:
            return initializer(made.graph, weight_value(name, dtype, tensor.shape))

        self.codes = value(codes_name(weight), ir.DataType.UINT8, blocks.codes)
        self.scales = value(scales_name(weight), ir.DataType.FLOAT16, blocks.scales)
        self.least = None
        if blocks.least is not None:
            self.least = value(least_name(weight), ir.DataType.FLOAT16, blocks.least)


def _replace(node: ir.Node, weight: str, blocks: Blocks, in_fused: bool) -> None:
    """Let a node use the integers of a weight."""
    graph = node.graph
    if not isinstance(graph, ir.Graph):
        raise TypeError(f"{node.name} is not in a graph")
    made = Replacement(graph, node)
    stored = _Stored(made, weight, blocks)
    if node.op_type == "Gather":
        _look_up(made, node.inputs[1], stored, blocks)
    elif in_fused:
        inputs = [node.inputs[0], stored.codes, stored.scales, *([] if stored.least is None else [stored.least])]
        attributes = {"bits": blocks.bits, "least": int(blocks.least is not None)}
        made.step("BlockLinear", inputs, domain=FUSED_DOMAIN, attributes=attributes)
    else:
        _multiply(made, node.inputs[0], stored, blocks)
    made.finish()


def _wide(made: Replacement, value: ir.Value) -> ir.Value:
    """float16 numbers as float32; of what is stored, ONNX Runtime makes them once, when it loads the graph."""
    return made.step("Cast", [value], attributes={"to": ir.DataType.FLOAT})


def _multiply(made: Replacement, x: ir.Value | None, stored: _Stored, blocks: Blocks) -> None:
    """Activations `[..., k]` times the matrix."""
    attributes: dict[str, Any] = {
        "K": blocks.width,
        "N": len(blocks.scales),
        "bits": blocks.bits,
        "block_size": BLOCK,
        "accuracy_level": INTEGER_KERNEL,
    }
    scales = _wide(made, stored.scales)
    result = made.step("MatMulNBits", [x, stored.codes, scales], domain=DOMAIN, attributes=attributes)
    if stored.least is None:
        return
    above = made.step("Mul", [scales, made.constant("blocks/middle", np.array(MIDDLE[blocks.bits], np.float32))])
    centres = made.step("Add", [_wide(made, stored.least), above])
    cut = made.step("Reshape", [x, made.constant("blocks/cut", np.array([0, 0, -1, BLOCK], np.int64))])
    last = made.constant("blocks/last", np.array([-1], np.int64))
    sums = made.step("ReduceSum", [cut, last], attributes={"keepdims": 0})
    turned = made.step("Transpose", [centres], attributes={"perm": [1, 0]})
    made.step("Add", [result, made.step("MatMul", [sums, turned])])


def _look_up(made: Replacement, ids: ir.Value | None, stored: _Stored, blocks: Blocks) -> None:
    """Rows of integers and their scales, to rows of numbers `[..., width]`."""

    def integers(name: str, *numbers: int) -> ir.Value:
        return made.constant(f"blocks/{name}", np.array(numbers, np.int64))

    def each(value: ir.Value) -> ir.Value:
        """A number of each block, beside its codes."""
        found = _wide(made, made.step("Gather", [value, ids], attributes={"axis": 0}))
        return made.step("Unsqueeze", [found, integers("last", -1)])

    count = blocks.codes.shape[1]
    codes = made.step("Gather", [stored.codes, ids], attributes={"axis": 0})
    if blocks.bits == 4:
        pairs = made.step("Cast", [codes], attributes={"to": ir.DataType.INT32})
        sixteen = made.constant("blocks/sixteen", np.array(16, np.int32))
        low, high = (made.step(operator, [pairs, sixteen]) for operator in ("Mod", "Div"))
        halves = [made.step("Unsqueeze", [half, integers("last", -1)]) for half in (low, high)]
        both = made.step("Concat", halves, attributes={"axis": -1})
        codes = made.step("Reshape", [both, integers(f"codes_{count}", 0, 0, count, BLOCK)])
    numbers = made.step("Cast", [codes], attributes={"to": ir.DataType.FLOAT})
    if stored.least is None:
        middle = made.constant(f"blocks/middle_{blocks.bits}", np.array(MIDDLE[blocks.bits], np.float32))
        numbers = made.step("Sub", [numbers, middle])
    scaled = made.step("Mul", [numbers, each(stored.scales)])
    if stored.least is not None:
        scaled = made.step("Add", [scaled, each(stored.least)])
    padded = count * BLOCK
    rows = made.step("Reshape", [scaled, integers(f"rows_{padded}", 0, 0, padded)])
    if padded != blocks.width:
        cut = [integers("cut_from", 0), integers(f"cut_{blocks.width}", blocks.width), integers("cut_axis", 2)]
        made.step("Slice", [rows, *cut])
