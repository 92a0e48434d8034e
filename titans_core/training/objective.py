"""A model and its loss as one module: reset what starts afresh, run a slice, add up the loss that counts.

One module, so that DistributedDataParallel sees every use of a parameter, the learned initial memory included.
Knows tokens (cross-entropy) and vectors (squared error). Does not know data, steps or optimizers.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from titans_core.model import TitansModel, detach
from titans_core.state import State
from titans_core.training.write_cost import WriteMeter
from titans_tasks.task import Batch


@dataclass(frozen=True)
class Slice:
    """A `Batch` as tensors on the training device."""

    inputs: Tensor  # int64 [B, T] or float32 [B, T, F]
    targets: Tensor  # int64 [B, T] or float32 [B, T, outputs]
    mask: Tensor  # bool [B, T]
    reset: Tensor | None  # bool [B]; None if every row starts afresh
    weights: Tensor | None = None  # float32 [B, T]; None if all count alike
    absolute: bool = False  # errors of vectors count by their size, not by its square

    @classmethod
    def of(cls, batch: Batch, device: torch.device) -> Slice:
        """`batch` moved to `device`."""
        tensors = [torch.from_numpy(np.ascontiguousarray(x)).to(device) for x in (batch.inputs, batch.targets)]
        mask, reset = torch.from_numpy(batch.mask).to(device), torch.from_numpy(batch.reset).to(device)
        weights = None if batch.weights is None else torch.from_numpy(batch.weights).to(device)
        return cls(tensors[0], tensors[1], mask, None if batch.reset.all() else reset, weights, batch.absolute)

    def split(self, parts: int) -> list[Slice]:
        """The rows in `parts` equal groups."""
        resets, weights = ([None] * parts if x is None else list(x.chunk(parts)) for x in (self.reset, self.weights))
        inputs, targets, mask = (x.chunk(parts) for x in (self.inputs, self.targets, self.mask))
        columns = zip(inputs, targets, mask, resets, weights, strict=True)
        return [Slice(*column, self.absolute) for column in columns]

    def under(self, objective: nn.Module, reset: Tensor | None, state: State | None) -> Any:
        """What `objective` says of this slice: `Objective.forward`, called by its hooks."""
        extra = (
            {} if self.weights is None and not self.absolute else {"weights": self.weights, "absolute": self.absolute}
        )
        return objective(self.inputs, self.targets, self.mask, reset, state, **extra)


class Trainable(nn.Module):
    """A model with a loss, called as `Objective.forward`.

    Attributes:
        write_cost: what each counted prediction is charged, in units of the loss, where every memory takes its largest
            step at every token; charged where gradients are recorded.
        done: the share of the steps that lie behind, for those that begin with something else than they end with.
    """

    write_cost: float = 0.0
    done: float = 1.0


class Objective(Trainable):
    """`model` with the loss it is trained on."""

    def __init__(self, model: TitansModel) -> None:
        super().__init__()
        self.model = model
        self._meter = WriteMeter(model)
        self.tokens = model.config.vocab_size is not None

    def forward(
        self,
        inputs: Tensor,
        targets: Tensor,
        mask: Tensor,
        reset: Tensor | None,
        state: State | None,
        weights: Tensor | None = None,
        absolute: bool = False,
    ) -> tuple[Tensor, Tensor, State]:
        """One slice of B streams.

        Args:
            inputs: int64 `[B, T]` or float32 `[B, T, F]`.
            targets: int64 `[B, T]` or float32 `[B, T, outputs]`.
            mask: bool `[B, T]`, the predictions that count.
            reset: bool `[B]`, rows that start afresh; None for all of them.
            state: what the streams left behind, or None before their first slice.
            weights: float32 `[B, T]`, factors of the errors of vectors; None is 1 for all. Beside weights, a target of
                NaN is one that nobody knows, and adds nothing.
            absolute: errors of vectors count by their size, not by its square.

        Returns:
            Summed loss (nats, or the error averaged over the targets), int64 number of right tokens, and the next
            state, cut from the graph.
        """
        if reset is None or state is None:
            state = self.model.initial_state(len(inputs))
        else:
            state = self.model.reset(state, reset)
        charged = bool(self.write_cost) and torch.is_grad_enabled()
        with self._meter.watching() if charged else nullcontext():
            outputs, state = self.model(inputs, state)
        predictions, wanted = outputs[mask], targets[mask]
        if self.tokens:
            loss = nn.functional.cross_entropy(predictions, wanted, reduction="sum")
            correct = (predictions.argmax(-1) == wanted).sum()
        else:
            off = (
                torch.where(wanted.isnan(), 0.0, predictions - wanted) if weights is not None else predictions - wanted
            )
            errors = (off.abs() if absolute else off.square()).mean(-1)
            loss = (errors if weights is None else errors * weights[mask]).sum()
            correct = mask.new_zeros((), dtype=torch.int64)
        if charged:
            loss = loss + self.write_cost * self._meter.mean * mask.sum()
        return loss, correct, detach(state)
