"""Text in and out: streams that never break a character, stop strings that arrive in pieces."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from tests.runtime.toy import Toy, write_toy
from titans_runtime import BundleError, InputError, SamplingOptions, TextError, load
from titans_runtime.stream.snapshot import KEPT
from titans_runtime.text.stopping import StopFilter
from titans_runtime.text.tokenizer import ByteTokenizer, LibraryTokenizer, Tokenizer


def byte_level(folder: Path) -> Path:
    """A byte-level BPE tokenizer without merges: one token per byte, the hardest case for a stream."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    path = folder / "byte_level.json"
    tokenizer.save(str(path))
    return path


def words(folder: Path) -> Path:
    """Whole words behind a metaspace, whose decoder strips the first space: tokens cannot be decoded alone."""
    vocabulary = {"<unk>": 0, "▁the": 1, "▁memory": 2, "▁writes": 3, "s": 4, "▁": 5}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<|end|>"])
    path = folder / "words.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizers")


@pytest.fixture(scope="module")
def byte_level_tokenizer(folder: Path) -> LibraryTokenizer:
    return LibraryTokenizer(byte_level(folder))


@pytest.fixture(scope="module")
def word_tokenizer(folder: Path) -> LibraryTokenizer:
    return LibraryTokenizer(words(folder))


def pieces(tokenizer: Tokenizer, tokens: list[int]) -> list[str]:
    """What a stream gives for each token, and at the end."""
    stream = tokenizer.stream()
    return [*(stream.push(token) for token in tokens), stream.finish()]


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(deadline=None)
@given(text=texts, library=st.booleans())
def test_streamed_text_is_the_text_and_no_piece_breaks_a_character(
    byte_level_tokenizer: LibraryTokenizer, text: str, library: bool
) -> None:
    tokenizer: Tokenizer = byte_level_tokenizer if library else ByteTokenizer()
    streamed = pieces(tokenizer, tokenizer.encode(text))
    assert "".join(streamed) == text
    assert library or len(streamed) == len(text.encode()) + 1
    assert all("\ufffd" not in piece for piece in streamed) or "\ufffd" in text


@settings(deadline=None)
@given(content=st.binary(max_size=30))
def test_bytes_that_are_no_text_come_out_as_replacement_characters(content: bytes) -> None:
    assert "".join(pieces(ByteTokenizer(), list(content))) == content.decode("utf-8", errors="replace")


def test_ids_above_a_byte_have_no_text() -> None:
    assert "".join(pieces(ByteTokenizer(), [104, 300, 105])) == "hi"


@settings(deadline=None)
@given(tokens=st.lists(st.integers(1, 6), max_size=12))
def test_streaming_decodes_as_the_library_does_all_at_once(word_tokenizer: LibraryTokenizer, tokens: list[int]) -> None:
    whole = word_tokenizer._tokenizer.decode(tokens, skip_special_tokens=True)
    assert "".join(pieces(word_tokenizer, tokens)) == whole


def test_damaged_text_is_not_held_back_for_ever(byte_level_tokenizer: LibraryTokenizer) -> None:
    token = byte_level_tokenizer.encode("é")[:1]  # the first byte of two, again and again
    streamed = pieces(byte_level_tokenizer, token * 40)
    assert any(streamed[:-1])
    assert "".join(streamed) == "\ufffd" * 40


@settings(deadline=None)
@given(tokens=st.lists(st.integers(1, 5), min_size=1, max_size=12), cut=st.integers(0, 12), step=st.integers(1, 4))
def test_text_in_several_streams_is_the_text(
    word_tokenizer: LibraryTokenizer, tokens: list[int], cut: int, step: int
) -> None:
    """A prompt, then generations that each go on from what came before: the spaces between them stay."""
    whole = word_tokenizer._tokenizer.decode(tokens)
    cut = min(cut, len(tokens))
    before, text = tokens[:cut], ""
    for start in range(cut, len(tokens), step):
        stream = word_tokenizer.stream(tokens[:start][-KEPT:])
        text += "".join(stream.push(token) for token in tokens[start : start + step]) + stream.finish()
    assert word_tokenizer._tokenizer.decode(before) + text == whole


