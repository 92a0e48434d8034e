"""Bundles for one target: what is left, that it runs as before, and what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from tests.export.conftest import build
from tests.standin.cuda import FakeCuda
from tests.standin.tensorrt import FakeTensorRT, write_engines
from titans_cli.main import cli
from titans_cli.slim import TARGETS
from titans_export.bundle.slim import size, slim
from titans_export.errors import ExportError
from titans_export.export import export_model
from titans_export.tensorrt.engines import build_engines
from titans_runtime import load
from titans_runtime.bundle import open_bundle
from titans_runtime.devices.select import PROVIDERS
from titans_runtime.devices.tensorrt import nvidia
from titans_runtime.errors import ProviderError

TOKENS = np.random.default_rng(0).integers(0, 50, 40)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A half-precision bundle."""
    path = tmp_path_factory.mktemp("half") / "half.titans"
    export_model(build("mac-tokens"), path, dtype="fp16", verify_tokens=0)
    return path


def test_a_cpus_part_runs_as_the_whole_and_shares_its_states(half: Path, tmp_path: Path) -> None:
    made = slim(half, tmp_path / "cpu.titans", target="cpu")
    left = sorted(path.name for path in (tmp_path / "cpu.titans").iterdir())
    graphs = ["commit.onnx", "extend.cpu.onnx", "prefill.cpu.onnx", "step.cpu.onnx"]  # mac commits memory alone: fp32
    assert [name for name in left if name.endswith(".onnx")] == graphs
    assert made.bytes_after == size(tmp_path / "cpu.titans") < made.bytes_before
    ours, theirs = load(tmp_path / "cpu.titans", threads=1), load(half, provider="cpu", threads=1)
    session = theirs.session()
    session.feed(TOKENS)
    session.save(tmp_path / "s.state")
    restored = ours.restore(tmp_path / "s.state")
    np.testing.assert_array_equal(restored.feed(TOKENS), session.feed(TOKENS))
    with pytest.raises(ProviderError, match="for cpu only, not for cuda"):
        load(tmp_path / "cpu.titans", provider="cuda")


def test_a_gpus_part_has_no_twins(half: Path, tmp_path: Path) -> None:
    slim(half, tmp_path / "gpu.titans", target="webgpu")
    assert not list((tmp_path / "gpu.titans").glob("*.cpu.onnx"))
    assert (tmp_path / "gpu.titans" / "step.onnx").is_file()
    assert CliRunner().invoke(cli, ["inspect", str(tmp_path / "gpu.titans")]).exit_code == 0
    with pytest.raises(ExportError, match="for webgpu only, not for cpu"):
        slim(tmp_path / "gpu.titans", tmp_path / "more.titans", target="cpu")


@pytest.mark.usefixtures("portable")
def test_engines_need_no_graphs_and_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    monkeypatch.setattr(nvidia, "has_driver", lambda: True)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", FakeTensorRT(cuda))  # type: ignore[arg-type]
    whole = tmp_path / "whole.titans"
    export_model(build("mag-tokens"), whole, verify_tokens=0)
    write_engines(whole)  # their stand-ins look into the whole bundle when they run
    made = slim(whole, tmp_path / "rtx.titans", target="tensorrt-rtx")
    assert made.engines is not None
    left = {path.name for path in (tmp_path / "rtx.titans").iterdir()}
    assert left == {"manifest.json", "initial_state.safetensors", "engines"}
    there, here = load(tmp_path / "rtx.titans", provider="tensorrt-rtx"), load(whole, provider="cpu", threads=1)
    np.testing.assert_array_equal(there.session().feed(TOKENS), here.session().feed(TOKENS))
    monkeypatch.undo()
    pytest.importorskip("tensorrt_rtx", reason="needs titans-deploy[tensorrt-rtx]", exc_type=ImportError)
    with pytest.raises(ExportError, match=r"slimmed to its engines and has no commit\.onnx"):
        build_engines(tmp_path / "rtx.titans", backend="tensorrt-rtx")


def test_engines_without_weights_keep_what_they_are_refitted_from(half: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "model.titans"
    shutil.copytree(half, bundle)
    write_engines(bundle, strip_weights=True)
    slim(bundle, tmp_path / "stripped.titans", target="tensorrt-rtx")
    manifest = open_bundle(tmp_path / "stripped.titans").manifest
    assert (tmp_path / "stripped.titans" / manifest.weights.file).exists()
    assert all((tmp_path / "stripped.titans" / graph.file).exists() for graph in manifest.graphs)
    assert all(graph.cpu is None or graph.cpu.file in manifest.omitted for graph in manifest.graphs)


def test_the_engines_to_keep_must_be_clear(half: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="has no engines for tensorrt-rtx; run: titans build"):
        slim(half, tmp_path / "a.titans", target="tensorrt-rtx")
    bundle = Path(shutil.copytree(half, tmp_path / "two.titans"))
    for name in ("tensorrt-rtx-sm86", "tensorrt-rtx-sm89"):
        (bundle / "engines" / name).mkdir(parents=True)
        (bundle / "engines" / name / "step.json").write_text(json.dumps({"backend": "tensorrt-rtx"}))
    for wanted in (None, "sm75"):
        with pytest.raises(ExportError, match="choose with --engines: tensorrt-rtx-sm86, tensorrt-rtx-sm89"):
            slim(bundle, tmp_path / "a.titans", target="tensorrt-rtx", engines=wanted)
    made = slim(bundle, tmp_path / "a.titans", target="tensorrt-rtx", engines="tensorrt-rtx-sm89")
    assert made.engines == "tensorrt-rtx-sm89"
    assert [path.name for path in (tmp_path / "a.titans" / "engines").iterdir()] == ["tensorrt-rtx-sm89"]
    with pytest.raises(ExportError, match="cpu runs no engines"):
        slim(bundle, tmp_path / "b.titans", target="cpu", engines="tensorrt-rtx-sm89")
    with pytest.raises(ExportError, match="unknown target 'abacus'"):
        slim(bundle, tmp_path / "b.titans", target="abacus")
    (bundle / "engines" / "tensorrt-rtx-sm86" / "step.json").write_text("{")
    with pytest.raises(ExportError, match=r"step\.json is not an engine's sidecar"):
        slim(bundle, tmp_path / "b.titans", target="tensorrt-rtx")
    assert not (tmp_path / "b.titans").exists()


def command(*arguments: object) -> Any:
    return CliRunner().invoke(cli, ["slim", *map(str, arguments)])


def test_the_command_says_how_much_is_left(half: Path, tmp_path: Path) -> None:
    assert set(TARGETS) == set(PROVIDERS)
    out = tmp_path / "cpu.titans"
    document = json.loads(command(half, "--target", "cpu", "--out", out, "--json").stdout)
    assert document["bytes_after"] == size(out)
    assert document["omitted"] == ["extend.onnx", "prefill.onnx", "step.onnx"]
    again = command(half, "--target", "cpu", "--out", out)
    assert again.exit_code == 2
    assert "--overwrite" in again.stderr
    assert "MiB of" in command(half, "--target", "cpu", "--out", out, "--overwrite").stderr
    missing = command(half, "--target", "tensorrt", "--engines", "x", "--out", tmp_path / "t.titans")
    assert missing.exit_code == 2
    assert "titans build" in missing.stderr
