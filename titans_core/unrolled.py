"""The memory of every token of a chunk, applied without being formed, and folded into one at the chunk's end.

    A_t = b A + (1 - b) A_start + f S - sum g_i a_i^T delta_i

is what a memory has accumulated at token t. Its weights are the retention's link of that. Where the link is applied
once a chunk, or is a number, no A_t is ever formed; where it is applied at every read, each A_t is.

Knows accumulators, coefficients and rows. Does not know how rows come about (`memory_network`), nor tokens (`memory`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from titans_core.dual import Coefficients
from titans_core.memory_network import Writes
from titans_core.retentions import RetentionLink
from titans_core.state import State


@dataclass(frozen=True)
class Weights:
    """Fast weights, their momentum or their start: `depth` matrices `[B, H, d_in, d_out]`, the norm's gain `[B, H, d]`.

    The start is one for all streams and has no axis B.
    """

    matrices: list[Tensor]
    gain: Tensor | None


@dataclass(frozen=True)
class Base:
    """What a chunk's tokens see besides its own writes.

    Attributes:
        accumulated: the memory at the last commit, as the state holds it.
        weights: the retention's link of it: what tokens are surprised by.
        momentum: past surprise, or None without momentum.
        start: where forgetting leads, or None where that is zero.
    """

    accumulated: Weights
    weights: Weights
    momentum: Weights | None
    start: Weights | None


def linked(accumulated: Weights, link: RetentionLink) -> Weights:
    """The weights of what was accumulated; the same object where they are the same."""
    if link.is_identity:
        return accumulated
    return Weights([link.weights(matrix) for matrix in accumulated.matrices], accumulated.gain)


def fold(base: Base, coefs: Coefficients, writes: Writes) -> State:
    """The next memory and momentum entries.

        A <- b A + (1 - b) A_start + f S - a^T (g delta)        S <- m S - a^T (n delta)

    Args:
        base: the memory at the last commit.
        coefs: those of the chunk's last token, `[B, H]` and `[B, H, n]`.
        writes: the chunk's n writes.
    """
    new: State = {}
    memory, momentum, start = base.accumulated, base.momentum, base.start
    b = coefs.scale[..., None, None]

    def folded(
        matrix: Tensor, past: Tensor | None, begun: Tensor | None, a: Tensor, delta: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        updated = b * matrix - a @ (coefs.writes[..., None] * delta)
        if begun is not None:
            updated = updated + (1 - b) * begun
        if past is None or coefs.momentum is None:
            return updated, None
        updated = updated + coefs.momentum.scale[..., None, None] * past
        return updated, coefs.momentum.decay[..., None, None] * past - a @ (coefs.momentum.writes[..., None] * delta)

    for layer, matrix in enumerate(memory.matrices):
        past = None if momentum is None else momentum.matrices[layer]
        begun = None if start is None else start.matrices[layer]
        updated, pushed = folded(matrix, past, begun, writes.inputs[layer].transpose(-1, -2), writes.errors[layer])
        new[f"memory_{layer}"] = updated
        if pushed is not None:
            new[f"momentum_{layer}"] = pushed
    if memory.gain is not None and writes.gain_errors is not None:
        past = None if momentum is None or momentum.gain is None else momentum.gain[..., None, :]
        begun = None if start is None or start.gain is None else start.gain[..., None, :]
        ones = torch.ones_like(writes.gain_errors[..., :1]).transpose(-1, -2)  # a gain is a matrix fed with ones
        updated, pushed = folded(memory.gain[..., None, :], past, begun, ones, writes.gain_errors)
        new["memory_gain"] = updated.squeeze(-2)
        if pushed is not None:
            new["momentum_gain"] = pushed.squeeze(-2)
    return new


def effective(
    base: Base, coefs: Coefficients, writes: list[tuple[Tensor, Writes]], link: RetentionLink
) -> tuple[Callable[[int, Tensor], Tensor], Tensor | None]:
    """The memory every token sees, without forming it where that can be helped:

        X A_t = b (X A) + (1 - b) (X A_start) + f (X S) - sum (G * (X a^T)) delta

    Args:
        base: the memory at the last commit.
        coefs: of the tokens over it.
        writes: pairs of G `[B, H, T, n]` and the n writes it weighs.
        link: from what was accumulated to weights.

    Returns:
        A function applying matrix `l` to `[B, H, T, d_in]`, and the gain per token `[B, H, T, d]` or None.
    """
    memory, momentum, start = base.accumulated, base.momentum, base.start
    b = coefs.scale[..., None]
    f = None if coefs.momentum is None else coefs.momentum.scale[..., None]

    def accumulated(layer: int, x: Tensor) -> Tensor:
        out = b * (x @ memory.matrices[layer])
        if start is not None:
            out = out + (1 - b) * (x @ start.matrices[layer])
        if momentum is not None and f is not None:
            out = out + f * (x @ momentum.matrices[layer])
        for weight, rows in writes:
            out = out - (weight * (x @ rows.inputs[layer].transpose(-1, -2))) @ rows.errors[layer]
        return out

    def formed(layer: int) -> Tensor:
        """A_t of every token, `[B, H, T, d_in, d_out]`."""
        each = b[..., None] * memory.matrices[layer][:, :, None]
        if start is not None:
            each = each + (1 - b[..., None]) * start.matrices[layer][:, None]
        if momentum is not None and f is not None:
            each = each + f[..., None] * momentum.matrices[layer][:, :, None]
        for weight, rows in writes:
            inputs, errors = rows.inputs[layer].transpose(-1, -2)[:, :, None], rows.errors[layer][:, :, None]
            each = each - inputs @ (weight[..., None] * errors)
        return each

    def matrix(layer: int, x: Tensor) -> Tensor:
        if link.is_identity:
            return accumulated(layer, x)
        if link.at == "read":
            return (x[..., None, :] @ link.weights(formed(layer))).squeeze(-2)
        if link.is_scale:
            return link.scale(memory.matrices[layer]) * accumulated(layer, x)
        return x @ base.weights.matrices[layer]

    if memory.gain is None:
        return matrix, None
    gain = b * memory.gain[..., None, :]
    if start is not None and start.gain is not None:
        gain = gain + (1 - b) * start.gain[..., None, :]
    if momentum is not None and momentum.gain is not None and f is not None:
        gain = gain + f * momentum.gain[..., None, :]
    for weight, rows in writes:
        if rows.gain_errors is not None:
            gain = gain - weight @ rows.gain_errors
    return matrix, gain
