"""An ONNX graph under construction: nodes with readable names, shared constants, no dead or repeated work.

Knows ONNX's node and tensor format and the batch axis. Does not know torch's functions (`lower` does).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor

from titans_export.dtypes import element_type
from titans_export.errors import TraceError
from titans_export.graph.record import BatchSize, Constant, Ref

BATCH_AXIS = "batch"
Size = int | BatchSize
Shape = tuple[Size, ...]


def onnx_shape(shape: Sequence[Size]) -> list[int | str | None]:
    """Axes as ONNX writes them: the batch by name, other functions of the batch as unknown."""
    return [size if isinstance(size, int) else (BATCH_AXIS if size == BatchSize(1, 0) else None) for size in shape]


class GraphBuilder:
    """Collects nodes; `value_of` turns recorded references into ONNX value names."""

    def __init__(self, inputs: dict[str, Ref], parameters: dict[int, str]) -> None:
        self.inputs = inputs
        self.names: dict[int, str] = {ref.index: name for name, ref in inputs.items()} | parameters
        self.parameters = set(parameters.values())
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[tuple[Any, ...], onnx.TensorProto] = {}
        self.info: dict[str, onnx.ValueInfoProto] = {}
        self._done: dict[tuple[Any, ...], list[str]] = {}  # (operator, inputs, attributes) -> outputs
        self._numbers: Counter[str] = Counter()
        self._views: dict[str, tuple[str, Shape]] = {}  # reshaped value -> what it is a view of
        self.scope = ""

    def emit(self, operator: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> list[str]:
        """Add a node, or find the one that computes the same; returns the names of its outputs."""
        key = (operator, tuple(inputs), outputs, tuple(sorted((k, repr(v)) for k, v in attributes.items())))
        if key not in self._done:
            base = f"{self.scope}/{operator}" if self.scope else operator
            name = f"{base}_{self._numbers[base]}"
            self._numbers[base] += 1
            produced = [name] if outputs == 1 else [f"{name}.{index}" for index in range(outputs)]
            self.nodes.append(helper.make_node(operator, list(inputs), produced, name=name, **attributes))
            self._done[key] = produced
        return self._done[key]

    def op(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """`emit` for an operator with one output."""
        return self.emit(operator, inputs, **attributes)[0]

    def reshaped(self, value: str, before: Shape, after: Shape) -> str:
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

    def constant(self, value: np.ndarray[Any, Any] | Tensor) -> str:
        """The name of a constant tensor; equal constants are stored once."""
        if isinstance(value, Tensor):
            raw = value.detach().contiguous()
            data, dtype, shape = (
                raw.flatten().view(torch.uint8).numpy().tobytes(),
                element_type(raw.dtype).onnx,
                raw.shape,
            )
        else:
            data, shape = value.tobytes(), value.shape
            dtype = helper.np_dtype_to_tensor_dtype(value.dtype)
        key = (dtype, tuple(shape), data)
        if key not in self.constants:
            name = f"constant_{len(self.constants)}"
            self.constants[key] = helper.make_tensor(name, dtype, list(shape), data, raw=True)
        return self.constants[key].name

    def integers(self, *values: int) -> str:
        """The name of a one-dimensional int64 constant."""
        return self.constant(np.array(values, dtype=np.int64))

    def value_of(self, item: Ref | Constant, broadcasts: bool = False) -> str:
        """The ONNX value of a recorded tensor.

        Args:
            item: the tensor.
            broadcasts: the consumer broadcasts, so a constant's batch axis may stay 1.
        """
        if isinstance(item, Ref):
            if item.index not in self.names:
                raise TraceError("a tensor is used that no recorded call produced", "make it with torch functions")
            return self.names[item.index]
        name = self.constant(item.value)
        if broadcasts or all(isinstance(size, int) for size in item.shape):
            return name
        return self.op("Expand", name, self.shape_value([1 if isinstance(s, int) else s for s in item.shape]))

    def shape_value(self, shape: Sequence[Size]) -> str:
        """A shape as an int64 value, computed from the batch where it depends on it."""
        if all(isinstance(size, int) for size in shape):
            return self.integers(*[size for size in shape if isinstance(size, int)])
        parts = [self._size(size) for size in shape]
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=0)

    def _size(self, size: Size) -> str:
        if isinstance(size, int):
            return self.integers(size)
        name, axis = next(
            (name, axis)
            for name, ref in self.inputs.items()
            for axis, own in enumerate(ref.shape)
            if own == BatchSize(1, 0)
        )
        batch = self.op("Shape", name, start=axis, end=axis + 1)
        if size.factor != 1:
            batch = self.op("Mul", batch, self.integers(size.factor))
        return self.op("Add", batch, self.integers(size.offset)) if size.offset else batch

    def bind(self, ref: Ref, name: str) -> None:
        """Say that `ref` is the ONNX value `name`."""
        self.names[ref.index] = name
        if name not in self.info and name not in self.parameters and name not in self.inputs:
            self.info[name] = helper.make_tensor_value_info(name, element_type(ref.dtype).onnx, onnx_shape(ref.shape))

    def finish(self, name: str, outputs: dict[str, Ref | Constant], parameters: dict[str, Ref]) -> onnx.GraphProto:
        """The finished graph; its initializers are the constants and, still without data, the parameters it uses."""
        for output, item in outputs.items():
            self.nodes.append(helper.make_node("Identity", [self.value_of(item)], [output], name=output))
        live = set(outputs)
        kept = []
        for node in reversed(self.nodes):
            if live.intersection(node.output):
                kept.append(node)
                live.update(node.input)
        kept.reverse()
        self._rename_into_outputs(kept, set(outputs))
        used = {item for node in kept for item in (*node.input, *node.output)}
        graph = helper.make_graph(
            kept,
            name,
            [_info(key, ref) for key, ref in self.inputs.items() if key in used],
            [_info(key, item) for key, item in outputs.items()],
            initializer=[tensor for tensor in self.constants.values() if tensor.name in used],
            value_info=[info for key, info in self.info.items() if key in used and key not in outputs],
        )
        for key in sorted(self.parameters & used):
            ref = parameters[key]
            graph.initializer.append(
                TensorProto(name=key, data_type=element_type(ref.dtype).onnx, dims=[int(s) for s in _static(ref.shape)])
            )
        return graph

    def _rename_into_outputs(self, nodes: list[onnx.NodeProto], outputs: set[str]) -> None:
        """Let the node that computes an output carry its name, where only the closing Identity stood between."""
        makers = {name: node for node in nodes for name in node.output}
        for closing in [node for node in nodes if node.op_type == "Identity" and node.output[0] in outputs]:
            source, output = closing.input[0], closing.output[0]
            if source not in makers or source in outputs or makers[source].output[0] in outputs:
                continue
            maker = makers[source]
            for index, name in enumerate(maker.output):
                if name == source:
                    maker.output[index] = output
            for node in nodes:
                for index, name in enumerate(node.input):
                    if name == source:
                        node.input[index] = output
            nodes.remove(closing)


def _static(shape: Sequence[Size]) -> list[int]:
    return [size for size in shape if isinstance(size, int)]


def _info(name: str, item: Ref | Constant) -> onnx.ValueInfoProto:
    dtype = item.dtype if isinstance(item, Ref) else item.value.dtype
    return helper.make_tensor_value_info(name, element_type(dtype).onnx, onnx_shape(item.shape))
