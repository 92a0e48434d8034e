"""An ONNX graph under construction, as `onnx_ir` values with readable names.

Knows ONNX's values and the batch axis. Does not know torch's functions (`lower` does). Work that is repeated or that
nobody uses is left to `passes.simplify`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor

from titans_export.dtypes import onnx_type
from titans_export.errors import TraceError
from titans_export.graph.record import BatchSize, Constant, Recording, Ref

OPSET = 20  # the first with Gelu; TensorRT 10 and ONNX Runtime 1.24 take it
IR_VERSION = 10
BATCH_AXIS = "batch"
Size = int | BatchSize
Shape = tuple[Size, ...]


def onnx_shape(shape: Sequence[Size]) -> ir.Shape:
    """Axes as ONNX writes them: the batch by name, other functions of the batch as unknown."""
    batch = BatchSize(1, 0)
    return ir.Shape([size if isinstance(size, int) else (BATCH_AXIS if size == batch else None) for size in shape])


def weight_value(name: str, dtype: ir.DataType, shape: Sequence[int]) -> ir.Value:
    """An initializer that stands for a weight, whose place in a file is not known yet."""
    tensor = ir.ExternalTensor("", None, None, dtype, shape=ir.Shape(shape), name=name)
    return ir.Value(name=name, const_value=tensor)


def is_weight(value: ir.Value) -> bool:
    """Whether a value is a weight, and not a constant of the graph."""
    return isinstance(value.const_value, ir.ExternalTensor)


def dims(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    """The sizes of a stored tensor."""
    return tuple(size for size in tensor.shape if isinstance(size, int))


class GraphBuilder:
    """Collects nodes; `value_of` turns recorded references into ONNX values."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.inputs = {name: _value(name, ref) for name, ref in recording.inputs.items()}
        self.weights = {
            name: weight_value(name, onnx_type(ref.dtype), [size for size in ref.shape if isinstance(size, int)])
            for name, ref in recording.parameter_refs.items()
        }
        self.values = {ref.index: self.inputs[name] for name, ref in recording.inputs.items()}
        self.values |= {index: self.weights[name] for index, name in recording.parameters.items()}
        self.nodes: list[ir.Node] = []
        self.constants: dict[tuple[Any, ...], ir.Value] = {}
        self._numbers: Counter[str] = Counter()
        self._views: dict[ir.Value, tuple[ir.Value, Shape]] = {}  # reshaped value -> what it is a view of
        self.scope = ""

    def emit(
        self,
        operator: str,
        inputs: Sequence[ir.Value | None],
        outputs: int = 1,
        *,
        domain: str = "",
        attributes: Mapping[str, Any] | None = None,
    ) -> list[ir.Value]:
        """Add a node; returns its outputs. An input that is None is left out."""
        base = f"{self.scope}/{operator}" if self.scope else operator
        name = f"{base}_{self._numbers[base]}"
        self._numbers[base] += 1
        produced = [ir.Value(name=name if outputs == 1 else f"{name}.{index}") for index in range(outputs)]
        self.nodes.append(ir.node(operator, inputs, attributes, domain=domain, outputs=produced, name=name))
        return produced

    def op(self, operator: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """`emit` for a standard operator with one output."""
        return self.emit(operator, inputs, attributes=attributes)[0]

    def reshaped(self, value: ir.Value, before: Shape, after: Shape) -> ir.Value:
        """`value` of shape `before` in another shape; a view of a view is a view of the source.

        Raises:
            TraceError: more than one axis of the new shape follows the batch.
        """
        source, start = self._views.get(value, (value, before))
        if start == after:
            return source
        if sum(isinstance(size, BatchSize) for size in after) > 1:
            raise TraceError(f"a reshape in {self.scope} puts the batch into two axes", "keep it in one")
        result = self.op("Reshape", source, self.integers(*(size if isinstance(size, int) else -1 for size in after)))
        self._views[result] = source, start
        return result

    def constant(self, value: np.ndarray[Any, Any] | Tensor) -> ir.Value:
        """A constant tensor; equal constants are stored once."""
        if isinstance(value, Tensor):
            tensor: ir.TensorProtocol = TorchTensor(value.detach().clone().contiguous())  # it may change later
        else:
            tensor = ir.tensor(value)
        key = (tensor.dtype, tuple(tensor.shape), tensor.tobytes())
        if key not in self.constants:
            self.constants[key] = ir.Value(name=f"constant_{len(self.constants)}", const_value=tensor)
        return self.constants[key]

    def integers(self, *values: int) -> ir.Value:
        """A one-dimensional int64 constant."""
        return self.constant(np.array(values, dtype=np.int64))

    def value_of(self, item: Ref | Constant, broadcasts: bool = False) -> ir.Value:
        """The ONNX value of a recorded tensor.

        Args:
            item: the tensor.
            broadcasts: the consumer broadcasts, so a constant's batch axis may stay 1.
        """
        if isinstance(item, Ref):
            if item.index not in self.values:
                raise TraceError("a tensor is used that no recorded call produced", "make it with torch functions")
            return self.values[item.index]
        value = self.constant(item.value)
        if broadcasts or all(isinstance(size, int) for size in item.shape):
            return value
        return self.op("Expand", value, self.shape_value([1 if isinstance(s, int) else s for s in item.shape]))

    def shape_value(self, shape: Sequence[Size]) -> ir.Value:
        """A shape as an int64 value, computed from the batch where it depends on it."""
        if all(isinstance(size, int) for size in shape):
            return self.integers(*[size for size in shape if isinstance(size, int)])
        parts = [self._size(size) for size in shape]
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=0)

    def _size(self, size: Size) -> ir.Value:
        if isinstance(size, int):
            return self.integers(size)
        name, axis = next(
            (name, axis)
            for name, ref in self.recording.inputs.items()
            for axis, own in enumerate(ref.shape)
            if own == BatchSize(1, 0)
        )
        batch = self.op("Shape", self.inputs[name], start=axis, end=axis + 1)
        if size.factor != 1:
            batch = self.op("Mul", batch, self.integers(size.factor))
        return self.op("Add", batch, self.integers(size.offset)) if size.offset else batch

    def bind(self, ref: Ref, value: ir.Value) -> None:
        """Say that `ref` is `value`."""
        self.values[ref.index] = value
        if value.producer() is not None and value.type is None:
            _describe(value, ref)

    def finish(self, name: str) -> ir.Model:
        """The graph as a model; its initializers are the constants and, without data, the weights."""
        outputs: list[ir.Value] = []
        for output, item in self.recording.outputs.items():
            value = self.value_of(item)
            if value.producer() is None or value in outputs:  # it keeps the name that it has
                value = self.op("Identity", value)
            value.name = output
            _describe(value, item)
            outputs.append(value)
        graph = ir.Graph(
            list(self.inputs.values()),
            outputs,
            nodes=self.nodes,
            initializers=[*self.constants.values(), *self.weights.values()],
            opset_imports={"": OPSET},
            name=name,
        )
        return ir.Model(graph, ir_version=IR_VERSION, producer_name="titans-deploy")


def _value(name: str, ref: Ref) -> ir.Value:
    value = ir.Value(name=name)
    _describe(value, ref)
    return value


def _describe(value: ir.Value, item: Ref | Constant) -> None:
    dtype = item.dtype if isinstance(item, Ref) else item.value.dtype
    value.dtype, value.shape = onnx_type(dtype), onnx_shape(item.shape)
