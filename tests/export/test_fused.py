"""The fused kernels beside what they stand in for: PyTorch, the portable graphs, and what they must refuse."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import titans_runtime
from hatch_build import FLOATS, LEVELS, PER_LEVEL
from hatch_build import build as compile_kernels
from tests.export.conftest import Exported, moved
from titans_core.config import MemoryConfig, TitansConfig
from titans_core.model import TitansModel
from titans_export.export import export_model
from titans_export.graph.fused_ops import DOMAIN, VERSION
from titans_export.passes import weights_on_left as left
from titans_export.verification.agreement import compare
from titans_runtime import native
from titans_runtime.devices import host
from titans_runtime.state.host_memory import HostBlock

needs_kernels = pytest.mark.skipif(native.kernels() is None, reason=native.described())

# What a kernel has a branch for: depths, both activations, gates and bound switched off, widths that fill no vector.
MEMORIES: dict[str, dict[str, Any]] = {
    "linear": {"depth": 1},
    "deep": {"depth": 4, "activation": "silu"},
    "wide": {"depth": 3, "expansion": 3.0},
    "without momentum": {"momentum": False},
    "without forgetting": {"forget": False},
    "forgetting towards zero": {"forget_to": "zero"},
    "linear, forgetting towards zero": {"depth": 1, "forget_to": "zero", "momentum": False},
    "linear, without momentum": {"depth": 1, "momentum": False},
    "without a bound": {"surprise_bound": None, "max_step_size": 0.01, "initial_step_size": 0.005},
    "a tighter bound": {"surprise_bound": 0.5},
    "two taps": {"conv_kernel": 2},
}
SPELLED_OUT: dict[str, dict[str, Any]] = {
    "norm": {"residual_norm": True},
    "gates of a chunk": {"gate_scope": "chunk"},
    "one step size": {"step_size": "constant"},
    "no convolution": {"conv_kernel": 1},
}


def model_of(variant: str = "mac", memory: dict[str, Any] | None = None, **changes: Any) -> TitansModel:
    """Heads of 12 channels and chunks of 10 tokens: nothing is a multiple of a vector."""
    torch.manual_seed(3)
    shape = {"variant": variant, "dim": 36, "layers": 2, "heads": 3, "chunk": 10, "window": 14, "ffn_hidden": 50}
    config = TitansConfig.from_dict(
        shape | {"persistent_tokens": 3, "vocab_size": 50, "memory": {"heads": 3} | (memory or {})} | changes
    )
    return moved(TitansModel(config))


def nodes(bundle: Path, graph: str) -> list[str]:
    file = bundle / f"{graph}.fused.onnx"
    return [node.op_type for node in onnx.load(str(file), load_external_data=False).graph.node if node.domain == DOMAIN]


def agreed(bundle: Path, model: TitansModel, tokens: int = 260) -> float:
    """The largest error over a stream in random pieces, both forms; all states compared too."""
    report = compare(bundle, model, tokens=tokens)
    assert report.ok, report.explain()
    assert report.forms == ("portable", "fused")
    return report.max_abs_error


@needs_kernels
@pytest.mark.parametrize("memory", MEMORIES.values(), ids=MEMORIES)
def test_every_option_of_a_memory_computes_what_pytorch_computes(memory: dict[str, Any], tmp_path: Path) -> None:
    model = model_of(memory=memory)
    export_model(model, tmp_path / "m.titans", verify_tokens=0)
    assert nodes(tmp_path / "m.titans", "prefill").count("Memory") == 2
    assert nodes(tmp_path / "m.titans", "step").count("MemoryRead") == 2
    assert agreed(tmp_path / "m.titans", model) <= 2e-5


@needs_kernels
@pytest.mark.parametrize("variant", ["lmm", "mal", "mag", "mac"])
@pytest.mark.parametrize("sparse", [False, True])
def test_every_variant_computes_what_pytorch_computes(variant: str, sparse: bool, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"ffn": "gelu"} if sparse else {}
    if variant == "lmm":
        changes["persistent_tokens"] = 0
    elif sparse:
        changes |= {"persistent_tokens": 0, "memory_layers": [1]}
    model = model_of(variant, **changes)
    export_model(model, tmp_path / "m.titans", verify_tokens=0)
    assert agreed(tmp_path / "m.titans", model) <= 2e-5


@pytest.mark.parametrize("memory", SPELLED_OUT.values(), ids=SPELLED_OUT)
def test_a_memory_without_a_kernel_stays_spelled_out(memory: dict[str, Any], tmp_path: Path) -> None:
    model = model_of(memory=memory)
    export_model(model, tmp_path / "m.titans", verify_tokens=0)
    assert "Memory" not in nodes(tmp_path / "m.titans", "step")
    assert "TokenAttention" in nodes(tmp_path / "m.titans", "step")  # the rest of the layer has one all the same
    report = compare(tmp_path / "m.titans", model, tokens=100)
    assert report.ok, report.explain()


def test_fused_graphs_take_and_give_what_the_portable_ones_do(exported: Exported) -> None:
    manifest = json.loads((exported.path / "manifest.json").read_text(encoding="utf-8"))
    twins = [graph for graph in manifest["graphs"] if "fused" in graph]
    assert {graph["name"] for graph in twins} >= {"step"}
    for graph in twins:
        portable, fused = (
            onnx.load(str(exported.path / file), load_external_data=False)
            for file in (graph["file"], graph["fused"]["file"])
        )
        for field in ("input", "output"):
            ours, theirs = ({v.name: v.type for v in getattr(m.graph, field)} for m in (fused, portable))
            assert ours == theirs
        assert {opset.domain: opset.version for opset in fused.opset_import}[DOMAIN] == VERSION
        assert len(fused.graph.node) < len(portable.graph.node)


@needs_kernels
@pytest.mark.parametrize("streams", [1, 2, 3, 4, 5, 16, 17, 33])
def test_large_matrices_are_read_once_for_any_number_of_streams(
    streams: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(left, "LARGE_BUNDLE", 0)
    monkeypatch.setattr(left, "LARGE_MATRIX", 100)
    model = model_of()
    export_model(model, tmp_path / "m.titans", verify_tokens=0)
    assert nodes(tmp_path / "m.titans", "step").count("Linear") > 10
    ids = np.random.default_rng(streams).integers(0, 50, (streams, 12))
    driver = titans_runtime.load(tmp_path / "m.titans", provider="cpu", threads=2).driver(streams)
    told = np.concatenate([driver.feed(ids[:, t : t + 1]).outputs for t in range(10)], axis=1)
    with torch.no_grad():
        want, _ = model(torch.from_numpy(ids[:, :10]))
    np.testing.assert_allclose(told, want.numpy(), atol=2e-5)


@needs_kernels
def test_streams_at_different_places_of_their_chunks_keep_to_themselves(tmp_path: Path) -> None:
    export_model(model_of("mag"), tmp_path / "m.titans", verify_tokens=0)
    model = titans_runtime.load(tmp_path / "m.titans", provider="cpu", threads=2)
    random = np.random.default_rng(0)
    streams = [random.integers(0, 50, int(length)).tolist() for length in (1, 9, 10, 11, 23, 37)]
    with model.batch(lanes=4) as batch:
        sessions = [batch.session() for _ in streams]
        batch.feed(sessions, streams)
        together = [batch.feed(sessions, [[7]] * len(streams)) for _ in range(12)][-1]
    for stream, got in zip(streams, together, strict=True):
        alone = model.session()
        alone.feed(stream)
        want = [alone.feed([7]) for _ in range(12)][-1]
        np.testing.assert_allclose(got, want, atol=1e-5)


PROGRAM = """
import sys, numpy as np, titans_runtime
from titans_runtime import native
session = titans_runtime.load(sys.argv[1], provider="cpu", threads=1).session()
told = [session.feed(list(range(n))) for n in (25, 1, 1, 7)]
found = native.kernels()
print(found.isa if found else "none", *np.concatenate(told).ravel().tolist())
"""


@needs_kernels
@pytest.mark.parametrize("level", ["off", "v1", "v3"])
def test_every_level_of_the_machine_computes_the_same(
    level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_model(model_of(), tmp_path / "m.titans", verify_tokens=0)

    def told(wanted: str | None) -> tuple[str, np.ndarray[Any, Any]]:
        if wanted is None:
            monkeypatch.delenv(native.SWITCH, raising=False)
        else:
            monkeypatch.setenv(native.SWITCH, wanted)
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "m.titans")]
        words = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        return words[0], np.array(words[1:], np.float64)

    best, want = told(None)
    name, got = told(level)
    assert name in {"off": {"none"}, "v1": {"v1"}, "v3": {"v1", "v3"}}[level]
    assert best >= name or name == "none"
    np.testing.assert_allclose(got, want, atol=1e-5)


def node_session(operator: str, shapes: list[tuple[list[int], int]], **attributes: Any) -> ort.InferenceSession:
    """One fused operator over inputs of these shapes and types, as a graph of its own."""
    inputs = [helper.make_tensor_value_info(f"x{i}", kind, shape) for i, (shape, kind) in enumerate(shapes)]
    count = attributes.pop("outputs", 10 if operator == "Memory" else 1)
    outputs = [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, None) for i in range(count)]
    names = [value.name for value in outputs]
    node = helper.make_node(operator, [value.name for value in inputs], names, domain=DOMAIN, **attributes)
    graph = helper.make_graph([node], "g", inputs, outputs)
    domains = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, VERSION)]
    proto = helper.make_model(graph, opset_imports=domains, ir_version=10)
    options = ort.SessionOptions()
    found = native.kernels()
    assert found is not None
    options.register_custom_ops_library(str(found.path))
    options.log_severity_level = 4
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


MEMORY = {
    "heads": 2, "width": 4, "chunk": 4, "taps": 2, "depth": 1, "silu": 0, "bound": 1.0, "max_step": 0.5, "gates": 3,
    "forget": 0, "momentum": 1, "step": 2, "fold": 0, "padded": 0,
}  # fmt: skip
F, INT = TensorProto.FLOAT, TensorProto.INT64
STEP = [
    ([1, 1, 8], F), ([1, 1, 22], F), ([1, 1, 24], F), ([2, 24], F), ([2], F), ([2], F), ([2], F), ([1, 2], F),
    ([1, 2, 4], F), ([1, 2], F), ([1, 2], F), ([1, 2, 4], F), ([1, 2, 4, 4], F), ([1, 2, 4, 4], F), ([4, 1, 2, 4], F),
    ([4, 1, 2, 4], F), ([1], INT),
]  # fmt: skip


def outcome(operator: str, shapes: list[tuple[list[int], int]], **attributes: Any) -> Any:
    """Make the operator and run it on zeros."""
    session = node_session(operator, shapes, **attributes)
    return session.run(None, zeros(session))


def zeros(session: ort.InferenceSession, position: int = 0) -> dict[str, Any]:
    feeds = {}
    for value in session.get_inputs():
        kind = np.int64 if "int64" in value.type else np.float32
        feeds[value.name] = np.full(value.shape, position if kind is np.int64 else 0, kind)
    return feeds


@needs_kernels
def test_an_operator_runs_by_itself_and_refuses_a_place_that_is_not_there() -> None:
    session = node_session("Memory", STEP, **MEMORY)
    assert session.run(None, zeros(session, 3))[0].shape == (1, 1, 8)
    with pytest.raises(Exception, match="do not fit into its chunk"):
        session.run(None, zeros(session, -1))
    padded = node_session("Memory", [*STEP, ([1], INT)], **(MEMORY | {"padded": 1}))
    with pytest.raises(Exception, match="do not fit into its chunk"):
        padded.run(None, zeros(padded, 3))  # three tokens, where one was given


@needs_kernels
@pytest.mark.parametrize("index", range(len(STEP)))
def test_an_input_of_another_size_or_type_is_refused(index: int) -> None:
    shape, kind = STEP[index]
    wrong = [*STEP]
    wrong[index] = ([*shape[:-1], shape[-1] + 1], kind)
    with pytest.raises(Exception, match=r"another (size|width|rank)|do not divide"):
        outcome("Memory", wrong, **MEMORY)
    wrong[index] = (shape, INT if kind == F else F)
    with pytest.raises(Exception, match=r"size or type|[Tt]ype"):
        outcome("Memory", wrong, **MEMORY)


@needs_kernels
@pytest.mark.parametrize(
    ("name", "value"), [("heads", 0), ("depth", 9), ("taps", 1), ("gates", 4), ("momentum", 3), ("step", -1)]
)
def test_attributes_that_no_memory_has_are_refused(name: str, value: int) -> None:
    with pytest.raises(Exception, match="attributes that no memory has"):
        node_session("Memory", STEP, **(MEMORY | {name: value}))


@needs_kernels
def test_sizes_that_wrap_around_and_lengths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(Exception, match="no padding"):
        outcome("Memory", [*STEP, ([1], INT)], **(MEMORY | {"fold": 1, "padded": 1}))
    with pytest.raises(Exception, match="out of all bounds"):
        outcome("Memory", STEP, **(MEMORY | {"chunk": 2**62}))
    shapes = [([1, 1, 4], F), ([1, 1, 8], F), ([0], F), ([0], F), ([0], F), ([0], F), ([1], INT)]
    sizes = {"heads": 2, "chunk": 2**20, "past": 0, "window": 0, "persistent": 0}
    with pytest.raises(Exception, match="another size"):
        outcome("TokenAttention", shapes, **sizes, outputs=3)
    with pytest.raises(Exception, match="is empty"):
        outcome("GatedUnit", [([1, 1, 0], F)])


def test_there_are_kernels_where_there_is_a_compiler() -> None:
    """Else everything above would be skipped where compiling them is broken."""
    if native.switched_off() or not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip(native.described())
    assert native.kernels() is not None, native.described()


@needs_kernels
def test_a_library_that_onnx_runtime_refuses_is_passed_over(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    x = [[0.5, 1.0, -1.0]] * 20 if exported.continuous else list(range(20))
    want = titans_runtime.load(exported.path, provider="cpu", threads=1).session().feed(x)
    found = native.kernels()
    assert found is not None
    monkeypatch.setattr(host, "kernels", lambda: replace(found, path=tmp_path / "none.so"))
    with caplog.at_level("WARNING", "titans_runtime"):
        got = titans_runtime.load(exported.path, provider="cpu", threads=1).session().feed(x)
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert "kernels.refused" in caplog.text


@needs_kernels
def test_too_few_inputs_and_outputs_are_refused() -> None:
    with pytest.raises(Exception, match="output of a fused operator is left out"):
        outcome("Memory", STEP, **MEMORY, outputs=9)
    with pytest.raises(Exception, match="too few inputs"):
        outcome("Memory", STEP[:-1], **MEMORY)
    with pytest.raises(Exception, match="another width"):
        outcome("Linear", [([1, 1, 8], F), ([4, 9], F)])


@needs_kernels
@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 300),
    place=st.integers(0, 299),
    value=st.sampled_from([np.nan, np.inf, -np.inf, 3e38, -3e38, 0.0, 1e-45]),
)
def test_a_block_knows_whether_it_is_finite(size: int, place: int, value: float) -> None:
    block = HostBlock([("x", (size,), "float32")])
    block.arrays["x"][...] = 3e38  # finite, though a sum of them is not
    assert block.finite()
    block.arrays["x"][place % size] = value
    assert block.finite() == bool(np.isfinite(value))


def alone(tmp_path: Path, compiler: str, level: str, *options: str, emulator: tuple[str, ...] = ()) -> list[str]:
    """What `kernels_alone.cpp` prints when it is compiled so."""
    sources = [str(native.LIBRARY.with_name(name)) for name in PER_LEVEL]
    program = str(tmp_path / f"{compiler}-{level}")
    names = [f"-DTITANS_ISA={level}", f"-DLEVEL={level}", f"-I{native.LIBRARY.parent}"]
    command = [
        compiler,
        "-std=c++17",
        "-O1",  # four times as quick to compile under sanitizers as -O2
        *FLOATS,
        *names,
        *options,
        str(Path(__file__).with_name("kernels_alone.cpp")),
    ]
    subprocess.run([*command, *sources, "-o", program], check=True, capture_output=True)
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run([*emulator, program], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not done.stderr
    return done.stdout.splitlines()


def same(a: list[str], b: list[str]) -> None:
    names, numbers = zip(*(line.rsplit(" ", 1) for line in a), strict=True)
    others, twins = zip(*(line.rsplit(" ", 1) for line in b), strict=True)
    assert names == others
    assert len(names) > 10_000
    np.testing.assert_allclose(np.array(numbers, np.float64), np.array(twins, np.float64), rtol=1e-4, atol=2e-6)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None or "v3" not in LEVELS, reason="needs g++ on x86-64")
def test_kernels_stay_inside_their_memory_at_every_level(tmp_path: Path) -> None:
    watched = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
    narrow = alone(tmp_path, "g++", "v1", *watched)
    found = native.found()[0]
    if found is not None and found.isa != "v1":  # this processor has AVX2
        same(narrow, alone(tmp_path, "g++", "v3", *LEVELS["v3"], *watched))


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("aarch64-linux-gnu-g++") is None or shutil.which("qemu-aarch64-static") is None,
    reason="needs g++ for aarch64 and its emulator",
)
def test_kernels_compute_the_same_on_arm(tmp_path: Path) -> None:
    there = alone(tmp_path, "aarch64-linux-gnu-g++", "v1", "-static", emulator=("qemu-aarch64-static",))
    same(there, alone(tmp_path, "g++", "v1"))


def test_without_a_compiler_there_are_no_kernels_and_it_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, library = native.LIBRARY.parent, tmp_path / "kernels.so"
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    assert "could not compile them" in (compile_kernels(folder, library) or "")
    monkeypatch.setenv(native.SWITCH, "off")
    assert compile_kernels(folder, library) == "TITANS_KERNELS is off"
    monkeypatch.delenv("CXX")
    monkeypatch.delenv(native.SWITCH)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "install g++ or clang++" in (compile_kernels(folder, library) or "")
    assert not library.exists()
    native.found.cache_clear()
    monkeypatch.setattr(native, "LIBRARY", library)
    assert native.kernels() is None
    assert "not compiled" in native.described()
    library.write_bytes(b"not a library")
    native.found.cache_clear()
    assert native.kernels() is None
    assert "does not load here" in native.described()
    native.found.cache_clear()


def test_a_bundle_runs_where_there_are_no_kernels(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    x = [[0.5, 1.0, -1.0]] * 20 if exported.continuous else list(range(20))
    with_kernels = titans_runtime.load(exported.path, provider="cpu", threads=1).session().feed(x)
    monkeypatch.setattr(native, "found", lambda: (None, "not compiled"))
    without = titans_runtime.load(exported.path, provider="cpu", threads=1).session().feed(x)
    np.testing.assert_allclose(without, with_kernels, atol=1e-5)


def test_the_memory_config_is_what_these_tests_say() -> None:
    """The names above are options that exist, so that none of the cases is the default twice."""
    for options in (*MEMORIES.values(), *SPELLED_OUT.values()):
        assert replace(MemoryConfig(heads=3), **options) != MemoryConfig(heads=3)
