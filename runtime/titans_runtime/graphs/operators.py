"""The operators that a bundle's graphs are made of: their attributes, and the element type of what they return.

These are the operators that our exporter writes (`titans_export.graph` and `passes`); a test holds the two against each
other. None of them has a graph inside or runs anything more than once, so a graph takes a bounded number of steps. Does
not know files or tensors (`check`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from titans_format.dtypes import BY_NAME

# The element type of an operator's outputs: that of an input by its place, one by name, or what attribute `to` says.
Returns: TypeAlias = "int | Literal['bool', 'int64', 'float32', 'to']"
STANDARD, FUSED, CONTRIBUTED = "", "ai.titans", "com.microsoft"
# Versions that our exporter writes
OPSETS: Mapping[str, int] = {STANDARD: 20, FUSED: 1, CONTRIBUTED: 1}
IR_VERSION = 10  # and every older one, which has less


# Its integers and scales have the sizes that its attributes say (`graph_check`).
PACKED_PRODUCT = (CONTRIBUTED, "MatMulNBits")
PACKED_BITS, PACKED_BLOCKS = (4, 8), (16, 32, 64)


@dataclass(frozen=True)
class Operator:
    """One operator.

    returns: the element type of its outputs.
    attributes: those that it may have, with the type of each.
    """

    returns: Returns = 0
    attributes: Mapping[str, type] = field(default_factory=dict)


_PLAIN = (
    "Abs Add Clip Cos Div Erf Exp Expand Identity Log MatMul Max Min Mod Mul Neg Pow Reciprocal Relu Reshape"
    " Sigmoid Sin Slice Softplus Sqrt Sub Tanh Unsqueeze"
)
BY_HAND = ("Squeeze",)  # our exporter says Reshape; who writes a bundle by hand needs the twin of Unsqueeze
_COMPARISONS = "And Equal Greater GreaterOrEqual Less LessOrEqual Not Or"
_MEMORY: Mapping[str, type] = {
    **dict.fromkeys(("heads", "width", "chunk", "taps", "depth", "silu", "gates", "forget"), int),
    **dict.fromkeys(("momentum", "step", "fold", "padded", "start"), int),
    **dict.fromkeys(("bound", "max_step"), float),
}
_ATTENTION = dict.fromkeys(("heads", "chunk", "past", "window", "persistent"), int)
_WINDOW: Mapping[str, type] = {
    **dict.fromkeys(("heads", "kv_heads", "chunk", "past", "window", "sinks", "normed"), int),
    "epsilon": float,
}
_BLOCK_LINEAR: Mapping[str, type] = {
    **dict.fromkeys(("bits", "least", "norm", "gated", "added"), int),
    "epsilon": float,
}
_KEEP, _AXIS = {"keepdims": int}, {"axis": int}

OPERATORS: Mapping[tuple[str, str], Operator] = {
    **{(STANDARD, name): Operator() for name in (*_PLAIN.split(), *BY_HAND)},
    **{(STANDARD, name): Operator("bool") for name in _COMPARISONS.split()},
    **{(STANDARD, name): Operator(0, _KEEP) for name in ("ReduceL2", "ReduceMax", "ReduceMean", "ReduceSum")},
    **{(STANDARD, name): Operator(0, _AXIS) for name in ("Concat", "Gather", "Softmax", "Split")},
    (STANDARD, "Cast"): Operator("to", {"to": int}),
    (STANDARD, "Conv"): Operator(0, {"group": int}),
    (STANDARD, "Gelu"): Operator(0, {"approximate": str}),
    (STANDARD, "LayerNormalization"): Operator(0, {"axis": int, "epsilon": float}),
    (STANDARD, "LpNormalization"): Operator(0, {"axis": int, "p": int}),
    (STANDARD, "Shape"): Operator("int64", {"start": int, "end": int}),
    (STANDARD, "Transpose"): Operator(0, {"perm": tuple}),
    (STANDARD, "Where"): Operator(1),
    (FUSED, "BlockLinear"): Operator("float32", _BLOCK_LINEAR),
    (FUSED, "GatedUnit"): Operator("float32"),
    (FUSED, "Linear"): Operator("float32"),
    (FUSED, "Memory"): Operator("float32", _MEMORY),
    (FUSED, "MemoryCommit"): Operator("float32", _MEMORY),
    (FUSED, "MemoryRead"): Operator("float32", _MEMORY),
    (FUSED, "RMSNorm"): Operator("float32", {"epsilon": float}),
    (FUSED, "TokenAttention"): Operator("float32", _ATTENTION),
    (FUSED, "WindowAttention"): Operator("float32", _WINDOW),
    (FUSED, "WindowPrefill"): Operator("float32", _WINDOW),
    PACKED_PRODUCT: Operator("float32", dict.fromkeys(("K", "N", "bits", "block_size", "accuracy_level"), int)),
}

# Whole numbers are divided by these, and a divisor of 0 or -1 ends the process.
DIVISIONS = frozenset({(STANDARD, "Div"), (STANDARD, "Mod")})
INTEGERS = frozenset(BY_NAME[name].onnx for name in ("int8", "uint8", "int32", "int64"))
