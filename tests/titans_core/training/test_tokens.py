"""Bytes and `tokenizer.json` files turn text into ids and back."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from titans_core.errors import DataError
from titans_core.tokens import ByteTokenizer, load_tokenizer


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
