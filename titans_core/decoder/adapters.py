"""Low-rank adapters (LoRA, arXiv 2106.09685) beside a decoder's projections: `x W + (x A) B`, B zero at first.

The weights that were there stay as they are; an adapter is folded into them when the decoder is exported.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from titans_core.layers import Linear

ADAPTED = ("attention.to_qkv", "attention.out", "mlp.up", "mlp.down")  # of every layer


class Adapter(nn.Module):
    """`(x A) B` with A `[in, rank]` and B `[rank, out]`."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(inputs, rank) * inputs**-0.5)
        self.up = nn.Parameter(torch.zeros(rank, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in] -> [..., out]`."""
        return (x @ self.down) @ self.up

    def product(self) -> Tensor:
        """What it adds to the weight, `[in, out]`."""
        return self.down @ self.up


class Adapters(nn.ModuleList):
    """One module of adapters per layer, named after the projections that they stand beside."""

    def __init__(self, layers: nn.ModuleList, rank: int) -> None:
        super().__init__()
        for layer in layers:
            own = nn.Module()
            for name in ADAPTED:
                linear = layer.get_submodule(name)
                inputs, outputs = linear.get_parameter("weight").shape
                own.add_module(_own_name(name), Adapter(inputs, outputs, rank))
            self.append(own)
        for linear, adapter in self.pairs(layers):
            linear.adapted = (adapter,)

    def pairs(self, layers: nn.ModuleList) -> Iterator[tuple[Linear, Adapter]]:
        """Every projection with its adapter."""
        for layer, own in zip(layers, self, strict=True):
            for name in ADAPTED:
                linear, adapter = layer.get_submodule(name), own.get_submodule(_own_name(name))
                if isinstance(linear, Linear) and isinstance(adapter, Adapter):
                    yield linear, adapter


def _own_name(name: str) -> str:
    return name.replace(".", "_")
