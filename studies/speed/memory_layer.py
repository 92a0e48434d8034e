"""One memory layer as a model of its own, so that exactly this much work can be compared: ours in PyTorch and as a
bundle, and titans-pytorch's.

What is in ours: norm, query, key, value and gate projections, the causal convolution over queries, keys and values,
their activation and normalisation, reading and writing the memory for every single token, the answers' norm and the
output projection. What is in theirs: the same but for convolution, normalised queries and keys, and the bound on
surprise; and in its place a gate per head on the answers. Its memory network is without its optional norm and
residual, as ours is. It writes once per chunk of its own, with one gradient for all the chunk's tokens, and not once
per token.

Knows both layers. Does not know how long they take.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from titans_core.blocks import MemoryReader, extension
from titans_core.config import MemoryConfig, TitansConfig
from titans_core.layers import Linear, RMSNorm
from titans_core.state import State, StateSpec
from titans_core.training.speed import prepare
from titans_export.bundle.writer import staged, write_bundle
from titans_export.models.protocol import Feeds, StepGraph
from titans_format.fields import ContinuousInputs
from titans_format.specs import Due


def layer_config(dim: int, heads: int, chunk: int) -> TitansConfig:
    """A memory of two matrices, expansion 2, in a model of vectors."""
    return TitansConfig(
        variant="lmm", dim=dim, layers=1, heads=heads, chunk=chunk, persistent_tokens=0, vocab_size=None,
        features=dim, memory=MemoryConfig(heads=heads, depth=2, expansion=2.0),
    )  # fmt: skip


class MemoryLayer(nn.Module):
    """Vectors `[B, T, dim]` in and out, T a multiple of the chunk."""

    def __init__(self, config: TitansConfig) -> None:
        super().__init__()
        self.config = config
        self.norm = RMSNorm(config.dim)
        self.reader = MemoryReader(config)
        self.out = Linear(config.dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        """Of fresh streams."""
        return self.chunks(x, self.fresh(x.shape[0]))[0]

    def chunks(self, x: Tensor, state: State) -> tuple[Tensor, State, Tensor]:
        """Answers, the entries of the state that change, and surprise `[B, T]`."""
        answers, changed, surprise = self.reader.chunks(self.norm(x), state)
        return self.out(answers), changed, surprise

    def speed_up(self, recompute: bool = False) -> None:
        """Compile a chunk of the memory, and compute it again in the backward pass, as `titans train` may."""
        prepare(self, compiled=True, recompute=recompute)  # type: ignore[arg-type]  # it looks for readers alone

    def fresh(self, batch: int) -> State:
        """The carried state of so many new streams."""
        specs = [spec for spec in self.reader.state_specs() if spec.kind == "carried"]
        return {spec.name: self.initial_tensor(spec).expand(spec.batched(batch)) for spec in specs}

    def initial_tensor(self, spec: StateSpec) -> Tensor:
        """What a stream starts from, `[*spec.shape]`."""
        if isinstance(spec.initial, str):
            return self.reader.memory.get_parameter(spec.initial)
        return torch.full(spec.shape, spec.initial, device=self.out.weight.device)


class SteppableLayer:
    """A `SteppableModel` over a `MemoryLayer`."""

    name, variant = "memory-layer", "layer"

    def __init__(self, layer: MemoryLayer) -> None:
        self.module, self.chunk = layer, layer.config.chunk
        self.inputs = ContinuousInputs(features=layer.config.dim, targets=layer.config.dim)
        self.schedule: Sequence[Due] = (Due(graph="commit", period=self.chunk),)

    @property
    def config(self) -> dict[str, Any]:
        """The model that the layer would be in."""
        return self.module.config.to_dict()

    def state_specs(self) -> Sequence[StateSpec]:
        """The memory's."""
        return self.module.reader.state_specs()

    def initial_tensor(self, spec: StateSpec) -> Tensor:
        """The layer's."""
        return self.module.initial_tensor(spec)

    def graphs(self) -> Sequence[StepGraph]:
        """prefill, extend, step and commit."""
        commit = self.module.reader.memory.commit
        return [
            StepGraph("prefill", "prefill", self.chunk, self._prefill),
            StepGraph("extend", "extend", self.chunk, self._extend),
            StepGraph("step", "step", 1, self._extend),
            StepGraph("commit", "commit", 0, commit),
        ]

    def _prefill(self, feeds: Feeds) -> Feeds:
        return _named(*self.module.chunks(feeds["inputs"], feeds))

    def _extend(self, feeds: Feeds) -> Feeds:
        layer, x = self.module, feeds["inputs"]
        call = extension(feeds["position"], x.shape[1], self.chunk, feeds.get("length"), torch.float32)
        answers, changed, surprise = layer.reader.extend(layer.norm(x), feeds, call)
        return _named(layer.out(answers), changed, surprise)


def _named(answers: Tensor, changed: State, surprise: Tensor) -> Feeds:
    return {"predictions": answers, "surprise": surprise[..., None], **changed}


def export_layer(layer: MemoryLayer, out: Path) -> None:
    """Its bundle at `out`."""
    layer.eval().requires_grad_(False)
    with staged(out, overwrite=False) as stage:
        write_bundle(SteppableLayer(layer), stage, dtype="fp32", provenance={})


def library_layer(dim: int, heads: int, chunk: int, batch: int) -> nn.Module:
    """titans-pytorch's memory of the same shapes: `chunk` tokens share a write, `batch` tokens share base weights."""
    from titans_pytorch import MemoryMLP, NeuralMemory

    width = dim // heads
    memory: nn.Module = NeuralMemory(
        dim=dim, dim_head=width, heads=heads, chunk_size=chunk, batch_size=batch,
        model=MemoryMLP(width, depth=2, expansion_factor=2.0), mem_model_norm_add_residual=False,
    )  # fmt: skip
    return memory
