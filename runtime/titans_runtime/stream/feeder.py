"""Calls made by the caller's own thread. A batch has a thread of its own for them (`serving.worker`).

Does not know graphs, sampling or text.
"""

from __future__ import annotations

from typing import cast

from titans_format.manifest import Manifest
from titans_runtime.arrays import Array, FloatArray
from titans_runtime.errors import NonFiniteError, out_of_memory
from titans_runtime.state.backend import Backend
from titans_runtime.state.calls import StreamState
from titans_runtime.state.layout import State
from titans_runtime.stream.plan import Planner
from titans_runtime.stream.stream import Stream


class DirectFeeder:
    """Makes calls on the caller's own thread. See `stream.Feeder` for the contract."""

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
