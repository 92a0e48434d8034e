"""State on a device as immutable values, and the executor that makes the next one without bringing it to the host.

Knows the tensors of a batch of streams and what a graph reads and writes. Does not know which device it is (`device`)
or when a graph is due (`plan`). The host twin is `cpu_state`, with the same rules for who may write where.

A call reads the blocks of the state it is given and writes carried tensors into spare blocks, so they alternate between
two. Rows come out into a place of their own and are put into their table by the device. What crosses the bus is tokens
and positions on the way in, surprise and those outputs that the caller wants to see on the way out: outputs stay in a
block of their own, and whoever may ask for the last token's later holds it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np

from titans_format.contract import data_name, head_name
from titans_format.specs import GraphSpec, Initial, Shape, StateSpec
from titans_runtime.arrays import Array, FloatArray
from titans_runtime.bundle import Bundle, check_memory
from titans_runtime.devices.arena import scratch
from titans_runtime.devices.cpu_state import check_tensors
from titans_runtime.errors import NonFiniteError
from titans_runtime.state.blocks import Lease, Pool, Table, TablePool, by_length, by_writers, check_owner
from titans_runtime.state.calls import Best, Feed, Outputs, State
from titans_runtime.state.device import Bound, Buffer, Device, DeviceBlock, Program

# Combinations of blocks that a stream meets while it decodes and reads prompts in turn; see `cpu_state`.
_BINDINGS = 32


@dataclass(frozen=True)
class DeviceState:
    """The state of `batch` streams: a block for each group of carried tensors, and one for each length of table."""

    batch: int
    position: int
    carried: tuple[Lease[DeviceBlock], ...]
    rows: tuple[Table[DeviceBlock], ...]


class DeviceLayout:
    """Where the state of `batch` streams is, and how it starts.

    Args:
        bundle: the state table and the initial values.
        device: whose memory.
        batch: how many streams.
    """

    def __init__(self, bundle: Bundle, device: Device, batch: int) -> None:
        check_memory(bundle.manifest, batch)
        self.batch = batch
        self.device = device
        self.manifest = bundle.manifest
        self._forgetters: list[Callable[[int], None]] = []

        self._make = partial(DeviceBlock, device)
        self.carried = tuple(Pool(specs, batch, self._make, self._forget) for specs in by_writers(bundle.manifest))
        self.rows = tuple(TablePool(specs, batch, self._make, self._forget) for specs in by_length(bundle.manifest))
        beginning = {
            spec.name: np.broadcast_to(
                bundle.initial.get(spec.name, np.zeros((), spec.dtype))
                if spec.kind == "carried"
                else np.zeros((), spec.dtype),
                spec.concrete(batch),
            )
            for spec in bundle.manifest.states
        }
        self.initial = self._filled(beginning, 0)

    def read(self, state: DeviceState) -> dict[str, Array]:
        """Copies of all tensors in host memory, in the order of the state table; rows that were not written are 0."""
        self.check_owner(state)
        found: dict[str, Array] = {}
        with self.device.lock:
            for lease in (*state.carried, *state.rows):
                found |= {name: self.device.download(buffer) for name, buffer in lease.block.tensors.items()}
        for pool in self.rows:
            for name in pool.names:
                found[name][state.position % pool.length :] = 0
        return {spec.name: found[spec.name] for spec in self.manifest.states}

    def write(self, tensors: Mapping[str, Array], position: int) -> DeviceState:
        """A state of its own with copies of these values. Raises `InputError` for what does not fit."""
        check_tensors(self.manifest, tensors, self.batch)
        return self._filled(tensors, position)

    def check_owner(self, state: DeviceState) -> None:
        """Raise `InputError` for the state of another loaded model, or of another number of streams."""
        check_owner(state.carried or state.rows, self.carried or self.rows)

    def outputs(self, name: str, shape: Shape) -> Pool[DeviceBlock]:
        """Blocks for one graph's outputs, which are leased as a state's tensors are."""
        spec = StateSpec(
            name=name,
            kind="carried",
            dtype="float32",
            shape=shape,
            initial=Initial(kind="zeros"),
            input=name,
            output=name,
        )
        return Pool([spec], self.batch, self._make, self._forget)

    def on_drop(self, forget: Callable[[int], None]) -> None:
        """Call `forget` with the id of a block that is gone, so that nothing else keeps its memory."""
        self._forgetters.append(forget)

    def _filled(self, tensors: Mapping[str, Array], position: int) -> DeviceState:
        with self.device.lock:
            carried = tuple(pool.take() for pool in self.carried)
            rows = tuple(pool.take() for pool in self.rows)
            for lease in (*carried, *rows):
                for name, buffer in lease.block.tensors.items():
                    self.device.upload(buffer, np.ascontiguousarray(tensors[name]))
        for pool, table in zip(self.rows, rows, strict=True):
            table.filled = position % pool.length
        return DeviceState(self.batch, position, carried, rows)

    def _forget(self, block: int) -> None:
        for forget in self._forgetters:
            forget(block)


class DeviceExecutor:
    """Runs graphs on states of one layout, for one caller at a time. See `base.Executor` for the contract."""

    def __init__(self, layout: DeviceLayout) -> None:
        self._layout = layout
        self._graphs: dict[str, DeviceGraph] = {}
        layout.on_drop(self._forget)

    def run(self, graph: GraphSpec, state: State, feed: Feed) -> tuple[Outputs, DeviceState]:
        """Run one graph: what it said, and the state after it."""
        state = cast(DeviceState, state)
        layout = self._layout
        layout.check_owner(state)
        with layout.device.lock:
            bound = self.graph(graph)
            written = {i: layout.carried[i].take() for i in bound.writes}
            bound.load(feed, state.position)
            bound.run((*state.carried, *state.rows), written)
            told, bad = bound.tell(feed)
            bound.check_finite(told, bad, written, state.position, feed)
            after = tuple(written.get(i, lease) for i, lease in enumerate(state.carried))
            rows = state.rows
            if bound.appends:
                rows = tuple(
                    self._append(pool, table, state.position % pool.length, feed.length, bound)
                    for pool, table in zip(layout.rows, rows, strict=True)
                )
        return told, DeviceState(state.batch, state.position + feed.length, after, rows)

    def graph(self, graph: GraphSpec) -> DeviceGraph:
        """A graph with this executor's places for what goes in and comes out, set up when first needed."""
        found = self._graphs.get(graph.name)
        if found is None:
            program = self._layout.device.program(graph, self._layout.batch)
            found = self._graphs[graph.name] = DeviceGraph(graph, program, self._layout)
        return found

    def _append(
        self, pool: TablePool[DeviceBlock], table: Table[DeviceBlock], start: int, count: int, bound: DeviceGraph
    ) -> Table[DeviceBlock]:
        target = table
        if not pool.claim(table, start, count):
            target = pool.take()
            target.filled = start + count
        # At its beginning a table has no rows to take over.
        source = table if start else target
        self._layout.device.append(_all(source, pool), _all(target, pool), bound.rows(pool), start, count)
        return target

    def _forget(self, block: int) -> None:
        for bound in list(self._graphs.values()):
            bound.forget(block)


