"""Batches: every session equals its solo run, whoever it shares the machine with, and nothing is lost on the way."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.faults import Sabotage, boom, standing_still
from tests.runtime.toy import FEATURES, C, Toy, write_toy
from titans_runtime import (
    ExecutionError,
    FeedEvent,
    InputError,
    Model,
    NonFiniteError,
    SamplingOptions,
    Session,
    SessionBusyError,
    SessionPoisonedError,
    StateError,
    TitansError,
    load,
)
from titans_runtime.serving.batch import Batch, BatchSession
from titans_runtime.serving.completion import Outcome
from titans_runtime.serving.offload import OnDisk
from titans_runtime.stream.run import Run

CLOSE = 1e-5
GREEDY = SamplingOptions(temperature=0)


@pytest.fixture
def batch(toy_model: Model) -> Iterator[Batch]:
    with toy_model.batch(lanes=4) as batch:
        yield batch


def tensors(session: Session) -> dict[str, np.ndarray]:
    backend = session._shared.feeder.backend
    return backend.read(session._shared.feeder.home(session._stream.now.state))


def assert_equal_to_solo(session: Session, alone: Session) -> None:
    """Position, state and future agree."""
    assert session.position == alone.position
    ours, theirs = tensors(session), tensors(alone)
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=CLOSE, atol=CLOSE)
    np.testing.assert_allclose(session.feed([1, 2, 3]), alone.feed([1, 2, 3]), rtol=CLOSE, atol=CLOSE)


def drive(session: Session, seed: int, calls: int) -> list[np.ndarray]:
    """Feed a session random pieces, mostly single tokens; returns every call's logits."""
    random = np.random.default_rng(seed)
    told = []
    for _ in range(calls):
        length = int(random.choice([1, 1, 1, 1, 1, 2, 5, C, 3 * C + 2]))
        told.append(session.feed(random.integers(0, 256, length), all_logits=True))
    return told


@pytest.mark.parametrize(("resident", "threads"), [(None, 1), (None, 3), (8, 1), (3, 1)])
def test_64_sessions_from_8_threads_each_equal_their_solo_run(
    toy_bundle: Path, resident: int | None, threads: int
) -> None:
    toy_model = load(toy_bundle, threads=threads)
    calls = np.random.default_rng(0).integers(3, 40, 64)
    with toy_model.batch(lanes=16, resident=resident) as batch:
        sessions = [batch.session() for _ in range(64)]
        with ThreadPoolExecutor(8) as pool:
            told = list(pool.map(drive, sessions, range(64), calls))
        if resident is not None:
            assert batch.resident <= resident
            assert batch.spills > 64 - resident - 1
        for i, session in enumerate(sessions):
            alone = toy_model.session()
            for ours, theirs in zip(told[i], drive(alone, i, calls[i]), strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=CLOSE, atol=CLOSE)
            assert session.surprise_by_layer == pytest.approx(alone.surprise_by_layer, rel=1e-4)
            assert session.stats.commits == alone.stats.commits
            assert_equal_to_solo(session, alone)


@pytest.mark.parametrize("resident", [None, 2])
def test_many_feeds_at_once_from_one_thread(toy_model: Model, resident: int | None) -> None:
    random = np.random.default_rng(1)
    tokens = random.integers(0, 256, (10, 5 * C))
    with toy_model.batch(lanes=4, resident=resident) as batch:
        sessions = [batch.session() for _ in range(10)]
        together = [batch.feed(sessions, tokens[:, t : t + 1]) for t in range(5 * C)]
        for i, session in enumerate(sessions):
            alone = toy_model.session()
            for t in range(5 * C):
                np.testing.assert_allclose(together[t][i], alone.feed(tokens[i, t : t + 1]), rtol=CLOSE, atol=CLOSE)
            assert_equal_to_solo(session, alone)


def test_a_continuous_model_runs_in_a_batch(series_model: Model) -> None:
    inputs = np.random.default_rng(2).standard_normal((3, 3 * C, FEATURES)).astype(np.float32)
    with series_model.batch(lanes=2) as batch:
        sessions = [batch.session() for _ in range(3)]
        told = [batch.feed(sessions, inputs[:, t : t + 1]) for t in range(3 * C)]
    for i in range(3):
        alone = series_model.session()
        for t in range(3 * C):
            expected = alone.feed(inputs[i, t : t + 1])
            np.testing.assert_allclose(told[t][i], expected, rtol=CLOSE, atol=CLOSE)


