"""The streams of the device tests on real NVIDIA hardware: `pytest -m gpu`. Skipped, with the reason, elsewhere.

None of these has passed anywhere yet: no machine that this project was developed on has a GPU.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.export.conftest import build
from tests.runtime.devices import skip_without, told, traffic
from titans_core.config import VARIANTS
from titans_export.export import export_model
from titans_export.tensorrt_engines import build_engines
from titans_runtime import SamplingOptions, load
from titans_runtime.backends import nvidia

CLOSE = 2e-4  # fp32, outputs and states
PIECES = [1] * 40 + [16, 5, 1, 1, 100, 7] + [1] * 30 + [64, 15, 1, 1, 1, 200, 30]
PROVIDERS = ["cuda", "tensorrt", "tensorrt-rtx", "ort-tensorrt", "ort-tensorrt-rtx"]

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
    after, wanted = there._backend.read(ours._now.state), here._backend.read(theirs._now.state)
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
