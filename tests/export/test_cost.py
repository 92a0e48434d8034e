"""What a call costs: against PyTorch's own flop counter, and against bytes counted by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.utils.flop_counter import FlopCounterMode

from tests.export.conftest import build
from titans_export.errors import ExportError
from titans_export.export import export_model
from titans_export.graph.cost import cost
from titans_export.models.protocol import StepGraph, initial_state
from titans_export.models.titans import TitansSteppable

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")


def flops_in_torch(model: TitansSteppable, graph: StepGraph) -> int:
    """Multiplications and additions of the matrix products of one call, as PyTorch counts them."""
    feeds = initial_state(model, 1) | {
        "input_ids": torch.zeros(1, graph.tokens, dtype=torch.int64),
        "position": torch.zeros(1, dtype=torch.int64),
        "length": torch.full((1,), graph.tokens, dtype=torch.int64),
    }
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        graph.run(feeds)
    counts = counter.get_flop_counts()["Global"]
    return sum(count for operator, count in counts.items() if str(operator).split(".")[-1] in PRODUCTS)


@pytest.mark.parametrize("variant", ["lmm", "mal", "mag", "mac"])
def test_products_are_those_that_pytorch_counts(variant: str, tmp_path: Path) -> None:
    model = build(f"{variant}-tokens")
    manifest = export_model(model, tmp_path / "m.titans", verify_tokens=0)
    costs = {graph.name: graph.cost for graph in manifest.graphs}
    graphs = TitansSteppable(model).graphs()
    assert set(costs) == {graph.name for graph in graphs}
    for graph in graphs:
        found = costs[graph.name]
        assert found is not None
        in_torch = flops_in_torch(TitansSteppable(model), graph)
        if graph.kind == "step":  # products of a column with a row are exported as elementwise multiplications
            assert 0.99 * in_torch < found.flops <= in_torch
        else:
            assert found.flops == in_torch


def test_bytes_are_those_of_the_weights_and_of_the_state(tmp_path: Path) -> None:
    model = build("mac-tokens")
    manifest = export_model(model, tmp_path / "m.titans", verify_tokens=0)
    step, commit = (next(graph for graph in manifest.graphs if graph.name == name) for name in ("step", "commit"))
    assert step.cost is not None
    assert commit.cost is not None
    read = {tensor.name for tensor in step.inputs}
    states = sum(state.stream_bytes for state in manifest.states if state.input in read)
    assert step.cost.read_bytes == states + 8 + 8  # and a token and its position
    starts = [value for name, value in model.named_parameters() if ".initial." in name]
    assert commit.cost.weight_bytes == sum(value.nbytes for value in starts)
    weights = (tmp_path / "m.titans" / "weights.safetensors").stat().st_size
    assert 0.5 * weights < step.cost.weight_bytes < weights
    assert commit.cost.written_bytes == sum(
        4 * math.prod(size if isinstance(size, int) else 1 for size in tensor.shape) for tensor in commit.outputs
    )


def model_of(nodes: list[onnx.NodeProto], table: np.ndarray, out: list[int | str]) -> onnx.ModelProto:
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, out)
    graph = helper.make_graph(nodes, "g", [ids], [y], [numpy_helper.from_array(table, "table")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("nowhere", 1)])


def test_a_table_counts_with_the_rows_that_are_gathered_unless_it_is_multiplied_too() -> None:
    table = np.ones((100, 4), np.float32)
    gather = helper.make_node("Gather", ["table", "ids"], ["rows"], name="gather")
    found = cost(model_of([gather, helper.make_node("Neg", ["rows"], ["y"])], table, ["batch", 3, 4]), {"table": 1600})
    assert (found.flops, found.weight_bytes, found.read_bytes, found.written_bytes) == (0, 3 * 16, 24, 48)
    tied = [
        gather,
        helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["rows", "turned"], ["y"], name="head"),
    ]
    found = cost(model_of(tied, table, ["batch", 3, 100]), {"table": 1600})
    assert (found.flops, found.weight_bytes) == (2 * 3 * 4 * 100, 1600)
    assert found.moved_bytes == 1600 + 24 + 1200


def test_a_product_of_unknown_shape_is_named() -> None:
    nodes = [
        helper.make_node("Secret", ["ids"], ["rows"], name="secret", domain="nowhere"),
        helper.make_node("MatMul", ["rows", "table"], ["y"], name="head"),
    ]
    with pytest.raises(ExportError, match="the shape of rows, which head multiplies, is unknown"):
        cost(model_of(nodes, np.ones((4, 4), np.float32), ["batch", 3, 4]), {"table": 64})
