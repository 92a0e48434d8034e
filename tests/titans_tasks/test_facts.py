"""Facts told and asked: what counts is the value, held-out words are never trained on, and the later value wins."""

from __future__ import annotations

import numpy as np
import pytest

from titans_tasks.documents import Corpus, Document
from titans_tasks.errors import DataError
from titans_tasks.fact_words import Fact, Words, is_held_out
from titans_tasks.facts import FORMS, FactsConfig, FactSource, FactsTask, Render
from titans_tasks.tokens import ByteTokenizer

TEXT = Document("text", b"Rain fell on the hills all day, and the road was empty. " * 40)
CORPUS = Corpus((TEXT,), (TEXT,))
BYTES = ByteTokenizer().encode


def render(turns: object, open_next: bool) -> str:
    assert isinstance(turns, list)
    return "".join(f"<{turn['role']}>{turn['content']}\n" for turn in turns) + ("<assistant>" if open_next else "")


def source(*, held_out: bool, template: Render | None = render) -> FactSource:
    return FactSource([TEXT], BYTES, template, held_out=held_out)


@pytest.mark.parametrize("form", FORMS)
def test_the_answers_are_the_tokens_of_the_values_with_their_space(form: str) -> None:
    stream = source(held_out=True).stream(4, 30, [1], form=form)  # type: ignore[arg-type]
    told = bytes(stream.told.tolist()).decode()
    for question in stream.questions:
        answer = bytes(question.answers.tolist()).decode()
        assert answer.startswith(" ")
        assert answer in told  # " is VALUE." or ": VALUE."
        np.testing.assert_array_equal(stream.asked[question.queries + 1], question.answers)
    assert len(stream.filler) == 30
    np.testing.assert_array_equal(stream.tokens, np.concatenate([stream.told, stream.filler, stream.asked]))


def test_chat_turns_go_through_the_template_and_only_where_there_is_one() -> None:
    stream = source(held_out=True).stream(2, 0, [3], form="chat")
    assert b"<user>" in bytes(stream.asked.tolist())
    assert source(held_out=True, template=None).forms == ("same", "other")
    silent = source(held_out=True, template=lambda turns, _: turns[0]["content"])
    assert silent.forms == ("same", "other")  # a template that leaves out what was said is as good as none


def test_a_corrected_fact_is_told_twice_and_asked_for_as_it_was_told_last() -> None:
    stream = source(held_out=True).stream(3, 0, [5], form="same", corrected=True)
    told = bytes(stream.told.tolist()).decode()
    for question in stream.questions:
        begin = int(question.queries[0])
        sentence = bytes(stream.asked[: begin + 1].tolist()).decode().rsplit(".", 1)[-1].strip()
        assert told.count(sentence) == 2
        last = told.rindex(sentence) + len(sentence)
        assert told[last:].startswith(bytes(question.answers.tolist()).decode())


def test_no_word_or_sentence_that_judges_is_trained_on() -> None:
    train, held_out = Words(held_out=False), Words(held_out=True)
    random = np.random.default_rng(0)
    for words in (train, held_out):
        for _ in range(200):
            fact = words.fact(random)
            assert fact.subject is None or is_held_out(fact.subject) == words.held_out
            assert is_held_out(fact.attribute.split()[-1]) == words.held_out
            assert {is_held_out(part) for part in fact.value.split()} == {words.held_out}
    assert not set(train.told) & set(held_out.told)
    assert not set(train.other) & set(held_out.other)
    assert not set(train.chat) & set(held_out.chat)


def test_facts_of_a_stream_are_about_different_things_and_often_alike() -> None:
    words, random = Words(held_out=False), np.random.default_rng(0)
    known: list[Fact] = []
    for _ in range(60):
        known.append(words.fact(random, known))
    about = [(fact.subject, fact.attribute) for fact in known]
    assert len(set(about)) == len(about)
    assert len({subject for subject, _ in about}) < 50


def test_what_was_mine_is_yours_in_the_reply() -> None:
    fact = Fact(None, "song", "river")
    assert fact.asked("What is {of}?") == "What is my song?"
    assert fact.answered("{Of} is") == "Your song is"
    assert fact.told("As for {whom}, {of} is {value}.") == ("As for me, my song is", ".")


def task() -> FactsTask:
    config = FactsConfig(facts=3, gap=40, held_out_gap=600, held_out_streams=3)
    return FactsTask(config, CORPUS, BYTES, render, chunk=16, seed=0)


def test_batches_are_whole_chunks_and_the_same_for_any_split_of_the_rows() -> None:
    whole, apart = task().batch(5, range(3)), [task().batch(5, range(row, row + 1)) for row in range(3)]
    assert whole.inputs.shape[1] % 16 == 0
    for row, one in enumerate(apart):
        length = one.inputs.shape[1]
        np.testing.assert_array_equal(whole.inputs[row, :length], one.inputs[0])
        np.testing.assert_array_equal(whole.mask[row, :length], one.mask[0])
    masked = whole.inputs[0, 1:][whole.mask[0, :-1]]
    np.testing.assert_array_equal(whole.targets[0][whole.mask[0]], masked)


def test_what_follows_the_last_question_is_other_text() -> None:
    made, text = task().batch(5, range(3)), CORPUS.train[0].data * 2  # it wraps around
    assert (made.inputs != 0).all()
    ends = [int(np.flatnonzero(row)[-1]) for row in made.mask]
    shortest = int(np.argmin(ends))
    tail = made.inputs[shortest, ends[shortest] - max(ends) :]
    assert len(tail) > 16
    assert bytes(tail.astype(np.uint8)) in text


def test_streams_come_again_after_as_many_steps_as_are_asked_for() -> None:
    again = FactsTask(FactsConfig(facts=2, gap=8, repeat=3), CORPUS, BYTES, render, chunk=16, seed=0)
    np.testing.assert_array_equal(again.batch(1, range(2)).inputs, again.batch(4, range(2)).inputs)
    assert again.batch(1, range(1)).inputs.tobytes() != again.batch(2, range(1)).inputs.tobytes()


def test_the_evaluation_reads_whole_streams_in_slices() -> None:
    parts = list(task().held_out())
    assert [part.reset.all() for part in parts] == [True] + [False] * (len(parts) - 1)
    assert sum(int(part.mask.sum()) for part in parts) > 0
    assert not parts[0].mask.any()  # the questions come after the gap


def test_sizes_that_make_no_stream_are_refused() -> None:
    with pytest.raises(DataError, match="facts facts is 0"):
        FactsConfig(facts=0)
    with pytest.raises(DataError, match="no text"):
        FactSource([Document("empty", b"")], BYTES, None, held_out=False)


def test_the_same_facts_can_be_asked_for_in_every_form() -> None:
    forms = [source(held_out=True).stream(3, 20, [7], form="same", asked=asked) for asked in FORMS]
    for stream in forms[1:]:
        np.testing.assert_array_equal(stream.told, forms[0].told)
        np.testing.assert_array_equal(stream.filler, forms[0].filler)
        answers = {bytes(question.answers.tolist()) for question in stream.questions}
        assert answers == {bytes(question.answers.tolist()) for question in forms[0].questions}
    assert len({bytes(stream.asked.tolist()) for stream in forms}) == len(FORMS)
