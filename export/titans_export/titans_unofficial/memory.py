"""titans-unofficial's neural memory as functions of external state: read, and write one token.

An MLP of square layers with biases and ReLU between. Token t is written by one step of gradient descent at the weights
before it,

    M_t = (1 - α_t) M_{t-1} + S_t,    S_t = η_t S_{t-1} - θ_t g / max(1, |g| + 1e-6),    g = ∇ |M(k_t) - v_t|²

with one norm over all parameters of a stream. Knows one memory's parameters. Does not know who reads when.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titans_core.state import State, StateSpec
from titans_export.titans_pytorch.parameters import Reader

FORGET_GATE_SHIFT = 4.0
LARGEST_GRADIENT = 1.0
GRADIENT_EPSILON = 1e-6


@dataclass(frozen=True)
class Weights:
    """A memory network: matrices `[B, d, d]` as `[in, out]`, and biases `[B, d]`."""

    matrices: list[Tensor]
    biases: list[Tensor]


class Memory(nn.Module):
    """The parameters of the memory, which may serve several states."""

    def __init__(self, dim: int, depth: int, read: Reader) -> None:
        super().__init__()
        self.dim, self.depth = dim, depth
        self.to_key = read.matrix("W_K.weight", dim, dim)
        self.to_value = read.matrix("W_V.weight", dim, dim)
        self.to_query = read.matrix("W_Q.weight", dim, dim)
        gates = [read.matrix(f"{name}_proj.weight", dim, 1) for name in ("theta", "eta", "alpha")]
        biases = [read.tensor(f"{name}_proj.bias", (1,)) for name in ("theta", "eta", "alpha")]
        biases[2] = biases[2] - FORGET_GATE_SHIFT
        self.gates = nn.Parameter(torch.cat(list(gates), dim=1), requires_grad=False)
        self.gate_biases = nn.Parameter(torch.cat(biases), requires_grad=False)
        layers = [read.below(f"memory_layers.{index}") for index in range(depth)]
        self.matrices = nn.ParameterList(layer.matrix("weight", dim, dim) for layer in layers)
        self.biases = nn.ParameterList(layer.parameter("bias", (dim,)) for layer in layers)

    def state_specs(self, prefix: str, initial: bool = True) -> list[StateSpec]:
        """Weights below `prefix`; learned where they start from the memory's own or, by name, from something else."""
        specs = []
        for index in range(self.depth):
            for kind, shape in (("matrix", (self.dim, self.dim)), ("bias", (self.dim,))):
                name = f"{prefix}_{kind}_{index}"
                specs.append(StateSpec(name, "carried", shape, name if initial else 0.0))
        return specs

    def initial(self) -> Weights:
        """What every stream starts from, `[1, …]`."""
        return Weights([w.unsqueeze(0) for w in self.matrices], [b.unsqueeze(0) for b in self.biases])

    def read_state(self, prefix: str, state: State) -> Weights:
        """The weights below `prefix`."""
        count = range(self.depth)
        return Weights(
            [state[f"{prefix}_matrix_{index}"] for index in count], [state[f"{prefix}_bias_{index}"] for index in count]
        )

    def retrieve(self, x: Tensor, now: Weights) -> Tensor:
        """`[B, n, d]` to the same: what the memory says to the queries of x."""
        h = F.normalize(x @ self.to_query, dim=-1)
        for index in range(self.depth):
            h = (F.relu(h) if index else h) @ now.matrices[index] + now.biases[index].unsqueeze(1)
        return h

    def write(self, x: Tensor, now: Weights, momentum: Weights) -> tuple[Weights, Weights]:
        """One token, `[B, 1, d]`, into weights and momentum."""
        key, value = F.normalize(x @ self.to_key, dim=-1), x @ self.to_value
        step_size, keep, forget = torch.sigmoid(x @ self.gates + self.gate_biases).chunk(3, dim=-1)  # [B, 1, 1] each
        entries: list[Tensor] = []
        before: list[Tensor] = []
        h = key
        for index in range(self.depth):
            entries.append(h)
            h = h @ now.matrices[index] + now.biases[index].unsqueeze(1)
            before.append(h)
            h = F.relu(h) if index < self.depth - 1 else h
        deltas = [2.0 * (h - value)]
        for index in range(self.depth - 1, 0, -1):
            back = deltas[-1] @ now.matrices[index].transpose(-1, -2)
            deltas.append(back * (before[index - 1] > 0).to(back.dtype))
        deltas.reverse()
        # |outer(h, δ)|² + |δ|² = |δ|² (|h|² + 1)
        squares = [
            delta.pow(2).sum(-1, keepdim=True) * (entry.pow(2).sum(-1, keepdim=True) + 1.0)
            for delta, entry in zip(deltas, entries, strict=True)
        ]
        norm = torch.sqrt(torch.cat(squares, dim=-1).sum(-1, keepdim=True))
        step = step_size * (LARGEST_GRADIENT / (norm + GRADIENT_EPSILON)).clamp(max=1.0)
        matrices, biases, moving_matrices, moving_biases = [], [], [], []
        for index, (delta, entry) in enumerate(zip(deltas, entries, strict=True)):
            taken = step * delta
            moving = keep * momentum.matrices[index] - entry.transpose(-1, -2) @ taken
            moving_matrices.append(moving)
            matrices.append((1.0 - forget) * now.matrices[index] + moving)
            moving_bias = keep.squeeze(1) * momentum.biases[index] - taken.squeeze(1)
            moving_biases.append(moving_bias)
            biases.append((1.0 - forget.squeeze(1)) * now.biases[index] + moving_bias)
        return Weights(matrices, biases), Weights(moving_matrices, moving_biases)


def named(prefix: str, weights: Weights) -> State:
    """Weights as states below `prefix`."""
    state = {f"{prefix}_matrix_{index}": value for index, value in enumerate(weights.matrices)}
    return state | {f"{prefix}_bias_{index}": value for index, value in enumerate(weights.biases)}
