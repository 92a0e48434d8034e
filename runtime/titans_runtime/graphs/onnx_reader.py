"""An ONNX model as plain data, read without the onnx package and without trust.

Knows the messages of `onnx.proto` as far as our exporter writes them, by field number and wire type. Every other field
is refused, so nothing that this reader does not know can reach ONNX Runtime: no functions, sparse tensors, nested
graphs or training information, and no field twice of which ONNX Runtime would take another one than we did. Does not
know bundles, nor what a graph may say (`check`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TypeAlias

from titans_runtime.graphs.protobuf import Reader, WireError, signed, varint

_FLOAT, _INT, _STRING, _INTS = 1, 2, 3, 7  # onnx.AttributeProto.AttributeType
_EXTERNAL = 1  # onnx.TensorProto.DataLocation

Attribute: TypeAlias = "int | float | str | tuple[int, ...]"
Size: TypeAlias = "int | str | None"  # a dimension: its size, a name, or unknown


@dataclass(slots=True)
class Node:
    """One operator."""

    operator: str
    domain: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Attribute]


@dataclass(slots=True)
class Tensor:
    """One initializer.

    raw: where its data lies in the file.
    numbers: the data as whole numbers, of an int64 tensor without `raw`.
    external: what it says of data elsewhere.
    """

    name: str = ""
    dtype: int = 0
    dims: list[int] = field(default_factory=list)
    raw: tuple[int, int] | None = None
    numbers: list[int] = field(default_factory=list)
    external: dict[str, str] | None = None


@dataclass(slots=True)
class Value:
    """An input or an output: name, element type, and its shape where it has one."""

    name: str = ""
    dtype: int = 0
    shape: tuple[Size, ...] | None = None


@dataclass(slots=True)
class Model:
    """The file."""

    ir_version: int = 0
    opsets: dict[str, int] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    initializers: list[Tensor] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)


def read_model(data: bytes) -> Model:
    """Read a model. Raises `WireError`: not a model, or one with something in it that we never write."""
    return _Onnx(data).model()


# How `onnx.proto` numbers the fields that we know, with the wire type: `number << 3 | type`.
_MODEL_GRAPH, _MODEL_OPSET, _MODEL_IR = 58, 66, 8
_MODEL_TEXTS = frozenset({18, 26, 34, 50})  # producer, its version, domain, description
_MODEL_VERSION, _MODEL_METADATA = 40, 114
_GRAPH_NODE, _GRAPH_NAME, _GRAPH_INITIALIZER, _GRAPH_TEXT = 10, 18, 42, 82
_GRAPH_INPUT, _GRAPH_OUTPUT, _GRAPH_INFO = 90, 98, 106
_NODE_INPUT, _NODE_OUTPUT, _NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 10, 18, 34, 42, 58
_NODE_TEXTS = frozenset({26, _NODE_OPERATOR, 50, _NODE_DOMAIN})  # name and description besides
_ATTRIBUTE_NAME, _ATTRIBUTE_FLOAT, _ATTRIBUTE_INT, _ATTRIBUTE_STRING, _ATTRIBUTE_TYPE = 10, 21, 24, 34, 160
_ATTRIBUTE_INTS, _ATTRIBUTE_PACKED = 64, 66
_TENSOR_DIM, _TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW = 8, 10, 16, 66, 74
_TENSOR_INT64, _TENSOR_INT64S, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 56, 58, 106, 112


class _Onnx(Reader):
    """The messages, one method each. Attributes and types repeat, so each spelling of them is read once."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._attributes: dict[bytes, tuple[str, Attribute]] = {}
        self._types: dict[bytes, tuple[int, tuple[Size, ...] | None]] = {}

    def model(self) -> Model:
        model = Model()
        seen: set[int] = set()
        for tag, start, end in self.fields(0, len(self.data)):
            if tag == _MODEL_OPSET:
                domain, version = self._pair(start, end, 10, 16)
                if domain in model.opsets:
                    raise WireError(f"it names the version of domain {domain!r} twice")
                model.opsets[domain] = version
                continue
            if tag == _MODEL_METADATA:
                self.fields(start, end)
                continue
            self._once(seen, tag, "model")
            if tag == _MODEL_GRAPH:
                self._graph(model, start, end)
            elif tag == _MODEL_IR:
                model.ir_version = start
            elif tag not in _MODEL_TEXTS and tag != _MODEL_VERSION:
                raise _unknown("model", tag)
        if _MODEL_GRAPH not in seen:
            raise WireError("it has no graph")
        return model

    def _graph(self, model: Model, start: int, end: int) -> None:
        seen: set[int] = set()
        for tag, begin, stop in self.fields(start, end):
            if tag == _GRAPH_NODE:
                model.nodes.append(self._node(begin, stop))
            elif tag == _GRAPH_INITIALIZER:
                model.initializers.append(self._tensor(begin, stop))
            elif tag == _GRAPH_INFO:
                self._information(begin, stop)
            elif tag == _GRAPH_INPUT:
                model.inputs.append(self._value(begin, stop))
            elif tag == _GRAPH_OUTPUT:
                model.outputs.append(self._value(begin, stop))
            elif tag in (_GRAPH_NAME, _GRAPH_TEXT):
                self._once(seen, tag, "graph")
            else:
                raise _unknown("graph", tag)

    def _node(self, start: int, end: int) -> Node:
        """As `fields` reads it, written out: nodes are most of a file, and this takes two thirds of the time."""
        data, at, read = self.data, start, 0
        inputs: list[str] = []
        outputs: list[str] = []
        attributes: dict[str, Attribute] = {}
        texts: dict[int, str] = {}
        try:
            while at < end:
                tag, size = data[at], data[at + 1]
                at += 2
                if size > 0x7F:
                    size, at = varint(data, at - 1)
                stop = at + size
                read += 1
                if tag == _NODE_INPUT:
                    inputs.append(data[at:stop].decode())
                elif tag == _NODE_OUTPUT:
                    outputs.append(data[at:stop].decode())
                elif tag == _NODE_ATTRIBUTE:
                    spelt = data[at:stop]
                    known = self._attributes.get(spelt)
                    if known is None:
                        known = self._attributes[spelt] = self._attribute(at, stop)
                    name, value = known
                    if name in attributes:
                        raise WireError(f"a node has attribute {name!r} twice")
                    attributes[name] = value
                elif tag in texts:
                    raise WireError(f"a node has field {tag >> 3} twice")
                elif tag in _NODE_TEXTS:
                    texts[tag] = data[at:stop].decode()
                else:
                    raise _unknown("node", tag)
                at = stop
        except IndexError:
            raise WireError("a node ends in the middle of a field") from None
        self.took(read)
        if at != end:
            raise WireError(f"a field goes beyond its node, which ends at byte {end}")
        return Node(texts.get(_NODE_OPERATOR, ""), texts.get(_NODE_DOMAIN, ""), inputs, outputs, attributes)

    def _attribute(self, start: int, end: int) -> tuple[str, Attribute]:
        name, kind = "", 0
        values: dict[int, Attribute] = {}
        ints: list[int] = []
        for tag, begin, stop in self.fields(start, end):
            if tag == _ATTRIBUTE_INTS:
                ints.append(signed(begin))
                continue
            if tag == _ATTRIBUTE_PACKED:
                ints += [signed(number) for number in self.varints(begin, stop)]
                continue
            if tag in values:
                raise WireError(f"attribute {name!r} has a value twice")
            if tag == _ATTRIBUTE_NAME:
                name = self.text(begin, stop)
                values[tag] = name
            elif tag == _ATTRIBUTE_TYPE:
                kind = begin
                values[tag] = kind
            elif tag == _ATTRIBUTE_INT:
                values[tag] = signed(begin)
            elif tag == _ATTRIBUTE_FLOAT:
                values[tag] = struct.unpack_from("<f", self.data, begin)[0]
            elif tag == _ATTRIBUTE_STRING:
                values[tag] = self.text(begin, stop)
            else:
                raise _unknown(f"attribute {name!r}", tag)
        if kind == _INTS:
            return name, tuple(ints)
        place = {_FLOAT: _ATTRIBUTE_FLOAT, _INT: _ATTRIBUTE_INT, _STRING: _ATTRIBUTE_STRING}.get(kind)
        default: Attribute = {_FLOAT: 0.0, _INT: 0}.get(kind, "")  # protobuf leaves a field out where it is nothing
        if place is None or ints or set(values) - {_ATTRIBUTE_NAME, _ATTRIBUTE_TYPE, place}:
            raise WireError(f"attribute {name!r} is not one number, text or list of numbers")
        return name, values.get(place, default)

    def _tensor(self, start: int, end: int) -> Tensor:
        tensor = Tensor()
        seen: set[int] = set()
        external: dict[str, str] = {}
        for tag, begin, stop in self.fields(start, end):
            if tag == _TENSOR_DIM:
                tensor.dims.append(begin)
            elif tag == _TENSOR_DIMS:
                tensor.dims += self.varints(begin, stop)
            elif tag == _TENSOR_INT64:
                tensor.numbers.append(signed(begin))
            elif tag == _TENSOR_INT64S:
                tensor.numbers += [signed(number) for number in self.varints(begin, stop)]
            elif tag == _TENSOR_EXTERNAL:
                key, value = self._texts(begin, stop)
                if key in external:
                    raise WireError(f"initializer {tensor.name!r} says {key!r} of its data twice")
                external[key] = value
            else:
                self._once(seen, tag, "initializer")
                if tag == _TENSOR_TYPE:
                    tensor.dtype = begin
                elif tag == _TENSOR_NAME:
                    tensor.name = self.text(begin, stop)
                elif tag == _TENSOR_RAW:
                    tensor.raw = begin, stop
                elif tag == _TENSOR_LOCATION:
                    if begin != _EXTERNAL:
                        raise WireError(f"an initializer is at a place ({begin}) that does not exist")
                    tensor.external = external
                else:
                    raise _unknown("initializer", tag)
        places = bool(external) + bool(tensor.numbers) + (tensor.raw is not None)
        if places > 1 or (external and tensor.external is None):
            raise WireError(f"initializer {tensor.name!r} has its data in two places")
        return tensor

    def _value(self, start: int, end: int) -> Value:
        value = Value()
        seen: set[int] = set()
        for tag, begin, stop in self.fields(start, end):
            self._once(seen, tag, "value")
            if tag == 10:
                value.name = self.text(begin, stop)
            elif tag == 18:
                kinds = self.fields(begin, stop)
                if [kind for kind, _, _ in kinds] != [10]:
                    raise WireError(f"value {value.name!r} is not a tensor")
                _, begin, stop = kinds[0]
                spelt = self.data[begin:stop]
                if spelt not in self._types:
                    self._types[spelt] = self._tensor_type(begin, stop)
                value.dtype, value.shape = self._types[spelt]
            else:
                raise _unknown("value", tag)
        return value

    def _information(self, start: int, end: int) -> None:
        """What is said of a value in between: ONNX Runtime infers it anew, and refuses what differs."""
        for tag, begin, stop in self.fields(start, end):
            if tag == 18:
                if begin == stop or self.data[begin] != 10:
                    raise WireError("a value is not a tensor")
            elif tag != 10:
                raise _unknown("value", tag)

    def _tensor_type(self, start: int, end: int) -> tuple[int, tuple[Size, ...] | None]:
        dtype, shape = 0, None
        seen: set[int] = set()
        for tag, begin, stop in self.fields(start, end):
            self._once(seen, tag, "type")
            if tag == 8:
                dtype = begin
            elif tag == 18:
                shape = tuple(self._size(*place) for place in self.fields(begin, stop))
            else:
                raise _unknown("type", tag)
        return dtype, shape

    def _size(self, tag: int, start: int, end: int) -> Size:
        if tag != 10:
            raise _unknown("shape", tag)
        found = self.fields(start, end)
        if not found:
            return None
        if len(found) > 1 or found[0][0] not in (8, 18):
            raise WireError("a dimension is neither a number nor a name")
        kind, begin, stop = found[0]
        return signed(begin) if kind == 8 else self.text(begin, stop)

    def _pair(self, start: int, end: int, text: int, number: int) -> tuple[str, int]:
        found = {tag: (begin, stop) for tag, begin, stop in self.fields(start, end)}
        if set(found) - {text, number}:
            raise WireError("a version has fields that nobody writes")
        return self.text(*found[text]) if text in found else "", found.get(number, (0, 0))[0]

    def _texts(self, start: int, end: int) -> tuple[str, str]:
        found = {tag: self.text(begin, stop) for tag, begin, stop in self.fields(start, end) if tag in (10, 18)}
        return found.get(10, ""), found.get(18, "")

    def _once(self, seen: set[int], tag: int, what: str) -> None:
        if tag in seen:
            raise WireError(f"a {what} has field {tag >> 3} twice")
        seen.add(tag)


def _unknown(what: str, tag: int) -> WireError:
    return WireError(f"{what} has field {tag >> 3}, which our exporter never writes")
