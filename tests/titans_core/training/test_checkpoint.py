"""A checkpoint comes back exactly, or not at all; whatever happens, an earlier one stays."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from titans_core.config import TitansConfig
from titans_core.errors import CheckpointError
from titans_core.model import TitansModel
from titans_core.training import checkpoint as module
from titans_core.training.checkpoint import (
    Checkpoint,
    TrainingProgress,
    has_checkpoint,
    load_checkpoint,
    load_model,
    load_progress,
    prepare_directory,
    save_checkpoint,
)

CONFIG = TitansConfig(dim=16, layers=1, heads=1, ffn_hidden=16, chunk=4, window=4, vocab_size=11)


def small_checkpoint() -> Checkpoint:
    """An untrained model as a checkpoint."""
    return Checkpoint(CONFIG, TitansModel(CONFIG).state_dict(), '{"version": "1.0"}', {"step": 3, "torch": "x"})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint directory with one step."""
    path = tmp_path / "checkpoint"
    prepare_directory(path)
    save_checkpoint(path, small_checkpoint(), TrainingProgress(3, {"optimizer/x": torch.arange(3)}, {"run.seed": 1}))
    return path


def test_everything_comes_back_as_it_was(tmp_path: Path) -> None:
    checkpoint, progress = (
        small_checkpoint(),
        TrainingProgress(3, {"random/cpu": torch.get_rng_state()}, {"run.lr": 0.1}),
    )
    prepare_directory(tmp_path)
    save_checkpoint(tmp_path, checkpoint, progress)
    for path in (tmp_path, tmp_path / "step-00000003"):
        model, found = load_model(path)
        assert (found.config, found.tokenizer_json) == (CONFIG, checkpoint.tokenizer_json)
        assert found.provenance == checkpoint.provenance
        for name, value in model.state_dict().items():
            assert torch.equal(value, checkpoint.tensors[name])
        again = load_progress(path)
        assert (again.step, again.settings) == (3, {"run.lr": 0.1})
        assert torch.equal(again.tensors["random/cpu"], progress.tensors["random/cpu"])


def test_a_configuration_from_before_there_was_a_choice_forgets_towards_zero(saved: Path) -> None:
    assert load_checkpoint(saved).config.memory.forget_to == "start"
    values = CONFIG.to_dict()
    del values["memory"]["forget_to"]
    assert TitansConfig.from_stored(values).memory.forget_to == "zero"
    assert TitansConfig.from_dict(values).memory.forget_to == "start"  # what somebody writes today
    older = Checkpoint(TitansConfig.from_stored(values), TitansModel(CONFIG).state_dict(), None, {})
    save_checkpoint(saved, older, TrainingProgress(4, {}))
    assert load_checkpoint(saved).config.memory.forget_to == "zero"


def test_the_last_two_steps_are_kept_and_the_newest_counts(saved: Path) -> None:
    for step in (4, 10, 11):
        save_checkpoint(saved, small_checkpoint(), TrainingProgress(step, {}))
    assert [path.name for path in sorted(saved.glob("*step*"))] == ["step-00000010", "step-00000011"]
    assert load_progress(saved).step == 11


@pytest.mark.parametrize("name", ["config.json", "weights.safetensors", "training.safetensors", "tokenizer.json"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    ],
    ids=["truncated", "empty", "flipped bit"],
)
def test_a_damaged_file_is_named_in_the_error(saved: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    path = saved / "step-00000003" / name
    path.write_bytes(damage(path.read_bytes()))
    for load in (load_checkpoint, load_progress, load_model):
        with pytest.raises(CheckpointError, match=rf"damaged: {name}.*delete this step"):
            load(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": "titans-checkpoint", "format_version": 1}'])
def test_a_damaged_manifest_is_an_error(saved: Path, text: str) -> None:
    (saved / "step-00000003" / "checkpoint.json").write_text(text)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(saved)


def test_a_missing_file_is_an_error(saved: Path) -> None:
    (saved / "step-00000003" / "weights.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"damaged: .*weights\.safetensors"):
        load_checkpoint(saved)


def test_a_newer_format_asks_for_an_update(saved: Path) -> None:
    path = saved / "step-00000003" / "checkpoint.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(CheckpointError, match=r"version 2.*; run: git -C .* pull"):
        load_checkpoint(saved)


def test_what_is_no_checkpoint_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load_checkpoint(tmp_path / "missing")
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        load_checkpoint(tmp_path)
    prepare_directory(tmp_path / "new")
    assert not has_checkpoint(tmp_path / "new")
    with pytest.raises(CheckpointError, match="no finished step yet"):
        load_checkpoint(tmp_path / "new")


def test_an_unrelated_directory_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="not a checkpoint; choose"):
        prepare_directory(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(CheckpointError, match="is a file; choose a directory"):
        prepare_directory(tmp_path / "thesis.txt")


@pytest.mark.parametrize("exists", [True, False])
def test_a_full_disk_leaves_nothing_in_the_way_of_the_next_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    def full(path: Path, text: str) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "checkpoint"
    if exists:
        path.mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(module, "_write_text", full)
        with pytest.raises(CheckpointError, match="No space left on device"):
            prepare_directory(path)
    assert path.exists() == exists
    prepare_directory(path)


def test_a_full_disk_leaves_the_earlier_step(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: object, path: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*free some space"):
        save_checkpoint(saved, small_checkpoint(), TrainingProgress(4, {}))
    assert [path.name for path in saved.glob("*step*")] == ["step-00000003"]
    assert load_progress(saved).step == 3


def test_what_a_killed_save_left_is_ignored_and_then_cleared(saved: Path) -> None:
    (saved / ".step-00000004.tmp").mkdir()
    (saved / ".step-00000004.tmp" / "weights.safetensors").write_bytes(b"half")
    assert load_progress(saved).step == 3
    save_checkpoint(saved, small_checkpoint(), TrainingProgress(4, {}))
    assert not list(saved.glob(".*.tmp"))


def test_weights_that_do_not_fit_the_configuration_are_refused(saved: Path) -> None:
    other = Checkpoint(CONFIG, {"stray": torch.zeros(1)}, None, {})
    save_checkpoint(saved, other, TrainingProgress(4, {}))
    with pytest.raises(CheckpointError, match="do not fit its configuration"):
        load_model(saved)
