"""Controls from the command line: bundles without writes, and models of attention alone that export and run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

import titans_runtime
from tests.conftest import RECALL, SMALL, titans
from titans_cli.main import cli

SHAPE = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
TRAIN = ("train", "--task", "recall", *RECALL, "--gap", "8", "--eval-gap", "16", "--steps", "1", "--batch", "2", *SHAPE)


def written(bundle: Path) -> float:
    """The largest weight that any token's write has in the memories of a stream of 50 tokens."""
    driver = titans_runtime.load(bundle, provider="cpu").driver(1)
    driver.feed(np.arange(50)[None] % 9)
    weights = [value for name, value in driver.state().items() if name.endswith("write_weights")]
    assert weights
    return max(float(np.abs(value).max()) for value in weights)


def test_a_bundle_without_writes_is_verified_and_writes_nothing(
    recall_checkpoint: Path, recall_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "control.titans"
    titans("export", recall_checkpoint, "--out", out, "--control", "writes-off", "--verify-tokens", "64")
    assert titans_runtime.load(out, provider="cpu").manifest.provenance["control"] == "writes-off"
    assert written(out) == 0
    assert written(recall_bundle) > 0


@pytest.mark.parametrize("how", [[], ["--drift"]])
def test_a_bundle_without_writes_is_compared_with_its_checkpoint_without_writes(
    recall_checkpoint: Path, tmp_path: Path, how: list[str]
) -> None:
    bundle, other = tmp_path / "control.titans", tmp_path / "other"
    titans(
        "export",
        recall_checkpoint,
        "--out",
        bundle,
        "--control",
        "writes-off",
        "--verify-tokens",
        "0",
        "--dtype",
        "fp16",
    )
    titans(*TRAIN, "--variant", "mac", "--control", "writes-off", "--out", other)  # has no writes to switch off

    def verify(checkpoint: Path) -> Result:
        arguments = ["verify", bundle, "--checkpoint", checkpoint, "--tokens", "64", "--json", *how]
        return CliRunner().invoke(cli, [*map(str, arguments)])

    document = json.loads(verify(recall_checkpoint).stdout)
    assert document["tokens"] == 64
    assert document["ok"] or how  # how far fp16 drifts is not the question here
    refused = verify(other)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "their configurations differ; name the checkpoint it was exported from" in refused.stderr


def test_attention_alone_trains_exports_and_is_asked(tmp_path: Path) -> None:
    titans(*TRAIN, "--variant", "mac", "--control", "attention-only", "--out", tmp_path / "checkpoint")
    bundle = tmp_path / "control.titans"
    titans("export", tmp_path / "checkpoint", "--out", bundle, "--verify-tokens", "64")
    document = titans("eval", bundle, "--task", "recall", *RECALL, "--gap", "40")
    assert document["task"] == "recall"
    result = CliRunner().invoke(
        cli, ["export", str(tmp_path / "checkpoint"), "--out", str(tmp_path / "b"), "--control", "writes-off"]
    )
    assert result.exit_code == 2
    assert "nothing to switch off" in result.stderr


def test_a_model_is_trained_without_writes(tmp_path: Path) -> None:
    titans(
        *TRAIN, "--variant", "lmm", "--set", "persistent_tokens=0", "--control", "writes-off", "--out", tmp_path / "c"
    )
    titans("export", tmp_path / "c", "--out", tmp_path / "c.titans", "--verify-tokens", "0")
    assert written(tmp_path / "c.titans") == 0


@pytest.mark.parametrize("variant", ["lmm"])
def test_attention_alone_needs_attention(tmp_path: Path, variant: str) -> None:
    arguments = [*TRAIN, "--variant", variant, "--set", "persistent_tokens=0", "--control", "attention-only"]
    result = CliRunner().invoke(cli, [*arguments, "--out", str(tmp_path / "c")])
    assert result.exit_code == 2
    assert "choose mal, mag or mac" in result.stderr
