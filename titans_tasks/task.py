"""What the loop trains on: batches as a pure function of the step, and metrics of what came out.

Knows the shape of a batch and of a task. Does not know any particular data, nor torch: batches are numpy,
so the same data serves an evaluation in an environment that has no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Batch:
    """One slice of B streams; T is a multiple of the model's chunk."""

    inputs: NDArray[np.generic]  # int64 [B, T] token ids, or float32 [B, T, F]
    targets: NDArray[np.generic]  # int64 [B, T] token ids, or float32 [B, T, outputs]
    mask: NDArray[np.bool_]  # [B, T]: the predictions that count
    reset: NDArray[np.bool_]  # [B]: this slice is the first of a new stream, memory starts afresh
    weights: NDArray[np.float32] | None = (
        None  # [B, T]: factors of the errors of vectors; None is 1. With them, targets may be NaN
    )
    absolute: bool = False  # errors of vectors count by their size, not by its square


@dataclass(frozen=True)
class Totals:
    """Sums over every counted prediction of an evaluation."""

    loss: float  # nats for tokens, squared error (mean over the targets) for vectors
    correct: int  # predictions whose most likely token was right; 0 for vectors
    count: int  # predictions that counted

    @property
    def mean_loss(self) -> float:
        """Loss per counted prediction."""
        return self.loss / max(self.count, 1)


class Task(Protocol):
    """A source of training batches and the judge of a model. Everything in it is deterministic."""

    @property
    def settings(self) -> dict[str, Scalar]:
        """What determines the data. A run resumes only where these are unchanged."""

    @property
    def carries(self) -> bool:
        """Whether a stream continues from one step to the next, so that memory must be carried."""

    def batch(self, step: int, rows: range) -> Batch:
        """Rows `rows` of the global batch of step `step`: the same for any split of the rows."""

    def held_out(self) -> Iterator[Batch]:
        """The evaluation data; the batches are consecutive slices of the same streams."""

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Named figures of an evaluation, the most telling first."""
