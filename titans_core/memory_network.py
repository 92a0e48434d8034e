"""The network that is the memory: reading it, and the closed-form gradient that writes it.

M is a chain of matrices with an activation in between, optionally `x + gain * LayerNorm(chain(x))`. Its loss on a
key-value pair is `||M(k) - v||^2` (equation [12]) or another one (`objectives`). The gradient with respect to matrix l
is the outer product of that matrix's input `a` and the error `delta` at its output, so a token's write is one pair of
rows per matrix.

Bounded surprise: every error row is scaled down to norm <= `surprise_bound`, and the scaled row is what flows on
to the matrix below. All gradients of a chunk are taken at its start, so a key that repeats is stepped many times
in one direction; the bound turns that from exponential into linear growth.

Knows nothing about heads, gates, chunks or state: leading axes are free and broadcast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from titans_core.config import Activation
from titans_core.objectives import InnerObjective, bounded

NORM_EPS = 1e-5


@dataclass(frozen=True)
class Writes:
    """What T tokens write: rows per matrix, and how surprised the memory was.

    Attributes:
        inputs: per matrix, `a` `[..., T, d_in]`.
        errors: per matrix, `delta` `[..., T, d_out]`.
        gain_errors: gradient rows of the norm's gain `[..., T, d]`, or None without the residual norm.
        surprise: `||M(k) - v||^2`, `[..., T]`, before any bound.
    """

    inputs: list[Tensor]
    errors: list[Tensor]
    gain_errors: Tensor | None
    surprise: Tensor


def activation(z: Tensor, kind: Activation) -> Tensor:
    """The activation at `z`. GELU is the exact one, with erf."""
    return F.silu(z) if kind == "silu" else F.gelu(z)


def activate(z: Tensor, kind: Activation) -> tuple[Tensor, Tensor]:
    """The activation and its derivative at `z`, both shaped like `z`."""
    if kind == "silu":
        gate = torch.sigmoid(z)
        return z * gate, gate * (1 + z * (1 - gate))
    cumulative = 0.5 * (1 + torch.erf(z * math.sqrt(0.5)))
    density = torch.exp(-0.5 * z * z) * (1 / math.sqrt(2 * math.pi))
    return z * cumulative, cumulative + z * density


def normalise(z: Tensor) -> tuple[Tensor, Tensor]:
    """LayerNorm without affine: the normalised rows `[..., d]` and one over their deviation `[..., 1]`."""
    centred = z - z.mean(-1, keepdim=True)
    rate = torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + NORM_EPS)
    return centred * rate, rate


@dataclass(frozen=True)
class MemoryNetwork:
    """The shape of M; its weights are arguments, since they are state."""

    depth: int
    activation: Activation
    residual_norm: bool
    objective: InnerObjective

    def read(self, x: Tensor, matrix: Callable[[int, Tensor], Tensor], gain: Tensor | None) -> Tensor:
        """`M(x)` (equation [15]).

        Args:
            x: `[..., T, d]`, the queries.
            matrix: applies matrix `l` to `[..., T, d_in]`: plainly, or a different one for every token.
            gain: `[..., T or 1, d]` with the residual norm, else None.
        """
        hidden = x
        for layer in range(self.depth):
            hidden = matrix(layer, hidden)
            if layer < self.depth - 1:
                hidden = activation(hidden, self.activation)
        if gain is None:
            return hidden
        return x + gain * normalise(hidden)[0]

    def write(
        self,
        weights: Sequence[Tensor],
        gain: Tensor | None,
        keys: Tensor,
        values: Tensor,
        threshold: Tensor | None = None,
    ) -> Writes:
        """The gradient rows of the objective for every token at the given weights (equation [12]).

        Args:
            weights: `depth` matrices `[..., d_in, d_out]`.
            gain: `[..., d]` with the residual norm, else None.
            keys: `[..., T, d]`.
            values: `[..., T, d]`.
            threshold: of the objective, `[..., T]`; None for one without.
        """
        bound = self.objective.bound
        inputs, slopes = [keys], []
        for layer, weight in enumerate(weights):
            z = inputs[-1] @ weight
            if layer < self.depth - 1:
                hidden, slope = activate(z, self.activation)
                inputs.append(hidden)
                slopes.append(slope)
        gain_errors = None
        if gain is None:
            surprise, error = self.objective.surprised(z - values, threshold)
        else:
            direction, rate = normalise(z)
            scale = gain[..., None, :]
            surprise, outer = self.objective.surprised(keys + scale * direction - values, threshold)
            gain_errors = outer * direction
            pull = outer * scale  # back through the norm: remove what a shift or a scale of z cannot change
            along = (pull * direction).mean(-1, keepdim=True)
            error = bounded(rate * (pull - pull.mean(-1, keepdim=True) - direction * along), bound)
        errors = [error]
        for layer in range(self.depth - 1, 0, -1):
            below = (errors[0] @ weights[layer].transpose(-1, -2)) * slopes[layer - 1]
            errors.insert(0, bounded(below, bound))
        return Writes(inputs, errors, gain_errors, surprise)
