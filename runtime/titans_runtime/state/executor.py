"""The executor: runs graphs on states of one layout, on any device, and makes the next state out of one.

Knows what a graph reads and writes, and how its outputs are brought and checked. Does not know which device it is
(`device`) or when a graph is due (`plan`).

A call reads the blocks of the state it is given and writes carried tensors into spare blocks, so a stream alternates
between a few; a binding is kept for each combination. Rows come out into a place of their own and are then appended to
their table. Tokens and positions go to the device; surprise and the wanted outputs come back. Outputs stay in a block
of their own, so that the last token's can be fetched later, as long as the block is held.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import cast

import numpy as np

from titans_format.contract import data_name, head_name
from titans_format.specs import GraphSpec
from titans_runtime.arrays import Array, FloatArray
from titans_runtime.errors import NonFiniteError
from titans_runtime.state.blocks import Buffer, Lease, Table, TablePool
from titans_runtime.state.calls import CallInputs, Outputs, TopK
from titans_runtime.state.device import Device
from titans_runtime.state.host_memory import scratch
from titans_runtime.state.layout import Layout, State

# A stream that decodes and reads prompts in turn meets up to 25 combinations of blocks. A missing binding costs 30 us.
_BINDINGS = 32


class Executor:
    """Runs graphs for one caller at a time."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._graphs: dict[str, BoundGraph] = {}
        layout.on_drop(self._forget)

    def run(self, graph: GraphSpec, state: State, inputs: CallInputs) -> tuple[Outputs, State]:
        """Run one graph.

        Returns:
            What it returned, and the state after it, whose position is `inputs.length` further on.

        Raises:
            ExecutionError: the graph failed.
            NonFiniteError: it returned numbers that are not finite; says at which token, and in which state tensor.
            BundleError: the graph cannot be loaded.
        """
        layout, position, length = self._layout, state.position, inputs.length
        layout.check_owner(state)
        device = layout.device
        with device.lock:
            bound = self.graph(graph)
            written = {i: layout.carried[i].take() for i in bound.writes}
            bound.load(inputs, position)
            bound.run((*state.carried, *state.rows), written)
            outputs, finite = bound.outputs(inputs)
            if not (finite and bound.finite(written.values())):
                bound.raise_not_finite(written, position, length)
            rows = state.rows
            if bound.appends:
                rows = tuple(
                    _append(device, pool, table, position % pool.length, length, bound.rows(pool))
                    for pool, table in zip(layout.rows, rows, strict=True)
                )
        carried = tuple(written.get(i, lease) for i, lease in enumerate(state.carried))
        return outputs, State(state.batch, position + length, carried, rows)

    def graph(self, graph: GraphSpec) -> BoundGraph:
        """A graph with this executor's places for what goes in and comes out, set up when first needed."""
        found = self._graphs.get(graph.name)
        if found is None:
            found = self._graphs[graph.name] = BoundGraph(graph, self._layout)
        return found

    def _forget(self, block: int) -> None:
        for bound in list(self._graphs.values()):
            bound.forget(block)


