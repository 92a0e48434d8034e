"""TensorRT-RTX's own parser and builder on our graphs, without a GPU: what is built, and what is refused."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from msgspec import structs
from onnx import TensorProto, helper

from tests.export.conftest import build
from titans_core.model import TitansModel
from titans_core.presets import preset
from titans_export.errors import ExportError
from titans_export.export import export_model
from titans_export.tensorrt import memory as tensorrt_memory
from titans_export.tensorrt import options as tensorrt_options
from titans_export.tensorrt.engines import build_engines
from titans_export.tensorrt.network import Log, check_io, check_precision, parse
from titans_export.tensorrt.options import BuildOptions
from titans_format.specs import GraphSpec, TensorSpec
from titans_runtime.bundle import open_bundle
from titans_runtime.devices.tensorrt import nvidia
from titans_runtime.devices.tensorrt.top_k_graph import top_k_graph

trt = pytest.importorskip("tensorrt_rtx", reason="needs titans-deploy[tensorrt-rtx]", exc_type=ImportError)

# Every variant, every precision more than once; the builder takes seconds for each layer.
KINDS = ("lmm-fp32", "lmm-bf16", "mal-fp16", "mag-bf16", "mag-fp32", "mac-fp32", "mac-fp16")
ONE_TO_EIGHT = BuildOptions(batch=(1, 2, 8))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_engines_are_built_for_every_graph_and_say_what_they_are(kind: str, tmp_path: Path) -> None:
    variant, dtype = kind.split("-")
    bundle = tmp_path / "model.titans"
    manifest = export_model(build(f"{variant}-tokens", layers=1), bundle, dtype=dtype, verify_tokens=0)
    told: list[tuple[int, int]] = []
    options = replace(ONE_TO_EIGHT, sm=(86, 89)) if dtype == "fp32" else ONE_TO_EIGHT
    engines = build_engines(bundle, backend="tensorrt-rtx", options=options, progress=lambda *now: told.append(now))
    assert [engine.graph for engine in engines] == [*(graph.name for graph in manifest.graphs), "choose"]
    assert told == sorted(told)
    assert told[-1] == (4000, 4000)
    assert len(told) > 40
    top_k = top_k_graph(manifest)
    assert top_k is not None
    for engine, graph in zip(engines, [*manifest.graphs, top_k.spec], strict=True):
        target = "tensorrt-rtx-sm86-sm89" if dtype == "fp32" else "tensorrt-rtx"
        assert engine.file == f"engines/{target}/{graph.name}.engine"
        data = (bundle / engine.file).read_bytes()
        assert hashlib.sha256(data).hexdigest() == engine.sha256
        sidecar = json.loads((bundle / engine.file).with_suffix(".json").read_text())
        assert sidecar["onnx_sha256"] == graph.sha256
        assert (sidecar["tensorrt"], sidecar["dtype"], sidecar["batch"]) == (trt.__version__, dtype, [1, 2, 8])
        names = {row["name"]: row for row in sidecar["io"]}
        for tensor in (*graph.inputs, *graph.outputs):
            assert names[tensor.name]["dtype"] == tensor.dtype
            assert names[tensor.name]["shape"] == [-1 if isinstance(size, str) else size for size in tensor.shape]
            assert names[tensor.name]["location"] == "device"
        half = {"fp16": "float16", "bf16": "bfloat16"}.get(dtype)
        # a commit has no weights; it works in half precision where it moves an attention window's keys and values
        works_in_half = half is not None and graph is not top_k.spec
        works_in_half &= graph.kind != "commit" or variant in ("mal", "mag")
        assert (half in sidecar["layers"]) == works_in_half
        assert sidecar["layers"]["float32"] > 0
    open_bundle(bundle)  # the rest of the bundle is untouched


@pytest.mark.slow
def test_engines_as_wide_as_the_170m_mac_are_built_in_fp16(tmp_path: Path) -> None:
    bundle = tmp_path / "170m.titans"
    config = replace(preset("170m", variant="mac"), layers=2)  # of twelve: the rest is the same again
    export_model(TitansModel(config), bundle, dtype="fp16", verify_tokens=0)
    engines = build_engines(bundle, backend="tensorrt-rtx")
    assert [engine.batch for engine in engines] == [(1, 1, 8)] * 5
    weights = (bundle / "weights.safetensors").stat().st_size
    for engine in engines[:3]:
        assert 0.9 * weights < engine.bytes < 1.3 * weights
        assert engine.layers["float16"] > 0


# ---------------------------------------------------------------- refusals


def graph_of(path: Path, operator: str) -> GraphSpec:
    """An ONNX file with one operator, and a manifest entry that fits it."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])
    node = helper.make_node(
        operator, ["x"], ["y"], name="blocks.0.mixer/Odd_0", domain="nowhere" if operator == "Odd" else ""
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("nowhere", 1)]
    onnx.save_model(helper.make_model(helper.make_graph([node], "g", [value], [out]), opset_imports=opsets), str(path))
    tensors = [TensorSpec(name=name, dtype="float32", shape=("batch", 4)) for name in ("x", "y")]
    return GraphSpec(
        name="g", kind="step", file=path.name, sha256="", tokens=1, inputs=(tensors[0],), outputs=(tensors[1],)
    )


def parsed(path: Path) -> object:
    log = Log(trt)
    builder = trt.Builder(log.logger)
    return parse(trt, "tensorrt-rtx", builder, log.logger, path, path.read_bytes()), builder


