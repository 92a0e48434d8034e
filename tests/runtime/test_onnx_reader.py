"""The reader of graphs reads what the onnx library reads, or refuses; and nothing makes it slow or large."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path
from typing import Any

import onnx
import pytest
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from tests.runtime.forge import model, sound, table
from titans_runtime.graphs.onnx_reader import Model, read_model
from titans_runtime.graphs.protobuf import Reader, WireError, signed, varint

CASES = 4000  # damaged graphs; `make fuzz` has more


def said_by_onnx(content: bytes) -> dict[str, Any]:
    """What the onnx library reads in a model, as far as we look at it."""
    found = onnx.load_from_string(content)
    graph = found.graph
    return {
        "ir": found.ir_version,
        "opsets": {entry.domain: entry.version for entry in found.opset_import},
        "nodes": [
            (node.op_type, node.domain, list(node.input), list(node.output), dict(map(_attribute, node.attribute)))
            for node in graph.node
        ],
        "initializers": [
            (
                tensor.name,
                tensor.data_type,
                list(tensor.dims),
                tensor.raw_data if tensor.HasField("raw_data") else None,
                list(tensor.int64_data),
                {entry.key: entry.value for entry in tensor.external_data} if tensor.data_location else None,
            )
            for tensor in graph.initializer
        ],
        "inputs": [_value(value) for value in graph.input],
        "outputs": [_value(value) for value in graph.output],
    }


def _attribute(attribute: onnx.AttributeProto) -> tuple[str, Any]:
    value = helper.get_attribute_value(attribute)
    if isinstance(value, list):
        return attribute.name, tuple(value)
    return attribute.name, value.decode() if isinstance(value, bytes) else value


def _value(value: onnx.ValueInfoProto) -> tuple[str, int, tuple[Any, ...] | None]:
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return value.name, kind.elem_type, None
    sizes = (getattr(dim, dim.WhichOneof("value") or "", None) for dim in kind.shape.dim)
    return value.name, kind.elem_type, tuple(sizes)


def said_by_us(content: bytes) -> dict[str, Any]:
    """The same by our reader."""
    found: Model = read_model(content)
    return {
        "ir": found.ir_version,
        "opsets": found.opsets,
        "nodes": [(node.operator, node.domain, node.inputs, node.outputs, node.attributes) for node in found.nodes],
        "initializers": [
            (t.name, t.dtype, t.dims, None if t.raw is None else content[slice(*t.raw)], t.numbers, t.external)
            for t in found.initializers
        ],
        "inputs": [(value.name, value.dtype, value.shape) for value in found.inputs],
        "outputs": [(value.name, value.dtype, value.shape) for value in found.outputs],
    }


@pytest.fixture(scope="module")
def graphs(tiny_bundle: Path) -> list[bytes]:
    """Every graph of an exported bundle, and one that was written by hand."""
    found = [path.read_bytes() for path in sorted(tiny_bundle.glob("*.onnx"))]
    return [*found, model([sound(table())]).SerializeToString()]


def test_exported_graphs_are_read_as_the_library_reads_them(graphs: list[bytes]) -> None:
    assert len(graphs) > 4
    for content in graphs:
        assert said_by_us(content) == said_by_onnx(content)


def damaged(content: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, moved or gone."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        at = chance.randrange(len(data))
        kind = chance.randrange(5)
        if kind == 0:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[at] = chance.choice((0, 1, 2, 0x7F, 0x80, 0xFF))
        elif kind == 2:
            del data[at : at + chance.randrange(1, 9)]
        elif kind == 3:
            data[at:at] = data[at : at + chance.randrange(1, 40)]
        else:
            data[at:at] = bytes(chance.randrange(256) for _ in range(chance.randrange(1, 5)))
        if not data:
            return b""
    return bytes(data)


def test_what_is_accepted_of_damaged_graphs_is_what_the_library_reads(graphs: list[bytes]) -> None:
    chance = random.Random(1)
    small = sorted(graphs, key=len)[:3]
    accepted = 0
    for _ in range(CASES):
        content = damaged(chance.choice(small), chance)
        try:
            ours = said_by_us(content)
        except (WireError, UnicodeDecodeError):
            continue
        try:
            theirs = said_by_onnx(content)
        except DecodeError:  # in a part that we do not look into: ONNX Runtime refuses it in the same way
            continue
        accepted += 1
        assert ours == theirs
    assert accepted > CASES // 50  # names and numbers may be changed


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x3a",
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x08" + b"\x80" * 100,
        b"\x3b" * 1000,  # groups
        b"\x3a\x00" * 2,
        b"\x08\x0a" * 2 + b"\x3a\x00",
        b"\x0a\x00\x3a\x00",
        b"\xff" * 64,
    ],
)
def test_what_is_no_model_is_refused(content: bytes) -> None:
    with pytest.raises(WireError):
        read_model(content)


def test_nesting_and_many_small_parts_cost_no_more_than_their_bytes() -> None:
    nested = b""
    for _ in range(2000):
        nested = b"\x3a" + _length(len(nested)) + nested
    with pytest.raises(WireError, match="field 7"):
        read_model(nested)
    many = b"\x0a\x00" * 3_000_000
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match="too many parts"):
            read_model(b"\x3a" + _length(len(many)) + many)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**30


def _length(size: int) -> bytes:
    out = bytearray()
    while size > 0x7F:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*out, size])


@pytest.mark.parametrize("number", [0, 1, 127, 128, 2**31, 2**32, 2**63 - 1, -1, -(2**63)])
def test_numbers_are_read_as_they_were_written(number: int) -> None:
    content = helper.make_tensor("t", TensorProto.INT64, [1], [number]).SerializeToString()
    (start, end) = next((a, b) for tag, a, b in Reader(content).fields(0, len(content)) if tag >> 3 == 7)
    assert [signed(value) for value in Reader(content).varints(start, end)] == [number]
    assert varint(_length(abs(number)), 0)[0] == abs(number)


def test_constants_may_be_raw_or_whole_numbers() -> None:
    raw = numpy_helper.from_array(numpy_helper.to_array(helper.make_tensor("a", TensorProto.INT64, [2], [1, -2])), "a")
    listed = helper.make_tensor("b", TensorProto.INT64, [2], [1, -2])
    found = read_model(model([raw, listed]).SerializeToString()).initializers
    assert found[0].raw is not None
    assert found[1].numbers == [1, -2]
