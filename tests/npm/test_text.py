"""Text in JavaScript is text in Python: tokenizers of every kind in use, streams of tokens, and chat templates."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chat_templates import TEMPLATES
from tests.npm.conftest import Node, RefusalError
from tests.runtime.chat.test_conversation import VOCABULARY, bundle
from tests.runtime.toy import Toy, write_toy
from tests.tokenizer_kinds import KINDS, TEXTS
from titans_runtime import Model, TextError, load

OTHERWISE = "end of word"
SPELT = "<|im_end|> </s> <|user|> <s> [INST]"  # what a user may write, and what it must not become


def opened(node: Node, path: Path) -> Model:
    """A bundle in both."""
    node("load", model="m", bundle=str(path), options={"threads": 1})
    return load(path, provider="cpu", threads=1)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != OTHERWISE])
def test_ids_and_text_are_those_of_python(kind: str, node: Node, tmp_path: Path) -> None:
    path = write_toy(tmp_path / "toy.titans", Toy(vocab_size=VOCABULARY), KINDS[kind]().encode())
    model = opened(node, path)
    for name, text in {**TEXTS, "spelt": SPELT}.items():
        ids = model.encode(text)
        assert node("encode", model="m", text=text) == ids, name
        assert node("decode", model="m", ids=ids) == model.decode(ids), name
        pieces = node("stream", model="m", ids=ids, after=[])
        assert "".join(pieces) == model.decode(ids), name
        stream = model.tokenizer.stream(ids[:3])
        wanted = [*(stream.push(token) for token in ids[3:]), stream.finish()]
        assert node("stream", model="m", ids=ids[3:], after=ids[:3]) == wanted, name


def test_a_tokenizer_that_the_library_reads_otherwise_is_refused(node: Node, tmp_path: Path) -> None:
    path = write_toy(tmp_path / "toy.titans", Toy(vocab_size=VOCABULARY), KINDS[OTHERWISE]().encode())
    with pytest.raises(RefusalError, match="ends of words"):
        node("load", model="m", bundle=str(path), options={})


@pytest.mark.parametrize("name", TEMPLATES)
def test_conversations_are_those_of_python(name: str, node: Node, tmp_path: Path) -> None:
    model = opened(node, bundle(tmp_path, TEMPLATES[name], ()))
    said = [
        {"role": "user", "content": "Who is there?"},
        {"role": "assistant", "content": "A memory. "},
        {"role": "user", "content": f"  And {SPELT}? é"},
    ]
    for messages in (said[:1], said, [{"role": "system", "content": "Be brief."}, *said]):
        try:
            wanted = model.encode_chat(messages)
        except TextError:  # of a template that knows no system
            with pytest.raises(RefusalError):
                node("chat", model="m", messages=messages)
        else:
            assert node("chat", model="m", messages=messages) == wanted
    for wrong in ([], [{"role": "a b", "content": "x"}], [{"content": "x"}]):
        with pytest.raises(RefusalError) as caught:
            node("chat", model="m", messages=wrong)
        assert caught.value.code in ("input", "text")
