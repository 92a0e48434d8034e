"""Small layers shared by every block: projections, norms, rotations, causal convolution, feed-forward.

Written with few plain operators, so that eager PyTorch, ONNX Runtime's fusions and TensorRT's parser all take
them as they are. Knows nothing about memory or attention.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from titans_core.config import FeedForward

NORM_EPS = 1e-6


class Linear(nn.Module):
    """`x @ weight` with `weight` `[in, out]` and no bias.

    Row vectors, as in the paper. Stored this way round (torch.nn.Linear stores `[out, in]`) so that the exported
    MatMul reads the shared weight file directly, without a transposed copy per graph.

    Attributes:
        adapted: modules of somebody else's whose outputs are added (`titans_core.decoder.adapters`).
    """

    adapted: tuple[nn.Module, ...] = ()

    def __init__(self, inputs: int, outputs: int, std: float | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * (inputs**-0.5 if std is None else std))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in] -> [..., out]`."""
        out = x @ self.weight
        for module in self.adapted:
            out = out + module(x)
        return out


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis with a learned gain, computed in at least fp32.

    Spelled as x / sqrt(mean(x^2) + eps), the pattern ONNX Runtime fuses into one operator; half precision would
    overflow in the square. The gain is applied before the result is rounded to x's dtype.
    """

    def __init__(self, dim: int, eps: float = NORM_EPS) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """`[..., dim] -> [..., dim]`."""
        return (_rms_normalised(x, self.eps) * self.gain).to(x.dtype)


def rms_normalise(x: Tensor, eps: float = NORM_EPS, scale: float = 1.0) -> Tensor:
    """`x` with a root mean square of `scale` along its last axis, where it is well above `sqrt(eps)`.

    The scale is a vector like a learned gain, even where it is 1: with it, ONNX Runtime fuses five operators into one.
    Same shape and dtype.
    """
    normalised = _rms_normalised(x, eps)
    gain = torch.full(x.shape[-1:], scale, dtype=normalised.dtype, device=x.device)
    return (normalised * gain).to(x.dtype)


def _rms_normalised(x: Tensor, eps: float) -> Tensor:
    wide = x if x.dtype == torch.float64 else x.float()
    return wide / torch.sqrt(wide.pow(2).mean(-1, keepdim=True) + eps)


def l2_normalise(x: Tensor) -> Tensor:
    """`x` with unit Euclidean norm along its last axis (§4.4); zero stays zero."""
    width = x.shape[-1]
    return rms_normalise(x, NORM_EPS / width, width**-0.5)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """`[B, T, H * d] -> [B, H, T, d]`."""
    batch, tokens, dim = x.shape
    return x.reshape(batch, tokens, heads, dim // heads).transpose(1, 2)


def normalised_heads(x: Tensor, width: int, normalise: Callable[[Tensor], Tensor]) -> Tensor:
    """`[B, T, n * width] -> [B, n, T, width]`, normalised before axes move, where ONNX Runtime fuses it."""
    batch, tokens, channels = x.shape
    return normalise(x.reshape(batch, tokens, channels // width, width)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """`[B, H, T, d] -> [B, T, H * d]`."""
    batch, heads, tokens, dim = x.shape
    return x.transpose(1, 2).reshape(batch, tokens, heads * dim)


def as_rows(x: Tensor) -> Tensor:
    """`[B, H, T, d] -> [T, B, H, d]`: how the new rows of a chunk leave a graph."""
    return x.permute(2, 0, 1, 3)


def from_rows(rows: Tensor) -> Tensor:
    """`[C, B, H, d] -> [B, H, C, d]`: stored rows as a matrix per head."""
    return rows.permute(1, 2, 0, 3)


def select(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index` `[B, n]` of `x` `[B, T, d]`, as `[B, n, d]`: a matmul with one-hot rows, exact and batchable."""
    one_hot = index[:, :, None] == torch.arange(x.shape[1], device=x.device)
    return one_hot.to(x.dtype) @ x


