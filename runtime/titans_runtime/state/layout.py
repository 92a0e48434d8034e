"""The state of a batch of streams as an immutable value, and how it lies in a device's memory.

Knows the state table, groups of tensors and where a stream starts. Does not know graphs (`executor`) or which device
it is (`device`).

The carried tensors that the same graphs write form a group, which lives in one block. A state refers to its blocks; its
successor refers to new ones where a graph wrote, and shares the rest. So nothing large is copied for a fork or a mark,
and a failed call changes nothing.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from titans_format.manifest import Manifest
from titans_format.specs import StateSpec, TensorSpec
from titans_runtime.arrays import Array
from titans_runtime.bundle import Bundle, check_memory
from titans_runtime.errors import InputError
from titans_runtime.state.blocks import Lease, Pool, Shapes, Table, TablePool, by_length, by_writers, check_owner
from titans_runtime.state.device import Device
from titans_runtime.state.host_memory import concrete


@dataclass(frozen=True)
class State:
    """The state of `batch` streams that have consumed `position` tokens. Immutable, safe to share.

    carried: a block for each group of carried tensors.
    rows: a table for each length of rows.
    """

    batch: int
    position: int
    carried: tuple[Lease, ...]
    rows: tuple[Table, ...]


class Layout:
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
        self._readers: list[weakref.WeakMethod[Callable[[int], None]]] = []
        make, forget = device.block, self._forget
        self.carried = tuple(Pool(s, _shapes(s, batch), make, forget) for s in by_writers(bundle.manifest))
        self.rows = tuple(TablePool(s, _shapes(s, batch), make, forget) for s in by_length(bundle.manifest))
        beginning = {
            spec.name: np.broadcast_to(bundle.initial.get(spec.name, np.zeros((), spec.dtype)), spec.concrete(batch))
            for spec in bundle.manifest.states
            if spec.kind == "carried"
        }
        self.initial = self._filled(beginning, 0)

    def read(self, state: State) -> dict[str, Array]:
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

    def write(self, tensors: Mapping[str, Array], position: int) -> State:
        """A state of its own with copies of these values. Raises `InputError` for what does not fit."""
        _check_tensors(self.manifest, tensors, self.batch)
        return self._filled(tensors, position)

    def check_owner(self, state: State) -> None:
        """Raise `InputError` for the state of another loaded model, or of another number of streams."""
        check_owner(state.carried or state.rows, self.carried or self.rows)

    def outputs(self, tensor: TensorSpec) -> Pool:
        """Blocks for one output of one graph, which are leased as a state's tensors are."""
        return Pool((), _shapes([tensor], self.batch), self.device.block, self._forget)

    def on_drop(self, forget: Callable[[int], None]) -> None:
        """Call a method with the id of a block that is gone, for as long as its object lives.

        So bindings to the block do not keep its memory.
        """
        self._readers = [known for known in self._readers if known() is not None] + [weakref.WeakMethod(forget)]

    def _filled(self, tensors: Mapping[str, Array], position: int) -> State:
        with self.device.lock:
            carried = tuple(pool.take() for pool in self.carried)
            rows = tuple(pool.take() for pool in self.rows)
            for pool, table in zip(self.rows, rows, strict=True):
                table.filled = position % pool.length
            for lease in (*carried, *(table for table in rows if table.filled)):
                for name, buffer in lease.block.tensors.items():
                    self.device.upload(buffer, tensors[name])
        return State(self.batch, position, carried, rows)

    def _forget(self, block: int) -> None:
        for known in self._readers:
            if (forget := known()) is not None:
                forget(block)


def _shapes(specs: Sequence[StateSpec | TensorSpec], batch: int) -> Shapes:
    return [(spec.name, concrete(spec.shape, batch), spec.dtype) for spec in specs]


def _check_tensors(manifest: Manifest, tensors: Mapping[str, Array], batch: int) -> None:
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
