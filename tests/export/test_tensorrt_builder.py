"""What the builder tells `tensorrt` 10 and 11, seen by a stand-in; no GPU and no such module is needed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.export.conftest import build
from tests.standin.builder import BuilderFlag, FakeBuilderModule, HardwareCompatibilityLevel
from titans_export.errors import ExportError
from titans_export.export import export_model
from titans_export.tensorrt.engines import build_engines
from titans_export.tensorrt.options import BuildOptions
from titans_runtime.devices.tensorrt import modules as tensorrt_modules
from titans_runtime.devices.tensorrt import nvidia


@pytest.fixture(params=["10.14.1", "11.0.0"])
def module(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeBuilderModule:
    """`tensorrt`, of both versions."""
    fake = FakeBuilderModule(request.param)
    monkeypatch.setitem(sys.modules, "tensorrt", fake)  # type: ignore[arg-type]
    return fake


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("half") / "half.titans"
    export_model(build("mac-tokens"), path, dtype="fp16", verify_tokens=0)
    return path


def test_networks_are_strongly_typed_in_every_version(module: FakeBuilderModule, exported: Path) -> None:
    build_engines(exported, backend="tensorrt")
    flag = 0 if module.__version__.startswith("11") else 1 << 1
    assert module.typed == [flag] * 5


def test_every_option_reaches_the_builder(module: FakeBuilderModule, exported: Path, tmp_path: Path) -> None:
    cache = tmp_path / "timings"
    options = BuildOptions(
        batch=(2, 3, 5),
        workspace_mib=7,
        level=4,
        version_compatible=True,
        hardware_compatible=True,
        strip_weights=True,
        timing_cache=cache,
    )
    told: list[tuple[int, int]] = []
    engines = build_engines(exported, backend="tensorrt", options=options, progress=lambda *now: told.append(now))
    *graphs, chooser = module.configs
    assert chooser.flags == {BuilderFlag.VERSION_COMPATIBLE}  # it has no weights
    assert [tuple(shape) for shape in chooser.profiles[0]["scores"]] == [(2, 50), (3, 50), (5, 50)]
    for config in graphs:
        assert config.flags == {BuilderFlag.VERSION_COMPATIBLE, BuilderFlag.STRIP_PLAN, BuilderFlag.REFIT}
        assert config.hardware_compatibility_level is HardwareCompatibilityLevel.AMPERE_PLUS
        assert list(config.pools.values()) == [7 << 20]
        assert config.builder_optimization_level == 4
        shapes = config.profiles[0]["past_key_values.0.memory_0"]
        assert [shape[0] for shape in shapes] == [2, 3, 5]
        assert len({shape[1:] for shape in shapes}) == 1
    assert cache.read_bytes() == b"timed;" * 5  # each build goes on from the one before
    folder = "engines/tensorrt-version-compatible-hardware-compatible-strip-weights"
    assert {Path(engine.file).parent.as_posix() for engine in engines} == {folder}
    sidecar = json.loads((exported / folder / "step.json").read_text())
    assert sidecar["version_compatible"] is sidecar["refit"] is True
    assert told[:9] == [(n, 4000) for n in (125, 250, 375, 500, 625, 750, 875, 1000, 1000)]


def test_a_timing_cache_of_another_gpu_is_refused(module: FakeBuilderModule, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "timings").write_bytes(b"other GPU")
    with pytest.raises(ExportError, match="timings was made by another TensorRT or on another GPU"):
        build_engines(exported, backend="tensorrt", options=BuildOptions(timing_cache=tmp_path / "timings"))


def test_targets_are_refused_by_a_module_that_builds_for_its_own_gpu(module: FakeBuilderModule, exported: Path) -> None:
    with pytest.raises(ExportError, match="cannot target SM 90; it builds for the GPU that it runs on"):
        build_engines(exported, backend="tensorrt", options=BuildOptions(sm=(90,)))


def test_a_finished_engine_is_read_back_where_there_is_a_gpu(
    module: FakeBuilderModule, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvidia, "has_driver", lambda: True)
    assert {engine.read_back for engine in build_engines(exported, backend="tensorrt")} == {"engine"}
    module.answer = {"logits": ["HALF", [-1, 16, 50]]}
    with pytest.raises(ExportError, match=r"logits is float16 .* in the finished engine and float32"):
        build_engines(exported, backend="tensorrt")
    monkeypatch.setattr(nvidia, "has_driver", lambda: False)
    assert {engine.read_back for engine in build_engines(exported, backend="tensorrt")} == {"network"}


def test_the_sidecar_names_the_gpu_that_an_engine_was_built_for(
    module: FakeBuilderModule, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvidia, "has_driver", lambda: True)
    monkeypatch.setattr(tensorrt_modules, "capability", lambda name: 90 if name == "tensorrt" else 0)
    assert {engine.sm for engine in build_engines(exported, backend="tensorrt")} == {(90,)}
    monkeypatch.setattr(nvidia, "has_driver", lambda: False)
    assert {engine.sm for engine in build_engines(exported, backend="tensorrt")} == {()}


def test_an_option_that_a_version_lacks_is_refused(
    module: FakeBuilderModule, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BuilderFlag", object(), raising=False)
    with pytest.raises(ExportError, match="does not offer --refit: this version does not have it"):
        build_engines(exported, backend="tensorrt", options=BuildOptions(refit=True))
