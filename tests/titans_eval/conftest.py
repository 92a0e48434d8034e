"""A recall model of two training steps, as a bundle."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import SMALL, titans

RECALL = ("--keys", "4", "--pairs", "2")


@pytest.fixture(scope="session")
def recall_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recall model of 4 keys that has learned next to nothing."""
    out = tmp_path_factory.mktemp("recall") / "checkpoint"
    shape = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
    common = ("--task", "recall", *RECALL, "--gap", "8", "--eval-gap", "16", "--steps", "2", "--batch", "2")
    titans("train", *common, *shape, "--variant", "mac", "--out", out)
    return out


@pytest.fixture(scope="session")
def recall_bundle(recall_checkpoint: Path) -> Path:
    """Its bundle."""
    out = recall_checkpoint.parent / "recall.titans"
    titans("export", recall_checkpoint, "--out", out, "--verify-tokens", "0")
    return out
