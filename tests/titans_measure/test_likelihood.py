"""Bits along documents, counted on streams whose answers are known."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from titans_measure.quality.likelihood import MODES, Ids, by_position, document_bits, marked_bits, surprisal
from titans_runtime.arrays import Array, FloatArray

VOCABULARY = 256


@dataclass
class Answer:
    outputs: FloatArray


@dataclass
class Known:
    """A stream that knows what it has read, and is sure of every token with the number of tokens it has read."""

    read: list[int] = field(default_factory=list)
    uniform: bool = False

    def feed(self, inputs: Array, all_outputs: bool = False) -> Answer:
        outputs = np.zeros((*inputs.shape, VOCABULARY), np.float32)
        for i, token in enumerate(inputs[0]):
            self.read.append(int(token))
            if not self.uniform:
                outputs[:, i, len(self.read)] = 100
        return Answer(outputs if all_outputs else outputs[:, -1:])

    def fork(self) -> Known:
        return Known(list(self.read), self.uniform)

    def reset(self) -> None:
        self.read = []


def test_a_uniform_model_needs_eight_bits_per_byte_everywhere() -> None:
    tokens: Ids = np.arange(1000) % VOCABULARY
    bits = {mode: [document_bits(Known(uniform=True), tokens, mode, window=64, frozen_after=200)] for mode in MODES}
    for bucket in by_position(bits):
        assert (bucket.kept, bucket.reset, bucket.frozen, bucket.writes_off) == pytest.approx((8.0, 8.0, 8.0, 8.0))


def test_each_mode_has_read_what_it_says() -> None:
    """The stream's answer is how much it has read, so a document of those numbers costs nothing."""
    frozen = [*range(1, 5), *([5, 6, 7, 5, 6, 7, 5])]  # after 4 tokens, windows of 3 that all stand at 4
    for mode, expected in (("kept", range(1, 12)), ("reset", [1, 2, 3] * 3 + [1, 2]), ("frozen", frozen)):
        tokens: Ids = np.array([0, *expected])
        bits = document_bits(Known(), tokens, mode, window=3, frozen_after=4)
        assert bits.shape == (11,)
        assert bits.max() < 1e-9, mode


@settings(deadline=None, max_examples=30)
@given(length=st.integers(2, 2000))
def test_buckets_hold_every_predicted_token_once(length: int) -> None:
    bits = {mode: [np.ones(length - 1), np.ones(1)] for mode in MODES}
    buckets = by_position(bits)
    assert sum(bucket.tokens for bucket in buckets) == length
    assert [bucket.stop for bucket in buckets[:-1]] == [bucket.start for bucket in buckets[1:]]
    assert (buckets[0].start, buckets[-1].stop) == (1, length)


def test_bits_worked_out_by_hand() -> None:
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]], np.float32))
    assert surprisal(logits, np.array([0, 1])) == pytest.approx([1.0, 3.0])


def test_only_marked_tokens_are_counted() -> None:
    tokens = np.array([[0, 1, 9, 3]])
    marked = np.array([[False, True, True, False]])
    bits = marked_bits(Known(), tokens, marked)
    assert bits[0, 1] < 1e-9 < 100 < bits[0, 2]
    assert (bits[~marked] == 0).all()