def test_sessions_join_and_leave_at_any_token(toy_model: Model, batch: Batch) -> None:
    random = np.random.default_rng(3)
    histories: list[tuple[Session, list[int]]] = []
    for t in range(60):
        if t % 3 == 0 and len(histories) < 12:
            histories.append((batch.session(), []))
        if t % 7 == 6:
            histories.pop(int(random.integers(len(histories))))
        tokens = random.integers(0, 256, (len(histories), 1))
        batch.feed([session for session, _ in histories], tokens)  # type: ignore[misc]
        for (_, history), token in zip(histories, tokens, strict=True):
            history.append(int(token[0]))
    assert len(histories) > 3
    for session, history in histories:
        alone = toy_model.session()
        for token in history:
            alone.feed([token])
        assert_equal_to_solo(session, alone)


def test_generating_threads_get_what_they_would_get_alone(toy_model: Model, batch: Batch) -> None:
    def generate(session: Session, i: int) -> list[int]:
        return list(session.generate_tokens([i, i + 1], 30, SamplingOptions(temperature=1, seed=i)))

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(generate, [batch.session() for _ in range(6)], range(6)))
    assert found == [generate(toy_model.session(), i) for i in range(6)]


def test_a_batch_session_forks_marks_rewinds_saves_and_restores(toy_model: Model, batch: Batch) -> None:
    session, other = batch.session("alice"), batch.session()
    for t in range(C + 3):  # two decoders, so that they sit in lanes
        batch.feed([session, other], [[t], [t + 1]])
    mark, data, fork = session.mark(), session.to_bytes(), session.fork("branch")
    for _ in range(C + 3):
        batch.feed([session, fork, other], [[1], [2], [3]])
    session.rewind(mark)
    restored = batch.restore_bytes(data)
    outside = toy_model.restore_bytes(data)
    alone, branch = toy_model.session(), toy_model.session()
    for t in range(C + 3):
        alone.feed([t])
        branch.feed([t])
    for _ in range(C + 3):
        branch.feed([2])
    assert_equal_to_solo(fork, branch)
    for copy in (session, restored, outside):
        assert_equal_to_solo(copy, alone.fork())


def test_spilled_sessions_come_back_and_their_files_go(toy_model: Model, tmp_path: Path) -> None:
    with toy_model.batch(lanes=2, resident=2, folder=tmp_path) as batch:
        sessions = [batch.session() for _ in range(6)]
        for i, session in enumerate(sessions):
            session.feed([i] * (C + i))
        files = list(tmp_path.rglob("*.state"))
        assert (batch.resident, len(files)) == (2, 4)
        assert sum(isinstance(session._stream.now.state, OnDisk) for session in sessions) == 4
        assert sessions[0].stats.position == C  # reading does not bring it back for good
        for i, session in enumerate(sessions):
            alone = toy_model.session()
            alone.feed([i] * (C + i))
            assert_equal_to_solo(session, alone)
        del session, alone
        sessions.clear()
    assert list(tmp_path.rglob("*.state")) == []


@pytest.mark.parametrize("use", ["mark", "rewind", "fork"])
def test_the_limit_holds_whatever_brings_a_state_into_memory(toy_model: Model, use: str) -> None:
    with toy_model.batch(resident=2) as batch:
        sessions = [batch.session() for _ in range(8)]
        for number, session in enumerate(sessions):
            session.feed([number, 1, 2])
        there = toy_model.session().mark()
        for session in sessions:
            if use == "mark":
                session.mark()
            elif use == "fork":
                session.fork()
            else:
                session.rewind(there)
        in_memory = [session for session in sessions if not isinstance(session._stream.now.state, OnDisk)]
        assert len(in_memory) <= 2
        assert batch.resident <= 2


def test_a_folder_for_spilling_that_is_not_there_is_a_clear_error(toy_model: Model, tmp_path: Path) -> None:
    with pytest.raises(StateError, match="check the path"):
        toy_model.batch(resident=2, folder=tmp_path / "nowhere")


def test_a_spill_file_that_was_damaged_is_an_error_of_that_session_alone(toy_model: Model, tmp_path: Path) -> None:
    with toy_model.batch(resident=1, folder=tmp_path) as batch:
        first, second = batch.session(), batch.session()
        first.feed([1, 2, 3])
        second.feed([1, 2, 3])
        (file,) = tmp_path.rglob("*.state")
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(StateError, match="damaged"):
            first.feed([4])
        second.feed([4])
        assert second.position == 4
        first.reset()
        first.feed([1])


