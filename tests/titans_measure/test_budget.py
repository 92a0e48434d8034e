"""`titans doctor --budget`: what it counts is what the files and the manifest say, and what a process takes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors import safe_open

from tests.export.conftest import build
from titans_cli.doctor import doctor
from titans_export.export import export_model
from titans_format.errors import BundleError
from titans_measure.speed.budget import budget
from titans_runtime import load


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One in half precision, so that there are copies in float32."""
    path = tmp_path_factory.mktemp("budget") / "mac.titans"
    export_model(build("mac-tokens"), path, dtype="fp16", verify_tokens=0)
    return path


def test_the_parts_are_those_of_the_bundle_and_the_sum_is_what_the_formula_says(bundle: Path) -> None:
    result = CliRunner().invoke(doctor, ["--budget", str(bundle), "--memory", "1.5GiB", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    manifest = json.loads((bundle / "manifest.json").read_text())
    with safe_open(bundle / "weights.safetensors", "numpy") as weights:
        tensors = [weights.get_tensor(name) for name in weights.keys()]  # noqa: SIM118 - it has no other way
    halves = sum(tensor.size * 4 for tensor in tensors if tensor.dtype == np.float16)
    state = sum(
        math.prod(1 if size == "batch" else size for size in each["shape"]) * np.dtype(each["dtype"]).itemsize
        for each in manifest["states"]
    )
    assert found["weights"] == (bundle / "weights.safetensors").stat().st_size
    assert found["float32_copies"] == halves > 0
    assert found["state_per_stream"] == state
    one, stream = found["bytes"]["1"], max(state, found["measured_per_stream"])
    fixed = found["runtime"] + found["weights"] + found["float32_copies"] + found["working"]
    assert one == fixed + stream
    assert found["bytes"]["100"] == fixed + 100 * stream
    assert found["memory"] == 3 * 2**29
    fits = found["streams"]
    assert fixed + fits * stream <= found["memory"] < fixed + (fits + 1) * stream
    # A process with NumPy and ONNX Runtime takes more than 20 MiB, and this bundle not half a gibibyte.
    assert 20 * 2**20 < found["runtime"] < one < 2**29
    assert 0 <= found["measured_per_stream"] <= 2 * state + 2**20
    assert load(bundle, provider="cpu", threads=1).state_bytes == state


def test_what_is_not_a_size_or_not_a_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    for size in ("8 litres", "-1", "", "1e9GiB"):
        result = CliRunner().invoke(doctor, ["--budget", str(bundle), "--memory", size])
        assert result.exit_code == 2
        assert "8GiB" in result.output
    result = CliRunner().invoke(doctor, ["--memory", "8GiB"])
    assert result.exit_code == 2
    with pytest.raises(BundleError):
        budget(tmp_path)