class CausalConv(nn.Module):
    """Depthwise causal convolution over time, `taps` wide, streaming (§4.4)."""

    def __init__(self, channels: int, taps: int) -> None:
        super().__init__()
        self.taps = taps
        self.weight = nn.Parameter((torch.rand(taps, channels) * 2 - 1) * taps**-0.5)
        with torch.no_grad():
            self.weight[-1] += 1.0  # starts near the identity: the token itself, plus a little of its past

    def forward(self, x: Tensor, past: Tensor, weight: Tensor, length: Tensor | None) -> tuple[Tensor, Tensor]:
        """Convolve the next tokens of a stream.

        Args:
            x: `[B, T, c]`, the inputs.
            past: `[B, taps - 1, c]`, the inputs before them.
            weight: `[taps, c]`, `self.weight` or some of its channels.
            length: `[B]` real tokens of right-padded `x`; None means all of them.

        Returns:
            The outputs `[B, T, c]` and the next `past`.
        """
        tokens = x.shape[1]
        stream = torch.cat([past.to(x.dtype), x], dim=1)
        if tokens == 1:
            return (stream * weight).sum(1, keepdim=True), stream[:, 1:]
        out = _convolved(stream, weight)
        if length is None:
            return out, stream[:, tokens:]
        return out, select(stream, length[:, None] + torch.arange(self.taps - 1, device=x.device))


def _convolved(stream: Tensor, weight: Tensor) -> Tensor:
    """`[B, T + taps - 1, c]` and `[taps, c]` give `[B, T, c]`.

    A convolution over one row of an image is what ONNX Runtime is fast at (82 against 213 µs for 64 tokens of 2,304
    channels). Its backward pass in PyTorch takes up to twice as long as that of a sum of taps, and ONNX has it for
    bfloat16 from opset 22 only.
    """
    taps, channels = weight.shape
    if not torch.is_grad_enabled() and stream.dtype != torch.bfloat16:
        image, kernel = stream.transpose(1, 2)[:, :, None], weight.T[:, None, None]
        return F.conv2d(image, kernel, groups=channels)[:, :, 0].transpose(1, 2)
    tokens = stream.shape[1] - taps + 1
    out = stream[:, :tokens] * weight[0]
    for tap in range(1, taps):
        out = out + stream[:, tap : tap + tokens] * weight[tap]
    return out


def rotary_table(positions: int, dim: int, base: float) -> Tensor:
    """Cosines and sines of the rotary angles (arXiv 2104.09864): `[2, positions, dim]`, fp64."""
    frequency = base ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angle = torch.arange(positions, dtype=torch.float64)[:, None] * frequency
    angle = torch.cat([angle, angle], dim=-1)
    return torch.stack([angle.cos(), angle.sin()])


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate pairs `(x[i], x[i + d/2])` of the last axis by the angles given; shapes broadcast."""
    half = torch.eye(x.shape[-1] // 2, dtype=x.dtype, device=x.device)
    zero = torch.zeros_like(half)
    turn = torch.cat([torch.cat([zero, half], dim=1), torch.cat([-half, zero], dim=1)])  # one product, no slices
    return x * cosine + (x @ turn) * sine


class MLP(nn.Module):
    """The feed-forward of a block: SwiGLU (arXiv 2002.05202) or GELU."""

    def __init__(self, dim: int, hidden: int, kind: FeedForward) -> None:
        super().__init__()
        self.gated = kind == "swiglu"
        self.up = Linear(dim, 2 * hidden if self.gated else hidden)
        self.down = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., dim] -> [..., dim]`."""
        hidden: Tensor = self.up(x)
        if self.gated:
            gate, value = hidden.chunk(2, dim=-1)
            hidden = F.silu(gate) * value
        else:
            hidden = F.gelu(hidden)
        out: Tensor = self.down(hidden)
        return out
