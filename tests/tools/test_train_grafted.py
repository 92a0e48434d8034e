"""`titans train --from` the `--out` of `titans graft`: a part of a pretrained model is trained, the rest stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from tests.conftest import titans
from tests.titans_core.decoder.families import make
from tests.titans_core.pretrained.gguf_files import write_gguf
from titans_cli.main import cli
from titans_core.decoder import Decoder
from titans_core.errors import ConfigError
from titans_core.training.backbone import open_model
from titans_core.training.checkpoint import load_checkpoint
from titans_core.training.grafted import GraftLearner, Only

SIZES = ("--facts", "2", "--gap", "8", "--eval-gap", "8", "--repeat", "2", "--batch", "2", "--threads", "1")


@pytest.fixture(scope="module")
def grafted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny decoder with a fresh memory, and text to put between facts."""
    folder = tmp_path_factory.mktemp("grafted")
    source = write_gguf(make("llama-tied", folder / "model"), folder / "model.gguf", tokenizer=True)
    (folder / "text.txt").write_text("hello wo123 abcd\n" * 200, encoding="utf-8")
    options = ("--window", "16", "--sinks", "2", "--set", "chunk=8", "--set", "prefill=16", "--set", "memory.dim=16")
    titans("graft", source, "--out", folder / "graft", "--read", "0,1", "--data", folder / "text.txt", *options)
    return folder


def train(folder: Path, out: Path, *arguments: str, steps: int = 3) -> dict[str, object]:
    data = ("--data", folder / "text.txt")
    common = ("--from", folder / "graft", "--task", "facts", *data, *SIZES, "--steps", str(steps), "--out", out)
    found: dict[str, object] = titans("train", *common, *arguments)
    return found


def test_only_the_memory_is_stored_beside_an_untouched_backbone(grafted: Path, tmp_path: Path) -> None:
    report = train(grafted, tmp_path / "trained")
    assert report["task"] == "facts"
    checkpoint = load_checkpoint(tmp_path / "trained")
    assert all(name.startswith("graft.") for name in checkpoint.tensors)
    before = load_checkpoint(grafted / "graft").tensors
    assert (checkpoint.tensors["graft.to_key.weight"] != before["graft.to_key.weight"]).any()
    assert torch.equal(checkpoint.tensors["graft.whiten"], before["graft.whiten"])
    first, second = (next((path / "backbone").iterdir()) for path in (grafted / "graft", tmp_path / "trained"))
    assert first.read_bytes() == second.read_bytes()


def test_a_run_that_stopped_goes_on_exactly(grafted: Path, tmp_path: Path) -> None:
    train(grafted, tmp_path / "whole", steps=4)
    train(grafted, tmp_path / "stopped", "--save-every", "2", steps=4)
    newest = max((tmp_path / "stopped").glob("step-*"))
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    train(grafted, tmp_path / "stopped", "--resume", steps=4)
    whole, resumed = (load_checkpoint(tmp_path / name).tensors for name in ("whole", "stopped"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize(("only", "moves"), [("memory,lora:2", "lora."), ("all", "layers.0.mlp.up.weight")])
def test_adapters_and_whole_models_are_trained_through_the_decoder(
    only: str, moves: str, grafted: Path, tmp_path: Path
) -> None:
    train(grafted, tmp_path / "trained", "--only", only)
    stored = load_checkpoint(tmp_path / "trained").tensors
    assert any(name.startswith(moves) for name in stored)
    loaded = open_model(tmp_path / "trained").model
    assert isinstance(loaded, Decoder)
    assert loaded.config.lora == (2 if "lora" in only else 0)


def test_features_that_were_kept_are_told(grafted: Path, tmp_path: Path) -> None:
    arguments = ["train", "--from", grafted / "graft", "--task", "facts", "--data", grafted / "text.txt", *SIZES]
    result = CliRunner().invoke(cli, [str(word) for word in (*arguments, "--steps", 3, "--out", tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "features of" in result.stderr
    assert "MiB" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--only", "memory"), "--only says what of a pretrained model is trained"),
        (("--task", "facts"), "--task facts is told and asked in plain language"),
    ],
)
def test_what_needs_a_pretrained_model_says_so(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    task = () if "--task" in arguments else ("--task", "recall")
    words = ["train", *task, *arguments, "--steps", "1", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 2
    assert says in result.stderr


def test_a_task_with_ids_of_its_own_is_refused(grafted: Path, tmp_path: Path) -> None:
    words = [
        "train",
        "--from",
        str(grafted / "graft"),
        "--task",
        "recall",
        "--steps",
        "1",
        "--out",
        str(tmp_path / "o"),
    ]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 2
    assert "--task facts or text" in result.stderr


def test_parts_of_a_model_are_named_in_one_way() -> None:
    assert Only.parse("memory") == Only()
    assert Only.parse("lora:8") == Only(memory=False, lora=8)
    assert Only.parse("memory,lora:8") == Only(lora=8)
    assert Only.parse("all").everything
    for wrong in ("", "memory,", "lora:", "lora:0", "lora:9999", "memory,all", "heads"):
        with pytest.raises(ConfigError, match="part of a model"):
            Only.parse(wrong)


def test_writes_off_shuts_the_memory_and_leaves_the_model_alone(grafted: Path) -> None:
    learner = GraftLearner(grafted / "graft", Only(), torch.device("cpu"))
    before = json.dumps({name: float(value.sum()) for name, value in learner.decoder.state_dict().items()})
    control = learner.writes_off()
    assert control is not None
    ids = torch.arange(16)[None]
    _, _, state = control(ids, ids, torch.ones_like(ids, dtype=torch.bool), None, None)
    assert not next(value for name, value in state.items() if name.endswith("memory_0")).any()
    assert json.dumps({name: float(value.sum()) for name, value in learner.decoder.state_dict().items()}) == before
