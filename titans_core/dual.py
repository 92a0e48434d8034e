"""Gate products: how much every past write still weighs in the memory a token reads.

The recurrences of the paper, unrolled over one chunk without ever forming a memory per token
(equations [13] and [14] of arXiv 2501.00663):

    P[t, j] = prod_{j < s <= t} (1 - alpha_s)       N[t, i] = prod_{i < s <= t} eta_s
    b_t = prod_{s <= t} (1 - alpha_s)               m_t = prod_{s <= t} eta_s
    G = (P N) diag(theta)                           f = P m
    W_t = b_t W_0 + f_t S_0 - sum_{i <= t} G[t, i] a_i^T delta_i
    S_t =           m_t S_0 - sum_{i <= t} N[t, i] theta_i a_i^T delta_i

Forgetting towards a start W_start adds (1 - b_t) W_start to W_t: the weights of W_0 and W_start add up to one.

All products are exponentials of sums of logarithms, and the sums are matmuls with triangles of ones: no division,
no running product that can overflow, no operator that TensorRT lacks. Knows how coefficients are continued, stored and
cut. Knows nothing about networks or tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from titans_core.layers import select

SOFTPLUS_LINEAR = 40.0  # above this softplus(x) = x even in fp64
LOG_FLOOR = -30.0  # exp(-30) is 1e-13: below fp32 resolution, far above its denormals


@dataclass(frozen=True)
class Gates:
    """The gates of T tokens, each `[B, H, T]`; None where the model has the gate switched off.

    `forget` and `momentum` are logits: whole chunks multiply gates up as sums of logarithms, a single token needs none.
    """

    forget: Tensor | None  # alpha = sigmoid(forget)
    momentum: Tensor | None  # eta = sigmoid(momentum)
    step_size: Tensor  # theta
    threshold: Tensor | None = None  # of the objective, for those that have one; no part of the recurrence

    @property
    def log_keep(self) -> Tensor | None:
        """log(1 - alpha)"""
        return None if self.forget is None else -F.softplus(self.forget, threshold=SOFTPLUS_LINEAR)

    @property
    def log_momentum(self) -> Tensor | None:
        """log(eta)"""
        return None if self.momentum is None else -F.softplus(-self.momentum, threshold=SOFTPLUS_LINEAR)


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
    if gates.step_size.shape[-1] == 1:
        return _single(gates)
    theta, log_keep, log_momentum = gates.step_size, gates.log_keep, gates.log_momentum
    if log_keep is None:
        keep, b = _triangle(theta), torch.ones_like(theta)
    else:
        keep, b = products(log_keep)
    scale = theta[..., None, :]
    if log_momentum is None:
        return Coefficients(b, keep * scale, None)
    past, m = products(log_momentum)
    f = (keep @ m[..., None]).squeeze(-1)
    return Coefficients(b, (keep @ past) * scale, MomentumCoefficients(f, m, past * scale))


def _single(gates: Gates) -> Coefficients:
    """Of one token: every triangle is 1."""
    b = torch.ones_like(gates.step_size) if gates.forget is None else torch.sigmoid(-gates.forget)
    writes = gates.step_size[..., None]
    if gates.momentum is None:
        return Coefficients(b, writes, None)
    m = torch.sigmoid(gates.momentum)
    return Coefficients(b, writes, MomentumCoefficients(m, m, writes))


def continued(among: Coefficients, stored: Coefficients) -> Coefficients:
    """Coefficients of T new tokens over the last commit and the rows stored since, `[B, H, T]` and `[B, H, T, C]`.

    The recurrence is linear, so the stored coefficients decay and mix exactly as W_0 and S_0 do over the new tokens.
    """
    scale = among.scale * stored.scale[..., None]
    writes = among.scale[..., None] * stored.writes[..., None, :]
    if among.momentum is None or stored.momentum is None:
        return Coefficients(scale, writes, None)
    f, m, past = among.momentum.scale, among.momentum.decay, stored.momentum
    momentum = MomentumCoefficients(
        among.scale * past.scale[..., None] + f * past.decay[..., None],
        m * past.decay[..., None],
        m[..., None] * past.writes[..., None, :],
    )
    return Coefficients(scale, writes + f[..., None] * past.writes[..., None, :], momentum)


def placed(since: Coefficients, among: Coefficients, place: Tensor) -> Coefficients:
    """Coefficients over the chunk's C rows once the new tokens' own rows have been stored at `place` `[B, T, C]`."""
    momentum = since.momentum
    if momentum is not None and among.momentum is not None:
        own = among.momentum.writes @ place[:, None]
        momentum = MomentumCoefficients(momentum.scale, momentum.decay, momentum.writes + own)
    return Coefficients(since.scale, since.writes + among.writes @ place[:, None], momentum)


def each_chunk(x: Tensor) -> list[Tensor]:
    """The chunks of `[B, H, n, ...]`."""
    return [part.squeeze(2) for part in torch.split(x, 1, dim=2)]


def coefficients_of_each(coefs: Coefficients) -> list[Coefficients]:
    """The same of coefficients."""
    momentum: list[MomentumCoefficients | None]
    if coefs.momentum is None:
        momentum = [None] * coefs.scale.shape[2]
    else:
        past = coefs.momentum
        parts = zip(each_chunk(past.scale), each_chunk(past.decay), each_chunk(past.writes), strict=True)
        momentum = [MomentumCoefficients(*part) for part in parts]
    columns = zip(each_chunk(coefs.scale), each_chunk(coefs.writes), momentum, strict=True)
    return [Coefficients(*column) for column in columns]


def at_last_token(coefs: Coefficients, length: Tensor | None) -> Coefficients:
    """Coefficients of the last real token: `[B, H]` and `[B, H, n]`.

    A pad token is never a no-op (momentum of one adds the past surprise again), so its row is never taken.
    """

    def last(x: Tensor) -> Tensor:
        if length is None:
            return x[:, :, -1]
        batch, heads, tokens = x.shape[:3]
        flat = x.transpose(1, 2).reshape(batch, tokens, -1)
        return select(flat, length[:, None] - 1).reshape(batch, heads, *x.shape[3:])

    momentum = coefs.momentum
    if momentum is not None:
        momentum = MomentumCoefficients(last(momentum.scale), last(momentum.decay), last(momentum.writes))
    return Coefficients(last(coefs.scale), last(coefs.writes), momentum)
