"""TensorRT-RTX's own parser and builder on an imported model's graphs, without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from safetensors.torch import save_file

from tests.export.titans_pytorch import cases
from titans_export.errors import ExportError
from titans_export.passes.sums_as_products import sums_as_products
from titans_export.tensorrt.engines import build_engines
from titans_export.tensorrt.options import BuildOptions
from titans_export.titans_pytorch.importer import import_checkpoint


@pytest.mark.slow
def test_engines_are_built_for_every_graph_of_the_options_of_its_training_script(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs titans-deploy[tensorrt-rtx]", exc_type=ImportError)
    arguments = {"class": "MemoryAsContextTransformer", "args": cases.TRAIN_MAC}
    _, tensors = cases.perturbed(arguments)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, tmp_path / "m.safetensors")
    (tmp_path / "m.json").write_text(json.dumps(arguments))
    bundle = tmp_path / "m.titans"
    manifest = import_checkpoint(tmp_path / "m.safetensors", tmp_path / "m.json", bundle, verify_tokens=0)
    engines = build_engines(bundle, backend="tensorrt-rtx", options=BuildOptions(batch=(1, 2, 8)))
    *engines, _ = engines  # the last one chooses tokens
    assert len(engines) == 6  # prefill and step, long-term tokens, and what closes a segment or a batch of memory
    assert [engine.graph for engine in engines] == [graph.name for graph in manifest.graphs]
    assert [engine.onnx_sha256 for engine in engines] == [graph.sha256 for graph in manifest.graphs]
    assert all((bundle / engine.file).stat().st_size == engine.bytes > 0 for engine in engines)


# ---------------------------------------------------------------- sums as products


def chain(path: Path, *, axes: tuple[int, ...], orders: tuple[int, ...], size: int | str = 5) -> None:
    """A model of normalisations one after the other, of `[batch, 3, size]`."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, size])
    y = helper.make_tensor_value_info(f"v{len(axes)}", TensorProto.FLOAT, ["batch", 3, size])
    inner = [helper.make_tensor_value_info(f"v{i}", TensorProto.FLOAT, ["batch", 3, size]) for i in range(1, len(axes))]
    nodes = [
        helper.make_node(
            "LpNormalization", ["x" if i == 0 else f"v{i}"], [f"v{i + 1}"], name=f"norm{i}", axis=axis, p=order
        )
        for i, (axis, order) in enumerate(zip(axes, orders, strict=True))
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], value_info=inner)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, str(path))


def test_a_chain_said_as_products_computes_the_same(tmp_path: Path) -> None:
    chain(tmp_path / "g.onnx", axes=(-1, 1, -2, 2, -1), orders=(1, 1, 1, 1, 2))
    changed = sums_as_products((tmp_path / "g.onnx").read_bytes(), "g.onnx")
    assert changed is not None
    model = onnx.load_from_string(changed)
    onnx.checker.check_model(model, full_check=True)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds == ["Abs", "MatMul", "Div"] * 4 + ["LpNormalization"]  # a norm of order 2 stays
    assert len(model.graph.initializer) == 2  # ones for 5 columns and for 3 rows, each once
    x = np.random.default_rng(3).normal(size=(2, 3, 5)).astype(np.float32)
    before = ort.InferenceSession((tmp_path / "g.onnx").read_bytes()).run(None, {"x": x})[0]
    after = ort.InferenceSession(changed).run(None, {"x": x})[0]
    by_hand = x
    for axis, order in ((2, 1), (1, 1), (1, 1), (2, 1), (2, 2)):
        by_hand = by_hand / np.linalg.norm(by_hand, order, axis, keepdims=True)
    np.testing.assert_allclose(before, by_hand, rtol=1e-5)
    np.testing.assert_allclose(after, by_hand, rtol=1e-5)


def test_a_graph_without_such_norms_is_left_to_the_file(tmp_path: Path) -> None:
    chain(tmp_path / "g.onnx", axes=(-1,), orders=(2,))
    assert sums_as_products((tmp_path / "g.onnx").read_bytes(), "g.onnx") is None


@pytest.mark.parametrize(("axis", "size", "told"), [(0, 5, "axis -3"), (-1, "length", "axis -1, of size length")])
def test_a_norm_that_is_no_product_is_refused_by_name(axis: int, size: int | str, told: str, tmp_path: Path) -> None:
    chain(tmp_path / "g.onnx", axes=(axis,), orders=(1,), size=size)
    with pytest.raises(ExportError, match=f"norm0 normalises {told}"):
        sums_as_products((tmp_path / "g.onnx").read_bytes(), "g.onnx")
