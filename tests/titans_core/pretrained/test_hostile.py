"""Pretrained models that somebody made up: refused with an error of ours, before memory is taken for them."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from studies.fuzz.pretrained import CONFIG, sound
from titans_core.errors import CheckpointError
from titans_core.pretrained import decoder_of, open_pretrained
from titans_core.pretrained import gguf as module

HUGE = 10**400  # a whole number in JSON that no float holds


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(sound()["model.safetensors"])
    return tmp_path


def configured(folder: Path, **changes: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(CONFIG | changes), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", ["rope_theta", "rms_norm_eps", "num_hidden_layers"])
@pytest.mark.parametrize("value", [HUGE, -HUGE, float("inf"), float("nan")], ids=["huge", "least", "inf", "nan"])
def test_numbers_that_no_float_holds_are_refused(folder: Path, name: str, value: float) -> None:
    with pytest.raises(CheckpointError, match=";"):
        open_pretrained(configured(folder, **{name: value}))


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3"])
def test_so_are_those_of_its_rotations(folder: Path, kind: str) -> None:
    with pytest.raises(CheckpointError, match="factor"):
        open_pretrained(configured(folder, rope_scaling={"rope_type": kind, "factor": HUGE}))


def test_a_file_with_holes_that_is_larger_than_the_memory_is_refused_before_it_is_read(folder: Path) -> None:
    vocabulary, dim = 2**22, 2**17
    header = {
        "model.embed_tokens.weight": {
            "dtype": "F32",
            "shape": [vocabulary, dim],
            "data_offsets": [0, 4 * vocabulary * dim],
        }
    }
    sizes = {"input_layernorm": [dim], "post_attention_layernorm": [dim]}
    sizes |= {f"self_attn.{name}_proj": [2, dim] for name in "qkv"} | {"self_attn.o_proj": [dim, 2]}
    sizes |= {f"mlp.{name}_proj": [1, dim] for name in ("gate", "up")} | {"mlp.down_proj": [dim, 1]}
    whole = {f"model.layers.0.{name}.weight": shape for name, shape in sizes.items()} | {"model.norm.weight": [dim]}
    at = 4 * vocabulary * dim
    for name, shape in whole.items():
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        try:
            file.truncate(8 + len(text) + at)
        except OSError:
            pytest.skip("no file of two terabytes here, not even of holes")
    sizes_of = {"vocab_size": vocabulary, "hidden_size": dim, "intermediate_size": 1, "head_dim": 2}
    configured(folder, **sizes_of, num_attention_heads=1, num_key_value_heads=1)
    # Where so much cannot even be mapped, the system says so first.
    with pytest.raises(CheckpointError, match=r"GiB of memory; use a machine with more|unable to mmap"):
        decoder_of(open_pretrained(folder))


def test_weights_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    content = bytearray(sound()["model.gguf"])
    first, second = (content.index(f"blk.0.ffn_{name}.weight".encode()) for name in ("gate", "up"))
    tail = len(b"blk.0.ffn_gate.weight") + 4 + 2 * 8 + 4  # name, axes, two sizes, format; then the offset
    offset = content[first + tail : first + tail + 8]
    at = second + tail - 2  # "up" is two letters shorter
    content[at : at + 8] = offset
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match="begins inside tensor"):
        open_pretrained(tmp_path / "m.gguf")


def test_metadata_has_a_largest_size_and_so_has_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.gguf").write_bytes(sound()["model.gguf"])
    monkeypatch.setattr(module, "MOST_HEAD", 100)
    with pytest.raises(CheckpointError, match="which no metadata does"):
        open_pretrained(tmp_path / "m.gguf")
    monkeypatch.undo()
    key = b"a"
    many = struct.pack("<QIIQ", len(key), 9, 0, 2**23)[:8] + key + struct.pack("<IIQ", 9, 0, 2**23)
    with (tmp_path / "list.gguf").open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + many)
        file.truncate(2**24)
    with pytest.raises(CheckpointError, match="a list of 8,388,608"):
        open_pretrained(tmp_path / "list.gguf")
