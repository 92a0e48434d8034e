"""A run: tokens of streams in lockstep on their way through the graphs, and what came of them so far.

Knows which call is next and how results are collected. Does not know who wants the run, on which thread its calls are
made, or when: a session drains it at once, a batch schedules its calls between those of others.

Each call makes a new state out of the one before. So a run that fails, or is given up, has changed nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import cast

import numpy as np

from titans_format.specs import GraphSpec
from titans_runtime.arrays import Array, FloatArray
from titans_runtime.errors import out_of_memory
from titans_runtime.state.backend import Backend
from titans_runtime.state.calls import CallInputs, Outputs, StreamState, TopK, WantedOutputs
from titans_runtime.state.executor import Executor
from titans_runtime.state.layout import State
from titans_runtime.stream.plan import FASTEST, Planner, Policy


@dataclass(frozen=True)
class FeedResult:
    """What a feed of T tokens gave.

    outputs: float32 `[B, T, outputs]`, or `[B, 1, outputs]` where only the last token's were wanted, or none where
        `top_k` has them.
    surprise: float32 `[B, T, M]` for M memory layers.
    top_k: the largest outputs after the last token, where only they were wanted and the device chose them.
    """

    outputs: FloatArray
    surprise: FloatArray
    top_k: TopK | None = None


class Run:
    """T >= 1 tokens of every stream, and the state that they have reached.

    Args:
        planner: cuts the tokens into calls.
        state: where the streams are.
        inputs: int64 ids `[B, T]` or float32 vectors `[B, T, F]`, valid for the model.
        all_outputs: every token's outputs are wanted, not only the last one's.
        policy: which graphs may be used.
        top_k: of the last token's outputs only so many of the largest need to be seen; None: all.

    Attributes:
        state: the state after the calls so far. A batch may keep it in a lane or a file; a call needs it in blocks.
        consumed: tokens so far.
        began: when the run was asked for, in seconds of `time.perf_counter`.

    Raises:
        ExecutionError: there is not enough memory for the results.
    """

    def __init__(
        self,
        planner: Planner,
        state: StreamState,
        inputs: Array,
        all_outputs: bool = False,
        policy: Policy = FASTEST,
        top_k: int | None = None,
    ) -> None:
        self.began = time.perf_counter()
        self.state = state
        self.inputs, self.all_outputs, self.top_k = inputs, all_outputs, top_k
        self.consumed = 0
        batch: int = inputs.shape[0]
        self.tokens: int = inputs.shape[1]
        self._calls = planner.calls(state.position, self.tokens, policy)
        try:
            self._outputs = np.empty((batch, self.tokens if all_outputs else 1, planner.outputs), np.float32)
            self._surprise = np.empty((batch, self.tokens, planner.surprise_layers), np.float32)
        except MemoryError as error:
            raise out_of_memory() from error
        self._top_k: TopK | None = None

    @property
    def blocks(self) -> State:
        """The state where no batch has put it elsewhere."""
        return cast(State, self.state)

    @property
    def done(self) -> bool:
        """Whether all tokens are consumed."""
        return self.consumed == self.tokens

    def advance(self, executor: Executor) -> None:
        """Make the next call; after the one that consumes the last token, also what is due then.

        Raises:
            ExecutionError: a graph failed; a `NonFiniteError` says where its outputs were not finite.
        """
        call = next(self._calls)
        self._call(executor, call.graph, call.length)
        if self.done:
            for commit in self._calls:
                self.commit(executor, commit.graph)

    def drain(self, backend: Backend) -> None:
        """Make all calls. Raises as `advance`."""
        with backend.executor(len(self.inputs)) as executor:
            while not self.done:
                self.advance(executor)

    def commit(self, executor: Executor, graph: GraphSpec) -> None:
        """Run a graph that is due after the tokens so far. Raises as `advance`."""
        self._call(executor, graph, 0)

    def collect(self, outputs: Outputs, length: int) -> None:
        """Copy what a call of the next `length` tokens returned, and count them as consumed."""
        begin, end = self.consumed, self.consumed + length
        if outputs.head is not None:
            if self.all_outputs:
                self._outputs[:, end - outputs.head.shape[1] : end] = outputs.head
            elif end == self.tokens:
                self._outputs[:, 0] = outputs.head[:, -1]
        if outputs.surprise is not None:
            self._surprise[:, begin:end] = outputs.surprise
        self._top_k = outputs.top_k or self._top_k
        self.consumed = end

    @property
    def result(self) -> FeedResult:
        """Everything that was collected."""
        outputs = self._outputs if self._top_k is None else self._outputs[:, :0]
        return FeedResult(outputs, self._surprise, self._top_k)

    def _call(self, executor: Executor, graph: GraphSpec, length: int) -> None:
        begin, end = self.consumed, self.consumed + length
        wanted: WantedOutputs = "none"
        if length and (self.all_outputs or end == self.tokens):
            wanted = "every" if self.all_outputs else "last"
        data = self.inputs[:, begin:end] if length else None
        call = CallInputs(data, length, wanted, self.top_k)
        outputs, self.state = executor.run(graph, self.blocks, call)
        self.collect(outputs, length)