def test_a_character_that_the_prompt_began_is_whole_where_it_ends(byte_level_tokenizer: LibraryTokenizer) -> None:
    for tokenizer in (ByteTokenizer(), byte_level_tokenizer):
        first, second, *rest = tokenizer.encode("éa")
        stream = tokenizer.stream([*tokenizer.encode("caf"), first])
        assert [stream.push(second), *map(stream.push, rest), stream.finish()] == ["é", "a", ""]


def test_generated_text_goes_on_from_its_prompt(folder: Path, tmp_path: Path) -> None:
    """The first word's space is there; so it is where one generation goes on from another, or from a saved one."""
    model = load(write_toy(tmp_path / "toy.titans", Toy(vocab_size=7), words(folder).read_bytes()), threads=1)
    for seed in range(5):
        session = model.session()
        ids = [*model.encode("the memory"), *session.generate_tokens("the memory", 6, SamplingOptions(seed=seed))]
        whole = model.decode(ids)
        assert whole == "the memory" + "".join(model.session().generate("the memory", 6, seed=seed))
        session = model.session()
        text = "the memory"
        session.feed(model.encode(text))
        for token in ids[2:]:
            stream = LibraryTokenizer(words(folder)).stream(session.recent)
            text += stream.push(token) + stream.finish()
            session.feed([token])
            session = model.restore_bytes(session.to_bytes())
        assert text == whole


def test_a_text_tokenizer_refuses_bytes_that_are_not_utf8(word_tokenizer: LibraryTokenizer) -> None:
    with pytest.raises(TextError, match=r"byte 4 is 0xff.*convert it to UTF-8"):
        word_tokenizer.encode(b"the \xff")
    assert word_tokenizer.encode("the memory") == word_tokenizer.encode(b"the memory") == [1, 2]


def test_a_lone_surrogate_is_refused(word_tokenizer: LibraryTokenizer) -> None:
    for tokenizer in (ByteTokenizer(), word_tokenizer):
        with pytest.raises(TextError, match=r"U\+D800"):
            tokenizer.encode("a\ud800")


def test_a_bundle_brings_its_tokenizer(folder: Path, tmp_path: Path) -> None:
    model = load(write_toy(tmp_path / "toy.titans", Toy(vocab_size=257), byte_level(folder).read_bytes()), threads=1)
    text = "".join(model.session().generate("déjà vu", 30, seed=2))
    session = model.session()
    session.feed(model.encode("déjà vu"))
    assert text == "".join(session.generate(None, 30, seed=2))
    with pytest.raises(InputError, match="empty"):
        session.generate("")


@pytest.mark.parametrize("content", [b"{}", b"not json", json.dumps({"model": None}).encode()])
def test_a_tokenizer_file_that_is_none_is_refused_when_text_is_needed(tmp_path: Path, content: bytes) -> None:
    session = load(write_toy(tmp_path / "toy.titans", Toy(), content), threads=1).session()
    session.feed([1, 2, 3])
    with pytest.raises(BundleError, match=r"tokenizer\.json is not a tokenizer"):
        session.generate("abc")


@given(text=st.text("abc", max_size=20), stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_stop_strings_are_found_however_the_text_arrives(text: str, stops: list[str]) -> None:
    first = min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))
    by_character = StopFilter(stops)
    passed = "".join(by_character.push(c) for c in text) + by_character.finish()
    # Character by character the stop string that ends first wins, which may begin later than another one.
    ended = min((text.find(stop) + len(stop) for stop in stops if stop in text), default=len(text))
    winners = [text.find(stop) for stop in stops if stop in text and text.find(stop) + len(stop) == ended]
    assert passed == text[: min(winners, default=len(text))]
    at_once = StopFilter(stops)
    assert at_once.push(text) + at_once.finish() == text[:first]
    assert at_once.stopped == by_character.stopped == any(stop in text for stop in stops)


def test_no_stop_strings_may_be_none_and_anything_else_is_refused() -> None:
    assert StopFilter(None).push("text") == "text"
    for stop in (5, 0, False):
        with pytest.raises(InputError, match="use a string"):
            StopFilter(stop)  # type: ignore[arg-type]


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    stops = StopFilter(["\n\n", "END"])
    assert [stops.push(piece) for piece in ["line\n", "next E", "N", "Q", "\n", "\nrest"]] == [
        "line",
        "\nnext ",
        "",
        "ENQ",
        "",
        "",
    ]
    assert stops.stopped
    assert stops.push("more") == ""
