"""The streams of the device tests on real NVIDIA hardware: `pytest -m gpu`. Skipped, with the reason, elsewhere.

docs/devices.md says which of these have passed on which hardware.
"""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from tests.export.conftest import build
from tests.runtime.devices import skip_without, told, traffic, uncaptured
from titans_core.config import VARIANTS
from titans_export.export import export_model
from titans_export.tensorrt.engines import build_engines
from titans_runtime import SamplingOptions, load
from titans_runtime.devices import ort_providers
from titans_runtime.devices.onnx_writer import Node, Value, model
from titans_runtime.devices.ort import OrtMemory
from titans_runtime.devices.tensorrt import nvidia

CLOSE = 2e-4  # fp32, outputs and states
PIECES = [1] * 40 + [16, 5, 1, 1, 100, 7] + [1] * 30 + [64, 15, 1, 1, 1, 200, 30]
PROVIDERS = ["cuda", "webgpu", "tensorrt", "tensorrt-rtx", "ort-tensorrt", "ort-tensorrt-rtx"]

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not nvidia.has_driver(), reason="no NVIDIA driver found")]


@pytest.fixture(scope="module", params=VARIANTS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of each variant."""
    path = tmp_path_factory.mktemp("gpu") / f"{request.param}.titans"
    export_model(build(f"{request.param}-tokens"), path, verify_tokens=0)
    return path


@pytest.fixture(params=PROVIDERS)
def provider(request: pytest.FixtureRequest) -> str:
    """Each provider that runs on NVIDIA hardware."""
    skip_without(request.param)
    return str(request.param)


def test_512_mixed_tokens_equal_the_cpus_and_no_state_crosses_the_bus(
    provider: str, exported: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(exported, tmp_path / "model.titans"))
    if provider in ("tensorrt", "tensorrt-rtx"):
        build_engines(path, backend=provider)
    there, here = load(path, provider=provider), load(path, provider="cpu", threads=1)
    ours, theirs = there.session(), here.session()
    stream = np.random.default_rng(0).integers(0, 50, sum(PIECES))
    moved = traffic(there).uploads, traffic(there).downloads
    for piece in np.split(stream, np.cumsum(PIECES)[:-1]):
        outputs, expected = ours.feed(piece, all_logits=True), theirs.feed(piece, all_logits=True)
        assert np.abs(outputs - expected).max() <= CLOSE
    assert (traffic(there).uploads, traffic(there).downloads) == moved
    after, wanted = there._backend.read(ours._stream.now.state), here._backend.read(theirs._stream.now.state)
    for name, value in wanted.items():
        assert np.abs(after[name] - value).max(initial=0.0) <= CLOSE, name


def test_tokens_are_chosen_there_and_only_what_is_chosen_among_comes_back(
    provider: str, exported: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(exported, tmp_path / "model.titans"))
    if provider in ("tensorrt", "tensorrt-rtx"):
        build_engines(path, backend=provider)
    there, here = load(path, provider=provider), load(path, provider="cpu", threads=1)
    greedy = SamplingOptions(temperature=0)
    ours, theirs = there.session(), here.session()
    assert list(ours.generate_tokens([1, 2, 3], 40, greedy)) == list(theirs.generate_tokens([1, 2, 3], 40, greedy))
    assert told(there, ours, greedy) == 3  # an id, its logit and the sum of all


def test_forks_marks_and_batches_go_their_own_ways(provider: str, exported: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(exported, tmp_path / "model.titans"))
    if provider in ("tensorrt", "tensorrt-rtx"):
        build_engines(path, backend=provider)
    told = []
    for name in (provider, "cpu"):
        model = load(path, provider=name)
        session = model.session()
        session.feed([1, 2, 3])
        mark, fork = session.mark(), session.fork()
        outputs = [session.feed([4, 5]), fork.feed([9])]
        session.rewind(mark)
        outputs += [session.feed([7]), model.restore_bytes(fork.to_bytes()).feed([6])]
        with model.batch(lanes=4) as batch:
            streams = [batch.session() for _ in range(5)]
            outputs += [stream.feed([i + step]) for step in range(20) for i, stream in enumerate(streams)]
        told.append(np.stack(outputs))
    assert np.abs(told[0] - told[1]).max() <= CLOSE


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_stays_beside_the_cpus_full_precision(
    provider: str, dtype: str, exported: Path, tmp_path: Path
) -> None:
    if (provider, dtype) == ("webgpu", "bf16"):
        pytest.skip("WebGPU has no bfloat16")
    halves = tmp_path / "halves.titans"
    export_model(build(f"{exported.stem}-tokens"), halves, dtype=dtype, verify_tokens=0)
    if provider in ("tensorrt", "tensorrt-rtx"):
        build_engines(halves, backend=provider)
    there, here = load(halves, provider=provider), load(exported, provider="cpu", threads=1)
    stream = np.random.default_rng(0).integers(0, 50, 200)
    ours, theirs = there.session(), here.session()
    unit = 2**-10 if dtype == "fp16" else 2**-7
    for piece in np.split(stream, [1, 2, 3, 40, 57, 58, 120]):
        outputs, expected = ours.feed(piece, all_logits=True), theirs.feed(piece, all_logits=True)
        assert np.abs(outputs - expected).max() <= 16 * unit * np.abs(expected).max()


def test_threads_that_share_the_device_do_not_meet(exported: Path) -> None:
    skip_without("cuda")
    there, here = load(exported, provider="cuda"), load(exported, provider="cpu", threads=1)

    def follow(seed: int) -> None:
        stream = np.random.default_rng(seed).integers(0, 50, 60)
        ours, theirs = there.session(), here.session()
        for piece in np.split(stream, [1, 2, 3, 4, 5, 25, 26, 27, 28, 29, 45, 46, 47]):
            assert np.abs(ours.feed(piece, all_logits=True) - theirs.feed(piece, all_logits=True)).max() <= CLOSE

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(follow, range(12)))
    assert uncaptured(there) == set()


def test_what_cuda_cannot_capture_runs_as_it_is(exported: Path) -> None:
    skip_without("cuda")
    memory = OrtMemory(onnxruntime, ort_providers.cuda(onnxruntime, ""))
    many = [Value(f"x{i}", "float32", 1) for i in range(40)]
    graph = model(many, [Value("y", "float32", 1)], [Node("Concat", [value.name for value in many], "y", {"axis": 0})])
    session, replays = memory._move_session(graph, True)
    assert replays is None
    (found,) = session.run(None, {value.name: np.full(2, i, np.float32) for i, value in enumerate(many)})
    np.testing.assert_array_equal(found, np.repeat(np.arange(40), 2))
    buffer = memory.allocate((2,), "float32")
    memory.upload(buffer, np.ones(2, np.float32))
    assert [memory.sums([buffer]) for _ in range(5)] == [2] * 5