def test_a_refused_graph_names_the_node_its_operator_and_its_place(tmp_path: Path) -> None:
    graph_of(tmp_path / "g.onnx", "Odd")
    with pytest.raises(ExportError, match=r"node 0, blocks\.0\.mixer/Odd_0 \(Odd\) in blocks\.0\.mixer: "):
        parsed(tmp_path / "g.onnx")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"dtype": "float16"}, r"y is float32 \[-1, 4\] on the device in TensorRT's network and float16"),
        ({"shape": ("batch", 5)}, r"and float32 \[-1, 5\] on the device in the manifest"),
        ({"name": "z"}, "y is float32 .* and missing in the manifest"),
    ],
)
def test_another_tensor_than_the_manifests_is_a_failure(change: dict[str, object], told: str, tmp_path: Path) -> None:
    graph = graph_of(tmp_path / "g.onnx", "Exp")
    other = TensorSpec(**({"name": "y", "dtype": "float32", "shape": ("batch", 4)} | change))  # type: ignore[arg-type]
    network, _builder = parsed(tmp_path / "g.onnx")  # type: ignore[misc]
    assert [item.name for item in check_io(trt, network, graph)] == ["x", "y"]
    with pytest.raises(ExportError, match=told):
        check_io(trt, network, structs.replace(graph, outputs=(other,)))


def test_a_graph_that_computes_in_another_precision_than_the_manifest_says_is_a_failure(tmp_path: Path) -> None:
    graph = graph_of(tmp_path / "g.onnx", "Exp")
    network, _builder = parsed(tmp_path / "g.onnx")  # type: ignore[misc]
    assert check_precision(trt, network, graph, "fp32") == {"float32": 1}
    with pytest.raises(ExportError, match="says fp16, and no layer computes in float16"):
        check_precision(trt, network, graph, "fp16")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that nothing is ever built in: every test that uses it is refused before."""
    path = tmp_path_factory.mktemp("small") / "small.titans"
    export_model(build("lmm-tokens"), path, verify_tokens=0)
    return path


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (BuildOptions(sm=(33,)), r"cannot target SM 33; it knows 75, 80"),
        (BuildOptions(version_compatible=True), "does not offer --version-compatible: the library"),
        (BuildOptions(hardware_compatible=True), "does not offer --hardware-compatible: its engines run on every GPU"),
        (BuildOptions(timing_cache=Path("timings")), "does not offer --timing-cache: it times nothing"),
    ],
)
def test_what_tensorrt_rtx_does_not_do_is_refused_with_a_reason(options: BuildOptions, told: str, small: Path) -> None:
    with pytest.raises(ExportError, match=told):
        build_engines(small, backend="tensorrt-rtx", options=options)
    assert not (small / "engines").exists()


@pytest.mark.skipif(nvidia.has_driver(), reason="with a GPU these are built")
@pytest.mark.parametrize("wish", ["refit", "strip_weights"])
def test_engines_to_be_refitted_need_a_gpu_and_the_error_says_so(wish: str, small: Path) -> None:
    option = wish.replace("_", "-")
    with pytest.raises(ExportError, match=f"builds --{option} only where there is a GPU"):
        build_engines(small, backend="tensorrt-rtx", options=BuildOptions(**{wish: True}))  # type: ignore[arg-type]
    assert not (small / "engines").exists()


@pytest.mark.parametrize("batch", [(0, 1, 1), (4, 2, 8), (1, 9, 8)])
def test_batch_sizes_have_to_be_in_order(batch: tuple[int, int, int]) -> None:
    with pytest.raises(ExportError, match="min <= opt <= max"):
        BuildOptions(batch=batch)


def test_a_target_is_named_once() -> None:
    with pytest.raises(ExportError, match="names a target twice: 86, 86"):
        BuildOptions(sm=(86, 86))


def test_a_missing_module_names_the_packages_that_bring_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tensorrt_options.MODULES, "tensorrt", "tensorrt_that_is_not_there")
    with pytest.raises(ExportError, match=r"pip install 'cuda-bindings.*' 'tensorrt"):
        build_engines(tmp_path, backend="tensorrt")


def test_an_int8_bundle_is_not_for_engines(tmp_path: Path) -> None:
    export_model(build("lmm-tokens"), tmp_path / "m.titans", dtype="int8", verify_tokens=0)
    with pytest.raises(ExportError, match="int8 bundle for cpu only; export the checkpoint with --dtype fp16"):
        build_engines(tmp_path / "m.titans", backend="tensorrt-rtx")


# ---------------------------------------------------------------- memory


def test_a_build_that_will_not_fit_is_refused_unless_told_otherwise(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.standin.builder import FakeBuilderModule

    monkeypatch.setattr(tensorrt_memory, "available", lambda: 100 * 2**20)
    with pytest.raises(ExportError, match=r"needs about 0\.6 GiB of memory, 0\.1 GiB are free.*--ignore-memory"):
        build_engines(small, backend="tensorrt-rtx")
    bundle = tmp_path / "m.titans"
    export_model(build("lmm-tokens"), bundle, verify_tokens=0)
    monkeypatch.setitem(sys.modules, "tensorrt", FakeBuilderModule("10.14.1"))  # type: ignore[arg-type]
    assert len(build_engines(bundle, backend="tensorrt", ignore_memory=True)) == 5


def test_the_estimate_grows_with_the_weights_of_the_graph(small: Path) -> None:
    used = {name: tensorrt_memory.estimate((small / f"{name}.onnx").read_bytes()) for name in ("step", "commit")}
    weights = (small / "weights.safetensors").stat().st_size
    starts = (small / "initial_state.safetensors").stat().st_size  # where forgetting leads: a commit's only weights
    assert used["commit"] - tensorrt_memory.BASE_BYTES < 7.1 * starts
    assert 5 * weights < used["step"] - tensorrt_memory.BASE_BYTES < 7.1 * weights
    assert (tensorrt_memory.available() or 0) > 2**20
