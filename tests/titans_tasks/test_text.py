"""Rows read whole documents in order, slice by slice, and a step's batch needs no history."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import tokenizer_kinds
from titans_tasks.documents import Corpus, Document
from titans_tasks.errors import DataError
from titans_tasks.task import Totals
from titans_tasks.text import StreamReader, TextTask
from titans_tasks.tokens import ByteTokenizer, Ids, Tokenizer, load_tokenizer

WINDOW = 16


def documents(lengths: list[int]) -> list[Ids]:
    """Documents whose every token tells which document it is from, except the first, which tells its length."""
    return [np.full(length, i % 251, np.uint8) for i, length in enumerate(lengths)]


lengths = st.lists(st.integers(2, 60), min_size=2, max_size=12)


@given(lengths, st.integers(0, 5))
def test_an_epoch_of_a_row_predicts_every_token_once(lengths: list[int], row: int) -> None:
    reader = StreamReader(documents(lengths), window=WINDOW, seed=1)
    batches = [reader.batch(step, range(row, row + 1)) for step in range(reader.slices)]
    seen = np.concatenate([batch.targets[batch.mask] for batch in batches])
    expected = np.concatenate([document[1:] for document in documents(lengths)])
    assert np.array_equal(np.sort(seen), np.sort(expected))


@given(lengths, st.integers(0, 5))
def test_memory_is_reset_exactly_where_a_document_starts(lengths: list[int], row: int) -> None:
    reader = StreamReader(documents(lengths), window=WINDOW, seed=1)
    current: int | None = None
    left = 0
    for step in range(2 * reader.slices):
        batch = reader.batch(step, range(row, row + 1))
        tokens = batch.targets[0][batch.mask[0]]
        assert batch.reset[0] == (left == 0)
        if left == 0:
            current = int(tokens[0])
            left = lengths[current] - 1
        assert (tokens == current).all()
        assert len(tokens) == min(WINDOW, left)
        left -= len(tokens)


def test_targets_are_the_inputs_one_token_later() -> None:
    text = np.arange(100, dtype=np.uint8)
    reader = StreamReader([text], window=WINDOW, seed=0)
    batches = [reader.batch(step, range(1)) for step in range(reader.slices)]
    for batch in batches:
        assert np.array_equal(batch.inputs[batch.mask] + 1, batch.targets[batch.mask])


def test_rows_read_different_parts_and_do_not_depend_on_each_other() -> None:
    text = np.random.default_rng(0).integers(256, size=50_000).astype(np.uint8)
    reader = StreamReader([text], window=WINDOW, seed=0)
    whole = reader.batch(5, range(4))
    assert len(np.unique(whole.inputs, axis=0)) == 4
    for row in range(4):
        fresh = StreamReader([text], window=WINDOW, seed=0)  # no history: straight to step 5
        assert np.array_equal(fresh.batch(5, range(row, row + 1)).inputs[0], whole.inputs[row])


def test_a_very_long_document_becomes_several_streams_that_share_no_target() -> None:
    text = np.arange(200_000).astype(np.uint32)
    reader = StreamReader([text], window=1024, seed=0)
    batches = [reader.batch(step, range(1)) for step in range(reader.slices)]
    assert sum(int(b.reset.sum()) for b in batches) > 10
    seen = np.concatenate([b.targets[b.mask] for b in batches])
    assert np.array_equal(np.sort(seen), np.arange(1, 200_000))


def test_text_too_short_to_predict_is_refused() -> None:
    with pytest.raises(DataError, match="give more text"):
        StreamReader([np.zeros(1, np.uint8)], window=WINDOW, seed=0)


def small_task(**options: int) -> TextTask:
    """A task on three documents, one of them held out."""
    train = (Document("a", b"abc" * 40), Document("b", b"xyz" * 70))
    corpus = Corpus(train, (Document("c", b"klm" * 50),))
    return TextTask(corpus, ByteTokenizer(), **{"window": WINDOW, "seed": 0, **options})


def test_the_evaluation_is_the_same_for_every_seed_and_reads_only_held_out_text() -> None:
    first, second = list(small_task(seed=0).held_out()), list(small_task(seed=1).held_out())
    assert all(np.array_equal(a.inputs, b.inputs) for a, b in zip(first, second, strict=True))
    assert set(np.concatenate([b.inputs[b.mask] for b in first]).tolist()) <= set(b"klm")


def test_a_uniform_guess_costs_eight_bits_per_byte() -> None:
    metrics = small_task().metrics(Totals(loss=float(np.log(256)) * 10, correct=1, count=10))
    assert metrics["bits_per_byte"] == pytest.approx(8.0)
    assert next(iter(metrics)) == "bits_per_byte"


def test_other_text_or_another_window_is_another_setting() -> None:
    task, longer = small_task(), small_task(window=32)
    corpus = Corpus((Document("a", b"abd" * 40),), (Document("c", b"klm" * 50),))
    other = TextTask(corpus, ByteTokenizer(), window=WINDOW, seed=0)
    assert task.settings != longer.settings
    assert task.settings != other.settings
    assert task.settings == small_task().settings


class Lossy(ByteTokenizer):
    """Knows letters from a to m, and drops the rest."""

    exact = False

    def encode(self, data: bytes) -> Ids:
        """The letters that it knows."""
        return super().encode(bytes(byte for byte in data if 97 <= byte <= 109))


def lossy_task(held_out: bytes = b"abxx" * 50) -> TextTask:
    corpus = Corpus((Document("a", b"abcx" * 40),), (Document("b", held_out),))
    return TextTask(corpus, Lossy(), window=WINDOW, seed=0)


def test_bytes_that_the_tokenizer_loses_do_not_make_a_figure_better() -> None:
    """Half of the bytes are lost, and the others cost what they cost."""
    totals = Totals(loss=float(np.log(256)) * 10, correct=1, count=10)
    metrics = lossy_task().metrics(totals)
    assert metrics["bits_per_byte"] == pytest.approx(8.0)
    assert metrics["text_lost"] == pytest.approx(0.5)
    assert next(iter(metrics)) == "bits_per_byte"
    assert "text_lost" not in small_task().metrics(totals)


def test_what_is_lost_is_said_of_both_parts() -> None:
    assert small_task().notes == ()
    (note,) = lossy_task().notes
    assert "25.00% of what is trained on and 50.00% of what is held out" in note


def test_text_of_which_nothing_survives_is_refused() -> None:
    with pytest.raises(DataError, match=r"none of the text of b comes back from its tokens"):
        lossy_task(b"xyz" * 50)


def task_of(kind: str, folder: Path, text: str) -> TextTask:
    tokenizer: Tokenizer = load_tokenizer(tokenizer_kinds.write(kind, folder))
    documents = tuple(Document(name, text.encode()) for name in "ab")
    return TextTask(Corpus(documents[:1], documents[1:]), tokenizer, window=WINDOW, seed=0)


@pytest.mark.parametrize("kind", tokenizer_kinds.WHOLE)
def test_a_tokenizer_that_expresses_all_text_has_nothing_said_of_it(tmp_path: Path, kind: str) -> None:
    text = "".join(tokenizer_kinds.TEXTS.values()) + "<|user|>hello</s>"
    assert task_of(kind, tmp_path, text).notes == ()


def test_a_tokenizer_without_a_decoder_and_one_that_folds_case_are_told_of(tmp_path: Path) -> None:
    assert "has no decoder" in task_of("no decoder", tmp_path, "the memory\n" * 20).notes[0]
    (note,) = task_of("wordpiece", tmp_path, "The Memory\n" * 20).notes
    assert "27.27% of what is trained on" in note  # T, M and the line break


def test_documents_end_with_the_token_that_is_named() -> None:
    corpus = Corpus((Document("a", b"abc"), Document("b", b"xyz")), (Document("c", b"klm" * 50),))
    task = TextTask(corpus, ByteTokenizer(), window=WINDOW, seed=0, eos=0)
    batch = task.batch(0, range(1))
    assert batch.targets[batch.mask][-1] == 0
    assert task.settings["eos"] == 0
    cut = Corpus((Document("a", b"abc" * 20, whole=False),), corpus.held_out)
    batches = [TextTask(cut, ByteTokenizer(), window=WINDOW, seed=0, eos=0).batch(step, range(1)) for step in range(4)]
    assert all(0 not in batch.targets[batch.mask] for batch in batches)
    assert "eos" not in small_task().settings
    assert (
        task.settings["corpus_sha256"]
        != TextTask(corpus, ByteTokenizer(), window=WINDOW, seed=0).settings["corpus_sha256"]
    )
