"""Who owns what: sessions, seats, states, marks and futures used where they do not belong are refused, and nobody's
memory is read or written by a neighbour."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.toy import C
from titans_runtime import InputError, Model, Session, load
from titans_runtime.serving.batch import Batch, BatchSession
from titans_runtime.serving.lane_table import InLane
from titans_runtime.state.calls import CallInputs

CLOSE = 1e-5
SECRET, MINE = [83, 69, 67, 82, 69, 84], [65, 65, 65, 65, 65, 65]


@pytest.fixture
def batches(toy_model: Model) -> Iterator[tuple[Batch, Batch]]:
    with toy_model.batch(lanes=4) as first, toy_model.batch(lanes=4) as second:
        yield first, second


def seated(batch: Batch, tokens: list[int], count: int = 4) -> list[BatchSession]:
    """Sessions that sit in lanes after these tokens."""
    sessions = [batch.session() for _ in range(count)]
    for token in tokens:
        batch.feed(sessions, [[token]] * count)
    assert isinstance(sessions[0]._stream.now.state, InLane)
    return sessions


def assert_stands(model: Model, session: Session, tokens: list[int]) -> None:
    """The session consumed these tokens and nothing else."""
    assert session.position == len(tokens)
    alone = model.session()
    alone.feed(tokens)
    np.testing.assert_allclose(session.feed([2]), alone.feed([2]), rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("place", range(4))
def test_a_session_of_another_batch_is_refused_and_no_stream_is_touched(
    toy_model: Model, batches: tuple[Batch, Batch], place: int
) -> None:
    first, second = batches
    mine, theirs = seated(first, MINE), seated(second, SECRET)
    mixed = [*theirs[:place], mine[place], *theirs[place + 1 :]]
    with pytest.raises(InputError, match=r"of another batch.*restore_bytes"):
        second.feed(mixed, [[1]] * 4)
    for session in mine:
        assert_stands(toy_model, session, MINE)
    for session in theirs:
        assert_stands(toy_model, session, SECRET)


def test_a_session_named_twice_or_of_no_batch_is_refused_before_anything_is_fed(
    toy_model: Model, batches: tuple[Batch, Batch]
) -> None:
    session, other = seated(batches[0], MINE, 2)
    with pytest.raises(InputError, match="named twice"):
        batches[0].feed([session, other, session], [[1]] * 3)
    for stranger in (toy_model.session(), None, "alice"):
        with pytest.raises(InputError, match=r"batch\.session\(\)"):
            batches[0].feed([other, stranger], [[1]] * 2)  # type: ignore[list-item]
    assert_stands(toy_model, session, MINE)
    assert_stands(toy_model, other, MINE)


def test_a_seat_is_of_one_batch_wherever_its_state_is_taken_to(toy_model: Model, batches: tuple[Batch, Batch]) -> None:
    """Also where somebody goes behind a session's back."""
    first, second = batches
    mine, theirs = seated(first, MINE), seated(second, SECRET)
    stranger = second.session()
    stranger._stream.now = mine[0]._stream.now
    for use in (lambda: stranger.feed([1]), stranger.fork, stranger.mark, stranger.to_bytes, lambda: stranger.stats):
        with pytest.raises(InputError, match="another batch"):
            use()
    with pytest.raises(InputError, match="another batch"):
        second._worker._scheduler.table.drop(mine[0]._stream.now.state.slot)  # type: ignore[attr-defined]
    assert_stands(toy_model, mine[0], MINE)
    for session in theirs:
        assert_stands(toy_model, session, SECRET)


def test_forks_and_restores_stay_with_the_batch_that_made_them(toy_model: Model, batches: tuple[Batch, Batch]) -> None:
    first, second = batches
    branch = seated(first, MINE)[0].fork()
    assert isinstance(branch, BatchSession)
    with pytest.raises(InputError, match="another batch"):
        second.feed([branch], [[1]])
    moved = second.restore_bytes(branch.to_bytes())  # the remedy
    second.feed([moved], [[1]])
    assert_stands(toy_model, moved, [*MINE, 1])
    first.feed([branch], [[1]])
    assert_stands(toy_model, branch, [*MINE, 1])


def test_a_mark_serves_every_session_of_its_model_and_none_of_another(
    toy_model: Model, toy_bundle: Path, batches: tuple[Batch, Batch]
) -> None:
    mark = seated(batches[0], MINE)[0].mark()
    for session in (toy_model.session(), batches[0].session(), batches[1].session()):
        session.rewind(mark)
        assert_stands(toy_model, session, MINE)
    again = load(toy_bundle, threads=1)  # its memory is laid out and appended to by itself
    with again.batch() as elsewhere:
        for session in (again.session(), elsewhere.session()):
            session.feed(SECRET)
            with pytest.raises(InputError, match=r"loaded another time.*restore_bytes"):
                session.rewind(mark)
            assert_stands(again, session, SECRET)
    for wrong in (None, "mark", toy_model.session(), mark.snapshot):
        with pytest.raises(InputError, match=r"mark\(\)"):
            toy_model.session().rewind(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("other", ["loaded again", "other width"])
def test_a_state_is_taken_by_no_other_backend_and_no_other_number_of_streams(
    toy_model: Model, toy_bundle: Path, other: str
) -> None:
    session = toy_model.session()
    session.feed(MINE)
    state = session._stream.now.state
    backend = load(toy_bundle, threads=1)._backend if other == "loaded again" else toy_model._backend
    batch = 1 if other == "loaded again" else 2
    step = toy_model.manifest.graph("step")
    assert step is not None
    with backend.executor(batch) as executor, pytest.raises(InputError, match="another loaded model"):
        executor.run(step, state, CallInputs(np.zeros((batch, 1), np.int64), 1))
    if other == "loaded again":
        with pytest.raises(InputError, match="another loaded model"):
            backend.read(state)
        with pytest.raises(InputError, match="another loaded model"):
            backend.lanes(2).seat(0, state)
    assert_stands(toy_model, session, MINE)


@pytest.mark.parametrize("meddle", ["set_result", "set_exception", "cancel", "callback"])
@pytest.mark.parametrize("length", [1, 3 * C])
def test_a_future_that_its_holder_meddles_with_harms_no_stream(
    toy_model: Model, batches: tuple[Batch, Batch], meddle: str, length: int
) -> None:
    sessions = seated(batches[0], MINE, 3)

    def raises(_: Future[Any]) -> None:
        raise SystemExit

    futures = [session.submit([7] * length) for session in sessions]
    if meddle == "callback":
        futures[1].add_done_callback(raises)
    elif meddle == "cancel":
        futures[1].cancel()
    elif meddle == "set_result":
        futures[1].set_result(np.zeros(1, np.float32))
    else:
        futures[1].set_exception(ValueError("mine"))
    for future in (futures[0], futures[2]):
        future.result(60)
    batches[0].feed([batches[0].session()], [[1]])  # one more round: what the batch had begun has ended
    for session in (sessions[0], sessions[2]):
        assert_stands(toy_model, session, MINE + [7] * length)
    moved = sessions[1].position > len(MINE)
    assert_stands(toy_model, sessions[1], MINE + [7] * length * moved)


def test_a_closed_batch_lets_go_of_every_state_and_takes_none(toy_model: Model) -> None:
    batch = toy_model.batch(lanes=4)
    sessions = seated(batch, MINE)
    batch.close()
    other = toy_model.batch(lanes=4)
    with pytest.raises(InputError, match="another batch"):
        other.feed(sessions, [[1]] * 4)
    for session in sessions:
        assert_stands(toy_model, other.restore_bytes(session.to_bytes()), MINE)
    other.close()
