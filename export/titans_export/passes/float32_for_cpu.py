"""A half-precision graph for CPUs: the same nodes, computing in float32.

ONNX Runtime's CPU kernels know next to no bfloat16 and little float16. So a half-precision bundle carries a twin of
each graph, made from it node by node: every half-precision value becomes float32, inputs and outputs keep their types
(converted at the door), and half-precision weights become float32 *inputs*, so that a runtime widens each of them once
for all graphs. A weight that is only looked up stays as it is. Because the twin is the graph itself with another
type, that the twin computes what the model computes says the same of the graph's structure.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def is_half(model: onnx.ModelProto) -> bool:
    """Whether any value of the graph is half-precision."""
    graph = model.graph
    values = (*graph.input, *graph.output, *graph.value_info)
    return any(value.type.tensor_type.elem_type in HALF for value in values)


def float32_for_cpu(model: onnx.ModelProto, weights: set[str]) -> onnx.ModelProto:
    """The float32 twin.

    Args:
        model: a graph; stays as it is.
        weights: its initializers that are the bundle's weights; all others are constants.
    """
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    graph = twin.graph
    looked_up = _only_looked_up(graph, weights)
    initializers, inputs = [], []
    for tensor in graph.initializer:
        if tensor.data_type not in HALF or tensor.name in looked_up:
            initializers.append(tensor)
        elif tensor.name in weights:
            inputs.append(helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, list(tensor.dims)))
        else:
            initializers.append(numpy_helper.from_array(_float32(tensor), tensor.name))
    half_inputs = {value.name for value in graph.input if value.type.tensor_type.elem_type in HALF}
    half_outputs = {value.name: value.type.tensor_type.elem_type for value in graph.output
                    if value.type.tensor_type.elem_type in HALF}  # fmt: skip
    wide = {name: f"{name}/wide" for name in (*half_inputs, *half_outputs)}
    nodes = [_cast(name, wide[name], TensorProto.FLOAT) for name in sorted(half_inputs)]
    for node in graph.node:
        _widen_node(node, wide)
        if node.op_type == "Gather" and node.input[0] in looked_up:
            result = node.output[0]
            node.output[0] = f"{result}/half"
            nodes += [node, _cast(node.output[0], result, TensorProto.FLOAT)]
        else:
            nodes.append(node)
    nodes += [_cast(wide[name], name, dtype) for name, dtype in half_outputs.items()]
    for value in graph.value_info:
        if value.type.tensor_type.elem_type in HALF:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for field, items in ((graph.node, nodes), (graph.initializer, initializers)):
        kept = list(items)
        del field[:]
        field.extend(kept)
    graph.input.extend(inputs)
    return twin


def _widen_node(node: onnx.NodeProto, wide: dict[str, str]) -> None:
    """Half-precision values of a node under their float32 names, casts to half-precision as casts to float32."""
    for names in (node.input, node.output):
        for place, name in enumerate(names):
            names[place] = wide.get(name, name)
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i in HALF:
            attribute.i = TensorProto.FLOAT


def _only_looked_up(graph: onnx.GraphProto, weights: set[str]) -> set[str]:
    """Weights that nothing but Gather reads."""
    gathered = {node.input[0] for node in graph.node if node.op_type == "Gather"} & weights
    others = {name for node in graph.node for name in (node.input if node.op_type != "Gather" else node.input[1:])}
    return gathered - others


def _float32(tensor: TensorProto) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.asarray(numpy_helper.to_array(tensor)).astype(np.float32)


def _cast(source: str, result: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [result], name=f"{result}/Cast", to=to)
