"""Streams in lockstep: pieces of input in, outputs and surprise of every token out, and the state after them.

Knows what verification and benchmarks need. Does not have a session's comforts, sample, or know text.
A feed makes a new state out of the one it is given; if it fails, or is interrupted, there is simply no new one.
"""

from __future__ import annotations

from collections.abc import Mapping

from titans_format.errors import TitansError
from titans_format.manifest import Manifest
from titans_runtime.arguments import flag, instance, label, shown
from titans_runtime.arrays import Array
from titans_runtime.errors import ExecutionError, InputError, out_of_memory
from titans_runtime.state.backend import Backend
from titans_runtime.stream.inputs import as_array, checked_streams
from titans_runtime.stream.plan import FASTEST, Planner, Policy
from titans_runtime.stream.run import FeedResult, Run


class Driver:
    """`batch` streams that are fed in lockstep, without a session's checks and comforts."""

    def __init__(self, manifest: Manifest, backend: Backend, batch: int = 1) -> None:
        self.manifest = manifest
        self._backend = backend
        self._planner = Planner(manifest)
        try:
            self._now = backend.initial(batch)
        except TitansError:
            raise
        except (MemoryError, ValueError) as error:  # numpy has both for what no machine has
            raise ExecutionError(f"there is not enough memory for {shown(batch)} streams", "use fewer") from error

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
        branch = Driver(self.manifest, self._backend, self.batch)
        branch._now = self._now
        return branch

    def reset(self) -> None:
        """Start all streams afresh."""
        self._now = self._backend.initial(self.batch)

    def state(self) -> dict[str, Array]:
        """Copies of all state tensors by name, shaped as in the state table; rows not yet written are 0."""
        return self._backend.read(self._now)

    def load(self, state: Mapping[str, Array]) -> None:
        """Replace state tensors by copies of these; the position stays. Raises `InputError` for what does not fit."""
        if not isinstance(state, Mapping):
            raise InputError(f"the state is {shown(state)}", "pass a dictionary of arrays by name")
        arrays = {label(name): as_array(value, "a state tensor", "an array") for name, value in state.items()}
        self._now = self._backend.write({**self.state(), **arrays}, self.batch, self.position)

    def feed(self, inputs: Array, all_outputs: bool = False, policy: Policy = FASTEST) -> FeedResult:
        """Consume T >= 1 tokens of every stream.

        Args:
            inputs: ids `[B, T]` or vectors `[B, T, F]`.
            all_outputs: return every token's outputs, not only the last one's.
            policy: which graphs may be used.

        Raises:
            InputError: inputs that the model cannot take.
            ExecutionError: a graph failed; a `NonFiniteError` says where its outputs were not finite.
            Whatever is raised, the streams are where they were.
        """
        array = checked_streams(self.manifest.inputs, inputs, self.batch)
        instance("policy", policy, Policy, "pass a Policy")
        try:
            run = Run(self._planner, self._now, array, flag("all_outputs", all_outputs), policy)
            run.drain(self._backend)
        except MemoryError as error:
            raise out_of_memory() from error
        self._now = run.blocks
        return run.result
