"""Large matrices as left operands: the same model, the matrices stored once, and read in place."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch

from tests.export.conftest import VARIANTS, build
from titans_core.model import TitansModel
from titans_core.presets import preset
from titans_export.bundle.writer import WEIGHTS_FILE
from titans_export.export import export_model
from titans_export.passes import weights_on_left as left

NEW_ANONYMOUS_MEMORY = """
import sys
import titans_runtime
def anonymous():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))
model = titans_runtime.load(sys.argv[1], provider="cpu", threads=1)
before = anonymous()
for graph in model.manifest.graphs:
    model._backend.device._session(graph)
print(anonymous() - before)
"""


def products(bundle: Path) -> list[tuple[str, str, set[str]]]:
    """Operands of every product, and the graph's weights."""
    found = []
    for path in sorted(bundle.glob("*.onnx")):
        graph = onnx.load(str(path), load_external_data=False).graph
        weights = {tensor.name for tensor in graph.initializer if tensor.external_data}
        found += [(node.input[0], node.input[1], weights) for node in graph.node if node.op_type == "MatMul"]
    return found


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_turned_bundle_computes_what_the_model_computes(
    variant: str, tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(left, "LARGE_BUNDLE", 0)
    monkeypatch.setattr(left, "LARGE_MATRIX", 64)
    model = build(f"{variant}-tokens")
    if tied:
        torch.manual_seed(3)
        model = TitansModel(replace(model.config, tie_embeddings=True, vocab_size=2_100))
    bundle = tmp_path / "model.titans"
    manifest = export_model(model, bundle, verify_tokens=256)
    assert manifest.verification is not None
    assert manifest.verification["ok"] is True
    turned = [a for a, b, weights in products(bundle) if a in weights]
    assert len(turned) > 10
    three_axes = ("persistent_value", ".initial.0", ".initial.1")  # a matrix for each head
    assert not [b for a, b, weights in products(bundle) if b in weights and not b.endswith(three_axes)]
    names = set(turned)
    if tied:
        assert "embedding" in names
        names.remove("embedding")
    assert all(name.endswith(".T") for name in names)


def test_a_small_bundle_stays_as_it_is(tmp_path: Path) -> None:
    bundle = tmp_path / "model.titans"
    export_model(build("mac-tokens"), bundle, verify_tokens=0)
    assert [b for a, b, weights in products(bundle) if b in weights]
    assert not [a for a, b, weights in products(bundle) if a in weights]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads Linux's account of a process's memory")
def test_large_weights_are_in_memory_once_however_many_graphs_use_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    bundle = tmp_path / "wide.titans"
    export_model(TitansModel(preset("tiny", variant="lmm", vocab_size=80_000)), bundle, verify_tokens=0)
    one_copy = (bundle / WEIGHTS_FILE).stat().st_size
    assert one_copy > left.LARGE_BUNDLE
    command = [sys.executable, "-c", NEW_ANONYMOUS_MEMORY, str(bundle)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < one_copy / 3  # packing the head alone would copy half of it in each of three graphs
