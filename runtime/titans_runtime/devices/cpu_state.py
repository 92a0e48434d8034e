"""State in host memory as immutable values, and the executor that makes the next one.

Knows the tensors of a batch of streams and how graphs are bound to them. Does not know sessions' options
(`host`), memory reuse (`arena`) or when a graph is due (`plan`).

The carried tensors that the same graphs write form a group, which lives in one block. A run reads the blocks of
the state it is given and writes into spare ones; the successor refers to the new blocks and shares the rest, so that
nothing big is ever copied and a failed run changes nothing. A stream that is driven alternates between a few blocks,
and a binding is kept for each combination. Rows are returned apart and appended to their table afterwards.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np

from titans_format.contract import data_name, head_name
from titans_format.manifest import Manifest
from titans_format.specs import GraphSpec
from titans_runtime.arrays import Array, FloatArray
from titans_runtime.bundle import Bundle, check_memory
from titans_runtime.devices.arena import Group, RowsGroup, RowsSlot, Slot, scratch
from titans_runtime.devices.denormals import with_denormals_as_zero
from titans_runtime.errors import ExecutionError, InputError, NonFiniteError
from titans_runtime.state.blocks import by_length, by_writers, check_owner
from titans_runtime.state.calls import Feed, Outputs, State

if TYPE_CHECKING:
    import onnxruntime as ort

# A stream that decodes and reads prompts in turn meets up to 25 combinations of blocks. A missing binding costs 30 us.
_BINDINGS = 32


@dataclass(frozen=True)
class HostState:
    """The state of `batch` streams: a slot for each group of carried tensors, and one for each length of table."""

    batch: int
    position: int
    carried: tuple[Slot, ...]
    rows: tuple[RowsSlot, ...]


class Layout:
    """How the state of `batch` streams lies in memory, and where it starts.

    Args:
        bundle: the state table and the initial values.
        batch: how many streams.
    """

    def __init__(self, bundle: Bundle, batch: int) -> None:
        check_memory(bundle.manifest, batch)
        self.batch = batch
        self.manifest = bundle.manifest
        self._readers: list[weakref.ref[CpuExecutor]] = []
        self.carried = tuple(Group(specs, batch, self._forget) for specs in by_writers(bundle.manifest))
        self.rows = tuple(RowsGroup(specs, batch, self._forget) for specs in by_length(bundle.manifest))
        carried = tuple(group.take() for group in self.carried)
        for group, slot in zip(self.carried, carried, strict=True):
            for spec in group.specs:
                value = bundle.initial.get(spec.name)
                slot.tensors[spec.name][...] = 0 if value is None else value[None]
        self.initial = HostState(batch, 0, carried, tuple(group.take() for group in self.rows))

    def read(self, state: HostState) -> dict[str, Array]:
        """Copies of all tensors in the order of the state table; rows that were not written are 0."""
        self.check_owner(state)
        found = {name: array.copy() for slot in state.carried for name, array in slot.tensors.items()}
        for group, slot in zip(self.rows, state.rows, strict=True):
            filled = state.position % group.length
            for name, array in slot.tensors.items():
                found[name] = np.zeros_like(array)
                found[name][:filled] = array[:filled]
        return {spec.name: found[spec.name] for spec in self.manifest.states}

    def write(self, tensors: Mapping[str, Array], position: int) -> HostState:
        """A state of its own with copies of these values. Raises `InputError` for what does not fit."""
        check_tensors(self.manifest, tensors, self.batch)
        carried = tuple(group.take() for group in self.carried)
        for slot in carried:
            for name, array in slot.tensors.items():
                array[...] = tensors[name]
        rows = tuple(group.take() for group in self.rows)
        for group, table in zip(self.rows, rows, strict=True):
            table.filled = position % group.length
            for name, array in table.tensors.items():
                array[: table.filled] = tensors[name][: table.filled]
        return HostState(self.batch, position, carried, rows)

    def check_owner(self, state: HostState) -> None:
        """Raise `InputError` for the state of another loaded model, or of another number of streams."""
        check_owner(state.carried or state.rows, self.carried or self.rows)

    def watch(self, executor: CpuExecutor) -> None:
        """Tell `executor`, while there is such a one, when a block is gone: its bindings are not to keep the memory."""
        self._readers = [known for known in self._readers if known() is not None] + [weakref.ref(executor)]

    def _forget(self, block: int) -> None:
        for known in self._readers:
            if (executor := known()) is not None:
                executor.forget(block)


def check_tensors(manifest: Manifest, tensors: Mapping[str, Array], batch: int) -> None:
    """Raise `InputError` unless these are all the state tensors of `batch` streams, shaped as the table says."""
    specs = {spec.name: spec for spec in manifest.states}
    if unknown := sorted(set(tensors) - set(specs)):
        raise InputError(f"there is no state tensor {unknown[0]!r}", "the manifest's state table has the names")
    for name, spec in specs.items():
        value = tensors.get(name)
        wanted = spec.concrete(batch)
        if value is None or value.shape != wanted or value.dtype != np.dtype(spec.dtype):
            found = "missing" if value is None else f"{value.dtype} {list(value.shape)}"
            raise InputError(
                f"state {name!r} is {found}, the model's is {spec.dtype} {list(wanted)}",
                "pass tensors that this model's state was read from",
            )


class Graphs(Protocol):
    """What an executor needs of its backend."""

    def session(self, graph: GraphSpec) -> ort.InferenceSession: ...

    def weight_inputs(self, session: ort.InferenceSession) -> dict[str, ort.OrtValue]: ...


class CpuExecutor:
    """Runs graphs on states of one layout, for one caller at a time. See `base.Executor` for the contract."""

    def __init__(self, graphs: Graphs, layout: Layout) -> None:
        self._graphs = graphs
        self._layout = layout
        self._bound: dict[str, BoundGraph] = {}
        layout.watch(self)

    def run(self, graph: GraphSpec, state: State, feed: Feed) -> tuple[Outputs, HostState]:
        """Run one graph: what it said, and the state after it."""
        state = cast(HostState, state)
        self._layout.check_owner(state)
        bound = self.bound(graph)
        written = {i: self._layout.carried[i].take() for i in bound.writes}
        after = tuple(written.get(i, slot) for i, slot in enumerate(state.carried))
        bound.load(feed, state.position)
        bound.execute((*state.carried, *state.rows), written)
        bound.check_finite(written.values(), state.position, feed.length)
        rows = state.rows
        if bound.appends:
            rows = tuple(
                group.append(slot, state.position % group.length, feed.length, bound.rows(group))
                for group, slot in zip(self._layout.rows, rows, strict=True)
            )
        return bound.outputs(feed.length), HostState(state.batch, state.position + feed.length, after, rows)

    def bound(self, graph: GraphSpec) -> BoundGraph:
        """A graph's inputs and outputs in this executor, set up when first needed."""
        found = self._bound.get(graph.name)
        if found is None:
            session = self._graphs.session(graph)
            found = self._bound[graph.name] = BoundGraph(
                graph, session, self._layout, self._graphs.weight_inputs(session)
            )
        return found

    def forget(self, block: int) -> None:
        """Drop what is bound to a block that is gone."""
        for bound in list(self._bound.values()):
            bound.forget(block)


