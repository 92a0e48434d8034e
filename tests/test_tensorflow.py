"""The example that drives a stream from TensorFlow, where TensorFlow is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.runtime.toy import Toy, write_toy
from titans_runtime import SamplingOptions, load

tf = pytest.importorskip("tensorflow", reason="needs tensorflow-cpu")


def test_tokens_chosen_by_tensorflow_are_those_of_the_runtime(tmp_path: Path) -> None:
    from scripts.demo.tensorflow_text import generate, to_tensorflow

    model = load(write_toy(tmp_path / "toy.titans", Toy()), provider="cpu", threads=1)
    expected = list(model.session().generate_tokens([5, 6, 7], 12, SamplingOptions(temperature=0.0), ignore_eos=True))
    assert generate(model.session(), tf.constant([5, 6, 7], tf.int64), 12) == expected
    for offset in range(4):  # at any place in memory
        array = np.arange(64, dtype=np.float32)[offset:]
        np.testing.assert_array_equal(to_tensorflow(array).numpy(), array)
