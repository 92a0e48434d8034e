"""Memories in the residual stream of chosen layers: `x + W_o M(W_i norm(x))`, before attention or beside it.

`W_o` starts at zero, so that a fresh graft changes nothing. A memory may have other channels than the decoder; where it
has as many, there is no `W_i`. The memory itself is that of `titans_core.memory`, with all its options.

Knows its place and its projections. Does not know attention or the decoder (`model`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from titans_core.blocks import Extension, MemoryReader
from titans_core.config import MemoryConfig, TitansConfig
from titans_core.decoder.side_memory import whitening
from titans_core.errors import ConfigError
from titans_core.layers import Linear, RMSNorm
from titans_core.state import State, StateSpec

Place = Literal["before", "beside"]


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """Which layers have a memory, and what it is."""

    layers: tuple[int, ...]
    dim: int  # channels of the memory, over all heads
    place: Place = "before"  # attention reads what the memory has added, or both read the same
    memory: MemoryConfig = field(default_factory=MemoryConfig)

    def __post_init__(self) -> None:
        if not self.layers or list(self.layers) != sorted(set(self.layers)) or self.layers[0] < 0:
            raise ConfigError(f"the memory's layers are {list(self.layers)}", "name layers from 0 upwards, each once")
        if self.dim < 1 or self.dim % self.memory.heads:
            raise ConfigError(
                f"the memory's dim {self.dim} is not a multiple of memory.heads {self.memory.heads}",
                "change one of them",
            )
        if self.place not in get_args(Place):
            raise ConfigError(f"place is {self.place!r}", f"choose one of {', '.join(get_args(Place))}")


class StreamMemory(nn.Module):
    """One layer's memory: `[B, T, dim]` of the stream in, what is added to it out."""

    def __init__(self, config: StreamConfig, dim: int, chunk: int, eps: float) -> None:
        """Args: `dim` channels of the decoder, `chunk` tokens between two commits, `eps` of its norms."""
        super().__init__()
        self.norm = RMSNorm(dim, eps)
        self.to_memory = Linear(dim, config.dim) if config.dim != dim else None
        inner = TitansConfig(
            variant="lmm", persistent_tokens=0, layers=1, dim=config.dim, chunk=chunk, memory=config.memory
        )
        self.reader = MemoryReader(inner)
        self.out = Linear(config.dim, dim, std=0.0)

    def state_specs(self) -> list[StateSpec]:
        """The memory's."""
        return self.reader.state_specs()

    def chunks(self, x: Tensor, state: State) -> tuple[Tensor, State, Tensor]:
        """Whole chunks `[B, n * C, dim]`: what is added, the changed entries, surprise `[B, n * C]`."""
        answers, changed, surprise = self.reader.chunks(self._inputs(x), state)
        return self.out(answers), changed, surprise

    def extend(self, x: Tensor, state: State, call: Extension) -> tuple[Tensor, State, Tensor]:
        """The same inside a chunk."""
        answers, changed, surprise = self.reader.extend(self._inputs(x), state, call)
        return self.out(answers), changed, surprise

    def commit(self, state: State) -> State:
        """The memory's."""
        return self.reader.memory.commit(state)

    def _inputs(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(x)
        return normed if self.to_memory is None else self.to_memory(normed)

    @torch.no_grad()
    def start_from(self, x: Tensor) -> None:
        """Let queries and keys start from whitened inputs, which tell tokens apart far better than raw ones.

        Args:
            x: of the stream, some natural text's, `[N, dim]`.
        """
        white = whitening(self.norm(x))
        if self.to_memory is not None:
            self.to_memory.weight.copy_(white @ self.to_memory.weight)
            return
        memory = self.reader.memory
        turned = white @ memory.to_query.weight
        memory.to_query.weight.copy_(turned)
        memory.to_write.weight[:, : memory.dim] = turned
