"""A half-precision graph for CPUs: the same nodes, computing in float32.

ONNX Runtime's CPU kernels know next to no bfloat16 and little float16. So a half-precision bundle carries a twin of
each graph, made from it node by node: every half-precision value becomes float32, inputs and outputs keep their types
(converted at the door), and half-precision weights become float32 *inputs*, so that a runtime widens each of them once
for all graphs. A weight that is only looked up stays as it is. Because the twin is the graph itself with another
type, that the twin computes what the model computes says the same of the graph's structure.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from titans_export.graph.builder import dims

HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_FLOAT32 = ir.TensorType(ir.DataType.FLOAT)  # assigned and never changed: a clone shares its types with the original


def is_half(model: ir.Model) -> bool:
    """Whether any value of the graph is half-precision."""
    return any(value.dtype in HALF for value in _values(model.graph))


def float32_for_cpu(model: ir.Model, weights: set[str]) -> ir.Model:
    """The float32 twin.

    Args:
        model: a graph; stays as it is.
        weights: its initializers that are the bundle's weights; all others are constants.
    """
    twin = model.clone()
    graph = twin.graph
    lookups = _widen_initializers(graph, weights)
    doors = [value for value in (*graph.inputs, *graph.outputs) if value.dtype in HALF]
    for value in _values(graph):
        if value.dtype in HALF and value not in doors:
            value.type = _FLOAT32
    for node in graph:
        if node.op_type == "Cast" and node.attributes["to"].as_int() in HALF:
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT)
    for node, dtype in lookups:
        _convert_lookup(graph, node, dtype)
    _convert_inputs(graph)
    _convert_outputs(graph)
    return twin


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Inputs, and what nodes compute."""
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


def _widen_initializers(graph: ir.Graph, weights: set[str]) -> list[tuple[ir.Node, ir.DataType]]:
    """Half-precision constants become float32, and weights float32 inputs.

    A weight that is only looked up stays; returned are the nodes that do it.
    """
    lookups: list[tuple[ir.Node, ir.DataType]] = []
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype not in HALF:
            continue
        if name not in weights:
            value.const_value = ir.tensor(tensor.numpy().astype(np.float32), name=name)
        elif all(node.op_type == "Gather" and index == 0 for node, index in value.uses()):
            lookups += [(node, tensor.dtype) for node in value.consumers()]
        else:
            del graph.initializers[name]
            value.const_value, value.type, value.shape = None, _FLOAT32, ir.Shape(dims(tensor))
            graph.inputs.append(value)
    return lookups


def _convert_lookup(graph: ir.Graph, node: ir.Node, dtype: ir.DataType) -> None:
    """What is looked up in half precision goes on as float32."""
    found = node.outputs[0]
    cast = _cast(found, str(found.name), ir.DataType.FLOAT)
    found.replace_all_uses_with(cast.outputs[0], replace_graph_outputs=True)
    cast.replace_input_with(0, found)
    cast.outputs[0].shape = found.shape
    found.name, found.type = f"{found.name}/half", ir.TensorType(dtype)
    graph.insert_after(node, cast)


def _convert_inputs(graph: ir.Graph) -> None:
    casts = []
    for value in sorted((value for value in graph.inputs if value.dtype in HALF), key=lambda value: str(value.name)):
        cast = _cast(value, f"{value.name}/wide", ir.DataType.FLOAT)
        value.replace_all_uses_with(cast.outputs[0])
        cast.replace_input_with(0, value)
        casts.append(cast)
    if casts:
        graph.insert_before(graph[0], casts)


def _convert_outputs(graph: ir.Graph) -> None:
    for place, value in enumerate(list(graph.outputs)):
        if value.dtype not in HALF:
            continue
        cast = _cast(value, str(value.name), value.dtype)
        cast.outputs[0].shape = value.shape
        graph.outputs[place] = cast.outputs[0]
        value.name, value.type = f"{value.name}/wide", _FLOAT32
        graph.append(cast)


def _cast(value: ir.Value, result: str, to: ir.DataType) -> ir.Node:
    output = ir.Value(name=result, type=ir.TensorType(to))
    return ir.node("Cast", [value], {"to": to}, outputs=[output], name=f"{result}/Cast")
