"""Streams under pressure: Ctrl-C at random moments, and many threads that mix up sessions of two batches on purpose.

Knows what a session promises. A case is a seed and a size; every stream is compared with one of its own in the end.
Does not know how cases are spread over workers.
"""

from __future__ import annotations

import contextlib
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from hypothesis import strategies as st

from studies.fuzz.calls import CLOSE
from titans_runtime import InputError, Model, SamplingOptions, Session
from titans_runtime.serving.batch import Batch, BatchSession

INTERRUPTS = 25  # calls of one case, each with a Ctrl-C on its way
delivered: Counter[str] = Counter()  # interrupts that met a call of this process, by "session" and "batch"
_GREEDY = SamplingOptions(temperature=0)
_WAITS = (1e-5, 3e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3)  # seconds until Ctrl-C
_THREADS, _TURNS = 16, 6

interrupts = st.fixed_dictionaries({"seed": st.integers(0, 2**32), "batch": st.booleans()})
mixups = st.fixed_dictionaries({"seed": st.integers(0, 2**32)})


def play_interrupts(model: Model, seed: int, in_batch: bool) -> None:
    """Calls of one session that Ctrl-C ends at random moments: it stands for the tokens in its book, after each."""
    draw = random.Random(seed)
    with model.batch(lanes=2, resident=3) as batch, _ctrl_c("batch" if in_batch else "session") as arm:
        place = batch if in_batch else model
        session, tokens = place.session(), list[int]()
        for _ in range(INTERRUPTS):
            piece = [draw.randrange(16) for _ in range(draw.choice((1, 1, 1, 8, 20)))]
            calls: list[Callable[[], Any]] = [
                lambda: session.feed(piece),  # noqa: B023
                lambda: session.feed(piece),  # noqa: B023
                session.fork,
                session.to_bytes,
                lambda: session.rewind(session.mark()),
                lambda: list(session.generate_tokens(piece, 2, _GREEDY)),  # noqa: B023
            ]
            call = draw.choice(calls)
            with contextlib.suppress(KeyboardInterrupt):
                try:
                    arm(draw.choice(_WAITS) * (0.5 + draw.random()))
                    call()
                finally:
                    arm(0)
            tokens = _book(model, session, tokens, piece)
        _same(model, session, tokens)


def _book(model: Model, session: Session, tokens: list[int], piece: list[int]) -> list[int]:
    """What the session consumed: nothing of the call, its piece, or up to two tokens more that it chose itself."""
    more = session.position - len(tokens)
    if more == 0:
        return tokens
    assert len(piece) <= more <= len(piece) + 2, f"{more} tokens of a call of {len(piece)}"
    twin = model.session()
    if tokens:
        twin.feed(tokens)
    if more == len(piece):
        return tokens + piece
    return tokens + piece + list(twin.generate_tokens(piece, more - len(piece), _GREEDY))


def play_mixups(model: Model, seed: int) -> None:
    """Threads over two batches that spill: each feeds, forks and restores its own stream, and tries a neighbour's."""
    wrong: list[BaseException] = []
    with model.batch(lanes=4, resident=6) as first, model.batch(lanes=4, resident=6) as second:
        everybody: list[tuple[Batch, BatchSession]] = []

        def one(number: int) -> None:
            draw = random.Random(f"{seed} {number}")
            mine, other = (first, second) if number % 2 else (second, first)
            session, tokens = mine.session(f"{number}"), list[int]()
            everybody.append((mine, session))
            try:
                for _ in range(_TURNS):
                    session, tokens = _turn(draw, mine, other, session, tokens, everybody)
                _same(model, session, tokens)
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=one, args=(number,)) for number in range(_THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if wrong:
        raise wrong[0]


def _turn(
    draw: random.Random,
    mine: Batch,
    other: Batch,
    session: BatchSession,
    tokens: list[int],
    everybody: list[tuple[Batch, BatchSession]],
) -> tuple[BatchSession, list[int]]:
    """One call of a thread's own stream, or a mix-up that has to be refused; the stream from now on."""
    piece = [draw.randrange(16) for _ in range(draw.choice((1, 1, 1, 3, 9)))]
    kind = draw.randrange(6)
    if kind == 0:
        branch = session.fork()
        assert isinstance(branch, BatchSession)
        return branch, tokens
    if kind == 1:
        return mine.restore_bytes(session.to_bytes()), tokens
    if kind == 2:  # into the wrong batch
        with contextlib.suppress(InputError):
            other.feed([session], [piece])
            raise AssertionError("a session of another batch was fed")
        return session, tokens
    if kind == 3:  # a neighbour's along with one's own
        home, neighbour = draw.choice(everybody)
        if home is not mine:
            with contextlib.suppress(InputError):
                mine.feed([session, neighbour], [piece, piece])
                raise AssertionError("a neighbour of another batch was fed")
        return session, tokens
    if kind == 4:
        mark = session.mark()
        session.feed(piece)
        session.rewind(mark)
        return session, tokens
    session.feed(piece)
    return session, tokens + piece


def _same(model: Model, session: Session, tokens: list[int]) -> None:
    """The session stands for these tokens."""
    assert session.position == len(tokens), f"at {session.position} instead of {len(tokens)}"
    expected = model.session().feed([*tokens, 11])
    np.testing.assert_allclose(session.feed([11]), expected, rtol=CLOSE, atol=CLOSE)


@contextlib.contextmanager
def _ctrl_c(kind: str) -> Iterator[Callable[[float], None]]:
    """A function that has KeyboardInterrupt raised once after so many seconds, and counted; 0: not any more."""
    armed = False

    def arm(seconds: float) -> None:
        nonlocal armed
        armed = seconds > 0
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def ring(*_: object) -> None:
        nonlocal armed
        if armed:
            armed = False
            delivered[kind] += 1
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, ring)
    try:
        yield arm
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