class BoundGraph:
    """One graph: fixed places for the data that goes in and comes out, and bindings to the blocks it met lately.

    writes: the groups of carried tensors that it writes, by index.
    appends: whether it returns rows.
    """

    def __init__(
        self, graph: GraphSpec, session: ort.InferenceSession, layout: Layout, weights: Mapping[str, ort.OrtValue]
    ) -> None:
        self._graph = graph
        self._weights = weights
        self._session = session
        self._manifest = manifest = layout.manifest
        inputs, outputs = {t.name for t in graph.inputs}, {t.name for t in graph.outputs}
        groups = (*layout.carried, *layout.rows)
        self.writes = tuple(i for i, g in enumerate(layout.carried) if g.specs[0].output in outputs)
        self.appends = any(s.kind == "rows" and s.output in outputs for s in manifest.states)
        self._reads = tuple(i for i, g in enumerate(groups) if any(spec.input in inputs for spec in g.specs))
        self._ins = {i: [(s.input, s.name) for s in groups[i].specs if s.input in inputs] for i in self._reads}
        self._outs = {i: [(s.output, s.name) for s in layout.carried[i].specs] for i in self.writes}
        self._row_outputs = {s.name: s.output for s in manifest.states if s.kind == "rows"}
        states = {s.input for s in manifest.states} | {s.output for s in manifest.states if s.kind == "carried"}
        self._data = scratch([t for t in graph.inputs if t.name not in states], layout.batch)
        self._results = scratch([t for t in graph.outputs if t.name not in states], layout.batch)
        self._bindings: OrderedDict[tuple[int, ...], ort.IOBinding] = OrderedDict()

    def load(self, feed: Feed, position: int | Array) -> None:
        """Put the data of one call in place; what is right of `length` is zero padding."""
        data = self._data.tensors
        if feed.inputs is not None:
            stream = data[data_name(self._manifest)]
            stream[:, : feed.length] = feed.inputs
            stream[:, feed.length :] = 0
        if "position" in data:
            data["position"][...] = position
        if "length" in data:
            data["length"].fill(feed.length)

    def execute(self, slots: tuple[Slot, ...], written: Mapping[int, Slot]) -> None:
        """Run, reading `slots` (carried, then rows) and writing `written` (by group)."""
        key = (*(slots[i].block.id for i in self._reads), *(written[i].block.id for i in self.writes))
        binding = self._bindings.get(key)
        if binding is None:
            binding = self._bindings[key] = self._bind(slots, written)
            if len(self._bindings) > _BINDINGS:
                self._bindings.popitem(last=False)
        try:
            with_denormals_as_zero(partial(self._session.run_with_iobinding, binding))
        except Exception as error:  # onnxruntime's exceptions have no common base of their own
            from titans_runtime.devices.host import first_line, out_of_memory

            remedy = "try again, and if it fails again check the bundle with `titans verify`"
            if out_of_memory(error):
                remedy = "free some memory, and try again"
            raise ExecutionError(
                f"graph {self._graph.name!r} failed on the CPU ({first_line(error)})", f"nothing has changed: {remedy}"
            ) from error

    def finite(self, written: Iterable[Slot]) -> bool:
        """Whether all that the last run returned, padding included, is finite."""
        return self._results.finite() and all(slot.block.finite() for slot in written)

    def check_finite(self, written: Iterable[Slot], position: int, length: int) -> None:
        """Raise `NonFiniteError` if a number that the last run returned, padding aside, is not finite."""
        written = list(written)
        if self.finite(written):
            return
        told = [
            array for array in (self._window(name, length) for name in ("surprise", self._head)) if array is not None
        ]
        tokens = [int(np.flatnonzero(~np.isfinite(a).all(axis=(0, 2)))[0]) for a in told if not np.isfinite(a).all()]
        bad = [name for name, flags in self.not_finite(written, length).items() if name and flags.any()]
        if bad or tokens:
            last = length - 1  # of a commit, -1: the token before it
            raise NonFiniteError(self._graph.name, position + min(tokens, default=last), bad[0] if bad else None)

    def not_finite(self, written: Iterable[Slot], length: int = 1) -> dict[str, Array]:
        """Which streams have numbers that are not finite: flags `[B]` by state in the table's order, "" for outputs."""
        states = {name: array for slot in written for name, array in slot.tensors.items()}
        for name, output in self._row_outputs.items():
            if self.appends:
                states[name] = self._results.tensors[output][:length]
        flags = {
            s.name: _streams_not_finite(states[s.name], s.batch_axis) for s in self._manifest.states if s.name in states
        }
        told = [a for a in (self._window(name, length) for name in ("surprise", self._head)) if a is not None]
        if told:
            flags[""] = np.logical_or.reduce([_streams_not_finite(array, 0) for array in told])
        return flags

    def rows(self, group: RowsGroup) -> dict[str, Array]:
        """The rows that the last run returned, by state name."""
        return {name: self._results.tensors[self._row_outputs[name]] for name in group.names}

    def outputs(self, length: int) -> Outputs:
        """Windows onto the last run's data outputs, padding cut off."""
        return Outputs(self._window(self._head, length), self._window("surprise", length))

    def forget(self, block: int) -> None:
        """Drop the bindings to a block."""
        for key in list(self._bindings):
            if block in key:
                self._bindings.pop(key, None)

    @property
    def _head(self) -> str:
        return head_name(self._manifest)

    def _window(self, name: str, length: int) -> FloatArray | None:
        array = self._results.tensors.get(name)
        return None if array is None else array[:, :length]

    def _bind(self, slots: tuple[Slot, ...], written: Mapping[int, Slot]) -> ort.IOBinding:
        binding = self._session.io_binding()
        for name, value in (*self._weights.items(), *self._data.values.items()):
            binding.bind_ortvalue_input(name, value)
        for name, value in self._results.values.items():
            binding.bind_ortvalue_output(name, value)
        for i, tensors in self._ins.items():
            for name, state in tensors:
                binding.bind_ortvalue_input(name, slots[i].block.values[state])
        for i, tensors in self._outs.items():
            for name, state in tensors:
                binding.bind_ortvalue_output(name, written[i].block.values[state])
        return binding


def _streams_not_finite(array: Array, axis: int) -> Array:
    """Flags `[B]`."""
    others = tuple(i for i in range(array.ndim) if i != axis)
    if array.dtype.kind != "f":
        return np.zeros(array.shape[axis], np.bool_)
    return np.asarray(~np.isfinite(array).all(axis=others))
