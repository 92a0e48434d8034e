"""`titans graft`, and what export, verify and run make of its checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import titans_runtime
from tests.conftest import titans
from tests.titans_core.decoder.families import ids, make
from tests.titans_core.pretrained.gguf_files import write_gguf
from titans_cli.main import cli


def write_model(folder: Path) -> Path:
    """A random model as a GGUF file, with a tokenizer that can write numbers."""
    return write_gguf(make("llama-tied", folder / "model"), folder / "model.gguf", tokenizer=True)


def write_text(folder: Path) -> Path:
    text = folder / "text.txt"
    text.write_text("hello wo123 abcd\n" * 400, encoding="utf-8")
    return text


@pytest.mark.parametrize("form", [("--read", "0,1"), ("--memory-layers", "1", "--set", "place=beside")])
def test_a_fresh_graft_answers_as_the_model_does(form: tuple[str, ...], tmp_path: Path) -> None:
    source, text = write_model(tmp_path), write_text(tmp_path)
    common = ("--window", "16", "--sinks", "2", "--set", "chunk=4", "--set", "prefill=8")
    memory = ("--set", "memory.dim=16", "--set", "memory.heads=2", "--data", text)
    report = titans("graft", source, "--out", tmp_path / "checkpoint", *form, *memory, *common)
    plain = titans("graft", source, "--out", tmp_path / "plain", "--no-memory", *common)
    assert report["new_parameters"]
    assert plain["new_parameters"] == 0
    outputs = []
    for name in ("checkpoint", "plain"):
        titans("export", tmp_path / name, "--out", tmp_path / f"{name}.titans", "--verify-tokens", "100")
        driver = titans_runtime.load(tmp_path / f"{name}.titans", provider="cpu", threads=1).driver(1)
        outputs.append(driver.feed(ids(200).numpy(), all_outputs=True).outputs)
    assert np.abs(outputs[0] - outputs[1]).max() <= 1e-6 * np.abs(outputs[1]).max()
    verified = titans(
        "verify", tmp_path / "checkpoint.titans", "--checkpoint", tmp_path / "checkpoint", "--tokens", "200"
    )
    assert verified["ok"]


def test_a_bundle_of_a_graft_writes_with_the_models_own_tokenizer(tmp_path: Path) -> None:
    source, text = write_model(tmp_path), write_text(tmp_path)
    titans("graft", source, "--out", tmp_path / "checkpoint", "--window", "16", "--data", text)
    titans("export", tmp_path / "checkpoint", "--out", tmp_path / "model.titans", "--verify-tokens", "0")
    arguments = ["run", str(tmp_path / "model.titans"), "--prompt", "hello wo", "--max-new-tokens", "5", "--json"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["tokens"] or json.loads(result.stdout)


def test_writes_off_is_a_bundle_whose_memory_stays_at_its_start(tmp_path: Path) -> None:
    source, text = write_model(tmp_path), write_text(tmp_path)
    titans("graft", source, "--out", tmp_path / "checkpoint", "--window", "16", "--data", text)
    control = tmp_path / "control.titans"
    titans("export", tmp_path / "checkpoint", "--out", control, "--control", "writes-off", "--verify-tokens", "60")
    driver = titans_runtime.load(control, provider="cpu", threads=1).driver(1)
    driver.feed(ids(64).numpy())
    assert not driver.state()["graft.memory_0"].any()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--read", "0", "--no-memory"), "--read and --no-memory exclude one another"),
        (("--read", "0,x"), "not a list of layer numbers"),
        (("--read", "7"), "layer 7"),
        (("--set", "memory.nose=1"), "--set memory.nose: there is no such option"),
        (("--set", "memory.heads=7"), "memory.heads 7"),
        (("--set", "chunk=x"), "--set chunk=x"),
        (("--set", "place=beside"), "--set place"),
        (("--window", "8", "--set", "chunk=16"), "chunk 16 is longer than the window 8"),
        (("--sinks", "40"), "sinks 40"),
        (("--data", "nowhere.txt"), "nowhere.txt"),
    ],
)
def test_what_cannot_be_grafted_says_why_and_leaves_nothing(
    arguments: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    source = write_model(tmp_path)
    result = CliRunner().invoke(cli, ["graft", str(source), "--out", str(tmp_path / "checkpoint"), *arguments])
    assert result.exit_code == 2
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not [path.name for path in tmp_path.iterdir() if "checkpoint" in path.name]


def test_a_path_that_holds_no_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.gguf").write_bytes(b"nothing of a model" * 10)
    for path, says in (("folder", "config.json"), ("file.gguf", "not a GGUF file"), ("none", "there is nothing at")):
        result = CliRunner().invoke(cli, ["graft", str(tmp_path / path), "--out", str(tmp_path / "out")])
        assert result.exit_code == 2
        assert says in result.stderr
