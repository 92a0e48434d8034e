"""Nodes that take the place of one node, named after it.

Knows names and where nodes go. Does not know what is replaced by what (the passes do).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir


class Replacement:
    """Collects the nodes that compute what `node` computes."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self.graph, self.node = graph, node
        self._nodes: list[ir.Node] = []

    def step(
        self,
        operator: str,
        inputs: Sequence[ir.Value | None],
        *,
        domain: str = "",
        attributes: Mapping[str, Any] | None = None,
    ) -> ir.Value:
        """Add a node with one output."""
        number = len(self._nodes)
        output = ir.Value(name=f"{self.node.outputs[0].name}/{number}")
        name = f"{self.node.name}/{operator}_{number}"
        self._nodes.append(ir.node(operator, inputs, attributes, domain=domain, outputs=[output], name=name))
        return output

    def constant(self, name: str, value: np.ndarray[Any, Any]) -> ir.Value:
        """A constant of the graph, made once for each name."""
        return initializer(self.graph, ir.Value(name=name, const_value=ir.tensor(value, name=name)))

    def finish(self) -> None:
        """Put the nodes in the node's place; the last one's output takes over its name, type, shape and users."""
        last = self._nodes[-1]
        last.name = self.node.name if len(self._nodes) == 1 else last.name
        ir.convenience.replace_nodes_and_values(
            self.graph, self.node, [self.node], self._nodes, self.node.outputs, last.outputs
        )


def initializer(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """The initializer of that name: `value`, or the one that is there already."""
    there = graph.initializers.get(str(value.name))
    if there is None:
        graph.register_initializer(value)
        return value
    return there
