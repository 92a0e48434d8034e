"""How a memory's weights follow from what it has accumulated: the retention, as a link behind a linear recurrence.

What forgets and is written is an accumulator A, by [13] and [14] as ever. The weights that a memory is read and
surprised with are a pointwise function of it (MIRAS, arXiv 2504.13173, by mirror descent):

    l2                W = A
    lq, printed       W = A / ||A||_q^(q - 2)                      the paper's equation [24]
    lq, mirror        W = A |A|^(q - 2) / ||A||_q^(q - 2)          the map that the derivation gives
    kl                W = sqrt(d_in) softmax(A) over the inputs of every output: A holds logarithms of the weights

The norm is that of one matrix of one head. The gain of a residual norm is a vector and always its own accumulator.

Knows one matrix at a time. Does not know tokens; `unrolled` says when a link is applied.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from titans_core.config import Link, LinkAt, MemoryConfig, Retention

LEAST = 1e-12  # of an entry whose power is taken: below it a power between 0 and 1 has no gradient
LEAST_SUM = 1e-30  # of the powers under a norm: far above the denormals of fp32


@dataclass(frozen=True)
class RetentionLink:
    """One of the links above, and when it is applied: once a chunk (`commit`) or for every token (`read`)."""

    kind: Retention
    q: float
    link: Link
    at: LinkAt

    @classmethod
    def of(cls, memory: MemoryConfig) -> RetentionLink:
        """That of a memory's options."""
        return cls(memory.retention, memory.retention_q, memory.link, memory.link_at)

    @property
    def is_identity(self) -> bool:
        """Whether the weights are the accumulator."""
        return self.kind == "l2"

    @property
    def is_scale(self) -> bool:
        """Whether the weights are the accumulator times one number a matrix."""
        return self.kind == "lq" and self.link == "printed"

    def scale(self, accumulated: Tensor) -> Tensor:
        """`1 / ||A||_q^(q - 2)` of matrices `[..., in, out]`, as `[..., 1, 1]`."""
        powers = accumulated.abs().pow(self.q).sum(-1, keepdim=True).sum(-2, keepdim=True)
        return powers.clamp(min=LEAST_SUM).pow((2 - self.q) / self.q)

    def weights(self, accumulated: Tensor) -> Tensor:
        """The weights of accumulated matrices; `[..., in, out]` both."""
        if self.kind == "l2":
            return accumulated
        if self.kind == "kl":
            return torch.softmax(accumulated, -2) * math.sqrt(accumulated.shape[-2])
        scaled = self.scale(accumulated) * accumulated
        return scaled if self.is_scale else scaled * accumulated.abs().clamp(min=LEAST).pow(self.q - 2)
