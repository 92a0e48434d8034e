"""The toy bundles that these tests drive, written once per run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runtime.toy import Toy, write_toy
from titans_runtime import Model, load


@pytest.fixture(scope="session")
def toy_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The byte-level toy as a bundle; not to be changed."""
    return write_toy(tmp_path_factory.mktemp("toy") / "toy.titans", Toy())


@pytest.fixture(scope="session")
def toy_model(toy_bundle: Path) -> Model:
    """The byte-level toy, loaded."""
    return load(toy_bundle, threads=1)


@pytest.fixture(scope="session")
def series_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The continuous toy, loaded."""
    return load(write_toy(tmp_path_factory.mktemp("series") / "series.titans", Toy(vocab_size=None)), threads=1)
