"""The state table: which tensors a stream of tokens leaves behind, and how they start.

A *carried* tensor is replaced by its next value. *Rows* are appended one chunk position at a time: a graph
returns only the new rows, and whoever drives the model stores them. Knows nothing about what the tensors mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

State = dict[str, Tensor]  # by name; carried [B, ...], rows [R, B, ...]

StateKind = Literal["carried", "rows"]


@dataclass(frozen=True)
class StateSpec:
    """One tensor of a stream's state.

    Attributes:
        name: unique within its module; the model prefixes it with the layer number.
        kind: `carried` has shape `[B, *shape]`; `rows` has shape `[shape[0], B, *shape[1:]]`, where
            `shape[0]` is the number of chunk positions.
        shape: the shape without the batch axis.
        initial: the value every element starts with, or the name of the learned parameter
            (of exactly `shape`) that a fresh stream starts from.
        dtype: `memory` tensors stay in fp32 (fp64 in tests) whatever the weights are; `activation` follow them.
    """

    name: str
    kind: StateKind
    shape: tuple[int, ...]
    initial: float | str = 0.0
    dtype: Literal["memory", "activation"] = "memory"

    def batched(self, batch: int) -> tuple[int, ...]:
        """The full shape for `batch` streams."""
        if self.kind == "rows":
            return (self.shape[0], batch, *self.shape[1:])
        return (batch, *self.shape)


def pick(state: State, prefix: str) -> State:
    """The entries below `prefix`, with the prefix removed."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def prefixed(state: State, prefix: str) -> State:
    """The inverse of `pick`."""
    return {prefix + name: value for name, value in state.items()}
