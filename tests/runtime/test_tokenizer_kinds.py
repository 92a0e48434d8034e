"""Every kind of tokenizer, on texts in ten scripts: what is encoded, streamed, saved and restored is the library's."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import tokenizers

from tests import tokenizer_kinds
from tests.runtime.toy import Toy, write_toy
from tests.tokenizer_kinds import KINDS, TEXTS, WHOLE
from titans_runtime import Model, load
from titans_runtime.stream.snapshot import KEPT
from titans_runtime.text.text_stream import LibraryStream
from titans_runtime.text.tokenizer import LibraryTokenizer

REPLACEMENT = "\ufffd"
VOCABULARY = 1000  # above every id of every kind


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def ours(kind: str, tmp_path_factory: pytest.TempPathFactory) -> LibraryTokenizer:
    return LibraryTokenizer(tokenizer_kinds.write(kind, tmp_path_factory.mktemp("kinds")))


@pytest.fixture(scope="module")
def theirs(kind: str) -> tokenizers.Tokenizer:
    return tokenizer_kinds.library(kind)


def ids_of(theirs: tokenizers.Tokenizer) -> Iterator[list[int]]:
    """The library's ids of every text."""
    for text in TEXTS.values():
        yield theirs.encode(text, add_special_tokens=False).ids


def streamed(tokenizer: LibraryTokenizer, tokens: list[int], after: list[int] | None = None) -> str:
    stream = tokenizer.stream(after or [])
    return "".join(map(stream.push, tokens)) + stream.finish()


def whole_characters(theirs: tokenizers.Tokenizer, tokens: list[int]) -> str:
    """The library's text of the longest beginning that does not end inside a character."""
    texts = (theirs.decode(tokens[:end]) for end in range(len(tokens), -1, -1))
    return next(text for text in texts if REPLACEMENT not in text)


def test_ids_are_the_librarys(ours: LibraryTokenizer, theirs: tokenizers.Tokenizer) -> None:
    for text in TEXTS.values():
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids


def test_a_tokenizer_that_expresses_all_text_gives_it_back(kind: str, ours: LibraryTokenizer) -> None:
    if kind in WHOLE:
        for text in TEXTS.values():
            assert streamed(ours, ours.encode(text)) == text


def test_text_streamed_up_to_any_cut_is_the_librarys(ours: LibraryTokenizer, theirs: tokenizers.Tokenizer) -> None:
    """Where the cut is inside a character, up to it; then comes U+FFFD for what there is of it."""
    for ids in ids_of(theirs):
        for cut in range(len(ids) + 1):
            text = streamed(ours, ids[:cut])
            assert text.rstrip(REPLACEMENT) == whole_characters(theirs, ids[:cut]).rstrip(REPLACEMENT) or (
                text == theirs.decode(ids[:cut])
            )
        assert streamed(ours, ids) == theirs.decode(ids)


def test_text_goes_on_after_any_cut(ours: LibraryTokenizer, theirs: tokenizers.Tokenizer) -> None:
    """From the ids that a session keeps, which may begin and end inside characters."""
    for ids in ids_of(theirs):
        for cut in range(1, len(ids)):
            before = streamed(ours, ids[:cut]).rstrip(REPLACEMENT)
            assert before + streamed(ours, ids[cut:], ids[:cut][-KEPT:]) == theirs.decode(ids)


def test_no_piece_of_sound_text_has_a_broken_character(ours: LibraryTokenizer, theirs: tokenizers.Tokenizer) -> None:
    for ids in ids_of(theirs):
        stream = ours.stream()
        assert not any(REPLACEMENT in stream.push(token) for token in ids)


def test_random_ids_stream_as_the_library_decodes_them(
    kind: str, ours: LibraryTokenizer, theirs: tokenizers.Tokenizer
) -> None:
    """Special, unknown and damaged ones too. A run of `<0x..>` with damage in it is all damage to the library alone."""
    known = [token for token in range(VOCABULARY) if theirs.id_to_token(token) is not None]
    if kind.startswith(("llama", "gemma")):
        known = [token for token in known if not str(theirs.id_to_token(token)).startswith("<0x")]
    draw = random.Random(0)
    for _ in range(200):
        ids = [draw.choice([*known, 1, 2, 99_999]) for _ in range(draw.randint(1, 40))]
        assert streamed(ours, ids) == ours.decode(ids) == theirs.decode(ids)


def test_a_session_that_is_saved_and_restored_at_any_token_writes_the_same_text(
    kind: str, tmp_path: Path, theirs: tokenizers.Tokenizer
) -> None:
    """With special tokens among them, more than a session keeps ids."""
    model = load(
        write_toy(tmp_path / "toy.titans", Toy(vocab_size=VOCABULARY), tokenizer_kinds.content(kind).encode()),
        threads=1,
    )
    text = "a ü 記\n👍🏽 b"
    ids = theirs.encode(text, add_special_tokens=False).ids
    many = list(itertools.chain.from_iterable([token, *[1, 2] * KEPT] for token in ids))
    for tokens in (ids, many):
        assert told_in_parts(model, tokens) == theirs.decode(tokens)


def told_in_parts(model: Model, tokens: list[int]) -> str:
    """Text of a stream that is saved and restored after every token, each told when it is certain."""
    assert model.tokenizer is not None
    session, text = model.session(), ""
    for token in tokens:
        stream = model.tokenizer.stream(session.recent)
        text = text.rstrip(REPLACEMENT) + stream.push(token) + stream.finish()
        session.feed([token])
        session = model.restore_bytes(session.to_bytes())
    return text


class Counting:
    """A decoder that counts the tokens it is given."""

    def __init__(self, tokenizer: LibraryTokenizer) -> None:
        self.tokenizer, self.tokens = tokenizer, 0

    def decode(self, tokens: list[int]) -> str:
        """Decode and count."""
        self.tokens += len(tokens)
        return self.tokenizer.decode(tokens)


@pytest.mark.parametrize("which", ["special", "unknown", "without text", "broken", "text"])
def test_a_token_costs_the_same_however_many_there_were(
    ours: LibraryTokenizer, theirs: tokenizers.Tokenizer, which: str
) -> None:
    """Counted in tokens decoded, for a stream of one token again and again."""
    broken = next((token for token in range(260) if theirs.decode([token]) == REPLACEMENT), 5)
    space = theirs.token_to_id("▁")
    token = {"special": 1, "unknown": 99_999, "without text": space or 1, "broken": broken, "text": 60}[which]
    counts = []
    for length in (500, 1000):
        counting = Counting(ours)
        stream = LibraryStream(counting.decode, ours.silent)
        for _ in range(length):
            stream.push(token)
        counts.append(counting.tokens)
    assert counts[1] <= 2.5 * counts[0]  # a quadratic one has 4 times as many
