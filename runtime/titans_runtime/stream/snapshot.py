"""Everything a session is at one point of its stream, as one value that never changes.

Knows what has to travel together: state, last outputs, surprise and its totals. Does not know how any of it is
computed or stored. A stream replaces its snapshot in one assignment; a feed or a rewind does nothing else to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from titans_runtime.arrays import FloatArray
from titans_runtime.state.backend import Backend
from titans_runtime.state.calls import StreamState, TopK

OPEN = -1  # no id: an answer that was begun and has not ended
KEPT = 8  # ids: more than the longest character takes, and what stands before it


@dataclass(frozen=True)
class SurpriseTotals:
    """Surprise over a whole stream: mean over the memory layers, per token."""

    tokens: int = 0
    total: float = 0.0
    squares: float = 0.0
    highest: float = 0.0

    def add(self, surprise: FloatArray) -> SurpriseTotals:
        """With that of more tokens, `[T, M]`."""
        if surprise.size == 0:
            return self
        if len(surprise) == 1:  # a decoder's case, ten times faster without arrays
            layers = surprise[0].tolist()
            mean = sum(layers) / len(layers)
            return SurpriseTotals(
                self.tokens + 1, self.total + mean, self.squares + mean * mean, max(self.highest, mean)
            )
        each = surprise.mean(axis=1, dtype=np.float64)
        return SurpriseTotals(
            self.tokens + len(each),
            self.total + float(each.sum()),
            self.squares + float(np.dot(each, each)),
            max(self.highest, float(each.max())),
        )

    @property
    def mean(self) -> float:
        """The average; 0 before the first token."""
        return self.total / self.tokens if self.tokens else 0.0

    @property
    def deviation(self) -> float:
        """The standard deviation; 0 before the first token."""
        return math.sqrt(max(0.0, self.squares / self.tokens - self.mean**2)) if self.tokens else 0.0


@dataclass(frozen=True)
class Snapshot:
    """Where a session stands.

    state: the memory, and the position.
    last: outputs after the last token `[V]` or `[targets]`, or the largest of them; None before the first.
    surprise: float32 `[T, M]` of the last feed's tokens.
    totals: surprise over the stream.
    commits: how many chunks have ended.
    recent: the last ids consumed, `KEPT` of them at most, by which text that follows is decoded; none of vectors.
    poison: why the session refuses to go on from here; None is a sound one.
    turn: where a conversation stands: None before one has begun, `OPEN` inside of an answer, else the id that ended the
        last answer.
    """

    state: StreamState
    last: FloatArray | TopK | None
    surprise: FloatArray
    totals: SurpriseTotals = field(default_factory=SurpriseTotals)
    commits: int = 0
    recent: tuple[int, ...] = ()
    poison: str | None = None
    turn: int | None = None

    @property
    def position(self) -> int:
        """Tokens consumed."""
        return self.state.position

    @property
    def outputs(self) -> FloatArray | None:
        """All outputs after the last token, fetched from the device if they are still there."""
        return self.last.rest()[0] if isinstance(self.last, TopK) else self.last


@dataclass(frozen=True)
class Mark:
    """A place to come back to. Made by `Session.mark`; holds the state, so drop it when it is no longer needed."""

    identity: str = field(repr=False)
    snapshot: Snapshot = field(repr=False)
    position: int
    owner: Backend = field(repr=False)  # of the loaded model in whose memory the state is
