"""The processes of a run: one, or those that `torchrun` started, and the rows of the batch each of them takes.

Knows torch.distributed. Does not know models, data or files.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from titans_core.errors import ConfigError


@dataclass(frozen=True)
class Workers:
    """This process among its peers."""

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return self.rank == 0

    def rows(self, batch: int) -> range:
        """The rows of a global batch of `batch` that are this process's."""
        share = batch // self.count
        return range(self.rank * share, (self.rank + 1) * share)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of `values` over all processes, in place."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Tensor) -> Tensor:
        """Everyone's `value` `[rows, ...]`, of one shape, as `[all rows, ...]`."""
        if self.count == 1:
            return value
        parts = [torch.empty_like(value, memory_format=torch.contiguous_format) for _ in range(self.count)]
        dist.all_gather(parts, value.contiguous())
        return torch.cat(parts)


@contextmanager
def join_workers(device: str) -> Iterator[Workers]:
    """Join the processes `torchrun` started (it sets WORLD_SIZE), or be alone.

    Args:
        device: `cpu`, `cuda` (one GPU per process), or `auto`: CUDA if there is any.

    Raises:
        ConfigError: CUDA was asked for and there is none.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("this PyTorch finds no CUDA device", "use --device cpu")
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Workers(0, 1, torch.device(device))
        return
    rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    place = torch.device("cuda", local) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield Workers(rank, count, place)
    finally:
        # A DistributedDataParallel in a reference cycle would keep the group, and its threads, alive: one that frees a
        # tensor while the interpreter shuts down ends the process with an abort.
        gc.collect()
        dist.destroy_process_group()
