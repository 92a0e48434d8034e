"""Streams in lockstep: pieces of input in, outputs and surprise of every token out, and the state after them.

Knows the order of things: plan, run, collect. Does not check what users pass in (`session`), sample, or know text.
A feed makes a new state out of the one it is given; if it fails, or is interrupted, there is simply no new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np

from titans_format.errors import TitansError
from titans_format.manifest import Manifest
from titans_runtime.arguments import flag, instance, label, shown
from titans_runtime.arrays import Array, FloatArray
from titans_runtime.errors import ExecutionError, InputError, out_of_memory
from titans_runtime.state.backend import Backend
from titans_runtime.state.calls import CallInputs, Outputs, StreamState, TopK, WantedOutputs
from titans_runtime.state.layout import State
from titans_runtime.stream.inputs import as_array, checked_streams
from titans_runtime.stream.plan import FASTEST, Call, Planner, Policy


@dataclass(frozen=True)
class FeedResult:
    """What a feed of T tokens gave.

    outputs: float32 `[B, T, outputs]`, or `[B, 1, outputs]` where only the last token's were asked for, or none where
        `top_k` says it.
    surprise: float32 `[B, T, M]` for M memory layers.
    top_k: the largest outputs after the last token, where only they were asked for and the provider chose them.
    """

    outputs: FloatArray
    surprise: FloatArray
    top_k: TopK | None = None


class Feeder(Protocol):
    """What turns a state and its next tokens into outputs and the state after them."""

    @property
    def manifest(self) -> Manifest:
        """The model."""
        ...

    @property
    def backend(self) -> Backend:
        """Where states live."""
        ...

    def feed(
        self,
        state: StreamState,
        inputs: Array,
        all_outputs: bool = False,
        policy: Policy = FASTEST,
        top_k: int | None = None,
    ) -> tuple[FeedResult, State]:
        """Consume T >= 1 tokens of every stream; `state` stays as it is.

        Args:
            state: where the streams are.
            inputs: int64 ids `[B, T]` or float32 vectors `[B, T, F]`, valid for the model.
            all_outputs: return every token's outputs, not only the last one's.
            policy: which graphs may be used.
            top_k: of the last token's outputs only so many of the largest need to be seen.

        Raises:
            ExecutionError: a graph failed; a `NonFiniteError` says where its outputs were not finite.
        """
        ...

    def home(self, state: StreamState) -> State:
        """The state as the backend's own value, from wherever this feeder keeps it between feeds."""
        ...


class DirectFeeder:
    """Feeds on the caller's own thread."""

    def __init__(self, manifest: Manifest, backend: Backend) -> None:
        self.manifest = manifest
        self.backend = backend
        self._planner = Planner(manifest)

    def feed(
        self,
        state: StreamState,
        inputs: Array,
        all_outputs: bool = False,
        policy: Policy = FASTEST,
        top_k: int | None = None,
    ) -> tuple[FeedResult, State]:
        """See `Feeder`."""
        batch, tokens = inputs.shape[:2]
        outputs = np.empty((batch, tokens if all_outputs else 1, self.manifest.inputs.outputs), np.float32)
        surprise = np.empty((batch, tokens, self.manifest.surprise_layers), np.float32)
        chosen: TopK | None = None
        now = self.home(state)
        with self.backend.executor(batch) as executor:
            for call in self._planner.calls(now.position, tokens, policy):
                end = call.offset + call.length
                data = inputs[:, call.offset : end] if call.length else None
                rows: WantedOutputs = "every" if all_outputs else "last" if end == tokens else "none"
                told, now = executor.run(
                    call.graph, now, CallInputs(data, call.length, rows, top_k if rows == "last" else None)
                )
                _collect(call, told, outputs, surprise)
                chosen = told.top_k or chosen
        return FeedResult(outputs if chosen is None else outputs[:, :0], surprise, chosen), now

    def home(self, state: StreamState) -> State:
        """The state itself."""
        return cast(State, state)


def _collect(call: Call, told: Outputs, outputs: FloatArray, surprise: FloatArray) -> None:
    """Copy what a call said to where the feed's caller will find it."""
    end = call.offset + call.length
    if told.head is not None and outputs.shape[1] == surprise.shape[1]:
        outputs[:, end - told.head.shape[1] : end] = told.head
    elif told.head is not None and end == surprise.shape[1]:
        outputs[:, 0] = told.head[:, -1]
    if told.surprise is not None:
        surprise[:, call.offset : end] = told.surprise


class Driver:
    """`batch` streams that are fed in lockstep, without a session's checks and comforts."""

    def __init__(self, feeder: Feeder, batch: int = 1) -> None:
        self._feeder = feeder
        try:
            self._now = feeder.backend.initial(batch)
        except TitansError:
            raise
        except (MemoryError, ValueError) as error:  # numpy has both for what no machine has
            raise ExecutionError(f"there is not enough memory for {shown(batch)} streams", "use fewer") from error

    @property
    def manifest(self) -> Manifest:
        """The model."""
        return self._feeder.manifest

    @property
    def batch(self) -> int:
        """How many streams."""
        return self._now.batch

    @property
    def position(self) -> int:
        """Tokens that each stream has consumed."""
        return self._now.position

    def fork(self) -> Driver:
        """Other streams that go on from here; states are never changed, so nothing is copied."""
        branch = Driver(self._feeder, self.batch)
        branch._now = self._now
        return branch

    def reset(self) -> None:
        """Start all streams afresh."""
        self._now = self._feeder.backend.initial(self.batch)

    def state(self) -> dict[str, Array]:
        """Copies of all state tensors by name, shaped as in the state table; rows not yet written are 0."""
        return self._feeder.backend.read(self._now)

    def load(self, state: Mapping[str, Array]) -> None:
        """Replace state tensors by copies of these; the position stays. Raises `InputError` for what does not fit."""
        if not isinstance(state, Mapping):
            raise InputError(f"the state is {shown(state)}", "pass a dictionary of arrays by name")
        arrays = {label(name): as_array(value, "a state tensor", "an array") for name, value in state.items()}
        self._now = self._feeder.backend.write({**self.state(), **arrays}, self.batch, self.position)

    def feed(self, inputs: Array, all_outputs: bool = False, policy: Policy = FASTEST) -> FeedResult:
        """Consume T >= 1 tokens of every stream; as `Feeder.feed`. After an error: as before."""
        array = checked_streams(self.manifest.inputs, inputs, self.batch)
        instance("policy", policy, Policy, "pass a Policy")
        try:
            fed, self._now = self._feeder.feed(self._now, array, flag("all_outputs", all_outputs), policy)
        except MemoryError as error:
            raise out_of_memory() from error
        return fed
