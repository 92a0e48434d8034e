"""Ctrl-C between any two instructions: a call completes, or the session is as it was; nobody waits or refuses after."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.interrupts import Places, interrupted
from tests.runtime.toy import C
from titans_runtime import Model, SamplingOptions, Session, TitansError, load
from titans_runtime.serving.batch import Batch, BatchSession

CLOSE = 1e-5
GREEDY = SamplingOptions(temperature=0)
BEFORE = [7, 8, 9, 10, 11]
LONG = [3] * (C + 2)  # extend, commit, prefill's leftovers
PLACES: list[Places] = ["signals", "anywhere"]
_STRIDE = {
    "signals": 1,
    "anywhere": 7,
}  # of places tried; an odd one, so that over the loops of a call it meets all kinds


@pytest.fixture(scope="module")
def model(toy_bundle: Path) -> Model:
    return load(toy_bundle, threads=1)


def expected(model: Model, tokens: list[int]) -> np.ndarray:
    """Logits of a session that consumed these tokens, and one more."""
    session = model.session()
    if tokens:
        session.feed(tokens)
    return session.feed([1])


def tried(
    make: Callable[[], Session],
    call: Callable[[Session], Any],
    check: Callable[[Session, bool], None],
    places: Places,
    stride: int = 1,
) -> int:
    """Interrupt `call` on a fresh session at every place it has, or so many apart; how many were tried."""
    call(make())  # what is set up once is set up
    stride *= _STRIDE[places]
    for at in range(1, 1_000_000, stride):
        session = make()
        completed = interrupted(lambda: call(session), at, places)  # noqa: B023
        if completed is None:
            return at // stride
        check(session, completed)
    raise AssertionError("a call without end")


@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("kind", ["model", "batch"])
@pytest.mark.parametrize("tokens", [[3], LONG])
def test_an_interrupted_feed_is_done_or_has_not_been(
    model: Model, kind: str, places: Places, tokens: list[int]
) -> None:
    before, after = expected(model, BEFORE), expected(model, BEFORE + tokens)
    with model.batch(lanes=2) as batch:

        def make() -> Session:
            session = model.session() if kind == "model" else batch.session()
            session.feed(BEFORE)
            return session

        def check(session: Session, completed: bool) -> None:
            assert session.position in (len(BEFORE), len(BEFORE) + len(tokens))
            moved = session.position > len(BEFORE)
            assert moved or not completed
            session.mark()
            session.fork()
            np.testing.assert_allclose(session.feed([1]), after if moved else before, rtol=CLOSE, atol=CLOSE)

        assert tried(make, lambda session: session.feed(tokens), check, places) > 50


@pytest.mark.parametrize("places", PLACES)
def test_interrupted_feeds_of_seated_sessions_leave_each_before_or_after(model: Model, places: Places) -> None:
    """Two decoders in lanes, one of them at its chunk's end."""
    histories = [[5] * (C - 1), [6] * 3]
    answers = [[expected(model, h), expected(model, [*h, 2])] for h in histories]
    with model.batch(lanes=2) as batch:
        beginnings = [batch.session() for _ in histories]
        for session, history in zip(beginnings, histories, strict=True):
            session.feed(history[:-1])
        batch.feed(beginnings, [[5], [6]])
        marks = [session.mark() for session in beginnings]
        members: list[BatchSession] = [batch.session() for _ in histories]

        def call(_: Session) -> None:
            batch.feed(members, [[2], [2]])

        def make() -> Session:
            for session, mark in zip(members, marks, strict=True):
                session.rewind(mark)
            return members[0]

        def check(_: Session, completed: bool) -> None:
            for session, history, (before, after) in zip(members, histories, answers, strict=True):
                moved = session.position > len(history)
                assert moved or not completed
                told = session.feed([1])
                np.testing.assert_allclose(told, after if moved else before, rtol=CLOSE, atol=CLOSE)

        assert tried(make, call, check, places) > 50


CALLS: dict[str, Callable[[Session], Any]] = {
    "fork": lambda session: session.fork(),
    "mark": lambda session: session.mark(),
    "rewind": lambda session: session.rewind(session.mark()),
    "to_bytes": lambda session: session.to_bytes(),
    "stats": lambda session: session.stats,
}


@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("kind", ["model", "batch"])
@pytest.mark.parametrize("name", CALLS)
def test_an_interrupted_call_that_changes_nothing_has_changed_nothing(
    model: Model, kind: str, places: Places, name: str
) -> None:
    same = expected(model, BEFORE)
    with model.batch(lanes=2, resident=4) as batch:
        beginning = model.session() if kind == "model" else batch.session()
        beginning.feed(BEFORE)
        mark = beginning.mark()
        session = model.session() if kind == "model" else batch.session()

        def make() -> Session:
            session.rewind(mark)
            return session

        def check(session: Session, completed: bool) -> None:
            assert session.position == len(BEFORE)
            np.testing.assert_allclose(session.feed([1]), same, rtol=CLOSE, atol=CLOSE)

        assert tried(make, CALLS[name], check, places) > 5


