"""Small ONNX graphs as bytes, written without the onnx package, which the runtime must not need.

Knows as much of ONNX's protobuf encoding as a handful of nodes with integer attributes take: a field is its number and
wire type in a varint, then a varint (type 0) or a length and bytes (type 2). Field numbers are those of `onnx.proto`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from titans_format.dtypes import BY_NAME

_IR_VERSION, _OPSET = 8, 18  # old enough for every ONNX Runtime that the extras allow
_INT = 2  # onnx.AttributeProto.INT


@dataclass(frozen=True)
class Value:
    """An input or output of a graph: its name, dtype as NumPy spells it, and how many dimensions it has.

    shape: sizes, and names of symbolic ones; None: every dimension is a symbol of its own.
    """

    name: str
    dtype: str
    rank: int
    shape: tuple[int | str, ...] | None = None


@dataclass(frozen=True)
class Node:
    """One operator, with whole numbers as attributes. It is called after its first output."""

    operator: str
    inputs: Sequence[str]
    output: str | tuple[str, ...]
    attributes: Mapping[str, int] = field(default_factory=dict)


def model(
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    nodes: Sequence[Node],
    constants: Mapping[str, Sequence[int]] | None = None,
) -> bytes:
    """An ONNX model.

    Args:
        inputs, outputs: its interface.
        nodes: in an order in which they can run.
        constants: int64 vectors by name.
    """
    graph = b"".join(_node(node) for node in nodes)
    graph += _text(2, "moves")
    graph += b"".join(_constant(name, numbers) for name, numbers in (constants or {}).items())
    graph += b"".join(_bytes(11, _value(value)) for value in inputs)
    graph += b"".join(_bytes(12, _value(value)) for value in outputs)
    opset = _text(1, "") + _number(2, _OPSET)
    return _number(1, _IR_VERSION) + _bytes(7, graph) + _bytes(8, opset)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _number(tag: int, number: int) -> bytes:
    return _varint(tag << 3) + _varint(number)


def _bytes(tag: int, content: bytes) -> bytes:
    return _varint(tag << 3 | 2) + _varint(len(content)) + content


def _text(tag: int, text: str) -> bytes:
    return _bytes(tag, text.encode())


def _node(node: Node) -> bytes:
    outputs = (node.output,) if isinstance(node.output, str) else node.output
    content = b"".join(_text(1, name) for name in node.inputs) + b"".join(_text(2, name) for name in outputs)
    content += _text(3, outputs[0]) + _text(4, node.operator)
    for name, number in node.attributes.items():
        content += _bytes(5, _text(1, name) + _number(3, number) + _number(20, _INT))
    return _bytes(1, content)


def _constant(name: str, numbers: Sequence[int]) -> bytes:
    raw = b"".join(number.to_bytes(8, "little", signed=True) for number in numbers)
    return _bytes(5, _number(1, len(numbers)) + _number(2, BY_NAME["int64"].onnx) + _text(8, name) + _bytes(9, raw))


def _value(value: Value) -> bytes:
    sizes = value.shape or [f"{value.name}_{axis}" for axis in range(value.rank)]
    shape = b"".join(_bytes(1, _text(2, n) if isinstance(n, str) else _number(1, n)) for n in sizes)
    tensor = _number(1, BY_NAME[value.dtype].onnx) + _bytes(2, shape)
    return _text(1, value.name) + _bytes(2, _bytes(1, tensor))
