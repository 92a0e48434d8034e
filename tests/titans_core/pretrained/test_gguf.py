"""GGUF files: numbers as the `gguf` package has them, models as transformers has them, and what is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import tokenizers
import torch

from tests.titans_core.decoder.families import ids, make
from tests.titans_core.pretrained.gguf_files import add_tokenizer, write_gguf
from titans_core.errors import CheckpointError
from titans_core.pretrained import decoder_of, open_pretrained
from titans_core.pretrained.gguf import GgufFile
from titans_core.pretrained.gguf_blocks import BLOCK_TYPES, dequantised
from titans_core.pretrained.gguf_tokenizer import tokenizer_json
from titans_core.pretrained.source import parameter_blocks, parameters_of

SAME = 2e-4


@pytest.mark.parametrize("number", BLOCK_TYPES)
def test_every_format_is_read_as_the_gguf_package_reads_it(number: int) -> None:
    kind = BLOCK_TYPES[number]
    raw = np.random.default_rng(number).integers(0, 256, (64, 3 * kind.size), dtype=np.uint8)
    scale = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float16).view(np.uint8).reshape(64, 3, 2)
    if kind.numbers > 1:  # scales that are finite
        blocks = raw.reshape(64, 3, kind.size)
        for at in {"Q6_K": (208,)}.get(kind.name, (0, 2) if kind.name in ("Q4_1", "Q5_1", "Q4_K", "Q5_K") else (0,)):
            blocks[:, :, at : at + 2] = scale
    theirs = {0: np.float32, 1: np.float16}.get(number, np.uint8)
    want = gguf.quants.dequantize(raw.view(theirs), gguf.GGMLQuantizationType(number))
    got = dequantised(kind, raw)
    assert kind.name == gguf.GGMLQuantizationType(number).name
    assert got.dtype == np.float32
    assert np.array_equal(got, want, equal_nan=True)
    assert kind.numbers == 1 or np.isfinite(got).all()


@pytest.mark.parametrize("name", ["llama", "llama-tied", "llama-llama3", "qwen2", "qwen3"])
@torch.no_grad()
def test_a_file_is_the_model_that_it_was_written_from(name: str, tmp_path: Path) -> None:
    model = make(name, tmp_path / "folder")
    path = write_gguf(model, tmp_path / "model.gguf")
    tokens = ids(64)
    want = model(tokens, use_cache=False).logits
    decoder = decoder_of(open_pretrained(path))
    assert (decoder(tokens)[0] - want).abs().max() <= SAME
    assert decoder.config.tie_embeddings == model.config.tie_word_embeddings


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "F16", "BF16"])
def test_blocks_are_reachable_in_the_order_of_the_parameter(kind: str, tmp_path: Path) -> None:
    model = make("llama", tmp_path / "folder", hidden_size=64, intermediate_size=64)
    pretrained = open_pretrained(write_gguf(model, tmp_path / "model.gguf", kind))
    decoder = decoder_of(pretrained)
    parameter = parameters_of(pretrained.config)["layers.1.attention.to_qkv.weight"]
    found = parameter_blocks(pretrained.weights, parameter)
    assert (found is None) == (kind in ("F16", "BF16"))
    if found is not None:
        block_type, rows = found
        assert block_type.name == kind
        weight = decoder.get_parameter("layers.1.attention.to_qkv.weight")
        assert torch.equal(torch.from_numpy(dequantised(block_type, rows)).T, weight)


def test_text_comes_along(tmp_path: Path) -> None:
    path = write_gguf(make("llama", tmp_path / "folder"), tmp_path / "model.gguf", tokenizer=True)
    texts = open_pretrained(path).texts
    tokenizer = tokenizers.Tokenizer.from_str(texts.tokenizer_json or "")
    assert tokenizer.encode("<|im_start|>hello wo12").tokens == ["<|im_start|>", "hello", "Ġwo", "1", "2"]
    assert (texts.eos, texts.bos, texts.chat_template) == ((2,), None, "{{ messages }}")
    assert texts.special["eos_token"] == tokenizer.id_to_token(2)


def test_sentencepiece_joins_by_score_and_falls_back_to_bytes() -> None:
    pieces = {"<unk>": 0.0, "<s>": 0.0, "<0xC3>": 0.0, "<0xA9>": 0.0, "▁": -9.0, "a": -8.0, "b": -7.0, "c": -6.0}
    pieces |= {"ab": -2.0, "bc": -1.0, "▁a": -3.0, "▁abc": -4.0, "abc": -5.0}
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": list(pieces),
        "tokenizer.ggml.scores": list(pieces.values()),
        "tokenizer.ggml.token_type": [2, 3, 6, 6, *[1] * 9],
        "tokenizer.ggml.unknown_token_id": 0,
    }
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json(metadata, "a file") or "")
    assert tokenizer.encode("abc").tokens == ["▁abc"]
    assert tokenizer.encode("cabc").tokens == ["▁", "c", "abc"]
    assert tokenizer.encode("é").tokens == ["▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("abc é").ids) == "abc é"


def damage(path: Path, change: str) -> None:
    """Change a file in one of the ways that files are broken."""
    data = bytearray(path.read_bytes())
    if change == "cut in the tensors":
        data = data[:-64]
    elif change == "cut in the metadata":
        data = data[:100]
    elif change == "not a GGUF":
        data[:4] = b"GGML"
    elif change == "another version":
        data[4:8] = struct.pack("<I", 7)
    elif change == "too many tensors":
        data[8:16] = struct.pack("<Q", 2**40)
    elif change == "a key without end":
        data[24:32] = struct.pack("<Q", 2**63)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("cut in the tensors", "outside the file"),
        ("cut in the metadata", "damaged"),
        ("not a GGUF", "not a GGUF file"),
        ("another version", "version 7"),
        ("too many tensors", "announces"),
        ("a key without end", "a key"),
    ],
)
def test_damage_is_named(change: str, says: str, tmp_path: Path) -> None:
    path = write_gguf(make("llama", tmp_path / "folder"), tmp_path / "model.gguf")
    damage(path, change)
    with pytest.raises(CheckpointError, match=says):
        open_pretrained(path)


def test_a_format_that_is_not_read_is_refused_by_name(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(str(tmp_path / "model.gguf"), "llama")
    block = np.zeros((1, 84), np.uint8)
    writer.add_tensor("token_embd.weight", block, raw_dtype=gguf.GGMLQuantizationType.Q2_K)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    with pytest.raises(CheckpointError, match=r"token_embd.weight.*Q2_K.*Q4_K"):
        GgufFile(tmp_path / "model.gguf")


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    model = make("llama", tmp_path / "folder")
    model.config.model_type = "falcon"
    with pytest.raises(CheckpointError, match=r"architecture 'falcon'.*llama, qwen2, qwen3"):
        open_pretrained(write_gguf(model, tmp_path / "model.gguf"))


def test_a_cut_of_text_that_is_not_known_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(str(tmp_path / "model.gguf"), "llama")
    add_tokenizer(writer, 96, cut="default")
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    metadata = GgufFile(tmp_path / "model.gguf").metadata
    with pytest.raises(CheckpointError, match=r"'default'.*--tokenizer"):
        tokenizer_json(metadata, "model.gguf")
