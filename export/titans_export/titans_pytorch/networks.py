"""titans-pytorch's memory networks with their gradients written out: what a fast weight is, and how a loss moves it.

A network is a list of weight tensors and two functions of them. Weights have leading axes (streams, heads) that the
inputs `[..., n, d]` share; a matrix is `[..., in, out]`, a norm's gain `[..., d]`. The gradients are sums over the n
inputs, as one autograd call over a chunk would give them. Knows no chunks, gates or states.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Sequence[Tensor]
Error = Callable[[Tensor], Tensor]  # from the network's output to the loss gradient there

NORM_EPSILON = 1e-5  # torch.nn.LayerNorm's


class Network(Protocol):
    """What a memory is made of."""

    def shapes(self) -> list[tuple[int, ...]]:
        """The weights' shapes, in the order in which titans-pytorch lists the network's parameters."""

    def forward(self, weights: Weights, x: Tensor) -> Tensor:
        """`[..., n, d]` to `[..., n, d]`."""

    def gradient(self, weights: Weights, x: Tensor, error: Error) -> tuple[list[Tensor], Tensor]:
        """The loss gradient of every weight, and that of the inputs."""


def _gelu_slope(x: Tensor) -> Tensor:
    density = torch.exp(x * x * -0.5) * (1.0 / math.sqrt(2.0 * math.pi))
    return 0.5 * (1.0 + torch.erf(x * math.sqrt(0.5))) + x * density


def _outer(a: Tensor, delta: Tensor) -> Tensor:
    """The gradient of a matrix whose inputs are `a` and whose outputs have the gradient `delta`."""
    return a.transpose(-1, -2) @ delta


@dataclass(frozen=True)
class Standardised:
    """Rows of mean 0 and variance 1, and what is needed to go back through them."""

    rows: Tensor
    inverse_deviation: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Standardised:
        """From `[..., n, d]`."""
        centred = x - x.mean(-1, keepdim=True)
        inverse = torch.rsqrt((centred * centred).mean(-1, keepdim=True) + NORM_EPSILON)
        return cls(centred * inverse, inverse)

    def back(self, delta: Tensor) -> Tensor:
        """From the gradient of the rows to that of x."""
        along = (delta * self.rows).mean(-1, keepdim=True)
        return (delta - delta.mean(-1, keepdim=True) - self.rows * along) * self.inverse_deviation


@dataclass(frozen=True)
class Mlp:
    """`MemoryMLP`: matrices with GELU between."""

    dim: int
    depth: int
    hidden: int

    def shapes(self) -> list[tuple[int, ...]]:
        widths = [self.dim, *[self.hidden] * (self.depth - 1), self.dim]
        return list(itertools.pairwise(widths))

    def forward(self, weights: Weights, x: Tensor) -> Tensor:
        for index, weight in enumerate(weights):
            x = (F.gelu(x) if index else x) @ weight
        return x

    def gradient(self, weights: Weights, x: Tensor, error: Error) -> tuple[list[Tensor], Tensor]:
        before: list[Tensor] = []  # what every matrix is applied to the GELU of
        for index, weight in enumerate(weights):
            before.append(x)
            x = (F.gelu(x) if index else x) @ weight
        delta, grads = error(x), []
        for index in reversed(range(len(weights))):
            entry = before[index]
            grads.append(_outer(F.gelu(entry) if index else entry, delta))
            delta = delta @ weights[index].transpose(-1, -2)
            delta = delta * _gelu_slope(entry) if index else delta
        return grads[::-1], delta


@dataclass(frozen=True)
class FactorizedMlp:
    """`FactorizedMemoryMLP`: every matrix is a product of two thin ones."""

    dim: int
    depth: int
    rank: int

    def shapes(self) -> list[tuple[int, ...]]:
        return [(self.dim, self.rank), (self.rank, self.dim)] * self.depth

    def forward(self, weights: Weights, x: Tensor) -> Tensor:
        for index in range(self.depth):
            x = (F.gelu(x) if index else x) @ weights[2 * index] @ weights[2 * index + 1]
        return x

    def gradient(self, weights: Weights, x: Tensor, error: Error) -> tuple[list[Tensor], Tensor]:
        before: list[tuple[Tensor, Tensor, Tensor]] = []
        for index in range(self.depth):
            active = F.gelu(x) if index else x
            thin = active @ weights[2 * index]
            before.append((x, active, thin))
            x = thin @ weights[2 * index + 1]
        delta, grads = error(x), []
        for index in reversed(range(self.depth)):
            entry, active, thin = before[index]
            grads.append(_outer(thin, delta))
            delta = delta @ weights[2 * index + 1].transpose(-1, -2)
            grads.append(_outer(active, delta))
            delta = delta @ weights[2 * index].transpose(-1, -2)
            delta = delta * _gelu_slope(entry) if index else delta
        return grads[::-1], delta


@dataclass(frozen=True)
class GatedResidualMlp:
    """`GatedResidualMemoryMLP`: two-matrix branches, each blended with its input by a learned gate, then a matrix."""

    dim: int
    depth: int
    hidden: int

    def shapes(self) -> list[tuple[int, ...]]:
        layer = [(self.dim, self.hidden), (self.hidden, self.dim), (2 * self.dim, self.dim)]
        return [(self.dim, self.dim), *layer * self.depth]

    def forward(self, weights: Weights, x: Tensor) -> Tensor:
        for index in range(self.depth):
            x = self._layer(weights[1 + 3 * index : 4 + 3 * index], x)[0]
        return x @ weights[0]

    def _layer(self, weights: Weights, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
        rise, fall, to_gate = weights
        hidden = x @ rise
        branch = F.gelu(hidden) @ fall
        gate = torch.sigmoid(torch.cat([branch, x], dim=-1) @ to_gate)
        return x + gate * (branch - x), (x, hidden, branch, gate)

    def gradient(self, weights: Weights, x: Tensor, error: Error) -> tuple[list[Tensor], Tensor]:
        kept = []
        for index in range(self.depth):
            x, saved = self._layer(weights[1 + 3 * index : 4 + 3 * index], x)
            kept.append(saved)
        delta = error(x @ weights[0])
        last = _outer(x, delta)
        delta = delta @ weights[0].transpose(-1, -2)
        grads: list[Tensor] = []
        for index in reversed(range(self.depth)):
            rise, fall, to_gate = weights[1 + 3 * index : 4 + 3 * index]
            entry, hidden, branch, gate = kept[index]
            of_gate = delta * (branch - entry) * gate * (1.0 - gate)
            both = of_gate @ to_gate.transpose(-1, -2)
            of_branch = delta * gate + both[..., : self.dim]
            of_hidden = of_branch @ fall.transpose(-1, -2) * _gelu_slope(hidden)
            grads.append(_outer(torch.cat([branch, entry], dim=-1), of_gate))
            grads.append(_outer(F.gelu(hidden), of_branch))
            grads.append(_outer(entry, of_hidden))
            delta = delta * (1.0 - gate) + both[..., self.dim :] + of_hidden @ rise.transpose(-1, -2)
        return [last, *grads[::-1]], delta


@dataclass(frozen=True)
class SwiGluMlp:
    """`MemorySwiGluMLP`: gated feed-forwards with residuals, then a layer norm with a learned gain."""

    dim: int
    depth: int
    hidden: int

    def shapes(self) -> list[tuple[int, ...]]:
        return [(self.dim, 2 * self.hidden), (self.hidden, self.dim)] * self.depth + [(self.dim,)]

    def forward(self, weights: Weights, x: Tensor) -> Tensor:
        for index in range(self.depth):
            value, gate = (x @ weights[2 * index]).chunk(2, dim=-1)
            x = (value * F.gelu(gate)) @ weights[2 * index + 1] + x
        return F.layer_norm(x, (self.dim,)) * (weights[-1][..., None, :] + 1.0)

    def gradient(self, weights: Weights, x: Tensor, error: Error) -> tuple[list[Tensor], Tensor]:
        kept = []
        for index in range(self.depth):
            value, gate = (x @ weights[2 * index]).chunk(2, dim=-1)
            product = value * F.gelu(gate)
            kept.append((x, value, gate, product))
            x = product @ weights[2 * index + 1] + x
        grads, delta = _norm_gradient(weights[-1], x, error)
        for index in reversed(range(self.depth)):
            entry, value, gate, product = kept[index]
            grads.append(_outer(product, delta))
            inner = delta @ weights[2 * index + 1].transpose(-1, -2)
            inner = torch.cat([inner * F.gelu(gate), inner * value * _gelu_slope(gate)], dim=-1)
            grads.append(_outer(entry, inner))
            delta = delta + inner @ weights[2 * index].transpose(-1, -2)
        return grads[::-1], delta


def _norm_gradient(gain: Tensor, x: Tensor, error: Error) -> tuple[list[Tensor], Tensor]:
    """Through `norm(x) * (gain + 1)`: the gain's gradient and that of x."""
    normed = Standardised.of(x)
    scale = gain[..., None, :] + 1.0
    delta = error(normed.rows * scale)
    return [(delta * normed.rows).sum(-2)], normed.back(delta * scale)


@dataclass(frozen=True)
class ResidualNorm:
    """`ResidualNorm`: a network whose output is normalised, scaled by a learned gain and added to its input."""

    dim: int
    inner: Network

    def shapes(self) -> list[tuple[int, ...]]:
        return [(self.dim,), *self.inner.shapes()]

    def forward(self, weights: Weights, x: Tensor) -> Tensor:
        inner = self.inner.forward(weights[1:], x)
        return F.layer_norm(inner, (self.dim,)) * (weights[0][..., None, :] + 1.0) + x

    def gradient(self, weights: Weights, x: Tensor, error: Error) -> tuple[list[Tensor], Tensor]:
        gains: list[Tensor] = []
        outer: list[Tensor] = []

        def inner_error(y: Tensor) -> Tensor:
            def with_residual(normed: Tensor) -> Tensor:
                outer.append(error(normed + x))
                return outer[0]

            found, delta = _norm_gradient(weights[0], y, with_residual)
            gains.extend(found)
            return delta

        grads, delta = self.inner.gradient(weights[1:], x, inner_error)
        return [*gains, *grads], delta + outer[0]
