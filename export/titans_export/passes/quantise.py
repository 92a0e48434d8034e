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
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

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


def quantise(models: Iterable[onnx.ModelProto], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Let graphs use integers for the matrices that they multiply with or look up, in place.

    Args:
        models: graphs over shared weights.
        weights: by initializer name.

    Returns:
        What to store: the integers and scales, and the weights that stay as they are.
    """
    models = list(models)
    uses = [use for model in models for use in _uses(model.graph, weights)]
    axes = {weight: axis for weight, axis in uses if axis is not None}
    plain = {weight for weight, axis in uses if axis is None or axes[weight] != axis}
    stored = {name: value for name, value in weights.items() if name not in axes or name in plain}
    shapes: dict[str, tuple[int, ...]] = {}
    for name in sorted(set(axes) - plain):
        blocks = quantised(weights[name], axes[name])
        stored |= {values_name(name): blocks.values, scales_name(name): blocks.scales}
        shapes[name] = tuple(weights[name].shape)
    for model in models:
        _Rewriter(model, shapes, stored).rewrite()
    return stored


def _uses(graph: onnx.GraphProto, weights: Mapping[str, Tensor]) -> list[tuple[str, int | None]]:
    """Every use of a weight: the axis that it may be cut along for this use, or None where it has to stay."""
    transposed = {
        node.output[0]: node.input[0] for node in graph.node if _transposes(node) and node.input[0] in weights
    }
    found: list[tuple[str, int | None]] = []
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name in transposed:
                found.append((transposed[name], 1 if node.op_type == "MatMul" and place == 1 else None))
            elif name in weights and not _transposes(node):
                found.append((name, _axis(node, place) if weights[name].dim() == 2 else None))
    return found


def _transposes(node: onnx.NodeProto) -> bool:
    return node.op_type == "Transpose" and [list(a.ints) for a in node.attribute if a.name == "perm"] == [[1, 0]]


def _axis(node: onnx.NodeProto, place: int) -> int | None:
    if node.op_type == "MatMul" and place == 1:
        return 0
    if node.op_type == "Gather" and place == 0 and all(a.i == 0 for a in node.attribute if a.name == "axis"):
        return 1
    return None


class _Rewriter:
    """One graph; `shapes` are those of the weights that become integers."""

    def __init__(
        self, model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]], stored: Mapping[str, Tensor]
    ) -> None:
        self.model, self.graph = model, model.graph
        self.shapes, self.stored = shapes, stored
        self.used: set[str] = set()
        self.constants: dict[str, onnx.TensorProto] = {}

    def rewrite(self) -> None:
        transposed = {
            node.output[0]: node.input[0]
            for node in self.graph.node
            if _transposes(node) and node.input[0] in self.shapes
        }
        nodes: list[onnx.NodeProto] = []
        for node in self.graph.node:
            source = next(
                (transposed.get(name, name) for name in node.input if transposed.get(name, name) in self.shapes), None
            )
            if source is None:
                nodes.append(node)
            elif node.op_type == "MatMul":
                width, count = self.shapes[source] if node.input[1] == source else self.shapes[source][::-1]
                nodes.append(self._product(node, source, width, count))
            elif node.op_type == "Gather":
                nodes += self._lookup(node, source)
        if not self.used:
            return
        kept = [tensor for tensor in self.graph.initializer if tensor.name not in self.shapes]
        for name in sorted(self.used):
            for key, dtype in ((values_name(name), TensorProto.UINT8), (scales_name(name), TensorProto.FLOAT)):
                kept.append(TensorProto(name=key, data_type=dtype, dims=list(self.stored[key].shape)))
        gone = set(transposed)
        info = [value for value in self.graph.value_info if value.name not in gone]
        for field, items in (
            (self.graph.node, nodes),
            (self.graph.initializer, kept + list(self.constants.values())),
            (self.graph.value_info, info),
        ):
            del field[:]
            field.extend(items)
        self.model.opset_import.append(helper.make_opsetid(DOMAIN, 1))

    def _product(self, node: onnx.NodeProto, weight: str, width: int, count: int) -> onnx.NodeProto:
        self.used.add(weight)
        return helper.make_node(
            "MatMulNBits",
            [node.input[0], values_name(weight), scales_name(weight)],
            list(node.output),
            name=node.name,
            domain=DOMAIN,
            K=width,
            N=count,
            bits=8,
            block_size=block_size(width),
            accuracy_level=INTEGER_KERNEL,
        )

    def _lookup(self, node: onnx.NodeProto, weight: str) -> list[onnx.NodeProto]:
        """Rows of integers and their scales, to rows of numbers `[..., width]`."""
        self.used.add(weight)
        width, out, ids = self.shapes[weight][1], node.output[0], node.input[1]
        block = block_size(width)
        blocks = -(-width // block)

        def step(operator: str, inputs: list[str], last: bool = False, **attributes: Any) -> str:
            result = out if last else f"{out}/{len(made)}"
            made.append(helper.make_node(operator, inputs, [result], name=f"{node.name}/{len(made)}", **attributes))
            return result

        made: list[onnx.NodeProto] = []
        integers = step("Gather", [values_name(weight), ids], axis=0)
        signed = step("Sub", [step("Cast", [integers], to=TensorProto.FLOAT), self._floats("zero", ZERO)])
        scales = step("Unsqueeze", [step("Gather", [scales_name(weight), ids], axis=0), self._integers("last", -1)])
        scaled = step("Mul", [signed, scales])
        exact = blocks * block == width
        rows = step("Reshape", [scaled, self._integers(f"rows_{blocks * block}", 0, 0, blocks * block)], last=exact)
        if not exact:
            bounds = [
                self._integers(f"cut_{key}", value) for key, value in (("from", 0), (str(width), width), ("axis", 2))
            ]
            step("Slice", [rows, *bounds], last=True)
        return made

    def _floats(self, name: str, value: float) -> str:
        return self._constant(name, np.array(value, np.float32))

    def _integers(self, name: str, *values: int) -> str:
        return self._constant(name, np.array(values, np.int64))

    def _constant(self, name: str, value: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> str:
        key = f"int8/{name}"
        self.constants[key] = numpy_helper.from_array(value, key)
        return key
