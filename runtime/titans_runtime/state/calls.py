"""What a provider must offer: states as values, and one call that makes the next state out of one.

Knows the vocabulary between driver and provider. Does not know where the memory is, how a graph is compiled,
nor which call comes next (`plan`).

A state never changes. `Executor.run` leaves the one it is given as it was and returns its successor, which shares
with it whatever the graph did not write. So a failed call, or a failed series of calls, is undone by forgetting the
successors; a fork or a mark is a second reference; and nothing big is copied for any of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

from titans_format.specs import GraphSpec
from titans_runtime.arrays import Array, FloatArray, IdArray
from titans_runtime.errors import NonFiniteError


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How a backend is set up.

    threads: per graph; None leaves the choice to the provider.
    profiles: where the CPU leaves one profile of ONNX Runtime's per graph when `CpuBackend.finish_profiles` is called;
        None measures nothing.
    fused: use the fused kernels on CPUs, where this installation and the bundle have them.
    """

    threads: int | None = None
    profiles: Path | None = None
    fused: bool = True


Rows: TypeAlias = Literal["every", "last", "none"]  # which tokens' outputs


@dataclass(frozen=True)
class Feed:
    """The data of one call.

    inputs: `[B, length]` int64 ids or `[B, length, F]` float32 vectors; None for a commit.
    length: real tokens in `inputs`; 0 for a commit.
    rows: whose outputs the caller wants to see: every token's, the last one's, or none. A device brings no more.
    best: with "last", only so many of the largest are wanted; for providers that can choose them themselves.
    """

    inputs: Array | None
    length: int
    rows: Rows = "every"
    best: int | None = None


@dataclass(frozen=True)
class Best:
    """The largest outputs after the last token, in descending order, equal ones by their place.

    ids: int64 `[B, k]`, their places.
    scores: float32 `[B, k]`.
    rest: gives all outputs after that token, `[B, outputs]`; whoever holds it holds their memory.
    """

    ids: IdArray
    scores: FloatArray
    rest: Callable[[], FloatArray]

    def of(self, stream: int) -> Best:
        """One stream's alone."""
        which, rest = slice(stream, stream + 1), self.rest
        return Best(self.ids[which], self.scores[which], lambda: rest()[which])


@dataclass(frozen=True)
class Outputs:
    """What one call returned: windows that stay valid until the same executor runs again.

    head: `[B, n, outputs]` of the last n tokens, at least of those that were wanted; None for a commit, where none were
        wanted, and where `best` says it.
    surprise: `[B, length, M]`; None for a commit or a model without memory.
    best: what was wanted of the last token, from a provider that chose it.
    """

    head: FloatArray | None
    surprise: FloatArray | None
    best: Best | None = None


class State(Protocol):
    """The state tensors of `batch` streams that have consumed `position` tokens. Immutable; safe to share."""

    @property
    def batch(self) -> int:
        """How many streams."""
        ...

    @property
    def position(self) -> int:
        """Tokens that each stream has consumed."""
        ...


class Executor(Protocol):
    """Runs graphs for one caller at a time."""

    def run(self, graph: GraphSpec, state: State, feed: Feed) -> tuple[Outputs, State]:
        """Run one graph.

        Returns:
            What it said, and the state after it, whose position is `feed.length` further on.

        Raises:
            ExecutionError: the graph failed.
            NonFiniteError: it returned numbers that are not finite; says at which token, and in which state tensor.
            BundleError: the graph cannot be loaded.
        """
        ...


@dataclass(frozen=True)
class Stepped:
    """What one step of some lanes gave; arrays are valid until the next.

    outputs: `[width, O]`; of no meaning where `best` says it.
    surprise: `[width, M]`; None for a model without memory.
    failed: the lanes whose numbers are not finite, which stay as they were.
    best: by lane, what was wanted of the outputs, from a provider that chose it.
    """

    outputs: FloatArray
    surprise: FloatArray | None
    failed: dict[int, NonFiniteError]
    best: Best | None = None


class Lanes(Protocol):
    """Memory in which `width` streams of different positions are stepped by one call. For one caller at a time."""

    @property
    def width(self) -> int:
        """How many lanes."""
        ...

    def seat(self, lane: int, state: State) -> None:
        """Copy a single stream's state into a lane."""
        ...

    def copy(self, lane: int, before_commit: bool = False) -> State:
        """The state of a lane as a single stream's; the lane keeps it.

        `before_commit`: what is due at its position has not run yet.
        """
        ...

    def step(self, lanes: Sequence[int], inputs: Array, best: int | None = None) -> Stepped:
        """One token for each of `lanes`; the others stay as they are.

        Args:
            lanes: which.
            inputs: `[len(lanes)]` ids or `[len(lanes), F]` vectors.
            best: as in `Feed`.

        Raises:
            ExecutionError: the graph failed; no lane has changed.
        """
        ...

    def commit(self, graphs: Sequence[GraphSpec], lanes: Sequence[int]) -> bool:
        """Run what is due after the last call of `step`, for these lanes of it; the others stay as they are.

        False, and no lane has changed, if not all numbers are finite: which lane it is shows one by one.

        Raises:
            ExecutionError: a graph failed; no lane has changed.
        """
        ...

    def undo(self, lane: int) -> None:
        """Take the last step of a lane back, commits included, which must have been part of the last call of `step`."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


class Backend(Protocol):
    """A loaded model at one provider; shared by all its sessions and safe to use from several threads."""

    @property
    def provider(self) -> str:
        """The name that selects it."""
        ...

    def initial(self, batch: int) -> State:
        """The beginning of `batch` streams."""
        ...

    def executor(self, batch: int) -> AbstractContextManager[Executor]:
        """An executor for states of `batch` streams, lent to this caller for the length of the block."""
        ...

    def lanes(self, width: int) -> Lanes:
        """Lanes for `width` streams of different positions."""
        ...

    def read(self, state: State) -> dict[str, Array]:
        """Copies of all state tensors in host memory, shaped as the state table says; rows not yet written are 0."""
        ...

    def write(self, tensors: Mapping[str, Array], batch: int, position: int) -> State:
        """The state that `read` gave, or one like it. Rows at and after the position count as not written.

        Raises:
            InputError: a tensor is missing or unknown, or has another shape or dtype than the state table's.
        """
        ...
