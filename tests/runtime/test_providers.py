"""What the machine offers, and that the runtime brings in nothing it does not need."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from titans_runtime import BundleError, ProviderError, load
from titans_runtime.devices import doctor, ort_providers, select
from titans_runtime.devices.select import PROVIDERS
from titans_runtime.devices.tensorrt import nvidia

ROOT = Path(__file__).resolve().parents[2]


def by_name() -> dict[str, doctor.ProviderReport]:
    return {entry.name: entry for entry in doctor.report()}


def test_every_provider_is_ready_or_says_what_is_missing_and_what_to_do() -> None:
    reports = by_name()
    assert list(reports) == list(PROVIDERS)
    assert reports["cpu"].status == "ready"
    assert reports["cpu"].version
    for entry in reports.values():
        assert (entry.status == "ready") == (entry.remedy == "")
        assert (entry.version is None) == (entry.status == "not installed")
        json.dumps(entry.as_json())


def test_a_broken_onnxruntime_is_reported_and_refused_with_a_remedy(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for name in ("cpu", "cuda", "webgpu"):
        assert by_name()[name].status == "not installed"
        assert "pip install 'onnxruntime>=" in by_name()[name].remedy
    with pytest.raises(ProviderError, match="pip install 'onnxruntime>="):
        load(toy_bundle)


def test_what_is_ready_loads_and_what_is_not_is_refused_with_the_same_words(toy_bundle: Path) -> None:
    for entry in by_name().values():
        if entry.status == "ready":
            assert load(toy_bundle, provider=entry.name).provider == entry.name
        else:
            with pytest.raises(ProviderError) as caught:
                load(toy_bundle, provider=entry.name)
            assert str(caught.value) == f"{entry.detail}; {entry.remedy}"


def test_installed_without_a_driver_is_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    built = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: built)
    monkeypatch.setattr(nvidia, "has_driver", lambda: False)
    for name in ("cuda", "ort-tensorrt"):
        assert by_name()[name].status == "no device"
        assert by_name()[name].remedy == "run on a machine with an NVIDIA GPU"


def test_a_driver_without_its_libraries_is_not_working(monkeypatch: pytest.MonkeyPatch) -> None:
    """As onnxruntime-gpu is without CUDA: it starts sessions all the same, on the CPU."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(nvidia, "has_driver", lambda: True)
    assert by_name()["cuda"].status == "not working"


def test_auto_takes_the_first_that_works_and_says_why_not_the_others(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select, "AUTO", ("cuda", "cpu"))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    model = load(toy_bundle, threads=1)
    assert model.provider == "cpu"
    assert list(model.passed_over) == ["cuda"]
    assert "no CUDAExecutionProvider" in model.passed_over["cuda"]
    assert load(toy_bundle, provider="cpu").passed_over == {}


def test_profiles_name_every_input_at_every_size(toy_bundle: Path) -> None:
    step = load(toy_bundle, provider="cpu").manifest.graph("step")
    assert step is not None
    options = ort_providers.profiles("trt_profile", step, 16)
    low = "input_ids:1x1,position:1,memory:1x6x6,trace:1x6,rows:8x1x6"
    assert options["trt_profile_min_shapes"] == options["trt_profile_opt_shapes"] == low
    assert options["trt_profile_max_shapes"] == "input_ids:16x1,position:16,memory:16x6x6,trace:16x6,rows:8x16x6"
    assert [ort_providers.profile_size(batch) for batch in (1, 16, 17, 33)] == [16, 16, 32, 64]


def test_engine_caches_of_other_weights_are_other_folders(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    step = load(toy_bundle, provider="cpu").manifest.graph("step")
    assert step is not None
    one, other = (ort_providers.cache_folder("tensorrt", weights * 64, step) for weights in "ab")
    assert one != other
    assert one.is_dir()
    assert one.is_relative_to(tmp_path)


def test_text_without_the_tokenizers_library_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from titans_runtime.text.tokenizer import LibraryTokenizer

    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ProviderError, match="pip install 'tokenizers"):
        LibraryTokenizer(tmp_path / "tokenizer.json")


def run_python(code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    paths = f"import sys; sys.path.insert(0, {str(ROOT / 'runtime')!r})\n"
    command = [sys.executable, "-c", paths + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_importing_and_running_loads_neither_torch_nor_onnx_nor_anything_unneeded(toy_bundle: Path) -> None:
    result = run_python(
        "import titans_runtime as titans\n"
        "lazy = {'onnxruntime', 'tokenizers', 'safetensors'} & set(sys.modules)\n"
        "assert not lazy, lazy\n"
        "text = ''.join(titans.load(sys.argv[1], provider='cpu').session().generate('hello', 20, seed=0))\n"
        "heavy = {'torch', 'onnx', 'onnxscript', 'tokenizers', 'safetensors'} & set(sys.modules)\n"
        "assert text and not heavy, heavy\n",
        toy_bundle,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


def test_a_refused_bundle_needs_no_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BundleError):
        load(tmp_path)
