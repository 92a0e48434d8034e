"""Titans models through native TensorRT, against the stand-ins that enforce its contract: identical to the CPU."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.export.conftest import Exported
from tests.runtime.devices import traffic
from tests.standin.cuda import FakeCuda
from tests.standin.tensorrt import FakeTensorRT, write_engines
from titans_runtime import load
from titans_runtime.devices.tensorrt import nvidia

PIECES = [1] * 40 + [16, 5, 1, 1, 100, 7] + [1] * 30 + [64, 15, 1, 1, 1, 200, 30]


@pytest.mark.usefixtures("portable")
@pytest.mark.parametrize("exported", ["lmm-tokens", "mac-tokens", "mag-continuous", "mal-tokens"], indirect=True)
def test_512_tokens_of_prefill_extend_step_and_commit_are_the_cpus_to_the_bit(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = FakeCuda()
    monkeypatch.setattr(nvidia, "has_driver", lambda: True)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", FakeTensorRT(cuda))  # type: ignore[arg-type]
    path = Path(shutil.copytree(exported.path, tmp_path / "model.titans"))
    write_engines(path)
    there, here = load(path, provider="tensorrt-rtx"), load(path, provider="cpu", threads=1)
    ours, theirs = there.session(), here.session()
    random = np.random.default_rng(0)
    size = sum(PIECES)
    assert size >= 512
    stream = (
        random.standard_normal((size, 3), dtype=np.float32) if exported.continuous else random.integers(0, 50, size)
    )
    moved = traffic(there).state_copies
    for piece in np.split(stream, np.cumsum(PIECES)[:-1]):
        np.testing.assert_array_equal(ours.feed(piece, all_logits=True), theirs.feed(piece, all_logits=True))
    assert traffic(there).state_copies == moved
    assert cuda.launches > 20
    assert ours.to_bytes() == theirs.to_bytes()
