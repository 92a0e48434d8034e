"""The recall task is answerable, and only by remembering."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from titans_tasks.errors import DataError
from titans_tasks.recall import FILLER, RecallConfig, RecallTask, recall_stream

CONFIG = RecallConfig()


@given(gap=st.integers(0, 300), seed=st.integers(0, 2**31), pairs=st.integers(1, 32))
def test_a_dictionary_answers_every_question(gap: int, seed: int, pairs: int) -> None:
    config = RecallConfig(pairs=pairs)
    stream = recall_stream(config, gap, seed)
    told = stream.tokens[: 2 * pairs]
    memory = dict(zip(told[::2].tolist(), told[1::2].tolist(), strict=True))
    assert len(memory) == pairs
    assert [memory[key] for key in stream.tokens[stream.queries].tolist()] == stream.answers.tolist()
    assert (stream.tokens[stream.queries + 1] == stream.answers).all()
    assert (stream.tokens[2 * pairs : stream.questions] == FILLER).all()
    assert stream.questions == 2 * pairs + gap
    assert stream.tokens.max() < config.vocab_size


def test_values_are_uniform_so_a_model_without_memory_is_at_chance() -> None:
    answers = np.concatenate([recall_stream(CONFIG, 0, seed).answers for seed in range(400)])
    shares = np.bincount(answers - 1 - CONFIG.keys, minlength=CONFIG.values) / len(answers)
    assert shares.max() < 1.5 / CONFIG.values


def test_batches_are_a_function_of_seed_step_and_row_alone() -> None:
    whole = RecallTask(CONFIG, chunk=16, seed=3).batch(7, range(8))
    parts = [RecallTask(CONFIG, chunk=16, seed=3).batch(7, rows) for rows in (range(3), range(3, 8))]
    assert np.array_equal(whole.inputs, np.concatenate([part.inputs for part in parts]))
    assert np.array_equal(whole.mask, np.concatenate([part.mask for part in parts]))
    assert not np.array_equal(whole.inputs[0], whole.inputs[1])
    other_seed = RecallTask(CONFIG, chunk=16, seed=4).batch(7, range(8))
    assert whole.inputs[:, :32].tolist() != other_seed.inputs[:, :32].tolist()


@given(step=st.integers(0, 10_000), chunk=st.sampled_from([1, 16, 24]))
def test_a_batch_is_whole_chunks_and_counts_exactly_the_questions(step: int, chunk: int) -> None:
    batch = RecallTask(CONFIG, chunk=chunk, seed=0).batch(step, range(2))
    assert batch.inputs.shape[1] % chunk == 0
    assert batch.inputs.shape[1] <= 4 * CONFIG.pairs + CONFIG.gap + chunk
    counts = set(batch.mask.sum(1).tolist())
    assert len(counts) == 1
    assert counts <= set(range(2, CONFIG.pairs + 1))
    assert (batch.inputs[batch.mask] <= CONFIG.keys).all()
    assert (batch.targets[batch.mask] > CONFIG.keys).all()
    assert batch.reset.all()


def test_training_has_few_pairs_and_all_of_them() -> None:
    task = RecallTask(CONFIG, chunk=16, seed=0)
    counts = [int(task.batch(step, range(1)).mask.sum()) for step in range(400)]
    assert set(counts) == set(range(2, CONFIG.pairs + 1))
    assert sum(count < 6 for count in counts) > 60
    single = RecallTask(RecallConfig(pairs=1), chunk=16, seed=0)
    assert {int(single.batch(step, range(1)).mask.sum()) for step in range(50)} == {1}


def test_every_fourth_step_has_the_longest_gap_and_the_others_all_kinds() -> None:
    task = RecallTask(CONFIG, chunk=1, seed=0)
    gaps = []
    for step in range(200):
        batch = task.batch(step, range(1))
        questions = int(batch.mask.sum())
        gaps.append(batch.inputs.shape[1] - 4 * questions)
    assert all(gap == CONFIG.gap for gap in gaps[1::4])
    others = [gap for step, gap in enumerate(gaps) if step % 4 != 1]
    assert min(others) == 0
    assert sum(gap > 8 for gap in others) > 40
    assert sum(gap < CONFIG.gap // 2 for gap in others) > 40


def test_the_held_out_slices_join_to_the_long_streams() -> None:
    task = RecallTask(CONFIG, chunk=16, seed=0)
    batches = list(task.held_out())
    inputs = np.concatenate([batch.inputs for batch in batches], axis=1)
    for seed, row in enumerate(inputs):
        stream = recall_stream(CONFIG, CONFIG.held_out_gap, seed)
        assert np.array_equal(row[: len(stream.tokens)], stream.tokens)
    assert [batch.reset.all() for batch in batches] == [True] + [False] * (len(batches) - 1)
    assert sum(int(batch.mask.sum()) for batch in batches) == CONFIG.held_out_streams * CONFIG.pairs


@pytest.mark.parametrize(("option", "value"), [("pairs", 33), ("pairs", 0), ("values", 0), ("gap", -1)])
def test_impossible_sizes_are_refused(option: str, value: int) -> None:
    with pytest.raises(DataError, match=r"use (fewer|a larger)"):
        RecallConfig(**{option: value})