class BoundGraph:
    """One graph: fixed places for the data that goes in and comes out, and bindings to the blocks it met lately.

    writes: the groups of carried tensors that it writes, by index.
    appends: whether it returns rows.
    """

    def __init__(self, graph: GraphSpec, layout: Layout) -> None:
        self.name = graph.name
        self._layout = layout
        self._device = device = layout.device
        self._manifest = manifest = layout.manifest
        self._program = device.program(graph, layout.batch)
        self._scans = device.scans_steps or graph.kind in ("prefill", "commit")
        self._inputs = {t.name for t in graph.inputs}
        outputs = {t.name for t in graph.outputs}
        self._states = (*layout.carried, *layout.rows)
        self.writes = tuple(i for i, p in enumerate(layout.carried) if p.specs[0].output in outputs)
        self._reads = tuple(
            i for i, pool in enumerate(self._states) if any(spec.input in self._inputs for spec in pool.specs)
        )
        # Places on the host: data, and results that every caller sees.
        states = {name for spec in manifest.states for name in (spec.input, spec.output)}
        head = [t for t in graph.outputs if t.name == head_name(manifest)]
        self._data = scratch([t for t in graph.inputs if t.name not in states], layout.batch)
        self._stream = self._data.arrays.get(data_name(manifest))
        self._position, self._length = self._data.arrays.get("position"), self._data.arrays.get("length")
        self._results = scratch([t for t in graph.outputs if t.name not in states and t not in head], layout.batch)
        self._surprise = self._results.arrays.get("surprise")
        # Places on the device: the outputs, and the rows before they are in their table.
        self._heads = layout.outputs(head[0]) if head else None
        self._head_name = head[0].name if head else ""
        self._head: Lease | None = None  # of the last run
        tables = {spec.output: spec for spec in manifest.states if spec.kind == "rows"}
        fresh = [t for t in graph.outputs if t.name in tables]
        self.appends = bool(fresh)
        self._rows = device.block(
            [
                # By the manifest's contract the first dimension is the graph's tokens.
                (t.name, (cast(int, t.shape[0]), *tables[t.name].concrete(layout.batch)[1:]), t.dtype)
                for t in fresh
            ]
        )
        self._rows_of = {id(pool): [self._rows.tensors[s.output] for s in pool.specs] for pool in layout.rows if fresh}
        self._bindings: OrderedDict[tuple[int, ...], Callable[[], None]] = OrderedDict()

    def load(self, inputs: CallInputs, position: int | Array) -> None:
        """Put the data of one call in place; what is right of `length` is zero padding."""
        if inputs.inputs is not None and self._stream is not None:
            self._stream[:, : inputs.length] = inputs.inputs
            self._stream[:, inputs.length :] = 0
        if self._position is not None:
            self._position[...] = position
        if self._length is not None:
            self._length.fill(inputs.length)

    def run(self, leases: Sequence[Lease], written: Mapping[int, Lease]) -> None:
        """Run, reading `leases` (carried, then rows) and writing `written` (by group)."""
        self._head = None  # its block is the next run's, unless it is held elsewhere
        key = (*[leases[i].block.id for i in self._reads], *[lease.block.id for lease in written.values()])
        if self._heads is not None:
            self._head = self._heads.take()
            key += (self._head.block.id,)
        run = self._bindings.get(key)
        if run is None:
            run = self._bindings[key] = self._bind(leases, written)
            if len(self._bindings) > _BINDINGS:
                self._bindings.popitem(last=False)
        else:
            self._bindings.move_to_end(key)
        run()

    def outputs(self, inputs: CallInputs) -> tuple[Outputs, bool]:
        """Bring what the caller of the last run wants to see, and whether what came is finite."""
        length = inputs.length
        surprise = None if self._surprise is None else self._surprise[:, :length]
        finite = self._results.finite()
        if self._head is None or inputs.wanted == "none":
            return Outputs(None, surprise), finite
        device, buffer = self._device, self._head.block.tensors[self._head_name]
        if inputs.top_k is not None and inputs.wanted == "last":
            found = device.top_k(buffer, length - 1, inputs.top_k)
            if found is not None:
                places, scores, total = found
                rest = partial(_last, device, self._head, buffer, length)
                # A choice compares, and may pass over what is not a number.
                finite = finite and bool(np.isfinite(total).all() or np.isfinite(rest()).all())
                return Outputs(None, surprise, TopK(places, scores, rest)), finite
        count = length if inputs.wanted == "every" else 1
        rows = device.rows(buffer, length - count, count)
        # Where the device scans everything, it scans them with the rest.
        return Outputs(rows, surprise), finite and (device.scans_steps or bool(np.isfinite(rows).all()))

    def finite(self, written: Iterable[Lease]) -> bool:
        """Whether the last run's outputs, rows and carried tensors are finite, as far as they need a look.

        What a step writes reaches its own outputs. What a commit writes is only read by the next token, so it is looked
        at on the device, where the device can.
        """
        if not self._scans:
            return True
        blocks = [lease.block for lease in written]
        if self._head is not None:
            blocks.append(self._head.block)
        if self.appends:
            blocks.append(self._rows)
        return self._device.finite(blocks) is not False

    def raise_not_finite(self, written: Mapping[int, Lease], position: int, length: int) -> None:
        """Raise `NonFiniteError` if a number that the last run returned, padding aside, is not finite.

        Fetches everything, to say where it began. Returns after a false alarm: padding, or a sum that overflowed.
        """
        tokens = [int(np.flatnonzero(~np.isfinite(a).all(axis=(0, 2)))[0]) for a in self._bad_outputs(length)]
        bad = [name for name, flags in self.not_finite(written, length).items() if name and flags.any()]
        if bad or tokens:
            last = length - 1  # of a commit, -1: the token before it
            raise NonFiniteError(self.name, position + min(tokens, default=last), bad[0] if bad else None)

    def not_finite(self, written: Mapping[int, Lease], length: int) -> dict[str, Array]:
        """Which streams have numbers that are not finite: flags `[B]` by state in the table's order, "" for outputs."""
        found: dict[str, Array] = {}
        for lease in written.values():
            found |= {name: self._device.download(buffer) for name, buffer in lease.block.tensors.items()}
        for spec in self._manifest.states:
            if spec.kind == "rows" and spec.output in self._rows.tensors:
                found[spec.name] = self._device.download(self._rows.tensors[spec.output])[:length]
        flags = {
            s.name: _streams_not_finite(found[s.name], s.batch_axis) for s in self._manifest.states if s.name in found
        }
        for array in self._bad_outputs(length):
            flags[""] = _streams_not_finite(array, 0) | flags.get("", np.bool_(False))
        return flags

    def rows(self, pool: TablePool) -> list[Buffer]:
        """The rows that the last run returned, in the order of the pool."""
        return self._rows_of[id(pool)]

    def forget(self, block: int) -> None:
        """Drop the bindings to a block."""
        for key in [key for key in list(self._bindings) if block in key]:
            self._bindings.pop(key, None)

    def _bad_outputs(self, length: int) -> list[FloatArray]:
        """The last run's surprise and outputs, padding cut off, if they have numbers that are not finite."""
        found: list[FloatArray] = [] if self._surprise is None else [self._surprise[:, :length]]
        if self._head is not None:
            found.append(self._device.rows(self._head.block.tensors[self._head_name], 0, length))
        return [array for array in found if not np.isfinite(array).all()]

    def _bind(self, leases: Sequence[Lease], written: Mapping[int, Lease]) -> Callable[[], None]:
        inputs = {
            spec.input: leases[i].block.tensors[spec.name]
            for i in self._reads
            for spec in self._states[i].specs
            if spec.input in self._inputs
        }
        outputs = {
            spec.output: written[i].block.tensors[spec.name] for i in self.writes for spec in self._states[i].specs
        }
        outputs |= self._rows.tensors
        if self._head is not None:
            outputs |= self._head.block.tensors
        return self._program.bind(self._data.arrays, self._results.arrays, inputs, outputs)


def _append(device: Device, pool: TablePool, table: Table, start: int, count: int, rows: Sequence[Buffer]) -> Table:
    """The table with `rows` from `start` on: the same one, unless another state counts rows from there on."""
    target = table
    if not pool.claim(table, start, count):
        target = pool.take()
        target.filled = start + count
    source = table if start else target  # at its beginning a table has no rows to take over
    device.append(source.block.buffers, target.block.buffers, rows, start, count)
    return target


def _last(device: Device, head: Lease, buffer: Buffer, length: int) -> FloatArray:
    """The outputs after a call's last token `[B, outputs]`, from the block that is held for it."""
    with device.lock:
        return device.rows(buffer, length - 1, 1)[:, 0]


def _streams_not_finite(array: Array, axis: int) -> Array:
    """Flags `[B]`."""
    others = tuple(i for i in range(array.ndim) if i != axis)
    if array.dtype.kind != "f":
        return np.zeros(array.shape[axis], np.bool_)
    return np.asarray(~np.isfinite(array).all(axis=others))
