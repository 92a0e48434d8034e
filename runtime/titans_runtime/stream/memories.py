"""How far a stream's memories have moved from their learned start, and whether they are still alive.

A memory of two matrices or more learns through products of them: the gradient of each contains the others. Where two of
them have faded to nothing, no gradient is left and the memory never comes back.

Knows the state table's names of memory matrices. Does not know where a state is kept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from titans_format.manifest import Manifest
from titans_runtime.arrays import Array

FADED = 1e-3  # of the norm that a matrix started with
_MATRIX = re.compile(r"(?P<layer>.*\.|)memory_(?P<number>\d+)")


@dataclass(frozen=True)
class MemoryDistance:
    """Euclidean norms of one state tensor that starts from a learned value.

    from_start: of what was written and is not forgotten yet.
    from_zero: of the tensor itself.
    start: of the learned value.
    """

    from_start: float
    from_zero: float
    start: float


def learned_names(manifest: Manifest) -> list[str]:
    """The state tensors that start from a learned value, in the order of the state table."""
    return [state.name for state in manifest.states if state.initial.kind == "learned"]


def can_die(manifest: Manifest) -> bool:
    """Whether memories that have faded to nothing learn no more: not those whose weights are shares, or of one size."""
    memory = manifest.model.config.get("memory")
    if not isinstance(memory, dict):
        return True
    retention = memory.get("retention", "l2")  # older configurations do not name it
    return retention == "l2" or (retention == "lq" and memory.get("link") == "mirror")


def memory_distances(start: Mapping[str, Array], state: Mapping[str, Array]) -> dict[str, MemoryDistance]:
    """The distances of every tensor in `start`.

    Args:
        start: learned values `[...]` or `[1, ...]` by name, of one stream.
        state: the same tensors of a stream.
    """
    found = {}
    for name, begun in start.items():
        now = state[name].astype(np.float64).reshape(-1)
        origin = begun.astype(np.float64).reshape(-1)
        norms = (float(np.linalg.norm(each)) for each in (now - origin, now, origin))
        found[name] = MemoryDistance(*norms)
    return found


def dead_memories(start: Mapping[str, Array], state: Mapping[str, Array]) -> list[str]:
    """The memories that have faded so far that they cannot learn any more, such as `layer 0, head 1`.

    Args:
        start: learned matrices `[H, in, out]` or `[1, H, in, out]` by name, as in the state table.
        state: the same of any number of streams, `[B, H, in, out]`. A memory counts if it is dead in any of them.
    """
    layers: dict[str, list[str]] = {}
    for name in start:
        if match := _MATRIX.fullmatch(name):
            layers.setdefault(match["layer"], []).append(name)
    dead = []
    for layer, names in layers.items():
        if len(names) < 2:
            continue
        faded = sum((_norms(state[name]) < FADED * _norms(start[name])).astype(np.int64) for name in names)
        heads = np.flatnonzero(np.any(np.asarray(faded) >= 2, axis=0))
        dead += [f"layer {layer.rstrip('.') or 0}, head {head}" for head in heads]
    return dead


def dead_warning(dead: Sequence[str]) -> str:
    """What `dead_memories` found, as a sentence with a remedy."""
    return (
        f"{len(dead)} of the memories have faded to nothing and cannot learn any more ({'; '.join(dead)});"
        ' train with memory.forget_to="start", a smaller memory.initial_forget, or memory.depth=1'
    )


def _norms(matrices: Array) -> Array:
    """Of every head's matrix: `[..., H, in, out]` gives `[B or 1, H]`."""
    norms: Array = np.atleast_1d(np.linalg.norm(matrices.astype(np.float64), axis=(-2, -1)))
    return norms.reshape(-1, norms.shape[-1])
