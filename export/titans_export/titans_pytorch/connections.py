"""Hyper-connections, as titans-pytorch's layers are joined: several residual streams, mixed.

`[B, n, S, D]` is S residual streams side by side. Since 0.5.0 the mixture is manifold-constrained, up to 0.4.25 it is
plain (arXiv 2409.19606, algorithm 2); the names of the parameters tell them apart. With one stream either is an
ordinary residual connection without parameters. Knows nothing of what is between the joints.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titans_export.titans_pytorch.parameters import Reader

SINKHORN_ITERATIONS = 20
BELOW_ROUNDING = 3e-8  # relative; half a unit in the last place of fp32

Join = Callable[[Tensor], Tensor]  # a branch's output into the residual streams


def connection(streams: int, dim: int, returns: bool, read: Reader) -> Connection | PlainConnection:
    """A joint of the kind that the checkpoint has.

    Args:
        streams: how many.
        dim: channels of each.
        returns: whether the branch's output goes back at all.
        read: the parameters.
    """
    plain = streams > 1 and read.has("dynamic_alpha_scale")
    return (PlainConnection if plain else Connection)(streams, dim, returns, read)


class PlainConnection(nn.Module):
    """One joint of two or more streams, mixed by weights that nothing constrains.

    α = tanh(n W_α) s_α + A and β = tanh(n w_β) s_β + b for every stream, n its norm. The first column of α is what
    the branch reads, the others are the streams that go on; β is how its output goes back.
    """

    def __init__(self, streams: int, dim: int, returns: bool, read: Reader) -> None:
        super().__init__()
        self.streams, self.returns = streams, returns
        gain = (read.tensor("norm.gamma", (dim,)) + 1.0) * math.sqrt(dim)
        mixing = [read.tensor("dynamic_alpha_fn", (dim, streams + 1))]
        static = [read.tensor("static_alpha", (streams, streams + 1))]
        swing = [read.tensor("dynamic_alpha_scale", ()).expand(streams + 1)]
        if returns:
            mixing.append(read.tensor("dynamic_beta_fn", (dim,))[:, None])
            static.append(read.tensor("static_beta", (streams,))[:, None])
            swing.append(read.tensor("dynamic_beta_scale", ()).expand(1))
        self.mixing = nn.Parameter(gain[:, None] * torch.cat(mixing, dim=1), requires_grad=False)
        self.static = nn.Parameter(torch.cat(static, dim=1), requires_grad=False)
        self.swing = nn.Parameter(torch.cat(swing), requires_grad=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Join]:
        """From the streams: the branch's input `[B, n, D]`, and what takes its output."""
        weights = torch.tanh(F.normalize(x, dim=-1) @ self.mixing) * self.swing + self.static  # [B, n, S, S + 1 or 2]
        mixed = weights[..., : self.streams + 1].transpose(-1, -2) @ x
        branch, residual = mixed[:, :, 0], mixed[:, :, 1:]
        if not self.returns:
            return branch, lambda out: out
        back = weights[..., self.streams + 1 :]
        return branch, lambda out: back * out.unsqueeze(2) + residual


class Connection(nn.Module):
    """One manifold-constrained joint: what a branch reads from the streams, and how its output goes back.

    Args:
        streams: how many.
        dim: channels of each.
        returns: whether the branch's output goes back at all.
        read: the parameters.
    """

    def __init__(self, streams: int, dim: int, returns: bool, read: Reader) -> None:
        super().__init__()
        self.streams, self.returns = streams, returns
        if streams == 1:
            return
        gain = (read.tensor("norm.gamma", (dim,)) + 1.0) * math.sqrt(dim)
        mixing = read.tensor("dynamic_alpha_fn", (1, dim, streams + 1))[0]
        into = read.tensor("pre_branch_scale", (1,))
        among = read.tensor("residual_scale", (1,))
        mixing = mixing * torch.cat([into, among.expand(streams)])
        alpha = read.tensor("static_alpha", (streams, streams + 1))
        beta = torch.zeros(streams, 1)
        back = torch.zeros(dim, 1)
        if returns:
            back = read.tensor("dynamic_beta_fn", (dim,))[:, None] * read.tensor("h_post_scale", ())
            beta = read.tensor("static_beta", (streams,))[:, None]
        # One matmul for all three: columns are the branch's share, its way back, and the streams among each other.
        order = [mixing[:, :1], back, mixing[:, 1:]]
        self.mixing = nn.Parameter(gain[:, None] * torch.cat(order, dim=1), requires_grad=False)
        self.iterations = enough_iterations(alpha[:, 1:], self.mixing[:, 2:].norm(dim=0))
        self.static = nn.Parameter(torch.cat([alpha[:, :1], beta, alpha[:, 1:]], dim=1), requires_grad=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Join]:
        """From the streams: the branch's input `[B, n, D]`, and what takes its output."""
        if self.streams == 1:
            return x.squeeze(2), lambda out: out.unsqueeze(2) + x
        weights = F.normalize(x, dim=-1) @ self.mixing + self.static  # [B, n, S, S + 2]
        into, back, among = torch.split(weights, [1, 1, self.streams], dim=-1)
        branch = (torch.sigmoid(into).transpose(-1, -2) @ x).squeeze(2)
        if not self.returns:
            return branch, lambda out: out
        residual = sinkhorn(among, self.iterations).transpose(-1, -2) @ x
        back = 2.0 * torch.sigmoid(back)
        return branch, lambda out: back * out.unsqueeze(2) + residual


def enough_iterations(static: Tensor, swing: Tensor) -> int:
    """How many iterations bring every matrix of a joint as close to the limit as fp32 can tell, 20 at most.

    A scaling contracts Hilbert's metric by tanh(Δ/4), Δ the largest logarithm of a cross ratio of the matrix
    (Birkhoff 1957). With default parameters 13 of titans-pytorch's 20 iterations are enough.

    Args:
        static: logits, `[S, S]`.
        swing: how far what is added to a column of them can go, `[S]`: the inputs are normalised.
    """
    crosses = static[:, None, :, None] + static[None, :, None, :] - static[None, :, :, None] - static[:, None, None, :]
    widest = float((crosses.abs() + 2.0 * (swing[:, None] + swing)).max())
    start = float(((static[:, None] - static).abs() + 2.0 * swing).max())
    contraction = math.tanh(widest / 4.0)
    for iterations in range(1, SINKHORN_ITERATIONS):
        if 2.0 * start * contraction ** (2 * iterations - 1) <= BELOW_ROUNDING:
            return iterations
    return SINKHORN_ITERATIONS


def sinkhorn(logits: Tensor, iterations: int) -> Tensor:
    """A matrix of positive numbers, columns and rows scaled in turn until both sum to 1.

    Each scaling is one operator, and the first of them, with the exponential, a softmax.
    """
    x = F.normalize(torch.softmax(logits, dim=-2), p=1.0, dim=-1)
    for _ in range(iterations - 1):
        x = F.normalize(F.normalize(x, p=1.0, dim=-2), p=1.0, dim=-1)
    return x
