"""Blocks of memory that are leased to states and come back when the last state that refers to them is gone.

Knows reuse, lifetime and who may append to a table. Does not know what kind of memory a block is (`device`)
nor what its tensors mean.

CPython ends a lease at once when nothing refers to it. A driven stream therefore alternates between two or three
blocks, at addresses that bindings can be cached for.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeAlias

from titans_format.manifest import Manifest
from titans_format.specs import StateSpec
from titans_runtime.errors import InputError

_SPARES = 2  # blocks kept for reuse per pool; what a driven stream alternates with

Shapes: TypeAlias = Sequence[tuple[str, tuple[int, ...], str]]  # name, shape, dtype of every tensor of a block

_ids = itertools.count()


class Buffer(Protocol):
    """One tensor in a device's memory, row-major."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        ...


class Block:
    """Tensors that are allocated together, by state name and in the order of their pool.

    id: a number of its own, never used again.
    """

    def __init__(self, tensors: Mapping[str, Buffer]) -> None:
        self.id = next(_ids)
        self.tensors = tensors

    @property
    def buffers(self) -> list[Buffer]:
        """The tensors in their order."""
        return list(self.tensors.values())


class Lease:
    """A block in use by one or more states; goes back to its pool when the last of them is gone."""

    __slots__ = ("__weakref__", "_pool", "block")

    def __init__(self, pool: Pool, block: Block) -> None:
        self.block = block
        self._pool = pool

    def of(self, pool: Pool) -> bool:
        """Whether it is of this pool."""
        return self._pool is pool

    def __del__(self) -> None:
        pool = getattr(self, "_pool", None)  # where making it was interrupted there is none
        if pool is not None:
            pool.give_back(self.block)


class Table(Lease):
    """Rows that are only ever appended: states that share a table differ in how many rows they count.

    filled: rows that some state counts. A state with fewer must not append here.
    """

    __slots__ = ("_filled",)

    def __init__(self, pool: Pool, block: Block) -> None:
        super().__init__(pool, block)
        self._filled = [0]  # empty while a thread claims rows, and for good if it was stopped: then nobody appends

    @property
    def filled(self) -> int:
        """Rows that some state counts; -1 where nobody may append any more."""
        return self._filled[0] if self._filled else -1

    @filled.setter
    def filled(self, rows: int) -> None:
        self._filled = [rows]

    def claim(self, start: int, count: int) -> bool:
        """See `TablePool.claim`. Of several who ask at once one is answered yes at most, and possibly none."""
        try:
            filled = self._filled.pop()
        except IndexError:
            return False
        own = start > 0 and filled == start
        self._filled.append(start + count if own else filled)
        return own


class Pool:
    """Tensors that are written together, and their spare blocks. Safe to use from several threads.

    Args:
        specs: the state tensors; none for a graph's outputs.
        shapes: what a block is made of, in the order of `specs`.
        make: makes a block for these shapes, with finite numbers in it.
        on_drop: called with the id of a block whose memory is to be given back to the system.
    """

    def __init__(
        self,
        specs: Sequence[StateSpec],
        shapes: Shapes,
        make: Callable[[Shapes], Block],
        on_drop: Callable[[int], None],
    ) -> None:
        self.specs = tuple(specs)
        self.names = tuple(name for name, _, _ in shapes)
        self._shapes = shapes
        self._make = make
        self._on_drop = on_drop
        self._spares: list[Block] = []

    def take(self) -> Lease:
        """A block of this state's own; what is in it is finite and otherwise undefined."""
        return Lease(self, self._block())

    def give_back(self, block: Block) -> None:
        """What the end of a lease does."""
        if len(self._spares) < _SPARES:
            self._spares.append(block)
        else:
            self._on_drop(block.id)

    def _block(self) -> Block:
        try:
            return self._spares.pop()
        except IndexError:
            return self._make(self._shapes)


class TablePool(Pool):
    """Tables of equally many rows, which are appended to together."""

    def __init__(
        self,
        specs: Sequence[StateSpec],
        shapes: Shapes,
        make: Callable[[Shapes], Block],
        on_drop: Callable[[int], None],
    ) -> None:
        super().__init__(specs, shapes, make, on_drop)
        self.length = shapes[0][1][0]

    def take(self) -> Table:
        """An empty table."""
        return Table(self, self._block())

    def claim(self, table: Table, start: int, count: int) -> bool:
        """Whether rows `start .. start + count - 1` may be written into `table` itself; they count as filled then.

        They may not if another state counts rows from `start` on, nor at the beginning of a table.
        """
        return table.claim(start, count)


def check_owner(leases: Sequence[Lease], pools: Sequence[Pool]) -> None:
    """Raise `InputError` unless a state, known by its first lease, is of these pools: of this model, loaded here."""
    if leases and not leases[0].of(pools[0]):
        raise InputError(
            "this state belongs to another loaded model, or to another number of streams",
            "bring it here as a session, with restore_bytes(session.to_bytes())",
        )


def by_writers(manifest: Manifest) -> list[list[StateSpec]]:
    """Carried states, those that the same graphs write together."""
    groups: dict[frozenset[str], list[StateSpec]] = {}
    for spec in manifest.states:
        if spec.kind == "carried":
            writers = frozenset(g.name for g in manifest.graphs if any(t.name == spec.output for t in g.outputs))
            groups.setdefault(writers, []).append(spec)
    return list(groups.values())


def by_length(manifest: Manifest) -> list[list[StateSpec]]:
    """Rows states, those of equally long tables together."""
    groups: dict[int | str, list[StateSpec]] = {}
    for spec in manifest.states:
        if spec.kind == "rows":
            groups.setdefault(spec.shape[0], []).append(spec)
    return list(groups.values())
