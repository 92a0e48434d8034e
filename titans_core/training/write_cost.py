"""A price on writing: tokens that teach nothing are left out of the memory.

A stream in training is short, and a little of everything written into the memory does no harm there. A stream a
hundred times as long is another matter. Without a price nothing tells a model to leave the rest alone.

Knows the memories' step sizes. Does not know the loss that they are added to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from titans_core.dual import Gates
from titans_core.memory import AssociativeMemory

FREE = 1e-4  # share of the largest step size around which a write costs nothing more


def write_cost(step_size: Tensor, largest: float) -> Tensor:
    """Between 0 for no step and 1 for the largest, per write.

    It is logarithmic: a step made ten times smaller saves as much whether it was large or small before, down to
    `FREE`. A price in proportion would stop pressing long before the writes of a long stream stopped adding up.

    Args:
        step_size: theta, any shape.
        largest: what theta cannot exceed.
    """
    return torch.log1p(step_size / (largest * FREE)) / math.log1p(1 / FREE)


class WriteMeter:
    """Adds up what the memories of a model write while it is watched."""

    def __init__(self, model: nn.Module) -> None:
        self._memories = [module for module in model.modules() if isinstance(module, AssociativeMemory)]
        self._costs: list[Tensor] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count from nothing until the end of the block."""
        self._costs = []
        for memory in self._memories:
            memory.on_gates = self._counter(memory.options.max_step_size)
        try:
            yield
        finally:
            for memory in self._memories:
                memory.on_gates = None

    @property
    def mean(self) -> Tensor | float:
        """Mean `write_cost` of the last block over memories, streams, heads and tokens; 0 without a memory."""
        return torch.stack(self._costs).mean() if self._costs else 0.0

    def _counter(self, largest: float) -> Callable[[Gates], None]:
        def count(gates: Gates) -> None:
            self._costs.append(write_cost(gates.step_size, largest).mean())

        return count
