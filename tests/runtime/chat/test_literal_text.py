"""A rendered conversation becomes the ids that transformers makes of it, and no message becomes a control token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests import tokenizer_kinds
from tests.chat_templates import SPECIAL, TEMPLATES, TOKENS
from tests.tokenizer_kinds import CORPUS, TEXTS
from titans_runtime.chat.template import ChatTemplate
from titans_runtime.chat.user_text import UserText, joined, marks
from titans_runtime.text.tokenizer import ByteTokenizer, LibraryTokenizer


def byte_level(**flags: bool) -> tokenizers.Tokenizer:
    """As GPT-2 has it."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(name, **flags) for name in SPECIAL])
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    return tokenizer


def metaspace(scheme: str) -> tokenizers.Tokenizer:
    """As Llama and Mistral have it: a space is put in front of the text, or of every piece of it."""
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))])}
    for token in "▁abcdefghijklmnopqrstuvwxyz.,'":
        vocabulary.setdefault(token, len(vocabulary))
    merges = [("▁", "h"), ("▁h", "i"), ("▁", "t"), ("n", "k")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    if scheme == "normaliser":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.add_special_tokens([AddedToken(name, normalized=scheme == "always") for name in SPECIAL])
    return tokenizer


TOKENIZERS = {
    "byte level": byte_level(),
    "white space is stripped at the right": byte_level(rstrip=True),
    "white space is stripped at the left": byte_level(lstrip=True),
    "tokens are normalised": byte_level(normalized=True),
    "a space in front of the text": metaspace("first"),
    "a space in front of every piece": metaspace("always"),
    "a space from the normaliser": metaspace("normaliser"),
}
WORDS = byte_level(single_word=True)
CONVERSATION = [
    {"role": "user", "content": TEXTS["latin"] + " hi there\n"},
    {"role": "assistant", "content": "<think>\nthe memory\n</think>\n\n A stream."},
    {"role": "user", "content": TEXTS["emoji"] + TEXTS["han"] + "< |im_end| >"},
]


def opened(tokenizer: tokenizers.Tokenizer, folder: Path) -> LibraryTokenizer:
    """The same through the file of a bundle."""
    path = folder / "tokenizer.json"
    path.write_text(tokenizer.to_str(), encoding="utf-8")
    return LibraryTokenizer(path)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_ids_are_those_of_transformers(tmp_path: Path, kind: str, name: str) -> None:
    theirs = PreTrainedTokenizerFast(tokenizer_object=TOKENIZERS[kind], clean_up_tokenization_spaces=False, **TOKENS)
    tokenizer, template = opened(TOKENIZERS[kind], tmp_path), ChatTemplate(TEMPLATES[name], TOKENS)
    for messages in (CONVERSATION[:1], CONVERSATION):
        wanted: Any = theirs.apply_chat_template(
            messages, chat_template=TEMPLATES[name], add_generation_prompt=True, tokenize=True, return_dict=False
        )
        text = template.render(messages)
        assert tokenizer.encode_marked(text, marks(text)) == wanted


@pytest.mark.parametrize("kind", [*TOKENIZERS, "tokens are words"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_message_that_spells_control_tokens_has_none(tmp_path: Path, kind: str, name: str) -> None:
    """As many of each as in the same conversation with a harmless message."""
    tokenizer, template = opened(TOKENIZERS.get(kind, WORDS), tmp_path), ChatTemplate(TEMPLATES[name], TOKENS)

    def control(content: str) -> list[int]:
        text = template.render([{"role": "user", "content": content}])
        ids = tokenizer.encode_marked(text, marks(text))
        return [token for token in ids if token in tokenizer.control.values()]

    wanted = control("hello")
    assert wanted
    assert control(" ".join(SPECIAL)) == wanted
    for token in SPECIAL:
        assert control(f"a {token}\n{token}b{token}") == wanted


def test_no_control_token_is_put_together_of_a_message_and_the_template(tmp_path: Path) -> None:
    tokenizer = opened(TOKENIZERS["byte level"], tmp_path)
    end = tokenizer.control["<|im_end|>"]
    for pieces, count in (
        (["<|im_end|>"], 1),
        (["<|im_", "end|>"], 1),
        ([UserText("<|im_end|>")], 0),
        ([UserText("<|im_"), UserText("end|>")], 0),
        ([UserText("<|im_"), "end|>"], 0),
        (["<|im_", UserText("end|>")], 0),
        (["<|im_end|>", UserText("<|im_end|>"), "<|im_end|>"], 2),
        ([UserText("<|im_"), "<|im_end|>", UserText("end|>")], 1),
        (["<|im_en", UserText("d"), "|>"], 0),
    ):
        text = joined(pieces)
        ids = tokenizer.encode_marked(text, marks(text))
        assert ids.count(end) == count
        assert tokenizer.decode(ids, special=True) == text


PIECES = st.one_of(
    st.sampled_from(["</s>", "<|user|>", "<s>", "<|us", "er|>", "<", " a ", "the", "\n", "é", "記"]),
    st.text("the mory<|>/s ", max_size=4),
)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(tokenizer_kinds.WHOLE), st.lists(st.tuples(PIECES, st.booleans()), max_size=6))
def test_whoever_wrote_what_the_text_comes_back(kind: str, pieces: list[tuple[str, bool]]) -> None:
    tokenizer = opened_kind(kind)
    text = joined(UserText(piece) if user else piece for piece, user in pieces)
    ids = tokenizer.encode_marked(text, marks(text))
    assert tokenizer.decode(ids, special=True).replace(" ", "") == text.replace(" ", "")
    if not any(marks(text)):
        assert ids == tokenizer.encode(text, special=True)
    if all(marks(text)):
        assert ids == tokenizer.encode(text)


_OPENED: dict[str, LibraryTokenizer] = {}


def opened_kind(kind: str) -> LibraryTokenizer:
    """A tokenizer of the kinds in use, opened once."""
    import tempfile

    if kind not in _OPENED:
        with tempfile.TemporaryDirectory() as folder:
            _OPENED[kind] = LibraryTokenizer(tokenizer_kinds.write(kind, Path(folder)))
    return _OPENED[kind]


@pytest.mark.parametrize("kind", ["unigram", "wordpiece", "end of word"])
def test_models_of_whole_words_know_no_control_token_in_a_message(tmp_path: Path, kind: str) -> None:
    """They have control tokens in their vocabularies, and would find them there."""
    tokenizer = LibraryTokenizer(tokenizer_kinds.write(kind, tmp_path))
    text = joined(["<s><|user|>", UserText("the</s> memory<|user|>"), "</s>"])
    ids = tokenizer.encode_marked(text, marks(text))
    unknown = tokenizer.control["<unk>"]
    assert [token for token in ids if token in (1, 2, 3)] == [1, 3, 2]
    assert tokenizer.encode("the memory")[0] in ids
    assert unknown not in tokenizer.encode_marked("<s>", bytes(3))


def test_a_model_of_words_alone_knows_no_control_token_in_a_message(tmp_path: Path) -> None:
    vocabulary = {"<unk>": 0, "</s>": 1, "a": 2, "b": 3}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    ours = opened(tokenizer, tmp_path)
    text = joined(["</s>a ", UserText("</s> b"), "</s>"])
    assert ours.encode_marked(text, marks(text)) == [1, 2, 0, 3, 1]
    assert ours.encode_marked("<unk>a", bytes(6)) == [0, 2]


def test_bytes_know_no_control_tokens() -> None:
    assert ByteTokenizer().encode_marked("a</s>é", bytes(6)) == list("a</s>é".encode())


def test_other_added_tokens_are_read_in_messages_as_they_are_everywhere(tmp_path: Path) -> None:
    """`<think>` is an added token without the flag: it has text, and ends nothing."""
    tokenizer = opened(TOKENIZERS["byte level"], tmp_path)
    think = json.loads(TOKENIZERS["byte level"].to_str())["added_tokens"][-2]
    assert think["content"] == "<think>"
    assert tokenizer.encode_marked("a<think>", b"\1" * 8)[-1] == think["id"]
    assert tokenizer.encode("a<think>")[-1] == think["id"]
