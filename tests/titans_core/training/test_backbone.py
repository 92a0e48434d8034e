"""Checkpoints of pretrained decoders: an untouched backbone, what is new beside it, and what damage is told apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.titans_core.decoder.families import ids, make
from tests.titans_core.decoder.grafts import LINEAR
from tests.titans_core.pretrained.gguf_files import write_gguf
from titans_core.decoder import Decoder, SideConfig, StreamConfig
from titans_core.errors import CheckpointError
from titans_core.pretrained import Pretrained, decoder_of, open_pretrained
from titans_core.training.backbone import begin_checkpoint, new_tensors, open_model
from titans_core.training.checkpoint import Checkpoint, TrainingProgress, load_checkpoint, load_model, save_checkpoint

SIDE = SideConfig(read=(0, 1), dim=16, memory=LINEAR)
STREAM = StreamConfig(layers=(1,), dim=32, memory=replace(LINEAR, heads=4))


def opened(folder: Path, kind: str) -> Pretrained:
    model = make("llama-tied", folder / "model")
    path = write_gguf(model, folder / "model.gguf", tokenizer=True) if kind == "gguf" else folder / "model"
    return open_pretrained(path).streaming(window=12, sinks=2, chunk=4, prefill=8)


def begun(folder: Path, kind: str = "gguf", graft: SideConfig | StreamConfig | None = SIDE, lora: int = 0) -> Decoder:
    """A checkpoint at `folder / "out"`; its decoder says something."""
    pretrained = opened(folder, kind)
    decoder = decoder_of(pretrained)
    decoder.attach(graft, lora)
    with torch.no_grad():
        for value in new_tensors(decoder).values():
            value.add_(torch.randn_like(value) * 0.1)
    begin_checkpoint(folder / "out", pretrained, decoder, name="a model")
    return decoder


@pytest.mark.parametrize("kind", ["gguf", "folder"])
@pytest.mark.parametrize("graft", [SIDE, STREAM, None])
@torch.no_grad()
def test_a_checkpoint_gives_back_the_decoder(
    kind: str, graft: SideConfig | StreamConfig | None, tmp_path: Path
) -> None:
    decoder = begun(tmp_path, kind, graft, lora=2)
    loaded = open_model(tmp_path / "out")
    assert isinstance(loaded.model, Decoder)
    assert loaded.model.config == decoder.config
    tokens = ids(32)
    assert torch.equal(loaded.model(tokens)[0], decoder(tokens)[0])
    assert loaded.texts.chat_template == ("{{ messages }}" if kind == "gguf" else None)
    assert loaded.checkpoint.provenance["backbone.name"] == "a model"


def test_the_files_of_the_backbone_are_copied_as_they_are_and_a_step_holds_what_is_new(tmp_path: Path) -> None:
    begun(tmp_path)
    copy = tmp_path / "out" / "backbone" / "model.gguf"
    assert copy.read_bytes() == (tmp_path / "model.gguf").read_bytes()
    stored = load_file(tmp_path / "out" / "step-00000000" / "weights.safetensors")
    assert stored
    assert all(name.startswith("graft.") for name in stored)


@torch.no_grad()
def test_weights_of_the_backbone_that_training_changed_are_kept_too(tmp_path: Path) -> None:
    decoder = begun(tmp_path)
    changed = new_tensors(decoder) | {"norm.gain": decoder.norm.gain * 2}
    stored = load_checkpoint(tmp_path / "out")
    save_checkpoint(tmp_path / "out", replace(stored, tensors=changed), TrainingProgress(1, {}))
    loaded = open_model(tmp_path / "out").model
    assert torch.equal(loaded.get_parameter("norm.gain"), decoder.norm.gain * 2)
    assert torch.equal(loaded.get_parameter("embedding"), decoder.embedding)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("other backbone", "is not what it was"),
        ("no backbone", "has no backbone directory"),
        ("missing weight", "graft.out.weight is missing"),
        ("another shape", "not \\[16, 32\\]"),
        ("a weight too many", "graft.more is \\[1\\], not no part"),
    ],
)
def test_what_does_not_fit_together_is_named(damage: str, says: str, tmp_path: Path) -> None:
    decoder = begun(tmp_path)
    backbone, stored = tmp_path / "out" / "backbone" / "model.gguf", load_checkpoint(tmp_path / "out")
    tensors = new_tensors(decoder)
    if damage == "other backbone":
        data = bytearray(backbone.read_bytes())
        data[-1] ^= 1
        backbone.write_bytes(data)
    elif damage == "no backbone":
        backbone.parent.rename(tmp_path / "elsewhere")
    elif damage == "missing weight":
        del tensors["graft.out.weight"]
    elif damage == "another shape":
        tensors["graft.out.weight"] = torch.zeros(16, 31)
    else:
        tensors["graft.more"] = torch.zeros(1)
    save_checkpoint(tmp_path / "out", replace(stored, tensors=tensors), TrainingProgress(1, {}))
    with pytest.raises(CheckpointError, match=says):
        open_model(tmp_path / "out")


def test_a_checkpoint_that_could_not_be_made_leaves_nothing(tmp_path: Path) -> None:
    pretrained = opened(tmp_path, "gguf")
    decoder = decoder_of(pretrained)
    missing = replace(pretrained, files=(*pretrained.files, tmp_path / "gone"))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match="could not write"):
        begin_checkpoint(tmp_path / "out", missing, decoder, name="a model")
    assert sorted(tmp_path.iterdir()) == before
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "a file").touch()
    with pytest.raises(CheckpointError, match="exists"):
        begin_checkpoint(tmp_path / "taken", pretrained, decoder, name="a model")


def test_what_needs_a_model_of_ours_refuses_a_decoder(tmp_path: Path) -> None:
    begun(tmp_path)
    with pytest.raises(CheckpointError, match="pretrained decoder"):
        load_model(tmp_path / "out")
    assert isinstance(load_checkpoint(tmp_path / "out"), Checkpoint)
