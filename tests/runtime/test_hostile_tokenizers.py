"""A `tokenizer.json` of a stranger: nothing but an error of ours leaves, and what it asks for is bounded."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.toy import Toy, write_toy
from titans_runtime import BundleError, InputError, Model, TextError, load
from titans_runtime.text import tokenizer_file as limits
from titans_runtime.text.tokenizer import LibraryTokenizer

WORDS = ["hello", "world", "[UNK]", "<s>"]


def document(**parts: Any) -> dict[str, Any]:
    """A tokenizer of whole words, with other parts."""
    special = {"id": 3, "content": "<s>", "special": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [special | flags],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    } | parts


def opened(folder: Path, **parts: Any) -> LibraryTokenizer:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(document(**parts)), encoding="utf-8")
    return LibraryTokenizer(path)


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def charsmap(trie: bytes, replacements: bytes) -> dict[str, Any]:
    blob = len(trie).to_bytes(4, "little") + trie + replacements
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(blob).decode()}


def padding(strategy: Any, multiple: int | None = None) -> dict[str, Any]:
    return {
        "strategy": strategy,
        "direction": "Right",
        "pad_to_multiple_of": multiple,
        "pad_id": 2,
        "pad_type_id": 0,
        "pad_token": "[UNK]",
    }


TRUNCATION = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 50,
    "pair": [],
    "special_tokens": {},
}


@pytest.mark.parametrize(
    "parts",
    [
        {"truncation": TRUNCATION},
        {"padding": padding({"Fixed": 10**9})},
        {"padding": padding("BatchLongest", 10**9)},
        {"post_processor": TEMPLATE},
        {"post_processor": {"type": "BertProcessing", "sep": ["<s>", 3], "cls": ["<s>", 3]}},
    ],
)
def test_settings_for_batches_never_act(tmp_path: Path, parts: dict[str, Any]) -> None:
    tokenizer = opened(tmp_path, **parts)
    for special in (False, True):
        assert tokenizer.encode("hello world hello", special) == [0, 1, 0]


def test_random_merges_never_act(tmp_path: Path) -> None:
    model = {"type": "BPE", "dropout": 0.9, "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
    tokenizer = opened(tmp_path, model=model, added_tokens=[])
    for special in (False, True):
        assert tokenizer.encode("ab" * 40, special) == [2] * 40


@pytest.mark.parametrize(
    "parts",
    [
        {"pre_tokenizer": split("(a+)+$")},
        {"normalizer": charsmap(b"\xff" * 4096, b"x\0")},
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
        {"model": {"type": "WordLevel", "vocab": {"hello": 0}, "unk_token": "[UNK]"}, "added_tokens": []},
        {"model": {"type": "Unigram", "vocab": [["b", 0.0]], "unk_id": None}, "added_tokens": []},
    ],
    ids=["exploding pattern", "damaged table", "panic", "no unknown word", "no unknown piece"],
)
def test_whatever_fails_while_text_is_read_is_an_error_of_ours(tmp_path: Path, parts: dict[str, Any]) -> None:
    tokenizer = opened(tmp_path, **parts)
    with pytest.raises(TextError, match=r"tokenizer\.json failed"):
        tokenizer.encode("a" * 40 + "b hello")
    assert isinstance(tokenizer.decode([0, 1, 2]), str)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "charsmap"),
        ({"normalizer": charsmap(b"\0" * 4096, b"x" * 5000 + b"\0")}, "times as long"),
        ({"normalizer": replace("", "x" * 5000)}, "times as long"),
        ({"normalizer": {"type": "Prepend", "prepend": "x" * 5000}}, "times as long"),
        ({"normalizer": {"type": "Sequence", "normalizers": [replace("l", "llll")] * 8}}, "times as long"),
        ({"decoder": {"type": "Sequence", "decoders": [replace("l", "llll")] * 8}}, "times as long"),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}] * 100}}, "steps"),
        ({"pre_tokenizer": split("(")}, "parenthesis"),
        ({"pre_tokenizer": split("a" * 20_000)}, "pattern"),
        ({"model": {"type": "Unigram", "vocab": [["x" * 5000, 0.0]], "unk_id": 0}}, "token of 5,000"),
        ({"model": {"type": "WordLevel", "vocab": {"a": 2**40}, "unk_token": "a"}}, "u32"),
        ({"added_tokens": [{"id": -1}]}, "not a tokenizer"),
        (
            {
                "model": {
                    "type": "WordPiece",
                    "unk_token": "a",
                    "continuing_subword_prefix": "##",
                    "max_input_chars_per_word": 10**9,
                    "vocab": {"a": 0},
                }
            },
            "max_input_chars_per_word",
        ),
    ],
)
def test_a_file_that_asks_for_too_much_is_refused(tmp_path: Path, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message) as error:
        opened(tmp_path, **parts)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


def test_the_steps_of_tokenizers_in_use_are_within_the_limits(tmp_path: Path) -> None:
    """ALBERT's, with a table of as long replacements as NFKC has."""
    steps = [replace("``", '"'), replace("''", '"'), {"type": "NFKD"}, {"type": "StripAccents"}, {"type": "Lowercase"}]
    table = charsmap(b"\0" * 4096, "صلى الله عليه".encode() + b"\0")
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    tokenizer = opened(
        tmp_path, normalizer={"type": "Sequence", "normalizers": steps}, pre_tokenizer=space, decoder=space
    )
    assert tokenizer.encode("Hello") == [2]  # written with the space in front, which these words lack
    opened(tmp_path, normalizer={"type": "Sequence", "normalizers": [*steps, table]}, pre_tokenizer=space)


