"""What production wants to see: events for metrics, and figures of a session.

Knows plain data. Does not know any metrics system; an observer is a function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TypeAlias

from titans_runtime.stream.memories import MemoryDistance


@dataclass(frozen=True)
class FeedEvent:
    """One feed that succeeded.

    session: the session's name.
    tokens: how many were consumed, up to `position`.
    seconds: how long it took.
    commits: how many chunks have ended.
    surprise: mean over the feed's tokens and the memory layers.
    """

    session: str
    tokens: int
    position: int
    seconds: float
    commits: int
    surprise: float


Observer: TypeAlias = Callable[[FeedEvent], None]


@dataclass(frozen=True)
class SessionStats:
    """Figures of one session.

    position: tokens of the stream consumed.
    commits: how many chunks have ended since the beginning of the stream.
    fed_tokens, seconds: what this session object has consumed, rewound or not, and how long that took.
    state_bytes: size of the stream's state.
    state_norms: Euclidean norm of each state tensor; a memory that grows without end shows here first.
    memories: of each tensor that starts from a learned value, how far it is from there and from zero.
    dead_memories: those that have faded so far that they cannot learn any more.
    surprise_mean, surprise_deviation, surprise_highest: per token, over the whole stream.
    """

    session: str
    position: int
    commits: int
    fed_tokens: int
    seconds: float
    state_bytes: int
    state_norms: dict[str, float]
    memories: dict[str, MemoryDistance]
    dead_memories: tuple[str, ...]
    surprise_mean: float
    surprise_deviation: float
    surprise_highest: float

    @property
    def tokens_per_second(self) -> float:
        """Speed of this session's feeds; 0 before the first."""
        return self.fed_tokens / self.seconds if self.seconds else 0.0

    def as_json(self) -> dict[str, object]:
        """Ready for JSON."""
        return {**asdict(self), "tokens_per_second": self.tokens_per_second}
