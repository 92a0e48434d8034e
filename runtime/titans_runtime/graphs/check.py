"""A graph held against the manifest and the weights, before ONNX Runtime sees it.

Hashes say that a file is the one that its maker wrote, not that its maker meant well. ONNX Runtime takes a graph at its
word where it is given weights: a tensor of another type than the graph says is read and written beyond its end. So here
every initializer is compared with the weight file's header, every input and output with the manifest, and every node
with the operators that our exporter writes. Knows what a graph may say. Does not know the encoding (`onnx_reader`), nor
ONNX Runtime.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from titans_format.dtypes import BY_NAME, BY_ONNX, BY_SAFETENSORS
from titans_format.errors import BundleError
from titans_format.specs import MOST_AXES, TensorSpec
from titans_runtime.graphs.onnx_reader import Model, Node, Tensor, Value, read_model
from titans_runtime.graphs.operators import (
    DIVISIONS,
    INTEGERS,
    IR_VERSION,
    OPERATORS,
    OPSETS,
    PACKED_BITS,
    PACKED_BLOCKS,
    PACKED_PRODUCT,
    STANDARD,
)
from titans_runtime.graphs.protobuf import WireError
from titans_runtime.tensorfile import MappedTensor

_HALF = frozenset({"F16", "BF16"})
MOST_NODES = 100_000  # the largest bundle that we export has 8,000 in a graph


@dataclass(frozen=True)
class Interface:
    """What a graph must agree with.

    source: what to call the graph in errors.
    inputs, outputs: the manifest's.
    weights: by initializer name.
    weight_file: its name in the bundle.
    widened: the graph is a twin for CPUs, which takes half-precision weights as float32 inputs.
    """

    source: str
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    weights: Mapping[str, MappedTensor]
    weight_file: str
    widened: bool = False


@dataclass(frozen=True)
class CheckedGraph:
    """A graph that is what it should be: its bytes, and the names of the weights that it reads in place."""

    content: bytes
    weights: tuple[str, ...]


def check_graph(content: bytes, wanted: Interface) -> CheckedGraph:
    """Hold a graph against its interface.

    Raises:
        BundleError: it is not an ONNX model, is not what the manifest says, refers to weights that are not there or
            are of another type, or computes with something that no exporter of ours writes.
    """
    try:
        model = read_model(content)
    except (WireError, UnicodeDecodeError) as error:
        _fail(wanted, f"cannot be read ({error})")
    return CheckedGraph(content, _Check(model, content, wanted).run())


def _fail(wanted: Interface, what: str) -> NoReturn:
    raise BundleError(f"{wanted.source} {what}", "it is not as our exporter writes it: export the bundle again")


class _Check:
    """One graph. `types` are the element types of all values that are known so far."""

    def __init__(self, model: Model, content: bytes, wanted: Interface) -> None:
        self.model, self.content, self.wanted = model, content, wanted
        self.types: dict[str, int] = {}
        self.constants: dict[str, Tensor] = {}
        self.sizes: dict[str, tuple[int, ...]] = {}  # of initializers, and of what is cast from them

    def run(self) -> tuple[str, ...]:
        self._versions()
        self._inputs()
        used = tuple(tensor.name for tensor in self.model.initializers if self._initializer(tensor))
        if len(self.model.nodes) > MOST_NODES:
            self.fail(f"has {len(self.model.nodes):,} nodes, more than {MOST_NODES:,}")
        for node in self.model.nodes:
            self._node(node)
        self._outputs()
        return used

    def fail(self, what: str) -> NoReturn:
        _fail(self.wanted, what)

    def _versions(self) -> None:
        if not 1 <= self.model.ir_version <= IR_VERSION:
            self.fail(f"has format version {self.model.ir_version}, not {IR_VERSION}")
        for domain, version in self.model.opsets.items():
            if OPSETS.get(domain) != version:
                self.fail(f"uses version {version} of domain {domain!r}")
        if STANDARD not in self.model.opsets:
            self.fail("does not say which version of ONNX's operators it uses")

    def _inputs(self) -> None:
        specs = {spec.name: spec for spec in self.wanted.inputs}
        for value in self.model.inputs:
            if value.name in self.types:
                self.fail(f"has input {value.name!r} twice")
            if value.name in self.wanted.weights:
                self._wide_input(value)
            elif value.name in specs:
                self._agree("input", value, specs.pop(value.name))
            else:
                self.fail(f"has an input {value.name!r} that the manifest does not list")
            self.types[value.name] = value.dtype
        if specs:
            self.fail(f"has no input {next(iter(specs))!r}, which the manifest lists")

    def _wide_input(self, value: Value) -> None:
        """A half-precision weight, which the runtime widens and binds."""
        stored = self.wanted.weights[value.name]
        named = any(spec.name == value.name for spec in self.wanted.inputs)
        fits = value.dtype == BY_NAME["float32"].onnx and value.shape == stored.array.shape
        if not self.wanted.widened or named or stored.dtype not in _HALF or not fits:
            self.fail(f"has an input {value.name!r}, which is the name of a weight of another kind")

    def _outputs(self) -> None:
        specs = {spec.name: spec for spec in self.wanted.outputs}
        for value in self.model.outputs:
            if value.name not in specs:
                self.fail(f"has an output {value.name!r} that the manifest does not list, or has it twice")
            self._agree("output", value, specs.pop(value.name))
            if (found := self.types.get(value.name)) != value.dtype:
                self.fail(f"says that output {value.name!r} is {_type(value.dtype)}, and computes {_type(found)}")
        if specs:
            self.fail(f"has no output {next(iter(specs))!r}, which the manifest lists")

    def _agree(self, side: str, value: Value, spec: TensorSpec) -> None:
        shape = value.shape
        same = value.dtype == BY_NAME[spec.dtype].onnx and shape is not None and len(shape) == len(spec.shape)
        if not same or not all(_size_fits(*sizes) for sizes in zip(shape or (), spec.shape, strict=True)):
            found = f"{_type(value.dtype)} {'of unknown shape' if shape is None else list(shape)}"
            self.fail(f"has {side} {value.name!r} as {found}, the manifest says {spec.dtype} {list(spec.shape)}")

    def _initializer(self, tensor: Tensor) -> bool:
        """Check one, and say whether it is a weight."""
        name = tensor.name
        if not name or name in self.types:
            self.fail(f"has initializer {name!r} twice, or under the name of an input")
        if tensor.dtype not in BY_ONNX or len(tensor.dims) > MOST_AXES:
            self.fail(
                f"has initializer {name!r} of type {tensor.dtype} with {len(tensor.dims)} axes, which no weight is"
            )
        self.types[name] = tensor.dtype
        self.sizes[name] = tuple(tensor.dims)
        if tensor.external is not None:
            self._weight(tensor, tensor.external)
            return True
        if name in self.wanted.weights:
            self.fail(f"has initializer {name!r}, which is the name of a weight, with data of its own")
        self._constant(tensor)
        self.constants[name] = tensor
        return False

    def _weight(self, tensor: Tensor, external: Mapping[str, str]) -> None:
        """A reference into the weight file, to exactly one tensor of it."""
        name, stored = tensor.name, self.wanted.weights.get(tensor.name)
        if external.get("location") != self.wanted.weight_file:
            self.fail(f"takes the data of {name!r} from {external.get('location')!r}, not {self.wanted.weight_file!r}")
        if stored is None:
            self.fail(f"has initializer {name!r}, and {self.wanted.weight_file} has no such tensor")
        if tensor.dtype != BY_SAFETENSORS[stored.dtype].onnx or tuple(tensor.dims) != stored.array.shape:
            self.fail(
                f"has initializer {name!r} as {_type(tensor.dtype)} {tensor.dims}, in {self.wanted.weight_file} it is"
                f" {_type(BY_SAFETENSORS[stored.dtype].onnx)} {list(stored.array.shape)}"
            )
        place = {"location": self.wanted.weight_file, "offset": stored.offset, "length": stored.array.nbytes}
        if dict(external) != {key: str(value) for key, value in place.items()}:
            self.fail(f"has initializer {name!r} at another place than {self.wanted.weight_file} has it")

    def _constant(self, tensor: Tensor) -> None:
        """Data in the graph itself, as much of it as the shape says."""
        count = math.prod(tensor.dims)
        if tensor.raw is None:
            fits = tensor.dtype == BY_NAME["int64"].onnx and len(tensor.numbers) == count
        else:
            fits = tensor.raw[1] - tensor.raw[0] == count * BY_ONNX[tensor.dtype].bytes
        if not fits:
            self.fail(f"has initializer {tensor.name!r} with another amount of data than its shape says")

    def _node(self, node: Node) -> None:
        key = (node.domain, node.operator)
        operator = OPERATORS.get(key)
        if operator is None or node.domain not in self.model.opsets:
            of = f" of domain {node.domain!r}" if node.domain else ""
            self.fail(f"uses operator {node.operator!r}{of}, which is not one of ours")
        for name, value in node.attributes.items():
            if operator.attributes.get(name) is not type(value):
                self.fail(f"has attribute {name!r} at operator {node.operator!r}, which is not one of ours")
        types = [self._known(node, name) for name in node.inputs]
        if key in DIVISIONS and types and types[0] in INTEGERS:
            self._divisor(node)
        if key == PACKED_PRODUCT:
            self._packed(node)
        if node.operator == "Cast" and node.inputs[:1] and node.inputs[0] in self.sizes:
            self.sizes.update(dict.fromkeys(node.outputs, self.sizes[node.inputs[0]]))
        returned = operator.returns
        if returned == "to":
            dtype = node.attributes.get("to", 0)
            if dtype not in BY_ONNX:
                self.fail(f"casts to type {dtype}, which no value of ours has")
        elif isinstance(returned, int):
            if len(types) <= returned:
                self.fail(f"has operator {node.operator!r} with too few inputs")
            dtype = types[returned]
        else:
            dtype = BY_NAME[returned].onnx
        for name in node.outputs:
            if name in self.types or not name:
                self.fail(f"computes {name!r} twice, or without a name")
            self.types[name] = int(dtype)

    def _known(self, node: Node, name: str) -> int:
        """The type of an input; an input that is left out has none."""
        if not name:
            return 0
        if name not in self.types:
            self.fail(f"has operator {node.operator!r} read {name!r}, which nothing before it computes")
        return self.types[name]

    def _packed(self, node: Node) -> None:
        """A product with packed integers: ONNX Runtime packs them anew as its attributes say, whatever their sizes."""
        width, count, bits, block = (node.attributes.get(name) for name in ("K", "N", "bits", "block_size"))
        if not (isinstance(width, int) and isinstance(count, int) and width >= 1 and count >= 1):
            self.fail(f"multiplies with packed integers of {count} rows of {width} numbers")
        if bits not in PACKED_BITS or block not in PACKED_BLOCKS or len(node.inputs) != 3:
            self.fail(f"multiplies with packed integers of {bits} bits in blocks of {block}, which are not ours")
        blocks = -(-width // int(block))
        wanted = ((count, blocks, int(block) * int(bits) // 8), ((count, blocks), (count * blocks,)))
        codes, scales = node.inputs[1:]
        if self.types[codes] != BY_NAME["uint8"].onnx or self.sizes.get(codes) != wanted[0]:
            self.fail(f"has packed integers {codes!r} of other sizes than {list(wanted[0])}")
        if self.types[scales] != BY_NAME["float32"].onnx or self.sizes.get(scales) not in wanted[1]:
            self.fail(f"has scales {scales!r} of other sizes than {list(wanted[1][0])}")

    def _divisor(self, node: Node) -> None:
        """Whole numbers are divided by positive constants alone: others can end the process."""
        divisor = self.constants.get(node.inputs[1]) if len(node.inputs) == 2 else None
        if divisor is None or min(self._integers(divisor), default=1) < 1:
            self.fail(f"divides whole numbers by {node.inputs[1:]}, which is not a positive constant")

    def _integers(self, tensor: Tensor) -> list[int]:
        if tensor.raw is None:
            return tensor.numbers
        size, (start, end) = BY_ONNX[tensor.dtype].bytes, tensor.raw
        signed = tensor.dtype != BY_NAME["uint8"].onnx
        return [int.from_bytes(self.content[at : at + size], "little", signed=signed) for at in range(start, end, size)]


def _size_fits(found: int | str | None, wanted: int | str) -> bool:
    """A dimension as the manifest has it: the same size, or any name for the one that is symbolic."""
    return found == wanted if isinstance(wanted, int) else not isinstance(found, int)


def _type(number: int | None) -> str:
    found = BY_ONNX.get(number or 0)
    return f"type {number}" if found is None else found.name
