"""The operators that the runtime takes are the operators that the exporter writes: no more, no fewer.

The exporter's are read from its source, where every operator and attribute stands by name, and from graphs it made.
"""

from __future__ import annotations

import ast
from pathlib import Path

import onnx
import pytest

import titans_export
from tests.export.conftest import Exported, build
from titans_export.export import export_model
from titans_export.graph.builder import IR_VERSION, OPSET
from titans_export.graph.fused_ops import DOMAIN, VERSION
from titans_export.passes.quantise import DOMAIN as CONTRIBUTED_DOMAIN
from titans_runtime.graphs.operators import (
    BY_HAND,
    CONTRIBUTED,
    FUSED,
    OPERATORS,
    OPSETS,
    STANDARD,
)
from titans_runtime.graphs.operators import (
    IR_VERSION as READ_IR_VERSION,
)

SOURCES = ("graph", "passes")
# Of ONNX's names, what the source says besides: a class of Python's typing.
NO_OPERATORS = {"Optional", "If", "Constant"}


def _trees() -> list[ast.Module]:
    folder = Path(str(titans_export.__file__)).parent
    paths = (path for name in SOURCES for path in (folder / name).glob("*.py"))
    return [ast.parse(path.read_text(encoding="utf-8")) for path in paths]


def _strings() -> set[str]:
    """Every text in the exporter's source that is one word."""
    nodes = (node for tree in _trees() for node in ast.walk(tree))
    found = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return {text for text in found if text.isidentifier()}


def _keywords() -> set[str]:
    """Every name that the exporter's source passes by keyword, or writes as a key."""
    found: set[str] = set()
    for tree in _trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg:
                found.add(node.arg)
            if isinstance(node, ast.Dict):
                found |= {
                    key.value for key in node.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)
                }
    return found


def test_the_standard_operators_are_those_of_the_exporters_source() -> None:
    standard = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""} - NO_OPERATORS
    written = _strings() & standard
    assert {name for domain, name in OPERATORS if domain == STANDARD} - set(BY_HAND) == written


def test_the_other_operators_are_those_of_the_exporters_source() -> None:
    others = {name for domain, name in OPERATORS if domain != STANDARD}
    assert others <= _strings()
    assert (FUSED, CONTRIBUTED) == (DOMAIN, CONTRIBUTED_DOMAIN)
    assert (OPSETS[STANDARD], OPSETS[FUSED], READ_IR_VERSION) == (OPSET, VERSION, IR_VERSION)


def test_every_attribute_is_one_that_the_exporter_writes() -> None:
    attributes = {name for operator in OPERATORS.values() for name in operator.attributes}
    assert attributes <= _keywords()


def _check(folder: Path) -> set[tuple[str, str]]:
    """The operators of a bundle's graphs, each with attributes of the kinds that are taken."""
    kinds = {
        onnx.AttributeProto.INT: int,
        onnx.AttributeProto.FLOAT: float,
        onnx.AttributeProto.STRING: str,
        onnx.AttributeProto.INTS: tuple,
    }
    found: set[tuple[str, str]] = set()
    for file in folder.glob("*.onnx"):
        for node in onnx.load(str(file), load_external_data=False).graph.node:
            found.add((node.domain, node.op_type))
            taken = OPERATORS[node.domain, node.op_type].attributes
            assert {a.name: kinds[a.type] for a in node.attribute}.items() <= dict(taken).items()
    return found


def test_exported_graphs_have_no_others(exported: Exported) -> None:
    assert _check(exported.path) <= set(OPERATORS)


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "int8", "int4"])
def test_exported_graphs_of_other_precisions_have_no_others(tmp_path: Path, dtype: str) -> None:
    export_model(build("mag-tokens"), tmp_path / "m.titans", dtype=dtype, verify_tokens=0)
    found = _check(tmp_path / "m.titans")
    assert found <= set(OPERATORS)
    assert ((CONTRIBUTED, "MatMulNBits") in found) == dtype.startswith("int")
