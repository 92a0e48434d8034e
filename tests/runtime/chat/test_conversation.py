"""A session is a conversation: it reads what is new, once, and stands where the whole of it would have led."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from tests.chat_templates import CHATML, MISTRAL, TEMPLATES, TOKENS
from tests.runtime.chat.test_literal_text import TOKENIZERS
from tests.runtime.toy import Toy, write_toy
from titans_format.fields import ChatTemplateInfo, Ends, GenerationDefaults
from titans_format.manifest import Manifest
from titans_runtime import InputError, Model, SamplingOptions, StateError, TextError, load
from titans_runtime.arrays import Array
from titans_runtime.chat.template import checked_messages
from titans_runtime.stream.run import Run
from titans_runtime.stream.session import Session
from titans_runtime.stream.stream import Stream

VOCABULARY = 1000
Says = Callable[[str], None]


def bundle(
    folder: Path,
    template: str | None = CHATML,
    ends: tuple[str, ...] = ("<|im_end|>",),
    generation: GenerationDefaults = GenerationDefaults(),  # noqa: B008
    kind: str = "byte level",
) -> Path:
    """A toy with a tokenizer and a chat template."""
    tokenizer = TOKENIZERS[kind]
    path = write_toy(folder / "toy.titans", Toy(vocab_size=VOCABULARY), tokenizer.to_str().encode())
    manifest = Manifest.from_json((path / "manifest.json").read_text(encoding="utf-8"))
    info = None
    if template is not None:
        (path / "chat_template.jinja").write_text(template, encoding="utf-8")
        digest = hashlib.sha256(template.encode()).hexdigest()
        info = ChatTemplateInfo(file="chat_template.jinja", sha256=digest, tokens=TOKENS)
    eos = tuple(tokenizer.token_to_id(name) for name in ends)
    changed = structs.replace(manifest, ends=Ends(eos=eos), chat_template=info, generation=generation)
    (path / "manifest.json").write_text(changed.to_json(), encoding="utf-8")
    return path


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return load(bundle(tmp_path), threads=1)


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Callable[[Model, str], None]:
    """Makes every session choose the tokens of a text."""

    def script(model: Model, text: str) -> None:
        chosen = iter(model.encode(text, special=True))
        monkeypatch.setattr(Session, "_choose", lambda session, sampler: next(chosen))

    return script


def sessions(model: Model) -> Iterator[Session]:
    """One alone and one of a batch."""
    yield model.session()
    with model.batch(lanes=2) as batch:
        yield batch.session()


def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """All that sessions consume from now on."""
    seen: list[int] = []
    begin = Stream.begin

    def begun(self: Stream, array: Array, *rest: Any) -> Run:
        seen.extend(map(int, array))
        return begin(self, array, *rest)

    monkeypatch.setattr(Stream, "begin", begun)
    return seen


TURNS = [
    ([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who is there?"}], "It is I."),
    ("What</s> is <|im_end|>?", " A token.\n"),
    ("And the memory?", ""),
    ({"role": "user", "content": "記憶 👍🏽"}, "x"),
]


@pytest.mark.parametrize(
    ("name", "end"),
    [("chatml", "<|im_end|>"), ("llama 3", "<|eot_id|>"), ("qwen 3", "<|im_end|>"), ("roles", "<|end|>")],
)
def test_turn_by_turn_a_session_reads_what_the_whole_conversation_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: Callable[[Model, str], None], name: str, end: str
) -> None:
    model = load(bundle(tmp_path, TEMPLATES[name], (end,)), threads=1)
    for session in sessions(model):
        with monkeypatch.context() as patched:
            seen, history = reads(patched), []
            for new, answer in TURNS:
                says(model, answer + end)
                assert "".join(session.chat(new, 50)) == answer
                assert session.ended == "eos"
                history += checked_messages(new)
                whole = model.encode_chat(history)
                # Llama's template trims the answers of earlier turns, which the session has read as they were.
                assert name == "llama 3" or seen[: len(whole)] == whole
                assert seen[-1] == model.encode(end, special=True)[0]
                history.append({"role": "assistant", "content": answer})


def test_a_system_prompt_is_read_once(tmp_path: Path, says: Callable[[Model, str], None]) -> None:
    """Also where the template puts it into the last message, as Mistral's does."""
    model = load(bundle(tmp_path, MISTRAL, ("</s>",)), threads=1)
    session = model.session()
    says(model, "I am.</s>")
    "".join(session.chat([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who is there?"}]))
    first = session.position
    says(model, "Yes.</s>")
    "".join(session.chat("Sure?"))
    assert first == len(model.encode("<s>[INST] Be brief.\n\nWho is there?[/INST]I am.</s>", special=True))
    assert session.position - first == len(model.encode("[INST] Sure?[/INST]Yes.</s>", special=True))


def test_an_answer_that_was_cut_short_is_closed_before_the_next_message(
    model: Model, monkeypatch: pytest.MonkeyPatch, says: Callable[[Model, str], None]
) -> None:
    after_limit, after_stop, broken_off, unread = model.session(), model.session(), model.session(), model.session()
    says(model, "It is I" * 4)
    "".join(after_limit.chat("Who?", 3))
    assert after_limit.ended == "length"
    "".join(after_stop.chat("Who?", 30, stop="is"))
    assert after_stop.ended == "stop"
    next(broken_off.chat("Who?"))
    assert list(unread.chat("Who?", 0)) == []
    for session in (after_limit, after_stop, broken_off, unread):
        with monkeypatch.context() as patched:
            seen = reads(patched)
            says(model, "I.<|im_end|>")
            "".join(session.chat("Again?"))
        asked = "<|im_end|>\n<|im_start|>user\nAgain?<|im_end|>\n<|im_start|>assistant\n"
        assert seen == model.encode(asked + "I.<|im_end|>", special=True)


def test_an_end_that_is_not_the_templates_is_followed_by_what_closes_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: Callable[[Model, str], None]
) -> None:
    model = load(bundle(tmp_path, ends=("</s>",)), threads=1)
    session = model.session()
    says(model, "I.</s>")
    "".join(session.chat("Who?"))
    seen = reads(monkeypatch)
    says(model, "</s>")
    "".join(session.chat("Again?"))
    assert seen[:2] == model.encode("<|im_end|>\n", special=True)


def test_a_conversation_goes_on_after_save_fork_and_rewind(
    model: Model, tmp_path: Path, says: Callable[[Model, str], None]
) -> None:
    session = model.session()
    assert not session.conversing
    says(model, "I.<|im_end|>You.<|im_end|>")
    "".join(session.chat("Who?"))
    mark, fork = session.mark(), session.fork()
    session.save(tmp_path / "a.state")
    with model.batch() as batch:
        others = [fork, model.restore(tmp_path / "a.state"), model.restore_bytes(session.to_bytes())]
        others += [batch.restore(tmp_path / "a.state")]
        "".join(session.chat("Again?"))
        for other in others:
            assert other.conversing
            says(model, "You.<|im_end|>")
            "".join(other.chat("Again?"))
            assert other.to_bytes() == session.to_bytes()
    session.rewind(mark)
    says(model, "You.<|im_end|>")
    "".join(session.chat("Again?"))
    assert session.to_bytes() == fork.to_bytes()
    session.reset()
    assert not session.conversing


def test_a_saved_answer_that_was_not_ended_is_still_open(model: Model, says: Callable[[Model, str], None]) -> None:
    session = model.session()
    says(model, "It is I")
    next(session.chat("Who?"))
    restored = model.restore_bytes(session.to_bytes())
    for each in (session, restored):
        says(model, "<|im_end|>")
        "".join(each.chat("Again?"))
    assert restored.to_bytes() == session.to_bytes()


def test_what_else_a_stream_reads_belongs_to_the_conversation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: Callable[[Model, str], None]
) -> None:
    """A document before it is followed by its beginning, without a second begin-of-text; one within it, by a turn."""
    model = load(bundle(tmp_path, TEMPLATES["llama 3"], ("<|eot_id|>",)), threads=1)
    session = model.session()
    session.feed(model.encode("A long document."))
    seen = reads(monkeypatch)
    says(model, "Yes.<|eot_id|>")
    "".join(session.chat("Read it?"))
    assert seen[:2] == model.encode("<|start_header_id|>system", special=True)[:2]
    assert model.encode("<s>", special=True)[0] not in seen
    session.feed(model.encode("Another one."))
    del seen[:]
    says(model, "Yes.<|eot_id|>")
    "".join(session.chat("This one too?"))
    assert seen[:2] == model.encode("<|start_header_id|>user", special=True)[:2]


def test_prompt_and_tokens_apart_are_the_same_conversation(model: Model, says: Callable[[Model, str], None]) -> None:
    """As a server has it, which looks at the prompt before it is read, and begins anew in an old memory."""
    whole, apart = model.session(), model.session()
    for line in ("Who?", "Again?"):
        says(model, "I.<|im_end|>")
        "".join(whole.chat(line))
        says(model, "I.<|im_end|>")
        list(apart.generate_tokens(apart.chat_prompt(line), answering=True))
        assert apart.to_bytes() == whole.to_bytes()
    first = model.session().chat_prompt("Who?")
    assert apart.chat_prompt("Who?", begin=True) == [*model.encode("\n"), *first]
    assert model.session().chat_prompt("Who?", begin=True) == first == model.encode_chat("Who?")


def test_a_conversation_that_cannot_be_read_leaves_the_session_as_it_was(model: Model) -> None:
    session = model.session()
    before = session.to_bytes()
    for wrong in ([], [{"role": "user"}, 5], [{"role": "a b", "content": "x"}], "\ud800", None):
        with pytest.raises(InputError):
            session.chat(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError):
        session.chat("a", temperature=-1)
    pieces = session.chat("Who?")  # nobody reads it
    del pieces
    assert session.to_bytes() == before
    assert not session.conversing


def test_a_model_without_a_template_or_with_a_broken_one_says_so(tmp_path: Path) -> None:
    plain = load(bundle(tmp_path / "a", template=None), threads=1)
    for call in (lambda: plain.session().chat("hi"), lambda: plain.encode_chat("hi")):
        with pytest.raises(TextError, match="has no chat template"):
            call()
    broken = load(bundle(tmp_path / "b", template="{% if %}"), threads=1)
    with pytest.raises(Exception, match=r"toy\.titans/chat_template\.jinja is not a template that can be used"):
        broken.session().chat("hi")


def test_a_turn_in_a_state_file_is_checked(model: Model, says: Callable[[Model, str], None]) -> None:
    session = model.session()
    assert b'"turn"' not in session.to_bytes().replace(b"\\", b"")
    says(model, "<|im_end|>")
    "".join(session.chat("Who?"))
    data = session.to_bytes()
    end = model.encode("<|im_end|>", special=True)[0]
    assert f'"turn": {end}'.encode() in data.replace(b"\\", b"")
    with pytest.raises(StateError):
        model.restore_bytes(data.replace(str(end).encode(), b"-" + str(end).encode()[1:]))


# -- generation defaults -----------------------------------------------------------------------------------------------

DEFAULTS = GenerationDefaults(temperature=0.0, top_k=7, top_p=0.5, repetition_penalty=1.5, max_new_tokens=5)


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[SamplingOptions]:
    """The options of every text that is begun."""
    seen: list[SamplingOptions] = []
    begin = Session._begin

    def begun(self: Session, prompt: object, limit: object, options: SamplingOptions, *rest: object) -> object:
        seen.append(options)
        return begin(self, prompt, limit, options, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Session, "_begin", begun)
    return seen


def test_the_models_defaults_hold_where_the_caller_does_not_say(tmp_path: Path, chosen: list[SamplingOptions]) -> None:
    model = load(bundle(tmp_path, generation=DEFAULTS), threads=1)
    for session in sessions(model):
        for text in (session.generate("a"), session.generate_tokens("a"), session.chat("a")):
            assert len(list(text)) <= 5
            assert session.ended == "length"
            options = chosen.pop()
            assert options == SamplingOptions(temperature=0.0, top_k=7, top_p=0.5, repetition_penalty=1.5)
        list(session.generate("a", 2, temperature=0.3, top_k=3, seed=1))
        assert chosen.pop() == SamplingOptions(temperature=0.3, top_k=3, top_p=0.5, repetition_penalty=1.5, seed=1)
        list(session.generate("a", 2, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0))
        assert chosen.pop() == SamplingOptions(top_p=1.0, min_p=0.0)
        list(session.generate_tokens("a", 2, SamplingOptions()))
        assert chosen.pop() == SamplingOptions()


def test_without_defaults_everything_is_as_it_was(tmp_path: Path, chosen: list[SamplingOptions]) -> None:
    model = load(bundle(tmp_path, ends=()), threads=1)
    assert "generation" not in json.loads((tmp_path / "toy.titans" / "manifest.json").read_text(encoding="utf-8"))
    assert len(list(model.session().generate_tokens("a"))) == 64
    assert chosen == [SamplingOptions()]
