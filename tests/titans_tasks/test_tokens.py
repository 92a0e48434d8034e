"""Bytes and `tokenizer.json` files turn text into ids and back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import tokenizer_kinds
from tests.tokenizer_kinds import KINDS, TEXTS
from titans_tasks.errors import DataError
from titans_tasks.tokens import ByteTokenizer, load_tokenizer


def small_tokenizer(directory: Path) -> Path:
    """A real byte-level BPE with 300 ids, trained on the spot."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["def main(): return self.value"] * 20, trainer)
    path = directory / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@given(st.binary())
def test_bytes_survive_the_round_trip(data: bytes) -> None:
    ids = ByteTokenizer().encode(data)
    assert ids.dtype == np.uint8
    assert ByteTokenizer().decode(ids) == data


def test_a_tokenizer_file_survives_the_round_trip_and_shortens_text(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(small_tokenizer(tmp_path))
    text = "def main(): return über".encode()
    ids = tokenizer.encode(text)
    assert ids.dtype == np.uint16
    assert len(ids) < len(text)
    assert ids.max() < tokenizer.vocab_size
    assert tokenizer.decode(ids) == text
    assert tokenizer.json is not None


def test_text_that_is_not_utf8_is_refused_by_a_tokenizer_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not UTF-8 \(byte 2\).*leave the tokenizer out"):
        load_tokenizer(small_tokenizer(tmp_path)).encode(b"ab\xff")


@pytest.mark.parametrize("content", ["", "{}", "[1, 2]", "not json"])
def test_a_file_that_is_no_tokenizer_is_named_in_the_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"wrong\.json is not a tokenizer\.json"):
        load_tokenizer(path)


def test_a_missing_tokenizer_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read the tokenizer .*none\.json"):
        load_tokenizer(tmp_path / "none.json")


@pytest.mark.parametrize("kind", KINDS)
def test_training_reads_what_the_library_reads(tmp_path: Path, kind: str) -> None:
    """Special tokens as tokens, and nothing that is stored for batches."""
    tokenizer = load_tokenizer(tokenizer_kinds.write(kind, tmp_path))
    theirs = tokenizer_kinds.library(kind)
    for text in [*TEXTS.values(), "<|user|>hello</s>" * 20]:
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text.encode()).tolist() == ids
        assert tokenizer.decode(np.array(ids)) == theirs.decode(ids, skip_special_tokens=False).encode()
        assert max(ids) < tokenizer.vocab_size
    assert tokenizer.has_decoder == (kind != "no decoder")


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_is_as_large_as_its_largest_id(tmp_path: Path, kind: str) -> None:
    largest = max(tokenizer_kinds.library(kind).get_vocab(with_added_tokens=True).values())
    assert load_tokenizer(tokenizer_kinds.write(kind, tmp_path)).vocab_size == largest + 1


def words(folder: Path, **model: Any) -> Path:
    """A tokenizer of whole words, with other parts of its model."""
    document = json.loads(tokenizer_kinds.content("byte-level"))
    whole = {"type": "WordLevel", "vocab": {"hello": 0, "[UNK]": 1}, "unk_token": "[UNK]"}
    document |= {"model": whole | model, "added_tokens": []}
    path = folder / "words.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def test_an_id_beyond_any_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has 2 tokens and an id 4,000,000,000.*number them anew"):
        load_tokenizer(words(tmp_path, vocab={"hello": 4_000_000_000, "[UNK]": 1}))


def test_whatever_the_library_raises_is_an_error_of_ours(tmp_path: Path) -> None:
    """Also what is not an `Exception`: its panics."""
    with pytest.raises(DataError, match=r"words\.json failed"):
        load_tokenizer(words(tmp_path, vocab={"hello": 0}, unk_token="none")).encode(b"other")
    document = json.loads(tokenizer_kinds.content("byte-level"))
    for part, match in [
        ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "failed"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "is not a tokenizer"),
        ({"model": document["model"] | {"type": "WordPiece", "max_input_chars_per_word": 10**9}}, "is not a tokeni"),
    ]:
        path = tmp_path / "panic.json"
        path.write_text(json.dumps(document | part), encoding="utf-8")
        with pytest.raises(DataError, match=rf"panic\.json {match}"):
            load_tokenizer(path).encode(b"some text")


def test_what_is_not_a_file_or_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="is not a file"):
        load_tokenizer(tmp_path)
    monkeypatch.setattr("titans_tasks.tokens.MAX_FILE_BYTES", 100)
    with pytest.raises(DataError, match="bytes, and 100 are the limit"):
        load_tokenizer(tokenizer_kinds.write("byte-level", tmp_path))


def test_tokens_have_names(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_kinds.write("byte-level", tmp_path))
    assert tokenizer.token_id("</s>") == 2
    with pytest.raises(DataError, match=r"has no token '<\|none\|>'"):
        tokenizer.token_id("<|none|>")
    assert ByteTokenizer().token_id("\n") == 10
    with pytest.raises(DataError, match=r"'<\|end\|>' is not a token: this model reads bytes"):
        ByteTokenizer().token_id("<|end|>")