@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("kind", ["model", "batch"])
def test_an_interrupted_reset_is_done_or_has_not_been_also_of_a_poisoned_session(
    model: Model, kind: str, places: Places
) -> None:
    with model.batch(lanes=2) as batch:

        def make() -> Session:
            session = model.session() if kind == "model" else batch.session()
            session.feed(BEFORE)
            session._stream.now = replace(session._stream.now, poison="it met numbers that are not finite")
            return session

        def check(session: Session, completed: bool) -> None:
            assert (session.position, session._stream.now.poison is None) in ((0, True), (len(BEFORE), False))
            assert session.position == 0 or not completed
            session.reset()
            session.feed([1])

        tried(make, lambda session: session.reset(), check, places)


@pytest.mark.parametrize("kind", ["model", "batch"])
def test_an_interrupted_generation_stands_after_its_prompt_or_a_token(model: Model, kind: str) -> None:
    whole = list(model.session().generate_tokens(BEFORE, 3, GREEDY))
    answers = {n: expected(model, (BEFORE + whole)[:n]) for n in (0, 5, 6, 7, 8)}
    with model.batch(lanes=2) as batch:

        def check(session: Session, completed: bool) -> None:
            same = answers[session.position]
            np.testing.assert_allclose(session.feed([1]), same, rtol=CLOSE, atol=CLOSE)

        def make() -> Session:
            return model.session() if kind == "model" else batch.session()

        tried(make, lambda session: list(session.generate_tokens(BEFORE, 3, GREEDY)), check, "signals")


def test_an_interrupted_save_leaves_the_old_file_or_the_new_one_and_nothing_else(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "alice.state"
    old, new = model.session(), model.session()
    old.feed(BEFORE)
    new.feed(LONG)

    def make() -> Session:
        old.save(path, force=True)
        return new

    def check(session: Session, completed: bool) -> None:
        assert [file.name for file in tmp_path.iterdir()] == ["alice.state"]
        data = path.read_bytes()
        assert data == new.to_bytes() if completed else data in (new.to_bytes(), old.to_bytes())

    tried(make, lambda session: session.save(path, force=True), check, "signals", stride=5)


@pytest.mark.parametrize("where", ["model", "batch"])
def test_an_interrupted_restore_leaves_nothing_behind_that_is_in_the_way(model: Model, where: str) -> None:
    session = model.session()
    session.feed(BEFORE)
    data, same = session.to_bytes(), expected(model, BEFORE)
    with model.batch(lanes=2, resident=2) as batch:
        place = model if where == "model" else batch

        def check(_: Session, completed: bool) -> None:
            np.testing.assert_allclose(place.restore_bytes(data).feed([1]), same, rtol=CLOSE, atol=CLOSE)

        tried(lambda: session, lambda _: place.restore_bytes(data), check, "signals", stride=5)


@pytest.mark.parametrize("places", PLACES)
def test_an_interrupted_submit_or_wait_for_its_future_holds_nobody_up(model: Model, places: Places) -> None:
    before, after = expected(model, BEFORE), expected(model, [*BEFORE, 3])
    with model.batch(lanes=2) as batch:

        def make() -> Session:
            session = batch.session()
            session.feed(BEFORE)
            return session

        def call(session: Session) -> None:
            assert isinstance(session, BatchSession)
            session.submit([3]).result()

        def check(session: Session, completed: bool) -> None:
            with contextlib.suppress(TitansError):  # a feed whose future nobody has goes on for a moment
                while session.position == len(BEFORE):
                    session.mark()
                    break
            batch.session().feed([1])  # the batch's thread waits for nobody
            wait_until_free(session)
            told = session.feed([1])
            moved = session.position > len(BEFORE) + 1
            np.testing.assert_allclose(told, after if moved else before, rtol=CLOSE, atol=CLOSE)

        tried(make, call, check, places)


def wait_until_free(session: Session) -> None:
    """Until a feed that nobody waits for has ended: the batch answers questions in the order in which they come."""
    assert isinstance(session, BatchSession)
    for _ in range(1000):
        session._shared.feeder._ask(lambda: None)
        with contextlib.suppress(TitansError):
            session.mark()
            return
    raise AssertionError("the session is in use for ever")


@pytest.mark.parametrize("places", PLACES)
def test_an_interrupted_close_is_finished_by_the_next(model: Model, places: Places) -> None:
    for at in range(1, 1_000_000):
        batch = model.batch(lanes=2)
        session = batch.session()
        session.feed(BEFORE)
        completed = interrupted(batch.close, at, places)
        batch.close()
        assert not batch._worker._thread.is_alive()
        assert session.position == len(BEFORE)
        assert model.restore_bytes(session.to_bytes()).position == len(BEFORE)
        if completed is None:
            break


@pytest.mark.parametrize("places", PLACES)
def test_an_interrupt_while_a_batch_is_made_leaves_no_thread_and_no_folder(
    model: Model, places: Places, tmp_path: Path
) -> None:
    for at in range(1, 1_000_000, 7 * _STRIDE[places]):
        made: list[Batch] = []
        done = interrupted(lambda: made.append(model.batch(resident=1, folder=tmp_path)), at, places)  # noqa: B023
        for batch in made:
            batch.close()
        made.clear()
        if done is None:
            break
    del batch
    for thread in threading.enumerate():
        if thread.name == "titans-batch":
            thread.join(60)
            assert not thread.is_alive()
    gc.collect()
    if places == "signals":
        assert list(tmp_path.iterdir()) == []


@pytest.fixture(autouse=True)
def _nobody_waits_for_ever() -> Iterator[None]:
    """A defect here is a hang: say where, and end."""
    import faulthandler

    faulthandler.dump_traceback_later(30, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
