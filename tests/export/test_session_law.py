"""Saving, forking and rewinding, on every variant and input kind: bitwise what an undisturbed session would have done.

The slow twin of a session is its history: the pieces it was fed, fed again to a session that does nothing else.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

import titans_runtime
from tests.export.conftest import Exported
from titans_runtime import Mark, Model, Session
from titans_runtime.arrays import Array

CLOSE = 1e-5  # a batched product sums in another order
CUTS = (1, 7, 16, 29, 40, 64)  # inside chunks and on their borders; a chunk is 16 tokens


def piece(continuous: bool, length: int, seed: int) -> Array:
    random = np.random.default_rng(seed)
    if continuous:
        return random.standard_normal((length, 3), dtype=np.float32)
    return random.integers(0, 50, length)


@dataclass
class Stream:
    """A session and the pieces it was fed since its beginning."""

    session: Session
    history: list[tuple[int, int]] = field(default_factory=list)


class Lives(RuleBasedStateMachine):
    """Sessions of one model that are fed, forked, marked, rewound, saved, restored and reset in any order."""

    model: Model
    continuous: bool
    streams = Bundle("streams")
    marks = Bundle("marks")

    def __init__(self) -> None:
        super().__init__()
        self.all: list[Stream] = []

    def keep(self, stream: Stream) -> Stream:
        self.all.append(stream)
        return stream

    @initialize(target=streams)
    def begin(self) -> Stream:
        return self.keep(Stream(self.model.session()))

    @rule(stream=streams, length=st.sampled_from([1, 1, 1, 2, 5, 16, 23, 40]), seed=st.integers(0, 9))
    def feed(self, stream: Stream, length: int, seed: int) -> None:
        stream.session.feed(piece(self.continuous, length, seed))
        stream.history.append((length, seed))

    @rule(target=streams, stream=streams)
    def fork(self, stream: Stream) -> Stream:
        return self.keep(Stream(stream.session.fork(), list(stream.history)))

    @rule(target=streams, stream=streams, compress=st.booleans())
    def restore(self, stream: Stream, compress: bool) -> Stream:
        data = stream.session.to_bytes(compress=compress)
        return self.keep(Stream(self.model.restore_bytes(data), list(stream.history)))

    @rule(target=marks, stream=streams)
    def mark(self, stream: Stream) -> tuple[Mark, list[tuple[int, int]]]:
        return stream.session.mark(), list(stream.history)

    @rule(stream=streams, mark=marks)
    def rewind(self, stream: Stream, mark: tuple[Mark, list[tuple[int, int]]]) -> None:
        stream.session.rewind(mark[0])
        stream.history = list(mark[1])

    @rule(stream=streams)
    def reset(self, stream: Stream) -> None:
        stream.session.reset()
        stream.history = []

    def teardown(self) -> None:
        for stream in self.all:
            twin = self.model.session()
            for length, seed in stream.history:
                twin.feed(piece(self.continuous, length, seed))
            assert stream.session.to_bytes() == twin.to_bytes()
            following = piece(self.continuous, 19, 99)
            np.testing.assert_array_equal(
                stream.session.feed(following, all_logits=True), twin.feed(following, all_logits=True)
            )


@pytest.mark.slow
def test_fork_mark_rewind_save_and_restore_in_any_order_equal_never_having_done_so(exported: Exported) -> None:
    Lives.model = titans_runtime.load(exported.path, provider="cpu", threads=1)
    Lives.continuous = exported.continuous
    run_state_machine_as_test(
        Lives,
        settings=settings(
            max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


CONTINUE = """
import hashlib, json, sys
import numpy as np
import titans_runtime
model = titans_runtime.load(sys.argv[1], provider="cpu", threads=1)
told = {}
for path in sys.argv[3:]:
    session = model.restore(path)
    outputs = [session.feed(x, all_logits=True) for x in np.split(np.load(sys.argv[2]), [9, 10, 37])]
    told[path] = [hashlib.sha256(np.concatenate(outputs).tobytes() + session.to_bytes()).hexdigest(), session.position]
print(json.dumps(told))
"""


def test_a_session_restored_in_a_new_process_continues_as_if_it_had_never_stopped(
    exported: Exported, tmp_path: Path
) -> None:
    model = titans_runtime.load(exported.path, provider="cpu", threads=1)
    following = piece(exported.continuous, 70, 1)
    np.save(tmp_path / "following.npy", following)
    expected = {}
    for cut in CUTS:
        session = model.session()
        session.feed(piece(exported.continuous, cut, 0))
        path = tmp_path / f"{cut}.state"
        session.save(path, compress=cut % 2 == 0)
        outputs = [session.feed(x, all_logits=True) for x in np.split(following, [9, 10, 37])]
        digest = hashlib.sha256(np.concatenate(outputs).tobytes() + session.to_bytes()).hexdigest()
        expected[str(path)] = [digest, cut + 70]
    arguments = [sys.executable, "-c", CONTINUE, exported.path, tmp_path / "following.npy", *expected]
    done = subprocess.run([str(a) for a in arguments], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == expected


@pytest.mark.slow
@pytest.mark.parametrize("exported", ["lmm-tokens", "mal-continuous", "mag-tokens", "mac-tokens"], indirect=True)
def test_64_sessions_of_random_lengths_from_8_threads_with_room_for_8_each_equal_their_solo_run(
    exported: Exported,
) -> None:
    model = titans_runtime.load(exported.path, provider="cpu", threads=1)

    def live(session: Session, number: int) -> list[Array]:
        random = np.random.default_rng(number)
        lengths = random.choice([1, 1, 1, 1, 2, 9, 16, 40], random.integers(3, 12))
        return [
            session.feed(piece(exported.continuous, int(length), 100 * number + i), all_logits=True)
            for i, length in enumerate(lengths)
        ]

    with model.batch(lanes=16, resident=8) as batch:
        sessions = [batch.session() for _ in range(64)]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(live, sessions, range(64)))
        assert batch.resident <= 8
        assert batch.spills >= 64 - 8
        for number, session in enumerate(sessions):
            alone = model.session()
            for ours, theirs in zip(together[number], live(alone, number), strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=CLOSE, atol=CLOSE)
            assert session.position == alone.position
