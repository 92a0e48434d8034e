"""`titans train` on series and DNA from the command line: what it makes, and what it says to bad data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from titans_cli.main import cli

SHAPE = ("--variant", "mag", "--set", "dim=32", "--set", "heads=2", "--set", "chunk=8", "--set", "ffn_hidden=32")


def train(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["train", *map(str, arguments)])


@pytest.fixture
def wave(tmp_path: Path) -> Path:
    path = tmp_path / "wave.npy"
    np.save(path, np.sin(np.arange(200.0))[:, None] * [1.0, 2.0])
    return path


def test_a_killed_run_on_a_series_goes_on_as_if_nothing_had_happened(wave: Path, tmp_path: Path) -> None:
    common = ("--task", "series", "--data", wave, *SHAPE, "--horizon", "2", "--batch", "2", "--warmup", "1", "--json")
    once = json.loads(train(*common, "--steps", "4", "--out", tmp_path / "once").stdout)
    halfway = train(*common, "--steps", "4", "--save-every", "2", "--out", tmp_path / "twice")
    assert halfway.exit_code == 0
    for step in (tmp_path / "twice").glob("step-00000004"):
        step.rename(tmp_path / "lost")
    twice = json.loads(train(*common, "--steps", "4", "--out", tmp_path / "twice", "--resume").stdout)
    assert twice["metrics"] == once["metrics"]
    assert set(once["metrics"]) == {"loss", "loss_memory_reset", "loss_writes_off"}


def test_fasta_is_trained_on(tmp_path: Path) -> None:
    (tmp_path / "a.fa").write_text(">a\n" + "ACGTTGCA" * 100 + "\n")
    result = train(
        "--task", "dna", "--data", tmp_path / "a.fa", *SHAPE, "--steps", "1", "--batch", "2", "--out",
        tmp_path / "model", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["metrics"]["bits_per_base"] > 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--task", "series"], "needs one --data"),
        (["--task", "series", "--data", "tides"], "no series and no file tides"),
        (["--task", "series", "--data", "WAVE", "--horizon", "50"], "use a horizon below 40"),
        (["--task", "series", "--data", "WAVE", "--window-tokens", "12"], "not a multiple of the model's chunk"),
        (["--task", "series", "--data", "WAVE", "--config", "CONFIG"], "takes None features"),
        (["--task", "dna", "--families", "100000"], "would look alike"),
        (["--task", "dna", "--window-tokens", "8"], "dna with --data; leave it out for dna without --data"),
        (["--task", "dna", "--data", "WAVE", "--families", "4"], "--families belongs to --task dna without --data"),
        (["--task", "dna", "WAVE", "--gap", "128"], "--gap belongs to --task recall, facts and dna without --data"),
        (["--task", "dna", "--data", "WAVE", "--eval-gap", "9"], "leave it out for dna with --data"),
        (["--task", "dna", "--data", "WAVE"], "is a NumPy array, not text; give FASTA"),
        (["--task", "recall", "--horizon", "2"], "belongs to --task series"),
    ],
)
def test_bad_data_is_one_line_and_leaves_nothing_behind(
    wave: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 256}))
    places = {"WAVE": wave, "CONFIG": tmp_path / "config.json"}
    shape = () if "CONFIG" in arguments else SHAPE
    result = train(*(places.get(word, word) for word in arguments), *shape, "--steps", "1", "--out", tmp_path / "model")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1), result.output
    assert words in result.stderr
    assert not (tmp_path / "model").exists()


def test_what_was_read_and_what_is_held_out_is_said(tmp_path: Path) -> None:
    rows = [f"t{i},{'' if i % 50 == 7 else np.sin(i / 9)},ok" for i in range(200)]
    (tmp_path / "a.CSV").write_text("\n".join(["time,a,state", *rows]))
    result = train(
        "--task", "series", "--data", tmp_path / "a.CSV", *SHAPE, "--horizon", "2", "--steps", "1", "--batch", "2",
        "--out", tmp_path / "model",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert [line for line in result.stderr.splitlines() if line.startswith("data: ")] == [
        "data: 200 steps of 1 column (a)",
        "data: skipped time: it is not numbers ('t0')",
        "data: skipped state: it is not numbers ('ok')",
        "data: filled gaps in 4 steps",
        "data: trains on the first 160 steps; holds out 40",
    ]
