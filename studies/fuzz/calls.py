"""Sequences of calls on sessions, alone and in a batch, against a book of what each of them has consumed.

Knows what a session promises: a call completes or changes nothing, and what it stands for is the tokens it consumed.
Every sequence ends by comparing each session with a fresh one that is fed the same tokens in one piece.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from hypothesis import strategies as st

from titans_runtime import InputError, Mark, Model, SamplingOptions, Session
from titans_runtime.serving.batch import Batch, BatchSession

CLOSE = 2e-4  # fp32, any split against any other
BAD_INPUTS: list[Any] = [
    [],
    [-1],
    [10**9],
    [1.5],
    "text",
    None,
    [[1, 2], [3, 4]],
    np.array([np.nan]),
    np.zeros((0,), np.int64),
    [True],
    [2**70],
    object(),
]
MOST_TOKENS = 20

_session = st.integers(0, 7)
_op = st.one_of(
    st.tuples(st.just("feed"), _session, st.lists(st.integers(0, 15), min_size=1, max_size=MOST_TOKENS)),
    st.tuples(st.just("all"), _session, st.lists(st.integers(0, 15), min_size=1, max_size=MOST_TOKENS)),
    st.tuples(st.just("bad"), _session, st.integers(0, len(BAD_INPUTS) - 1)),
    st.tuples(st.just("generate"), _session, st.integers(0, 6), st.integers(0, 6)),
    st.tuples(st.just("mark"), _session),
    st.tuples(st.just("rewind"), _session, st.integers(0, 7)),
    st.tuples(st.just("fork"), _session),
    st.tuples(st.just("save"), _session, st.booleans()),
    st.tuples(st.just("reset"), _session),
    st.tuples(st.just("refuse"), _session),
    st.tuples(st.just("new"), st.booleans()),
    st.tuples(st.just("stats"), _session),
    st.tuples(st.just("together"), st.integers(0, 15)),
).map(list)
cases = st.fixed_dictionaries({"calls": st.lists(_op, min_size=1, max_size=12)})


@dataclass
class Entry:
    """A session and what it has consumed."""

    session: Session
    tokens: list[int]


def play(model: Model, ops: list[list[Any]]) -> None:
    """Play a sequence and check that every session stands for the tokens in its book."""
    with model.batch(lanes=2, resident=2) as batch:
        game = Game(model, batch)
        for name, *arguments in ops:
            getattr(game, name)(*arguments)
        game.check()


class Game:
    """The sessions and marks of one sequence; a method for each call."""

    def __init__(self, model: Model, batch: Batch) -> None:
        self._model, self._batch = model, batch
        self._entries = [Entry(model.session(), []), Entry(batch.session(), [])]
        self._marks: list[tuple[Mark, list[int]]] = []

    def feed(self, number: int, tokens: list[int]) -> None:
        entry = self._entry(number)
        entry.session.feed(tokens)
        entry.tokens += tokens

    def all(self, number: int, tokens: list[int]) -> None:
        entry = self._entry(number)
        assert len(entry.session.feed(tokens, all_logits=True)) == len(tokens)
        entry.tokens += tokens

    def bad(self, number: int, which: int) -> None:
        _must_raise(InputError, lambda: self._entry(number).session.feed(BAD_INPUTS[which]))

    def generate(self, number: int, limit: int, take: int) -> None:
        entry = self._entry(number)
        generator = entry.session.generate_tokens([1, 2], limit, SamplingOptions(seed=number))
        taken = list(itertools.islice(generator, take))
        cast(Generator[int], generator).close()
        entry.tokens += [1, 2, *taken] if take else []
        assert entry.session.position == len(entry.tokens)

    def mark(self, number: int) -> None:
        entry = self._entry(number)
        self._marks.append((entry.session.mark(), list(entry.tokens)))

    def rewind(self, number: int, which: int) -> None:
        if self._marks:
            mark, tokens = self._marks[which % len(self._marks)]
            entry = self._entry(number)
            entry.session.rewind(mark)
            entry.tokens = list(tokens)

    def fork(self, number: int) -> None:
        entry = self._entry(number)
        self._add(entry.session.fork(), entry.tokens)

    def save(self, number: int, compress: bool) -> None:
        entry = self._entry(number)
        data = entry.session.to_bytes(compress=compress)
        place = self._batch if compress else self._model
        self._add(place.restore_bytes(data), entry.tokens)

    def reset(self, number: int) -> None:
        entry = self._entry(number)
        entry.session.reset()
        entry.tokens = []

    def refuse(self, number: int) -> None:
        """An observer that raises: the feed has not happened."""
        observers = self._model._shared.observers
        observers.append(_refuse)
        try:
            _must_raise(_RefusedError, lambda: self._entry(number).session.feed([5, 6, 7]))
        finally:
            observers.remove(_refuse)

    def new(self, in_batch: bool) -> None:
        self._add((self._batch if in_batch else self._model).session(), [])

    def stats(self, number: int) -> None:
        entry = self._entry(number)
        stats = entry.session.stats
        assert stats.position == len(entry.tokens)
        assert all(np.isfinite(norm) for norm in stats.state_norms.values())

    def together(self, token: int) -> None:
        members = [(e, e.session) for e in self._entries if isinstance(e.session, BatchSession)]
        self._batch.feed([session for _, session in members], [[token]] * len(members))
        for entry, _ in members:
            entry.tokens.append(token)

    def check(self) -> None:
        """Each session against a fresh one that consumes the same in one piece."""
        for entry in self._entries:
            assert entry.session.position == len(entry.tokens)
            fresh = self._model.session()
            expected = fresh.feed([*entry.tokens, 11])
            np.testing.assert_allclose(entry.session.feed([11]), expected, rtol=CLOSE, atol=CLOSE)

    def _entry(self, number: int) -> Entry:
        return self._entries[number % len(self._entries)]

    def _add(self, session: Session, tokens: list[int]) -> None:
        self._entries.append(Entry(session, list(tokens)))


class _RefusedError(Exception):
    """What the observer raises."""


def _refuse(event: object) -> None:
    raise _RefusedError


def _must_raise(kind: type[Exception], call: Callable[[], object]) -> None:
    try:
        call()
    except kind:
        return
    raise AssertionError(f"{kind.__name__} was expected, and nothing was raised")
