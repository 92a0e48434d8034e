"""titans-unofficial's transformer layer: norms, attention over parts, and a feed-forward; and the linear layers around.

Knows one layer's parameters. Does not know what is kept between tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titans_export.titans_pytorch.parameters import Reader

Part = tuple[Tensor, Tensor, Tensor | None]  # keys and values [B, H, n, d], and which may be seen
MASKED = -1e9  # what titans-unofficial puts in place of a score


class Linear(nn.Module):
    """A linear layer with its bias."""

    def __init__(self, inputs: int, outputs: int, read: Reader) -> None:
        super().__init__()
        self.weight = read.matrix("weight", inputs, outputs)
        self.bias = read.parameter("bias", (outputs,))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., inputs]` to `[..., outputs]`."""
        return x @ self.weight + self.bias


class Norm(nn.Module):
    """A layer norm with gain and bias."""

    def __init__(self, dim: int, read: Reader) -> None:
        super().__init__()
        self.weight = read.parameter("weight", (dim,))
        self.bias = read.parameter("bias", (dim,))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., dim]` to the same."""
        return F.layer_norm(x, (x.shape[-1],)) * self.weight + self.bias


class Layer(nn.Module):
    """One layer's attention and feed-forward."""

    def __init__(self, number: int, dim: int, heads: int, read: Reader) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, dim // heads
        attention = read.below(f"attention_layers.{number}.attention")
        parts = [attention.matrix(f"W_{name}.weight", dim, dim) for name in "QKV"]
        self.qkv = nn.Parameter(torch.cat(list(parts), dim=1), requires_grad=False)
        self.out = attention.matrix("W_O.weight", dim, dim)
        self.norm1 = Norm(dim, read.below(f"layer_norms1.{number}"))
        self.norm2 = Norm(dim, read.below(f"layer_norms2.{number}"))
        self.rise = Linear(dim, 4 * dim, read.below(f"ffns.{number}.0"))
        self.fall = Linear(4 * dim, dim, read.below(f"ffns.{number}.3"))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `[B, H, n, d]` of `[B, n, dim]`."""
        split = (self.norm1(x) @ self.qkv).reshape(*x.shape[:2], 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        return split[0] * self.head_dim**-0.5, split[1], split[2]

    def attend(self, q: Tensor, parts: list[Part]) -> Tensor:
        """Attention over keys and values in parts, `[B, n, dim]`."""
        scores = []
        for key, _, seen in parts:
            score = q @ key.transpose(-1, -2)
            scores.append(score if seen is None else score.masked_fill(~seen, MASKED))
        shares = torch.softmax(torch.cat(scores, dim=-1), dim=-1)
        own = torch.split(shares, [value.shape[-2] for _, value, _ in parts], dim=-1)
        out = own[0] @ parts[0][1]
        for share, (_, value, _) in zip(own[1:], parts[1:], strict=True):
            out = out + share @ value
        return out.transpose(1, 2).flatten(2) @ self.out

    def feed_forward(self, x: Tensor) -> Tensor:
        """The second half of the layer, with its residual."""
        out: Tensor = x + self.fall(F.gelu(self.rise(self.norm2(x))))
        return out