def test_a_full_disk_at_spilling_loses_nothing(
    toy_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with toy_model.batch(resident=1, folder=tmp_path) as batch:
        first, second = batch.session(), batch.session()
        first.feed([1, 2, 3])

        def full(*_: object, **__: object) -> None:
            raise StateError("x cannot be written (No space left on device)", "free some space or choose another place")

        with monkeypatch.context() as patched:
            patched.setattr("titans_runtime.serving.offload.write_atomically", full)
            with pytest.raises(StateError, match="No space left"):
                second.feed([1])
        first.feed([4])
        second.feed([1])
        alone = toy_model.session()
        alone.feed([1, 2, 3])
        alone.feed([4])
        assert_equal_to_solo(first, alone)


@pytest.mark.parametrize("lanes", [4, 8])
def test_a_neighbour_whose_numbers_go_bad_is_poisoned_alone(tmp_path: Path, lanes: int) -> None:
    class Trap(Toy):
        """Token 13 has an embedding of infinity."""

        def weights(self) -> dict[str, np.ndarray]:
            weights = super().weights()
            weights["embedding"][13] = np.inf
            return weights

    model = load(write_toy(tmp_path / "toy", Trap()), threads=2)
    with model.batch(lanes=lanes) as batch:
        sessions = [batch.session() for _ in range(lanes)]
        twins = [model.session() for _ in range(lanes)]
        for t in range(C + 2):
            batch.feed(sessions, [[t]] * lanes)
            for twin in twins:
                twin.feed([t])
        with pytest.raises(NonFiniteError, match=r"token 10, first in state '0.trace'"):
            batch.feed(sessions, [[1], [13], *[[t] for t in range(2, lanes)]])
        with pytest.raises(SessionPoisonedError):
            sessions[1].feed([1])
        sessions[1].rewind(sessions[1].mark())
        for i, token in enumerate([1, None, *range(2, lanes)]):
            if token is not None:
                twins[i].feed([token])
            assert_equal_to_solo(sessions[i], twins[i])


@pytest.mark.parametrize("steps", [1, 2, 3, C, C + 1])
def test_an_observer_that_raises_undoes_the_step_of_its_session_alone(toy_bundle: Path, steps: int) -> None:
    model = load(toy_bundle, threads=1)
    refuse: list[str] = []

    def observer(event: FeedEvent) -> None:
        if event.session in refuse:
            raise ValueError("no")

    model.observe(observer)
    with model.batch(lanes=2) as batch:
        first, second = batch.session("first"), batch.session("second")
        twins = [model.session(), model.session()]
        for t in range(steps - 1):
            batch.feed([first, second], [[t], [t]])
            for twin in twins:
                twin.feed([t])
        refuse.append("second")
        with pytest.raises(ValueError, match="no"):
            batch.feed([first, second], [[7], [7]])
        refuse.clear()
        twins[0].feed([7])
        assert_equal_to_solo(first, twins[0])
        assert_equal_to_solo(second, twins[1])


@pytest.mark.parametrize("length", [1, 3 * C])
def test_a_graph_that_fails_in_a_batch_leaves_its_sessions_as_they_were(
    toy_model: Model, batch: Batch, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    sessions, alone = [batch.session(), batch.session()], toy_model.session()
    batch.feed(sessions, [[5], [5]])
    alone.feed([5])
    with monkeypatch.context() as patched:
        Sabotage(patched, 1, boom)
        with pytest.raises(ExecutionError):
            batch.feed(sessions, [[1] * length] * 2)
    failed = min(sessions, key=lambda session: session.position)
    assert_equal_to_solo(failed, alone)


def elsewhere(work: Callable[[], None]) -> None:
    """Run something on a thread of its own, to its end."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_an_engine_that_fails_loses_no_feed_and_goes_on(
    toy_model: Model, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Feeds that are queued while a round fails, and while its failure is told, all come to an end."""
    sessions = [batch.session() for _ in range(4)]
    futures: list[Future[np.ndarray]] = []
    all_submitted = threading.Event()

    def submit(session: BatchSession) -> None:
        futures.append(session.submit([1]))
        if len(futures) == 4:
            all_submitted.set()

    def no_lanes(width: int) -> None:
        if len(futures) == 2:
            elsewhere(lambda: submit(sessions[2]))  # waits in the queue when the round fails
            futures[2].add_done_callback(lambda _: elsewhere(lambda: submit(sessions[3])))
        raise MemoryError("no lanes")

    with monkeypatch.context() as patched:
        patched.setattr(toy_model._backend, "lanes", no_lanes)
        with standing_still(batch):
            for session in sessions[:2]:
                submit(session)
        assert all_submitted.wait(60)
        assert [type(future.exception(60)) for future in futures] == [MemoryError] * 4
        assert [session.position for session in sessions] == [0] * 4
    told = batch.feed(sessions, [[1]] * 4)
    np.testing.assert_allclose(told, [toy_model.session().feed([1])] * 4, rtol=CLOSE, atol=CLOSE)


def test_a_session_in_a_lane_survives_lanes_that_cannot_be_had(
    toy_model: Model, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = [batch.session() for _ in range(4)]
    alone = toy_model.session()
    for t in range(3):
        batch.feed(sessions[:2], [[t], [t]])
        alone.feed([t])
    with monkeypatch.context() as patched:
        patched.setattr(toy_model._backend, "lanes", boom)
        for _ in range(2):
            with pytest.raises(TypeError):
                batch.feed(sessions, [[5]] * 4)
    batch.feed(sessions[:2], [[6], [6]])  # as many lanes as there were
    alone.feed([6])
    for session in sessions[:2]:
        assert_equal_to_solo(session, alone.fork())


def test_a_defect_in_the_middle_of_a_step_ends_every_feed_of_it(
    toy_model: Model, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions, alone = [batch.session() for _ in range(3)], toy_model.session()

    def defect(*_: object) -> None:
        raise RuntimeError("a defect")

    with monkeypatch.context() as patched:
        patched.setattr(batch._worker._scheduler, "_finish_step", defect)
        with standing_still(batch):
            futures = [session.submit([1]) for session in sessions]
        assert [str(future.exception(60)) for future in futures] == ["a defect"] * 3
    for session in sessions:
        assert_equal_to_solo(session, alone.fork())


def test_an_interrupt_while_waiting_leaves_the_session_before_or_after_the_feed(
    toy_model: Model, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = batch.session()
    session.feed([1, 2])

    def interrupted(outcome: Outcome) -> np.ndarray:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Outcome, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.feed([3])
    assert session.position in (2, 3)
    alone = toy_model.session()
    alone.feed([1, 2])
    if session.position == 3:
        alone.feed([3])
    assert_equal_to_solo(session, alone)


def test_an_interrupted_prompt_ends_soon_and_the_session_is_as_it_was(
    toy_model: Model, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, other = batch.session(), batch.session()
    session.feed([1, 2])
    calls: list[int] = []
    advance = Run.advance

    def counted(*arguments: Any) -> None:
        calls.append(1)
        advance(*arguments)
        if len(calls) == 2:  # the caller is interrupted while its prompt is under way
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            time.sleep(0.2)

    monkeypatch.setattr(Run, "advance", counted)
    with pytest.raises(KeyboardInterrupt):
        batch.feed([session, other], [[3] * (400 * C), [4] * (400 * C)])
    assert len(calls) < 400
    assert (session.position, other.position) == (2, 0)
    alone = toy_model.session()
    alone.feed([1, 2])
    assert_equal_to_solo(session, alone)


def test_a_callback_may_queue_the_next_feed(toy_model: Model, batch: Batch) -> None:
    session, last = batch.session(), Future[None]()

    def go_on(done: Future[np.ndarray]) -> None:
        if session.position == 5:
            last.set_result(None)
        else:
            session.submit([session.position]).add_done_callback(go_on)

    session.submit([0]).add_done_callback(go_on)
    last.result(timeout=30)
    alone = toy_model.session()
    alone.feed([0, 1, 2, 3, 4])
    assert_equal_to_solo(session, alone)


def test_a_feed_that_was_not_begun_can_be_cancelled(toy_model: Model, batch: Batch) -> None:
    session = batch.session()
    with standing_still(batch):
        future = session.submit([1, 2, 3])
        with pytest.raises(SessionBusyError):
            session.submit([4])
        assert future.cancel()
        assert future.cancelled()
        again = session.submit([1])  # in use no more, although the batch has not seen the first yet
    again.result()
    assert session.position == 1


def test_an_observer_may_not_feed_its_own_batch(toy_bundle: Path) -> None:
    model = load(toy_bundle, threads=1)
    with model.batch() as batch:
        other = batch.session()
        model.observe(lambda event: other.feed([1]))  # type: ignore[arg-type,return-value]
        with pytest.raises(SessionBusyError, match="another thread"):
            batch.session().feed([1])
        with pytest.raises(SessionBusyError, match="another thread"):
            batch.feed([batch.session()], [[1]])
        assert other.position == 0


def test_a_session_of_a_batch_is_used_from_one_place_at_a_time(batch: Batch) -> None:
    session = batch.session()
    errors: list[BaseException] = []

    def work() -> None:
        for _ in range(50):
            try:
                session.feed([1])
            except SessionBusyError as error:
                errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert session.position == 200 - len(errors)


def test_a_closed_batch_says_so_and_keeps_its_sessions_states(toy_model: Model) -> None:
    batch = toy_model.batch(lanes=2)
    sessions = [batch.session(), batch.session()]
    for t in range(3):
        batch.feed(sessions, [[t], [t]])
    batch.close()
    with pytest.raises(TitansError, match="closed; restore"):
        sessions[0].feed([1])
    alone = toy_model.session()
    for t in range(3):
        alone.feed([t])
    assert_equal_to_solo(toy_model.restore_bytes(sessions[0].to_bytes()), alone)


@pytest.mark.parametrize("arguments", [{"lanes": 0}, {"resident": 0}, {"lanes": 1.5}])
def test_wrong_limits_are_refused(toy_model: Model, arguments: dict[str, int]) -> None:
    with pytest.raises(InputError, match="whole number"):
        toy_model.batch(**arguments)


def test_as_many_sessions_as_inputs(batch: Batch) -> None:
    with pytest.raises(InputError, match="1 sessions and 2 inputs"):
        batch.feed([batch.session()], [[1], [2]])


def test_a_step_does_not_wait_for_a_whole_long_prompt(batch: Batch) -> None:
    reader, decoder = batch.session(), batch.session()
    decoder.feed([1])
    prompt = reader.submit(np.zeros(2000 * C, np.int64))
    steps = 0
    while not prompt.done():
        decoder.feed([1])
        steps += 1
    assert steps > 20


@pytest.mark.parametrize("ahead", [0, 1])  # nobody; one of four, whose chunks end elsewhere
@pytest.mark.parametrize("outcome", ["done", "refused", "failed"])
def test_chunks_that_end_together_end_in_one_call_or_else_one_by_one(
    toy_model: Model, batch: Batch, monkeypatch: pytest.MonkeyPatch, ahead: int, outcome: str
) -> None:
    sessions, alone = [batch.session() for _ in range(4)], [toy_model.session() for _ in range(4)]
    for one in (*sessions[:ahead], *alone[:ahead]):
        one.feed([9])
    batch.feed(sessions, [[1]] * 4)
    lanes = batch._worker._scheduler.table.lanes
    commit, asked = lanes.commit, []

    def counted(graphs: Any, which: Any) -> bool:
        asked.append(sorted(which))
        if outcome == "failed":
            raise ExecutionError("the wide graph fails", "try again")
        return outcome == "done" and commit(graphs, which)

    monkeypatch.setattr(lanes, "commit", counted)
    for token in range(2, 3 * C):
        batch.feed(sessions, [[token]] * 4)
    assert [len(which) for which in asked] == [4 - ahead] * (len(asked))
    assert len(asked) == (3 * C - 1) // C
    for session, solo in zip(sessions, alone, strict=True):
        for token in range(1, 3 * C):
            solo.feed([token])
        assert_equal_to_solo(session, solo)


def test_a_lane_is_given_back_what_it_held_before_a_commit_of_all(toy_bundle: Path) -> None:
    model, refuse = load(toy_bundle, threads=1), False

    def observer(event: FeedEvent) -> None:
        if refuse and event.session == "refused":
            raise RuntimeError("no")

    model.observe(observer)
    with model.batch(lanes=4) as batch:
        sessions = [batch.session(name) for name in ("a", "refused", "b")]
        for token in range(C - 1):
            batch.feed(sessions, [[token]] * 3)
        before = tensors(sessions[1])
        refuse = True
        with pytest.raises(RuntimeError, match="no"):
            batch.feed(sessions, [[C - 1]] * 3)  # the chunk ends here
        refuse = False
        assert [session.position for session in sessions] == [C, C - 1, C]
        for name, value in tensors(sessions[1]).items():
            np.testing.assert_array_equal(value, before[name])
        sessions[1].feed([C - 1])
        alone = model.session()
        alone.feed(list(range(C)))
        for session in sessions:
            assert_equal_to_solo(session, alone.fork())
