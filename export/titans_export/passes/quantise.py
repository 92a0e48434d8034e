"""Weight matrices as 8-bit integers in a graph, for the CPU kernels that multiply with them as they are.

A matrix is cut into blocks along the axis that a product sums over; a block shares one fp32 scale, its largest
number over 127. Products become ONNX Runtime's MatMulNBits, which rounds the activations of a block to 8 bits too and
multiplies integers; a step reads a quarter of the bytes. An embedding is looked up as integers and scaled afterwards.

Measured with onnxruntime 1.32 on one core with AVX2, [768, 3072]: one row takes 95 us against 210 us of fp32,
sixty-four rows 7.0 ms against 5.6 ms. accuracy_level 4 is the integer kernel; any other computes in fp32 and takes
8 ms for one row. Knows ONNX. Does not know which models or files there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import Tensor

from titans_export.graph.builder import weight_value
from titans_export.passes.replacement import Replacement, initializer

BLOCK = 64  # numbers per scale; 32 took 1.4 times as long, 128 no less
SMALLEST_BLOCK = 16  # the kernel's least
ZERO = 128  # integers are stored unsigned, this is 0
LARGEST = 127
DOMAIN = "com.microsoft"
INTEGER_KERNEL = 4  # accuracy_level


@dataclass(frozen=True)
class Blocks:
    """A matrix in blocks: `values` uint8 `[n, blocks, block]`, `scales` float32 `[n, blocks]`."""

    values: Tensor
    scales: Tensor


def quantised(weight: Tensor, axis: int) -> Blocks:
    """A matrix cut into blocks along `axis`, the other axis first; the last block is filled up with zeros."""
    rows = weight.detach().float()
    rows = rows if axis == 1 else rows.T
    count, width = rows.shape
    block = block_size(width)
    padded = torch.nn.functional.pad(rows, (0, -width % block)).reshape(count, -1, block)
    scales = padded.abs().amax(-1) / LARGEST
    steps = torch.where(scales > 0, scales, 1.0)[..., None]
    values = torch.round(padded / steps).clamp(-LARGEST, LARGEST) + ZERO
    return Blocks(values.to(torch.uint8).contiguous(), scales)


def rounded(weight: Tensor, axis: int) -> Tensor:
    """What `quantised` stores, as numbers in the shape of `weight`."""
    blocks = quantised(weight, axis)
    rows = ((blocks.values.float() - ZERO) * blocks.scales[..., None]).flatten(1)
    rows = rows[:, : weight.shape[axis]]
    return (rows if axis == 1 else rows.T).contiguous()


def rounded_rows(x: Tensor) -> Tensor:
    """Activations `[..., n]` as the integer kernel takes them: whole steps, 127 of them up to a block's largest."""
    width = x.shape[-1]
    block = block_size(width)
    padded = torch.nn.functional.pad(x, (0, -width % block))
    blocks = padded.reshape(*x.shape[:-1], -1, block)
    steps = blocks.abs().amax(-1, keepdim=True) / LARGEST
    taken: Tensor = torch.round(blocks / torch.where(steps > 0, steps, 1.0)) * steps
    return taken.flatten(-2)[..., :width]


def block_size(width: int) -> int:
    """The block for a sum over `width` numbers."""
    block = BLOCK
    while block > SMALLEST_BLOCK and block >= 2 * width:
        block //= 2
    return block


def values_name(weight: str) -> str:
    """The stored name of a weight's integers."""
    return f"{weight}.int8"


def scales_name(weight: str) -> str:
    """The stored name of its scales."""
    return f"{weight}.scales"


def quantise(models: Iterable[ir.Model], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Let graphs use integers for the matrices that they multiply with or look up, in place.

    Args:
        models: graphs over shared weights.
        weights: by initializer name.

    Returns:
        What to store: the integers and scales, and the weights that stay as they are.
    """
    models = list(models)
    uses = {name: [use for model in models for use in _uses(model.graph, name)] for name in weights}
    axes = {name: _axis(found) for name, found in uses.items() if weights[name].dim() == 2}
    stored = dict(weights)
    for name, axis in sorted(axes.items()):
        if axis is None:
            continue
        blocks = quantised(stored.pop(name), axis)
        stored |= {values_name(name): blocks.values, scales_name(name): blocks.scales}
        for node, value in uses[name]:
            _replace(node, value, name, weights[name].shape[axis], blocks)
    for model in models:
        if any(node.domain == DOMAIN for node in model.graph):
            model.graph.opset_imports[DOMAIN] = 1
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


def _axis(uses: Iterable[Use]) -> int | None:
    """The axis that a weight may be cut along for all of its uses, or None where it has to stay."""
    axes = {_axis_of(node, value) for node, value in uses}
    return axes.pop() if len(axes) == 1 else None


def _axis_of(node: ir.Node, value: ir.Value) -> int | None:
    if node.op_type == "MatMul" and node.inputs[1] is value and node.inputs[0] is not value:
        return 0 if value.is_initializer() else 1
    looks_up = node.op_type == "Gather" and node.inputs[0] is value and node.attributes.get_int("axis", 0) == 0
    return 1 if looks_up and value.is_initializer() else None


def _replace(node: ir.Node, value: ir.Value, weight: str, width: int, blocks: Blocks) -> None:
    """Let a node use the integers and scales of a weight whose products sum over `width` numbers."""
    graph = node.graph
    if not isinstance(graph, ir.Graph):
        raise TypeError(f"{node.name} is not in a graph")
    made = Replacement(graph, node)
    values = initializer(graph, weight_value(values_name(weight), ir.DataType.UINT8, blocks.values.shape))
    scales = initializer(graph, weight_value(scales_name(weight), ir.DataType.FLOAT, blocks.scales.shape))
    if node.op_type == "MatMul":
        attributes = {
            "K": width,
            "N": len(blocks.scales),
            "bits": 8,
            "block_size": block_size(width),
            "accuracy_level": INTEGER_KERNEL,
        }
        made.step("MatMulNBits", [node.inputs[0], values, scales], domain=DOMAIN, attributes=attributes)
    else:
        _look_up(made, node.inputs[1], values, scales, width)
    made.finish()


def _look_up(made: Replacement, ids: ir.Value | None, values: ir.Value, scales: ir.Value, width: int) -> None:
    """Rows of integers and their scales, to rows of numbers `[..., width]`."""

    def integers(name: str, *numbers: int) -> ir.Value:
        return made.constant(f"int8/{name}", np.array(numbers, np.int64))

    padded = -(-width // block_size(width)) * block_size(width)
    zero = made.constant("int8/zero", np.array(ZERO, np.float32))
    rows = made.step("Gather", [values, ids], attributes={"axis": 0})
    signed = made.step("Sub", [made.step("Cast", [rows], attributes={"to": ir.DataType.FLOAT}), zero])
    factors = made.step("Gather", [scales, ids], attributes={"axis": 0})
    scaled = made.step("Mul", [signed, made.step("Unsqueeze", [factors, integers("last", -1)])])
    numbers = made.step("Reshape", [scaled, integers(f"rows_{padded}", 0, 0, padded)])
    if padded != width:
        made.step("Slice", [numbers, integers("cut_from", 0), integers(f"cut_{width}", width), integers("cut_axis", 2)])
