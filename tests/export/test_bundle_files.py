"""The files of a bundle: sizes, sharing, self-description, and nothing half-written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.numpy
import torch
from onnx import TensorProto

from tests.export.conftest import KINDS, Exported, build
from titans_core.model import TitansModel
from titans_core.presets import preset
from titans_export.bundle import writer as bundle_writer
from titans_export.bundle.weights import ALIGNMENT, write_tensors
from titans_export.errors import ExportError, VerificationError
from titans_export.export import export_model
from titans_format.manifest import Manifest


def graphs(path: Path) -> dict[str, onnx.ModelProto]:
    """The portable ones."""
    files = [file for file in path.glob("*.onnx") if not file.name.endswith(".fused.onnx")]
    return {file.stem: onnx.load(str(file), load_external_data=False) for file in files}


def test_every_weight_is_stored_once_and_shared_by_the_graphs(exported: Exported) -> None:
    parameters = dict(exported.model.named_parameters())
    stored = safetensors.numpy.load_file(exported.path / "weights.safetensors")
    assert all((stored[name] == parameters[name].detach().numpy()).all() for name in stored)
    for name, model in graphs(exported.path).items():
        for tensor in model.graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                places = {entry.key: entry.value for entry in tensor.external_data}
                assert places["location"] == "weights.safetensors"
                assert int(places["length"]) == stored[tensor.name].nbytes
            else:
                assert len(tensor.raw_data) <= 4 * 65_536, f"{name}: {tensor.name}"


def test_graphs_hold_only_standard_operators_without_control_flow(exported: Exported) -> None:
    for model in graphs(exported.path).values():
        assert [opset.domain for opset in model.opset_import] == [""]
        assert not {node.op_type for node in model.graph.node} & {"If", "Loop", "Scan"}
        assert all(node.domain == "" for node in model.graph.node)


def test_a_graph_explains_itself(exported: Exported) -> None:
    manifest = Manifest.from_json((exported.path / "manifest.json").read_text())
    for name, model in graphs(exported.path).items():
        props = {prop.key: prop.value for prop in model.metadata_props}
        assert props["titans.graph"] == name
        table = json.loads(props["titans.states"])
        assert [row["name"] for row in table] == [state.name for state in manifest.states]
        inputs = {value.name for value in model.graph.input}
        states = {state.input for state in manifest.states}
        assert inputs <= states | {"input_ids", "inputs", "position", "length"}
        modules = {node.name.rsplit("/", 1)[0] for node in model.graph.node if "/" in node.name}
        assert modules <= {path for path, _ in exported.model.named_modules()}


def test_a_step_writes_no_big_tensor(exported: Exported) -> None:
    step = graphs(exported.path)["step"]
    outputs = {value.name for value in step.graph.output}
    folded = ("memory_0", "momentum_0", ".key", ".value")
    assert not [name for name in outputs if name.endswith(folded) and not name.endswith(("chunk_key", "chunk_value"))
                and not name.endswith(("read_key", "read_value"))]  # fmt: skip


def test_tensors_start_on_cache_lines(tmp_path: Path) -> None:
    tensors = {"odd": torch.arange(3.0), "b": torch.randn(64, 16), "a": torch.randn(32)}
    places = write_tensors(tmp_path / "w.safetensors", tensors)
    assert all(places[name][0] % ALIGNMENT == 0 for name in ("a", "b"))
    loaded = safetensors.numpy.load_file(tmp_path / "w.safetensors")
    assert all((loaded[name] == tensors[name].numpy()).all() for name in tensors)


def test_an_existing_bundle_is_replaced_only_when_asked(tmp_path: Path) -> None:
    model, out = build("lmm-tokens"), tmp_path / "model.titans"
    export_model(model, out, verify_tokens=0)
    before = (out / "manifest.json").read_bytes()
    with pytest.raises(ExportError, match="--overwrite"):
        export_model(build("mag-tokens"), out, verify_tokens=0)
    assert (out / "manifest.json").read_bytes() == before
    export_model(build("mag-tokens"), out, verify_tokens=0, overwrite=True)
    assert Manifest.from_json((out / "manifest.json").read_text()).model.variant == "mag"
    assert [path.name for path in tmp_path.iterdir()] == ["model.titans"]


def test_a_directory_that_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter1.txt").write_text("years of work")
    with pytest.raises(ExportError, match="not a bundle"):
        export_model(build("lmm-tokens"), out, overwrite=True)
    assert (out / "chapter1.txt").read_text() == "years of work"


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle_writer, "write_tensors", full)
    with pytest.raises(ExportError, match="free some space"):
        export_model(build("lmm-tokens"), tmp_path / "model.titans", verify_tokens=0)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_disagrees_never_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, int]]:
        return write_tensors(path, {name: tensor * 1.01 for name, tensor in tensors.items()})

    monkeypatch.setattr(bundle_writer, "write_tensors", spoiled)
    with pytest.raises(VerificationError, match="do not use it"):
        export_model(build("mac-tokens"), tmp_path / "model.titans", verify_tokens=64)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_precision_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="fp32"):
        export_model(build("lmm-tokens"), tmp_path / "model.titans", dtype="fp12")


@pytest.mark.parametrize("exported", [kind for kind in KINDS if kind != "decoder-tokens"], indirect=True)
def test_the_learned_start_is_a_state_and_where_forgetting_leads_a_weight(exported: Exported, tmp_path: Path) -> None:
    start = safetensors.numpy.load_file(exported.path / "initial_state.safetensors")
    weights = safetensors.numpy.load_file(exported.path / "weights.safetensors")
    (goal,) = (name for name in weights if name.startswith("blocks.0.") and name.endswith("initial.0"))
    np.testing.assert_array_equal(weights[goal], start["0.memory_0"])
    total = sum(tensor.nbytes for tensor in weights.values())
    assert total <= 4 * exported.model.num_parameters()  # nothing else is stored twice
    memory = replace(exported.model.config.memory, forget_to="zero")
    export_model(TitansModel(replace(exported.model.config, memory=memory)), tmp_path / "z.titans", verify_tokens=0)
    assert not any(
        ".initial" in name for name in safetensors.numpy.load_file(tmp_path / "z.titans/weights.safetensors")
    )


def test_tied_embeddings_export(tmp_path: Path) -> None:
    model = TitansModel(preset("tiny", variant="lmm", tie_embeddings=True, layers=1))
    manifest = export_model(model, tmp_path / "model.titans", verify_tokens=100)
    assert manifest.verification is not None
    assert manifest.verification["ok"] is True