def test_a_token_that_is_longer_than_any_text_needs_is_not_written(tmp_path: Path) -> None:
    tokenizer = opened(tmp_path, model={"type": "WordLevel", "vocab": {"x" * 5000: 0, "a": 1}, "unk_token": "a"})
    assert tokenizer.decode([1]) == "a"
    for call in (tokenizer.decode, tokenizer.stream, lambda tokens: tokenizer.stream().push(tokens[0])):
        with pytest.raises(TextError, match="token of 5,000 characters"):
            call([0])


def test_a_file_that_is_too_large_or_not_a_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_FILE_BYTES", 100)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        (tmp_path / "tokenizer.json").write_text(json.dumps(document()))
        with pytest.raises(BundleError, match="not a tokenizer"):
            LibraryTokenizer(path)
    (tmp_path / "latin.json").write_bytes(b"\xff")
    with pytest.raises(BundleError, match="not a tokenizer"):
        LibraryTokenizer(tmp_path / "latin.json")


def test_an_interrupt_is_not_an_error_of_the_tokenizer() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        limits.guarded(TextError, interrupted)


CALLS: list[Callable[[Model], object]] = [
    lambda model: model.decode([-1]),
    lambda model: model.decode(["a"]),  # type: ignore[list-item]
    lambda model: model.decode([1.5]),  # type: ignore[list-item]
    lambda model: model.session().generate("hello", stop_ids=[-1]),
    lambda model: model.session().generate("hello", stop_ids=[10**9]),
    lambda model: model.session().generate("hello", stop_ids=5),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("bytes_", [True, False])
def test_ids_that_are_none_are_refused(tmp_path: Path, call: Callable[[Model], object], bytes_: bool) -> None:
    content = None if bytes_ else json.dumps(document()).encode()
    model = load(write_toy(tmp_path / "toy.titans", Toy(vocab_size=256), content), threads=1)
    with pytest.raises(InputError):
        call(model)


def test_an_id_that_no_tokenizer_knows_has_no_text(tmp_path: Path) -> None:
    tokenizer = opened(tmp_path)
    strange = [0, 77, sys.maxsize, 1]
    stream = tokenizer.stream(strange)
    assert tokenizer.decode(strange) == "hello world"
    assert "".join(map(stream.push, strange)) + stream.finish() == " hello world"


def test_a_text_with_an_id_that_the_model_lacks_is_refused_by_name(tmp_path: Path) -> None:
    vocabulary = {"hello": 0, "[UNK]": 1, "world": 300}
    content = json.dumps(document(model={"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"})).encode()
    model = load(write_toy(tmp_path / "toy.titans", Toy(vocab_size=256), content), threads=1)
    assert model.encode("hello") == [0]
    with pytest.raises(TextError, match=r"'world', which is token 300, and the model has 256 ids"):
        model.encode("hello world")