class DeviceGraph:
    """One graph: fixed places for the data that goes in and comes out, and bindings to the blocks it met lately.

    writes: the groups of carried tensors that it writes, by index.
    appends: whether it returns rows.
    """

    def __init__(self, graph: GraphSpec, program: Program, layout: DeviceLayout) -> None:
        self._graph = graph
        self._program = program
        self._layout = layout
        self._manifest = manifest = layout.manifest
        self._inputs, self._outputs = {t.name for t in graph.inputs}, {t.name for t in graph.outputs}
        self._states = (*layout.carried, *layout.rows)
        self.writes = tuple(i for i, p in enumerate(layout.carried) if p.specs[0].output in self._outputs)
        self.appends = any(s.kind == "rows" and s.output in self._outputs for s in manifest.states)
        self._reads = tuple(
            i for i, pool in enumerate(self._states) if any(spec.input in self._inputs for spec in pool.specs)
        )
        states = {name for spec in manifest.states for name in (spec.input, spec.output)}
        head = [t for t in graph.outputs if t.name == head_name(manifest)]
        self._data = scratch([t for t in graph.inputs if t.name not in states], layout.batch)
        self._results = scratch([t for t in graph.outputs if t.name not in states and t not in head], layout.batch)
        self._heads = [layout.outputs(t.name, t.shape) for t in head]  # one, or none of a commit
        self._head: Lease[DeviceBlock] | None = None  # of the last run
        rows = {spec.output: spec for spec in manifest.states if spec.kind == "rows"}
        self._rows: dict[str, Buffer] = {}
        for tensor in graph.outputs:
            if tensor.name in rows:
                count = cast(int, tensor.shape[0])  # by the manifest's contract the graph's tokens
                shape = (count, *rows[tensor.name].concrete(layout.batch)[1:])
                self._rows[tensor.name] = layout.device.allocate(shape, tensor.dtype)
        self._bindings: OrderedDict[tuple[int, ...], Bound] = OrderedDict()

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

    def run(self, leases: Sequence[Lease[DeviceBlock]], written: Mapping[int, Lease[DeviceBlock]]) -> None:
        """Run, reading `leases` (carried, then rows) and writing `written` (by group)."""
        self._head = None  # its block is the next run's, unless somebody holds it
        self._head = next((pool.take() for pool in self._heads), None)
        key = (*(leases[i].block.id for i in self._reads), *(written[i].block.id for i in self.writes))
        key += () if self._head is None else (self._head.block.id,)
        binding = self._bindings.get(key)
        if binding is None:
            binding = self._bindings[key] = self._bind(leases, written, self._head)
            if len(self._bindings) > _BINDINGS:
                self._bindings.popitem(last=False)
        else:
            self._bindings.move_to_end(key)
        binding.run()
        self._layout.device.traffic.calls += 1

    def tell(self, feed: Feed) -> tuple[Outputs, Array]:
        """Bring what the caller of the last run wants to see, and flags `[B]`: whose numbers in it are not finite."""
        surprise = self._surprise(feed.length)
        bad: Array = np.zeros(self._layout.batch, np.bool_)
        if surprise is not None:
            bad |= ~np.isfinite(surprise).all(axis=(1, 2))
        if self._head is None or feed.rows == "none":
            return Outputs(None, surprise), bad
        device, head = self._layout.device, self._head
        buffer = head.block.tensors[head_name(self._manifest)]
        best = None if feed.best is None or feed.rows != "last" else device.best(buffer, feed.length - 1, feed.best)
        if best is not None:
            ids, scores, total = best
            rest = partial(_last, device, head, buffer, feed.length)
            if not np.isfinite(total).all():  # a choice compares, and may pass over what is no number
                bad |= ~np.isfinite(rest()).all(axis=1)
            return Outputs(None, surprise, Best(ids, scores, rest)), bad
        count = feed.length if feed.rows == "every" else 1
        rows = device.rows(buffer, feed.length - count, count)
        return Outputs(rows, surprise), bad | ~np.isfinite(rows).all(axis=(1, 2))

    def check_finite(
        self, told: Outputs, bad: Array, written: Mapping[int, Lease[DeviceBlock]], position: int, feed: Feed
    ) -> None:
        """Raise `NonFiniteError` if what came to the host, padding aside, or a written memory is not finite.

        What a step writes reaches its own outputs. What a commit writes is read by the next token only, so it is added
        up on the device, where the device can; so are outputs that stay there. All of it is fetched if something is
        wrong, to say where it began.
        """
        if not bad.any() and (self._graph.kind not in ("prefill", "commit") or self._sums_are_finite(written)):
            return
        length = feed.length
        arrays = [] if told.surprise is None else [told.surprise]
        if self._head is not None:
            buffer = self._head.block.tensors[head_name(self._manifest)]
            arrays.append(self._layout.device.rows(buffer, 0, length))
        tokens = [int(np.flatnonzero(~np.isfinite(a).all(axis=(0, 2)))[0]) for a in arrays if not np.isfinite(a).all()]
        found: dict[str, Array] = {}
        for i, lease in written.items():
            tensors = lease.block.tensors
            found |= {name: self._layout.device.download(tensors[name]) for name in self._layout.carried[i].names}
        names = [s.name for s in self._manifest.states if s.name in found and not np.isfinite(found[s.name]).all()]
        if names or tokens:  # otherwise a sum of large numbers overflowed
            last = length - 1  # of a commit, -1: the token before it
            raise NonFiniteError(self._graph.name, position + min(tokens, default=last), names[0] if names else None)

    def _sums_are_finite(self, written: Mapping[int, Lease[DeviceBlock]]) -> bool:
        """Whether what was written adds up to finite numbers, as far as the device can tell."""
        leases = [*written.values(), *([] if self._head is None else [self._head])]
        buffers = [buffer for lease in leases for buffer in lease.block.tensors.values()]
        floats = [buffer for buffer in buffers if buffer.dtype.startswith("float")]
        sums = self._layout.device.sums(floats) if floats else None
        return sums is None or bool(np.isfinite(sums).all())

    def rows(self, pool: TablePool[DeviceBlock]) -> list[Buffer]:
        """The rows that the last run returned, in the order of the pool."""
        return [self._rows[spec.output] for spec in pool.specs]

    def forget(self, block: int) -> None:
        """Drop the bindings to a block."""
        for key in [key for key in list(self._bindings) if block in key]:
            self._bindings.pop(key, None)

    def _surprise(self, length: int) -> FloatArray | None:
        """A window onto the last run's, padding cut off."""
        array = self._results.tensors.get("surprise")
        return None if array is None else array[:, :length]

    def _bind(
        self,
        leases: Sequence[Lease[DeviceBlock]],
        written: Mapping[int, Lease[DeviceBlock]],
        head: Lease[DeviceBlock] | None,
    ) -> Bound:
        inputs = {
            spec.input: leases[i].block.tensors[spec.name]
            for i in self._reads
            for spec in self._states[i].specs
            if spec.input in self._inputs
        }
        outputs = {
            spec.output: written[i].block.tensors[spec.name] for i in self.writes for spec in self._states[i].specs
        }
        outputs |= self._rows | ({} if head is None else head.block.tensors)
        return self._program.bind(self._data.tensors, self._results.tensors, inputs, outputs)


def _last(device: Device, head: Lease[DeviceBlock], buffer: Buffer, length: int) -> FloatArray:
    """The outputs after a call's last token `[B, outputs]`, from the block that is held for it."""
    with device.lock:
        return device.rows(buffer, length - 1, 1)[:, 0]


def _all(lease: Lease[DeviceBlock], pool: Pool[DeviceBlock]) -> list[Buffer]:
    return [lease.block.tensors[name] for name in pool.names]
