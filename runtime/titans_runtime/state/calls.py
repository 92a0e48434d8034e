"""The vocabulary between a stream and its device: what goes into one call, and what comes back.

Knows plain data. Does not know where memory is, how a graph is compiled, nor which call comes next (`plan`).

A state never changes. `Executor.run` leaves the one it is given as it was and returns its successor, which shares
with it whatever the graph did not write. So a failed call, or a failed series of calls, is undone by forgetting the
successors; a fork or a mark is a second reference; and nothing large is copied for any of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

from titans_runtime.arrays import Array, FloatArray, IdArray
from titans_runtime.errors import NonFiniteError


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How a device is set up.

    threads: per graph; None leaves the choice to the provider.
    profiles: where the CPU leaves one profile of ONNX Runtime's per graph when `HostDevice.finish_profiles` is called;
        None measures nothing.
    fused: use the fused kernels on CPUs, where this installation and the bundle have them.
    """

    threads: int | None = None
    profiles: Path | None = None
    fused: bool = True


WantedOutputs: TypeAlias = Literal["every", "last", "none"]  # which tokens' outputs


@dataclass(frozen=True)
class CallInputs:
    """The data of one call.

    inputs: `[B, length]` int64 ids or `[B, length, F]` float32 vectors; None for a commit.
    length: real tokens in `inputs`; 0 for a commit.
    wanted: whose outputs the caller wants to see: every token's, the last one's, or none. No more cross the bus.
    top_k: with "last", only so many of the largest are wanted; for devices that can choose them themselves.
    """

    inputs: Array | None
    length: int
    wanted: WantedOutputs = "every"
    top_k: int | None = None


@dataclass(frozen=True)
class TopK:
    """The largest outputs after the last token, in descending order, equal ones by their place.

    ids: int64 `[B, k]`, their places.
    scores: float32 `[B, k]`.
    rest: gives all outputs after that token, `[B, outputs]`; holding it holds their memory.
    """

    ids: IdArray
    scores: FloatArray
    rest: Callable[[], FloatArray]

    def of(self, stream: int) -> TopK:
        """One stream's alone."""
        which, rest = slice(stream, stream + 1), self.rest
        return TopK(self.ids[which], self.scores[which], lambda: rest()[which])


@dataclass(frozen=True)
class Outputs:
    """What one call returned: windows that stay valid until the same executor runs again.

    head: `[B, n, outputs]` of the tokens that were wanted; None for a commit, where none were wanted, and where
        `top_k` has them.
    surprise: `[B, length, M]`; None for a commit or a model without memory.
    top_k: what was wanted of the last token, from a device that chose it.
    """

    head: FloatArray | None
    surprise: FloatArray | None
    top_k: TopK | None = None


class StreamState(Protocol):
    """A stream's state wherever it is: in blocks (`layout.State`), in a lane or in a file. Immutable."""

    @property
    def position(self) -> int:
        """Tokens that the stream has consumed."""
        ...


@dataclass(frozen=True)
class Stepped:
    """What one step of some lanes gave; arrays are valid until the next.

    outputs: `[width, O]`; of no meaning where `top_k` has them.
    surprise: `[width, M]`; None for a model without memory.
    failed: the lanes whose numbers are not finite, which stay as they were.
    top_k: by lane, what was wanted of the outputs, from a device that chose it.
    """

    outputs: FloatArray
    surprise: FloatArray | None
    failed: dict[int, NonFiniteError]
    top_k: TopK | None = None

    def of(self, lane: int) -> Outputs:
        """What it gave one lane, as the outputs of a call of its own."""
        head = self.outputs[lane, None, None] if self.top_k is None else None
        surprise = None if self.surprise is None else self.surprise[lane, None, None]
        return Outputs(head, surprise, None if self.top_k is None else self.top_k.of(lane))
