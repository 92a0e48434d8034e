"""What stands before and behind a product in blocks, made part of it: a norm, a gate, an addition.

A step of a decoder is a few hundred operators of which each is a pass over a row and a hand-over between threads.
BlockLinear can divide its rows by their root mean square first, and gate its outputs or add something to them as they
are made. Knows the fused graphs. Does not know what the products are of.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from titans_export.graph.fused_ops import DOMAIN
from titans_export.passes.replacement import Replacement

PRODUCT = "BlockLinear"


def fold_into_products(models: Iterable[ir.Model]) -> None:
    """Fold norms, gates and additions into the products of graphs, in place."""
    for model in models:
        for node in list(model.graph):
            if _is(node, "RMSNorm"):
                _fold_norm(model.graph, node)
        for node in list(model.graph):
            if _is(node, "GatedUnit") or (node.op_type == "Add" and not node.domain):
                _fold_follower(model.graph, node)


def _fold_norm(graph: ir.Graph, norm: ir.Node) -> None:
    """A norm of which every reader is a product goes into all of them: it costs less than a pass of its own."""
    (normed,) = norm.outputs
    readers = list(normed.consumers())
    if normed.is_graph_output() or not all(_is(node, PRODUCT) and node.inputs[0] is normed for node in readers):
        return
    for product in readers:
        made = Replacement(graph, product)
        inputs = [norm.inputs[0], *product.inputs[1:], norm.inputs[1]]
        added = {"norm": 1, "epsilon": norm.attributes.get_float("epsilon", 0.0)}
        made.step(PRODUCT, inputs, domain=DOMAIN, attributes=_attributes(product) | added)
        made.finish()
    graph.remove(norm, safe=True)


def _fold_follower(graph: ir.Graph, node: ir.Node) -> None:
    """A gate or an addition that is all that is done with a product becomes the product."""
    for value in reversed(node.inputs):
        product = None if value is None else value.producer()
        if value is None or product is None or not _folds(node, value, product):
            continue
        made = Replacement(graph, node)
        others = [other for other in node.inputs if other is not value]
        added = {"gated": 1} if _is(node, "GatedUnit") else {"added": 1}
        made.step(PRODUCT, [*product.inputs, *others], domain=DOMAIN, attributes=_attributes(product) | added)
        made.finish()
        graph.remove(product, safe=True)
        return


def _folds(node: ir.Node, value: ir.Value, product: ir.Node) -> bool:
    """Whether a product can take what `node` does to `value`, its output; an addition is the last that happens."""
    if not _is(product, PRODUCT) or value.is_graph_output() or len(value.uses()) != 1 or "added" in product.attributes:
        return False
    if _is(node, "GatedUnit"):
        return "gated" not in product.attributes
    shapes = [each.shape for each in (*node.inputs, *node.outputs) if each is not None]
    return len(shapes) == 3 and shapes[0] is not None and shapes[0] == shapes[1] == shapes[2]


def _attributes(node: ir.Node) -> dict[str, int | float]:
    return {name: attribute.value for name, attribute in node.attributes.items()}


def _is(node: ir.Node, operator: str) -> bool:
    return node.domain == DOMAIN and node.op_type == operator
