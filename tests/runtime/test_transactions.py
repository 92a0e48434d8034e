"""A call either completes or leaves the session as it was, whatever stops it; and numbers gone bad poison it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.faults import Fault, Sabotage, boom, interrupt, not_finite
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
    load,
)
from titans_runtime.state.calls import CallInputs
from titans_runtime.state.executor import BoundGraph
from titans_runtime.state.host_memory import HostBlock

GREEDY = SamplingOptions(temperature=0)
TEXT = list(b"a text that is longer than three chunks of eight")


def assert_same(session: Session, other: Session) -> None:
    """Bitwise the same state, and the same future."""
    assert session.to_bytes() == other.to_bytes()
    assert session.position == other.position
    np.testing.assert_array_equal(session.surprise_by_layer, other.surprise_by_layer)
    np.testing.assert_array_equal(session.fork().feed(TEXT, all_logits=True), other.fork().feed(TEXT, all_logits=True))


@pytest.mark.parametrize("before", [3, C, C + 5])
@pytest.mark.parametrize("fail_at", [1, 2, 3, 4])
@pytest.mark.parametrize("fault", [boom, interrupt, not_finite])
def test_a_feed_that_fails_in_any_of_its_calls_leaves_the_session_where_it_was(
    toy_model: Model, monkeypatch: pytest.MonkeyPatch, before: int, fail_at: int, fault: Fault
) -> None:
    session, twin = toy_model.session(), toy_model.session()
    for stream in (session, twin):
        stream.feed(TEXT[:before])
    with monkeypatch.context() as patched:
        Sabotage(patched, fail_at, fault)
        with pytest.raises((ExecutionError, KeyboardInterrupt)):
            session.feed(TEXT)
    session.rewind(session.mark())  # out of the poison, if there is any, to where it stands
    assert_same(session, twin)


def test_an_interrupt_between_two_tokens_of_generation_keeps_what_was_generated(
    toy_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = toy_model.session()
    pieces = session.generate_tokens([1, 2, 3], 10, GREEDY)
    head = [next(pieces) for _ in range(4)]
    with monkeypatch.context() as patched:
        Sabotage(patched, 1, interrupt)
        with pytest.raises(KeyboardInterrupt):
            next(pieces)
    whole = list(toy_model.session().generate_tokens([1, 2, 3], 10, GREEDY))
    assert head + list(session.generate_tokens(None, 6, GREEDY)) == whole


def test_a_closed_generator_leaves_the_session_after_the_last_token_it_gave(toy_model: Model) -> None:
    session = toy_model.session()
    pieces = session.generate_tokens([1, 2, 3], 10, GREEDY)
    head = [next(pieces) for _ in range(6)]
    pieces.close()
    assert session.position == 9
    whole = list(toy_model.session().generate_tokens([1, 2, 3], 10, GREEDY))
    assert head + list(session.generate_tokens(None, 4, GREEDY)) == whole


def test_an_observer_that_raises_stops_the_feed_before_it_counts(toy_bundle: Path) -> None:
    model = load(toy_bundle, threads=1)
    session, twin = model.session(), model.session()
    for stream in (session, twin):
        stream.feed(TEXT)
    refuse = [True]

    def observer(event: FeedEvent) -> None:
        if refuse:
            raise ValueError("the metrics server is down")

    model.observe(observer)
    with pytest.raises(ValueError, match="metrics server"):
        session.feed([1, 2, 3])
    refuse.clear()
    assert_same(session, twin)


def test_observers_see_every_feed(toy_bundle: Path) -> None:
    model = load(toy_bundle, threads=1)
    events: list[FeedEvent] = []
    model.observe(events.append)
    session = model.session("alice")
    session.feed(TEXT[: 2 * C + 1])
    session.feed(TEXT[: C - 1])
    assert [(e.session, e.tokens, e.position, e.commits) for e in events] == [
        ("alice", 2 * C + 1, 2 * C + 1, 2),
        ("alice", C - 1, 3 * C, 1),
    ]
    assert events[-1].surprise == pytest.approx(float(session.surprise.mean()), rel=1e-6)


def test_numbers_that_are_not_finite_poison_the_session_and_are_located(
    toy_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, twin = toy_model.session(), toy_model.session()
    session.feed(TEXT[:C])
    twin.feed(TEXT[:C])
    with monkeypatch.context() as patched:
        Sabotage(patched, 3, not_finite)  # prefill, prefill, extend
        with pytest.raises(NonFiniteError, match=r"token 27, first in state '0.trace'.*rewind") as caught:
            session.feed(TEXT[: 2 * C + 4])
    assert (caught.value.token, caught.value.state) == (3 * C + 3, "0.trace")
    with pytest.raises(SessionPoisonedError, match=r"position 8.*reset\(\)"):
        session.feed([1])
    with pytest.raises(SessionPoisonedError):
        session.generate("a")
    assert session.to_bytes() == twin.to_bytes()  # what it was is sound, and can be saved
    session.reset()
    assert_same(session, toy_model.session())


def test_weights_that_are_not_finite_are_found_at_the_first_token(tmp_path: Path) -> None:
    class Damaged(Toy):
        def weights(self) -> dict[str, np.ndarray]:
            weights = super().weights()
            weights["head"][0, 0] = np.nan
            return weights

    session = load(write_toy(tmp_path / "toy", Damaged()), threads=1).session()
    with pytest.raises(NonFiniteError, match="token 0, in the outputs only"):
        session.feed([1, 2, 3])
    assert session.position == 0
    with pytest.raises(SessionPoisonedError):
        session.feed([1])


def test_vectors_that_are_not_finite_are_refused_before_anything_happens(series_model: Model) -> None:
    session, twin = series_model.session(), series_model.session()
    inputs = np.ones((C, FEATURES), np.float32)
    for stream in (session, twin):
        stream.feed(inputs[:3])
    inputs[5, 1] = np.nan
    with pytest.raises(InputError, match="index 5 is not finite"):
        session.feed(inputs)
    assert session.to_bytes() == twin.to_bytes()
    session.feed(inputs[:5])  # not poisoned


def test_a_session_in_use_refuses_another_thread_and_its_own_callbacks(toy_bundle: Path) -> None:
    model = load(toy_bundle, threads=1)
    session = model.session()
    inside, leave = threading.Event(), threading.Event()
    found: list[BaseException] = []

    def observer(event: FeedEvent) -> None:
        try:
            session.feed([1])
        except SessionBusyError as error:
            found.append(error)
        inside.set()
        leave.wait(10)

    model.observe(observer)
    thread = threading.Thread(target=session.feed, args=([1, 2, 3],), name="first user")
    thread.start()
    inside.wait(10)
    calls = [
        lambda: session.feed([1]),
        lambda: session.reset(),
        lambda: session.fork(),
        lambda: session.mark(),
        lambda: session.to_bytes(),
        lambda: session.stats,
    ]
    for call in calls:
        with pytest.raises(SessionBusyError, match=r"in use by thread 'first user'.*fork"):
            call()
    leave.set()
    thread.join()
    assert session.position == 3
    assert "already inside a call of this thread" in str(found[0])


def test_a_failing_graph_is_an_error_with_a_remedy_and_changes_no_state(toy_model: Model) -> None:
    backend = toy_model._backend
    step = toy_model.manifest.graph("step")
    assert step is not None
    with backend.executor(1) as executor:
        _, state = executor.run(step, backend.initial(1), CallInputs(np.array([[7]]), 1))
        before = backend.read(state)
        with pytest.raises(ExecutionError, match=r"'step' failed on the CPU.*titans verify"):
            executor.run(step, state, CallInputs(np.array([[10**6]]), 1))  # an id that no session would let through
    for name, value in backend.read(state).items():
        np.testing.assert_array_equal(value, before[name])


def test_a_driven_stream_makes_no_new_blocks_or_bindings_once_it_is_warm(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(toy_bundle, threads=1)
    session = model.session()

    def drive() -> None:
        for _ in range(5 * C):
            session.feed([1])
        session.feed(np.arange(5 * C + 3))
        session.feed(np.arange(C - 3))

    for _ in range(8):
        drive()
    made: list[str] = []
    block, bind = HostBlock.__init__, BoundGraph._bind
    monkeypatch.setattr(HostBlock, "__init__", lambda self, shapes: made.append("block") or block(self, shapes))
    monkeypatch.setattr(BoundGraph, "_bind", lambda self, *slots: made.append("binding") or bind(self, *slots))
    drive()
    assert not made
    forks = [session.fork() for _ in range(3)]
    for fork in forks:
        fork.feed([1])
    assert made  # the watch works: futures that live side by side need blocks of their own


def test_the_memory_of_sessions_that_are_gone_is_given_back(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(toy_bundle, threads=1)
    alive: weakref.WeakSet[HostBlock] = weakref.WeakSet()
    block = HostBlock.__init__

    def made(self: HostBlock, shapes: Sequence[tuple[str, tuple[int, ...], str]]) -> None:
        block(self, shapes)
        alive.add(self)

    monkeypatch.setattr(HostBlock, "__init__", made)
    sessions = [model.session() for _ in range(50)]
    for session in sessions:
        session.feed(TEXT[:-3])
    many = len(alive)
    assert many >= 50 * 3  # two groups of carried tensors and a table each
    del session
    sessions.clear()
    assert len(alive) < 30  # spares, the initial state and the executor's own


def test_a_thousand_forks_share_what_they_have_in_common(toy_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    session = toy_model.session()
    session.feed(TEXT)
    made: list[str] = []
    block = HostBlock.__init__
    monkeypatch.setattr(HostBlock, "__init__", lambda self, shapes: made.append("block") or block(self, shapes))
    forks = [session.fork() for _ in range(1000)]
    assert not made
    for token, fork in enumerate(forks[:20]):
        fork.feed([token])
    for token, fork in enumerate(forks[:20]):
        alone = toy_model.session()
        alone.feed(TEXT)
        alone.feed([token])
        np.testing.assert_array_equal(fork.feed([0]), alone.feed([0]))
