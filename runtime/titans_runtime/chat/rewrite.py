"""A template's syntax tree: refused where it has more than a conversation needs, and made to ask the meter.

Jinja's sandbox lets calls, attributes and arithmetic be watched. Loops, comparisons, slices and `~` run as plain
Python. Here each of them gets a filter around it, by a name that no template can write, which pays for the work and
keeps the marks of a user's text. What is not on the list below is refused: no template loads or extends another one.

Knows Jinja's nodes. Does not know what the filters do (`sandbox`).
"""

from __future__ import annotations

from typing import Any

from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.visitor import NodeTransformer

from titans_runtime.chat.meter import refuse

# The largest templates in use have 4,000 nodes, 25 deep. A template of 20,000 takes 1.5 s to compile.
MAX_NODES, MAX_NODE_DEPTH = 20_000, 100
ITERATE, SPEND, WEIGH, LOOK_IN, CONCAT, SLICE, KEY = " iterate", " spend", " weigh", " in", " concat", " slice", " key"

_ALLOWED = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.For, nodes.If, nodes.Macro, nodes.CallBlock),
    *(nodes.FilterBlock, nodes.With, nodes.Assign, nodes.AssignBlock, nodes.Scope, nodes.Break, nodes.Continue),
    *(nodes.Name, nodes.NSRef, nodes.Const, nodes.Tuple, nodes.List, nodes.Dict, nodes.Pair, nodes.Keyword),
    *(nodes.CondExpr, nodes.Filter, nodes.Test, nodes.Call, nodes.Getitem, nodes.Getattr, nodes.Slice, nodes.Concat),
    *(nodes.Compare, nodes.Operand, nodes.BinExpr, nodes.UnaryExpr),
)


class GenerationTag(Extension):
    """`{% generation %}`, by which transformers finds a model's own words in a rendered text: its content alone."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        """The content, in a scope of its own."""
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)


def rewritten(template: nodes.Template) -> nodes.Template:
    """The tree with everything in it that asks the meter. Raises `LimitError` for one that is refused."""
    _check(template)
    steps, characters = _cost([template])
    _Rewriter().visit(template)
    template.body.insert(0, _spending(steps, characters, 1))
    return template


def _check(template: nodes.Template) -> None:
    count = 0
    waiting: list[tuple[nodes.Node, int]] = [(template, 0)]
    while waiting:
        node, depth = waiting.pop()
        count += 1
        kind = type(node).__name__
        if not isinstance(node, _ALLOWED):
            refuse(f"line {node.lineno} has {kind}, which no conversation needs")
        if isinstance(node, nodes.For) and node.recursive:
            refuse(f"line {node.lineno} has a recursive loop, which no conversation needs")
        if count > MAX_NODES or depth > MAX_NODE_DEPTH:
            refuse(f"it has more than {MAX_NODES:,} nodes, or they are more than {MAX_NODE_DEPTH} deep")
        waiting += [(child, depth + 1) for child in node.iter_child_nodes()]


def _cost(body: list[nodes.Node]) -> tuple[int, int]:
    """Steps and characters of running nodes once: how many there are, and the text that is in them."""
    steps = characters = 0
    waiting = list(body)
    while waiting:
        node = waiting.pop()
        steps += 1
        if isinstance(node, nodes.TemplateData):
            characters += len(node.data)
        elif isinstance(node, nodes.Const) and isinstance(node.value, str):
            characters += len(node.value)
        waiting += node.iter_child_nodes()
    return steps, characters


def _filtered(node: nodes.Node, name: str, *arguments: object) -> nodes.Filter:
    """A node with a filter around it."""
    given = [each if isinstance(each, nodes.Expr) else nodes.Const(each, lineno=node.lineno) for each in arguments]
    return nodes.Filter(node, name, given, [], None, None, lineno=node.lineno)


def _spending(steps: int, characters: int, lineno: int) -> nodes.ExprStmt:
    """A statement that pays."""
    return nodes.ExprStmt(_filtered(nodes.Const(None, lineno=lineno), SPEND, steps, characters), lineno=lineno)


class _Rewriter(NodeTransformer):
    """Puts filters around what the sandbox does not watch."""

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        """A node in the place of this one, its children rewritten already."""
        steps, characters = _cost(_repeated_parts(node))
        node = self.generic_visit(node)
        if isinstance(node, nodes.For):  # each turn pays for all that is in the loop
            node.iter = _filtered(node.iter, ITERATE, 1 + steps, characters)
        elif isinstance(node, nodes.Macro | nodes.CallBlock):
            node.body.insert(0, _spending(steps, characters, node.lineno))
        elif isinstance(node, nodes.Compare):
            node.expr = _filtered(node.expr, WEIGH)
            for operand in node.ops:
                operand.expr = _filtered(operand.expr, LOOK_IN if operand.op in ("in", "notin") else WEIGH)
        elif isinstance(node, nodes.Concat):  # a ~ b
            return _filtered(nodes.List(node.nodes, lineno=node.lineno), CONCAT)
        elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):  # a[1:2]
            return _filtered(node.node, SLICE, node.arg.start, node.arg.stop, node.arg.step)
        elif isinstance(node, nodes.Pair):
            node.key = _filtered(node.key, KEY)
        return node


def _repeated_parts(node: nodes.Node) -> list[nodes.Node]:
    """What of a loop or a macro runs as often as it does."""
    if isinstance(node, nodes.For):
        return [*node.body, *([] if node.test is None else [node.test])]
    return list(node.body) if isinstance(node, nodes.Macro | nodes.CallBlock) else []
