"""Work that is done twice is done once, and what nobody uses is removed: nodes, constants, weights and inputs.

Knows ONNX. Does not know which models there are.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, RemoveUnusedNodesPass

_ONCE = ir.passes.Sequential(CommonSubexpressionEliminationPass(), RemoveUnusedNodesPass())


def simplify(model: ir.Model) -> None:
    """Remove repeated and unused work, in place."""
    _ONCE(model)
    for node in model.graph:  # a copy that the pass makes of a value that is two outputs has no name
        node.name = node.name or node.outputs[0].name
    inputs = model.graph.inputs
    used = [value for value in inputs if value.uses() or value.is_graph_output()]
    inputs.clear()
    inputs.extend(used)
