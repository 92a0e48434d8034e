"""One stream of memory: where it stands, whose turn it is, and how a run becomes its next snapshot.

A stream moves in one assignment, at the end of `accept`. Whatever stops a feed before that has changed nothing. A
stream that meets numbers that are not finite stays where it was and is poisoned: it refuses to go on until it is moved.

Knows snapshots, runs, observers, and what it asks of whoever makes a run's calls. Does not know who that is (`feeder`,
`serving.worker`), what users pass in (`session`), or files (`state_file`).
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from titans_format.manifest import Manifest
from titans_runtime.arguments import label
from titans_runtime.arrays import Array, FloatArray
from titans_runtime.errors import NonFiniteError, SessionPoisonedError
from titans_runtime.logs import record
from titans_runtime.state.backend import Backend
from titans_runtime.state.calls import StreamState
from titans_runtime.state.layout import State
from titans_runtime.stream.guard import Guard
from titans_runtime.stream.observe import FeedEvent, Observer
from titans_runtime.stream.plan import Planner
from titans_runtime.stream.run import Run
from titans_runtime.stream.snapshot import KEPT, Snapshot

if TYPE_CHECKING:
    from titans_runtime.chat.template import ChatTemplate
    from titans_runtime.text.tokenizer import Tokenizer

_numbers = itertools.count(1)


class Feeder(Protocol):
    """What makes the calls of many streams, and may keep their states between feeds."""

    @property
    def backend(self) -> Backend:
        """Where states live."""
        ...

    @property
    def planner(self) -> Planner:
        """How tokens become calls."""
        ...

    def feed(self, stream: Stream, array: Array, all_outputs: bool, top_k: int | None = None) -> FloatArray:
        """Feed checked inputs and wait; what `Stream.accept` returns.

        Args:
            stream: whose.
            array: ids `[T]` or vectors `[T, F]`.
            all_outputs, top_k: as of `Run`.

        Raises:
            ExecutionError: a graph failed; a `NonFiniteError` poisons the stream.
            SessionPoisonedError, SessionBusyError: the stream cannot be fed now.
            Whatever is raised, the stream is where it was.
        """
        ...

    def home(self, state: StreamState) -> State:
        """A state in blocks, from wherever this feeder keeps it."""
        ...

    def placed(self, stream: Stream) -> None:
        """The stream's state was replaced, outside of a feed, by one that is in memory."""
        ...


@dataclass
class Shared:
    """What all streams of one model, or of one batch, have in common.

    feeder: what makes their calls.
    tokenizer: opened only for text: streams of ids need none.
    observers: called after every feed, before it counts.
    silent: whether an id is known to have no text; none is before the tokenizer is opened.
    template: how the model's conversations are written, if it has any.
    """

    feeder: Feeder
    tokenizer: Callable[[], Tokenizer | None]
    observers: list[Observer] = field(default_factory=list)
    silent: Callable[[int], bool] = lambda token: False
    template: Callable[[], ChatTemplate | None] = lambda: None

    @property
    def manifest(self) -> Manifest:
        """The model."""
        return self.feeder.planner.manifest


class Stream:
    """One stream. `guard` is held around every use.

    Args:
        shared: the model, and what its streams have in common.
        name: what logs and observers call it.
        snapshot: where it stands; None is the beginning.

    Attributes:
        now: where it stands.
        fed_tokens, seconds: what it has consumed, rewound or not, and how long that took.
    """

    def __init__(self, shared: Shared, name: str | None = None, snapshot: Snapshot | None = None) -> None:
        self.name = f"session-{next(_numbers)}" if name is None else label(name)
        self.shared = shared
        self.guard = Guard()
        self.now = snapshot or self.beginning()
        self.fed_tokens, self.seconds = 0, 0.0

    def beginning(self) -> Snapshot:
        """Where every stream of the model begins."""
        nothing = np.zeros((0, self.shared.manifest.surprise_layers), np.float32)
        return Snapshot(self.shared.feeder.backend.initial(1), None, nothing)

    def check(self) -> None:
        """Raise `SessionPoisonedError` if the stream cannot go on from where it stands."""
        poison = self.now.poison
        if poison is not None:
            raise SessionPoisonedError(
                f"this session stopped at position {self.now.position} ({poison})",
                "call reset() to start it afresh, or rewind() to go on from a mark",
            )

    def begin(self, array: Array, all_outputs: bool, top_k: int | None = None) -> Run:
        """A run of these inputs, `[T]` or `[T, F]`, from where the stream stands. Raises as `check`."""
        self.check()
        return Run(self.shared.feeder.planner, self.now.state, array[None], all_outputs, top_k=top_k)

    def accept(self, run: Run) -> FloatArray:
        """Make what a finished run gave this stream's own.

        Returns:
            Outputs `[T, O]` where all are wanted; else those of the last token, `[O]`, or none where only the largest
            were brought.

        Raises:
            Whatever an observer raises; the stream is where it was.
        """
        now, result = self.now, run.result
        surprise: FloatArray = result.surprise[0]
        outputs: FloatArray = result.outputs[0]
        tokens = len(surprise)
        last = result.top_k or outputs[-1].copy()  # what is returned belongs to the caller
        chunk = self.shared.manifest.chunk
        commits = (now.position + tokens) // chunk - now.position // chunk
        totals = now.totals.add(surprise)
        recent = self._recent_after(run.inputs[0])
        after = Snapshot(run.state, last, surprise, totals, now.commits + commits, recent, turn=now.turn)
        seconds = time.perf_counter() - run.began
        if self.shared.observers:
            mean = float(surprise.mean()) if surprise.size else 0.0
            event = FeedEvent(self.name, tokens, after.position, seconds, commits, mean)
            for observer in self.shared.observers:
                observer(event)
        self.fed_tokens += tokens
        self.seconds += seconds
        self.now = after  # the only change that counts: whatever stopped us before has changed nothing
        return outputs if run.all_outputs else outputs.reshape(-1)

    def poison(self, error: NonFiniteError) -> None:
        """Refuse to go on from here."""
        self.now = replace(self.now, poison=error.finding)
        record(logging.ERROR, "session.poisoned", session=self.name, token=error.token, state=error.state)

    def own_snapshot(self) -> Snapshot:
        """Where the stream stands, with its state in blocks; sound, even if the stream is poisoned there."""
        self.now = replace(self.now, state=self.shared.feeder.home(self.now.state))
        return replace(self.now, poison=None)

    def take_turn(self, turn: int | None) -> None:
        """Say where the conversation stands, as `Snapshot.turn` has it; nothing else changes."""
        self.now = replace(self.now, turn=turn)

    def settle(self) -> None:
        """Have the outputs after the last token in host memory: a stream at rest holds only its state on a device."""
        self.now = replace(self.now, last=self.now.outputs)

    def move(self, elsewhere: Callable[[Snapshot], Snapshot]) -> bool:
        """Replace the snapshot by an equal one that is kept elsewhere. False if the stream is in use."""
        use = self.guard.enter_to_keep_house()
        if use is None:
            return False
        try:
            self.now = elsewhere(self.now)
        finally:
            use.leave()
        return True

    def _recent_after(self, array: Array) -> tuple[int, ...]:
        """The last ids with text once `array` is consumed."""
        if array.ndim != 1:
            return ()
        silent = self.shared.silent
        new = list(itertools.islice((token for token in map(int, reversed(array)) if not silent(token)), KEPT))
        return (*self.now.recent, *reversed(new))[-KEPT:]
