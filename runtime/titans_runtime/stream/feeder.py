"""Who makes a stream's calls: the caller's own thread here, or the thread of a batch (`serving.worker`).

Knows the contract between a session and either of them. Does not know graphs, sampling or text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, cast

from titans_format.manifest import Manifest
from titans_runtime.arrays import Array, FloatArray
from titans_runtime.errors import NonFiniteError, out_of_memory
from titans_runtime.state.backend import Backend
from titans_runtime.state.calls import StreamState
from titans_runtime.state.layout import State
from titans_runtime.stream.observe import Observer
from titans_runtime.stream.plan import Planner

if TYPE_CHECKING:
    from titans_runtime.chat.template import ChatTemplate
    from titans_runtime.stream.stream import Stream
    from titans_runtime.text.tokenizer import Tokenizer


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


class DirectFeeder:
    """Makes calls on the caller's own thread. See `Feeder` for the contract."""

    def __init__(self, manifest: Manifest, backend: Backend) -> None:
        self.backend = backend
        self.planner = Planner(manifest)

    def feed(self, stream: Stream, array: Array, all_outputs: bool, top_k: int | None = None) -> FloatArray:
        """Drain a run."""
        with stream.guard:
            try:
                run = stream.begin(array, all_outputs, top_k)
                run.drain(self.backend)
            except NonFiniteError as error:
                stream.poison(error)
                raise
            except MemoryError as error:
                raise out_of_memory() from error
            return stream.accept(run)

    def home(self, state: StreamState) -> State:
        """The state itself."""
        return cast(State, state)

    def placed(self, stream: Stream) -> None:
        """Nothing is to be done: states are nowhere else."""


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
