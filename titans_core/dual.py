"""Gate products: how much every past write still weighs in the memory a token reads.

The recurrences of the paper, unrolled over one chunk without ever forming a memory per token
(equations [13] and [14] of arXiv 2501.00663):

    P[t, j] = prod_{j < s <= t} (1 - alpha_s)       N[t, i] = prod_{i < s <= t} eta_s
    b_t = prod_{s <= t} (1 - alpha_s)               m_t = prod_{s <= t} eta_s
    G = (P N) diag(theta)                           f = P m
    W_t = b_t W_0 + f_t S_0 - sum_{i <= t} G[t, i] a_i^T delta_i
    S_t =           m_t S_0 - sum_{i <= t} N[t, i] theta_i a_i^T delta_i

All products are exponentials of sums of logarithms, and the sums are matmuls with triangles of ones: no division,
no running product that can overflow, no operator that TensorRT lacks. Knows nothing about networks or tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LOG_FLOOR = -30.0  # exp(-30) is 1e-13: below fp32 resolution, far above its denormals


@dataclass(frozen=True)
class Gates:
    """The gates of T tokens, each `[B, H, T]`; None where the model has the gate switched off."""

    log_keep: Tensor | None  # log(1 - alpha)
    log_momentum: Tensor | None  # log(eta)
    step_size: Tensor  # theta


@dataclass(frozen=True)
class MomentumCoefficients:
    """How past surprise reaches T tokens."""

    scale: Tensor  # f, [B, H, T]: weight of S_0 in the memory
    decay: Tensor  # m, [B, H, T]: weight of S_0 in the momentum
    writes: Tensor  # N diag(theta), [B, H, T, n]: weight of n writes in the momentum


@dataclass(frozen=True)
class Coefficients:
    """Weights with which T tokens see a base memory `W_0`, a base momentum `S_0` and n writes."""

    scale: Tensor  # b, [B, H, T]: weight of W_0 in the memory
    writes: Tensor  # G, [B, H, T, n]: weight of n writes in the memory
    momentum: MomentumCoefficients | None  # None where the model has no momentum: S does not exist


def _triangle(like: Tensor) -> Tensor:
    """Ones on and below the diagonal, `[T, T]`, for `like` `[..., T]`."""
    tokens = like.shape[-1]
    return torch.ones(tokens, tokens, dtype=like.dtype, device=like.device).tril()


def products(log_gate: Tensor) -> tuple[Tensor, Tensor]:
    """Products of gates from every position to every later one.

    Args:
        log_gate: `[..., T]`, logarithms of the gates.

    Returns:
        `[..., T, T]` with entry `[t, j]` the product over `j < s <= t` (zero above the diagonal), and `[..., T]`
        with entry `t` the product over `s <= t`.
    """
    logs = log_gate.clamp(min=LOG_FLOOR)
    lower = _triangle(logs)
    between = (lower * logs[..., None, :]) @ lower.tril(-1)
    return torch.exp(between) * lower, torch.exp((logs[..., None, :] @ lower.T).squeeze(-2))


def coefficients(gates: Gates) -> Coefficients:
    """The dual form's coefficients for one chunk; shapes as in `Coefficients`."""
    theta = gates.step_size
    if gates.log_keep is None:
        keep, b = _triangle(theta), torch.ones_like(theta)
    else:
        keep, b = products(gates.log_keep)
    scale = theta[..., None, :]
    if gates.log_momentum is None:
        return Coefficients(b, keep * scale, None)
    past, m = products(gates.log_momentum)
    f = (keep @ m[..., None]).squeeze(-1)
    return Coefficients(b, (keep @ past) * scale, MomentumCoefficients(f, m, past * scale))
