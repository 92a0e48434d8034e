"""A checkpoint that somebody made up, every hash right: refused at once, and before memory is taken for it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from studies.fuzz.bundles import DECODER, GRAFTS
from titans_core.config import TitansConfig
from titans_core.decoder import DecoderConfig
from titans_core.errors import CheckpointError, ConfigError
from titans_core.model import TitansModel
from titans_core.training import checkpoint as module
from titans_core.training.checkpoint import Checkpoint, TrainingProgress, load_model, prepare_directory, save_checkpoint

CONFIG = TitansConfig(dim=16, layers=1, heads=1, ffn_hidden=16, chunk=4, window=4, vocab_size=11)
NAMES = ["config.json", "weights.safetensors", "training.safetensors", "tokenizer.json", "checkpoint.json"]


@pytest.fixture
def step(tmp_path: Path) -> Path:
    """The directory of one step."""
    prepare_directory(tmp_path)
    made = Checkpoint(CONFIG, TitansModel(CONFIG).state_dict(), "{}", {"step": 3})
    save_checkpoint(tmp_path, made, TrainingProgress(3, {"x": torch.zeros(1)}, {"seed": 1}))
    return tmp_path / "step-00000003"


def sign(folder: Path, **changes: Any) -> None:
    """Record the hashes that the files have now, and change fields of the manifest."""
    manifest = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
    for name in manifest["files"]:
        manifest["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "checkpoint.json").write_text(json.dumps(manifest | changes), encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("put", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_refused(step: Path, name: str, put: Callable[[Path], object]) -> None:
    (step / name).unlink()
    put(step / name)
    with pytest.raises(CheckpointError):
        load_model(step)


@pytest.mark.parametrize(
    "changes",
    [
        {"files": {"/etc/passwd": "0" * 64}},
        {"files": {"../checkpoint.json": "0" * 64}},
        {"files": []},
        {"files": {"config.json": 1}},
        {"step": -1},
        {"step": "3"},
        {"step": True},
        {"step": 2**70},
        {"settings": [1]},
        {"settings": {"a": {}}},
        {"provenance": "x"},
        {"provenance": {"a": [1]}},
    ],
)
def test_a_manifest_of_another_form_is_refused(step: Path, changes: dict[str, Any]) -> None:
    sign(step, **changes)
    with pytest.raises(CheckpointError, match="not as it is written"):
        load_model(step)


@pytest.mark.parametrize(
    "changes",
    [
        {"dim": 2**24},
        {"dim": 2**40, "ffn_hidden": 2**40},
        {"layers": 10**9},
        {"chunk": 2**28, "window": 2**28},
        {"vocab_size": 2**40},
        {"persistent_tokens": 2**40},
        {"ffn_hidden": 2**62},
        {"memory": {"heads": 1, "depth": 10**9}},
    ],
)
def test_a_configuration_that_asks_for_more_than_its_weights_is_refused_before_it_is_built(
    step: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((step / "config.json").read_text(encoding="utf-8"))
    (step / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
    sign(step)
    real = module.TitansModel

    def build(config: TitansConfig) -> TitansModel:
        assert torch.get_default_device().type == "meta", "memory was taken"
        return real(config)

    monkeypatch.setattr(module, "TitansModel", build)
    with pytest.raises(CheckpointError, match=r"; "):
        load_model(step)


def test_weights_of_another_shape_are_named(step: Path) -> None:
    tensors = dict(TitansModel(CONFIG).state_dict())
    name = next(iter(tensors))
    tensors[name] = torch.zeros(3, 3)
    save_file(tensors, step / "weights.safetensors")
    sign(step)
    with pytest.raises(CheckpointError, match=rf"do not fit its configuration: {name} is \[3, 3\], not"):
        load_model(step)


@pytest.mark.parametrize("name", ["rope_base", "norm_eps", "rotary_magnitude", "max_step_size", "form", "deep"])
@pytest.mark.parametrize(
    "value", [10**400, -(10**400), float("inf"), [], {}], ids=["huge", "least", "inf", "list", "object"]
)
def test_a_configuration_of_numbers_that_no_float_holds_is_refused(name: str, value: object) -> None:
    graft = dataclasses.replace(DECODER, graft=GRAFTS["side"][0]).to_dict()
    documents: dict[str, object] = {
        "rope_base": CONFIG.to_dict() | {name: value},
        "max_step_size": CONFIG.to_dict() | {"memory": {name: value}},
        "deep": [[value]],
        "form": graft | {"graft": graft["graft"] | {"form": value}},
    }
    given = documents.get(name, graft | {name: value})
    with pytest.raises(ConfigError, match=";"):
        (DecoderConfig if name in ("form", "norm_eps", "rotary_magnitude") else TitansConfig).from_dict(given)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"dim": ' + "9" * 5000 + "}", "{"], ids=["deep", "long", "cut"])
def test_a_configuration_that_json_cannot_read_is_refused(step: Path, text: str) -> None:
    (step / "config.json").write_text(text, encoding="utf-8")
    sign(step)
    with pytest.raises(CheckpointError, match=";"):
        load_model(step)
    with pytest.raises(ConfigError, match="not JSON"):
        TitansConfig.from_json(text)


def test_an_error_does_not_repeat_a_megabyte_of_a_strangers_name(step: Path) -> None:
    (step / "config.json").write_text(json.dumps(CONFIG.to_dict() | {"x" * 2**20: 1}), encoding="utf-8")
    sign(step)
    with pytest.raises(CheckpointError) as refused:
        load_model(step)
    assert len(str(refused.value)) < 1000
    assert len(str(CheckpointError("x" * 2**20, "mend it"))) < 3000
    assert str(CheckpointError("x" * 2**20, "mend it")).endswith("; mend it")


def test_a_text_has_a_largest_size(step: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_TEXT", 100)
    with pytest.raises(CheckpointError, match="larger than 100 bytes"):
        load_model(step)
