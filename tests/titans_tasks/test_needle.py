"""A needle can be found, in one way only, and batches are a function of seed, step and row."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from titans_tasks.documents import Corpus, Document
from titans_tasks.errors import DataError
from titans_tasks.needle import (
    FORMS,
    Form,
    Haystack,
    NeedleConfig,
    NeedleTask,
    held_out_stream,
    shortest_stream,
)

TEXT = Document("a.py", b"def double(x):\n    return 2 * x\n" * 20)
OTHER = Document("b.py", b"class Tree:\n    leaves = ()\n" * 20)
CORPUS = Corpus((TEXT,), (OTHER,))
PATTERNS = {
    "passkey": rb"\nThe pass key is (\d{5})\. Remember it\.",
    "number": rb"\nOne of the special magic numbers for \w{6} is: (\d{7})\.\n",
    "uuid": rb"\nOne of the special magic uuids for \w{6} is: ([\da-f]{8}(?:-[\da-f]{4}){3}-[\da-f]{12})\.\n",
}


@given(form=st.sampled_from(FORMS), extra=st.integers(0, 500), seed=st.integers(0, 2**31))
def test_the_answer_is_in_the_text_and_at_the_end(form: Form, extra: int, seed: int) -> None:
    length = shortest_stream(form) + extra
    stream = Haystack([TEXT]).stream(form, length, np.random.default_rng(seed))
    text = stream.tokens.astype(np.uint8).tobytes()
    assert len(text) == length
    found = re.findall(PATTERNS[form], text[: stream.question])
    assert found == [bytes(stream.answers.tolist())]
    assert text.endswith(found[0])
    assert stream.tokens[stream.queries + 1].tolist() == stream.answers.tolist()
    if form == "passkey":
        assert stream.tokens[stream.repeats + 1].tolist() == stream.answers.tolist()
        assert stream.repeats.max() < stream.question


def test_the_needle_lies_anywhere() -> None:
    streams = [held_out_stream(Haystack([TEXT]), "passkey", 400, number) for number in range(200)]
    places = [stream.tokens.astype(np.uint8).tobytes().index(b"The pass key") for stream in streams]
    last = 400 - shortest_stream("passkey")
    assert min(places) < 0.05 * last
    assert max(places) > 0.95 * last
    assert 0.4 * last < np.mean(places) < 0.6 * last


def test_batches_are_a_function_of_seed_step_and_row_alone() -> None:
    def task(seed: int) -> NeedleTask:
        return NeedleTask(NeedleConfig(), CORPUS, chunk=16, seed=seed)

    whole = task(3).batch(7, range(6))
    parts = [task(3).batch(7, rows) for rows in (range(2), range(2, 6))]
    assert np.array_equal(whole.inputs, np.concatenate([part.inputs for part in parts]))
    assert not np.array_equal(whole.inputs[0], whole.inputs[1])
    assert task(4).batch(7, range(6)).inputs[:, :64].tolist() != whole.inputs[:, :64].tolist()


@given(step=st.integers(0, 10_000), form=st.sampled_from(FORMS))
def test_a_batch_is_whole_chunks_and_counts_answers_and_repetitions(step: int, form: Form) -> None:
    batch = NeedleTask(NeedleConfig(form=form, length=384), CORPUS, chunk=16, seed=0).batch(step, range(3))
    assert batch.inputs.shape[1] % 16 == 0
    assert shortest_stream(form) <= batch.inputs.shape[1] < 384 + 16
    assert (batch.mask.sum(1) == {"passkey": 10, "number": 7, "uuid": 36}[form]).all()
    rows, places = np.nonzero(batch.mask)
    assert np.array_equal(batch.targets[rows, places], batch.inputs[rows, (places + 1) % batch.inputs.shape[1]])


def test_held_out_streams_are_of_text_that_training_never_sees() -> None:
    task = NeedleTask(NeedleConfig(held_out_length=1200, held_out_streams=2), CORPUS, chunk=16, seed=0)
    batches = list(task.held_out())
    tokens = np.concatenate([batch.inputs for batch in batches], axis=1)
    stream = held_out_stream(Haystack([OTHER]), "passkey", 1200, 1)
    assert tokens[1, :1200].tolist() == stream.tokens.tolist()
    assert [bool(batch.reset.all()) for batch in batches] == [True, False, False]
    assert sum(int(batch.mask.sum()) for batch in batches) == 10  # the repetition is a lesson, not a question
    seen = task.batch(0, range(4)).inputs.astype(np.uint8).tobytes()
    assert b"class" not in seen


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 50}, "needle and its question take"),
        ({"held_out_length": 1}, "use more"),
        ({"form": "haiku"}, "use one of passkey"),
        ({"held_out_streams": 0}, "at least 1"),
    ],
)
def test_impossible_sizes_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        NeedleConfig(**options)  # type: ignore[arg-type]


def test_a_stream_shorter_than_its_needle_and_an_empty_haystack_are_refused() -> None:
    with pytest.raises(DataError, match="use a length above 60"):
        Haystack([TEXT]).stream("passkey", 60, np.random.default_rng(0))
    with pytest.raises(DataError, match="haystack is empty"):
        Haystack([Document("a", b"")])
