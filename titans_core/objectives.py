"""What a memory is trained for while it runs: the inner objective and its gradient at the memory's answer.

With the miss `e = M(k) - v` of one token, and `|x|_s = sqrt(x^2 + 1e-6)`, which has a gradient everywhere:

    l2             ||e||^2                                                 gradient 2 e               [12]
    l1             sum |e|_s                                               e / |e|_s
    lp             sum |e|_s^p                                             p e |e|_s^(p - 2)
    huber          ||e||^2 up to a threshold D, then 2 D ||e|| - D^2       2 e min(1, D / ||e||)
    huber-switch   ||e||^2 up to a threshold D, then D sum |e|_s           2 e, then D e / |e|_s

The objectives other than l2 are those of MIRAS (arXiv 2504.13173), with the departures that docs/rules.md names. An
objective changes one row per token, the error at the answer; everything else of a memory stays as it is.

Knows one token's error row, and the bound on it. Does not know networks (`memory_network`) nor where a threshold comes
from (`memory`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from titans_core.config import MemoryConfig, Objective

SMOOTHING = 1e-6  # under the root of |x|_s, as in the paper's remark on l_p
WITH_THRESHOLD: tuple[Objective, ...] = ("huber", "huber-switch")


def bounded(error: Tensor, bound: float | None) -> Tensor:
    """Rows of `error` `[..., d]` scaled down to norm <= `bound`; unchanged where smaller, or without a bound."""
    if bound is None:
        return error
    norm: Tensor = torch.linalg.vector_norm(error, dim=-1, keepdim=True)
    return error / (norm / bound if bound != 1 else norm).clamp(min=1)


@dataclass(frozen=True)
class InnerObjective:
    """One of the objectives above; `p` is the exponent of lp, `bound` the norm bound on the gradient's row."""

    kind: Objective
    p: float
    bound: float | None

    @classmethod
    def of(cls, memory: MemoryConfig) -> InnerObjective:
        """That of a memory's options."""
        return cls(memory.objective, 1.0 if memory.objective == "l1" else memory.objective_p, memory.surprise_bound)

    @property
    def has_threshold(self) -> bool:
        """Whether the loss has a threshold, which is a gate of its own."""
        return self.kind in WITH_THRESHOLD

    def surprised(self, miss: Tensor, threshold: Tensor | None) -> tuple[Tensor, Tensor]:
        """How surprised a memory is, and the gradient at its answer.

        Args:
            miss: `e`, `[..., T, d]`.
            threshold: `D`, `[..., T]`; None for an objective without one.

        Returns:
            `||e||^2` `[..., T]`, whatever the objective is, and the gradient `[..., T, d]`, bounded.
        """
        if self.kind in ("l1", "lp"):
            squares = miss * miss
            return squares.sum(-1), bounded(self._power(miss, squares), self.bound)
        norm: Tensor = torch.linalg.vector_norm(miss, dim=-1, keepdim=True)
        surprise = (norm * norm).squeeze(-1)
        if threshold is None:  # l2; one norm for both
            if self.bound is None:
                return surprise, 2 * miss
            return surprise, miss / (norm / self.bound if self.bound != 1 else norm).clamp(min=0.5)
        limit = threshold[..., None]
        if self.kind == "huber":
            return surprise, bounded(2 * miss / (norm / limit).clamp(min=1), self.bound)
        far = limit * miss / torch.sqrt(miss * miss + SMOOTHING)
        return surprise, bounded(torch.where(norm <= limit, 2 * miss, far), self.bound)

    def _power(self, miss: Tensor, squares: Tensor) -> Tensor:
        """The gradient of `sum |e|_s^p`."""
        if self.p == 2:
            return 2 * miss
        smooth = torch.sqrt(squares + SMOOTHING)
        if self.p == 1:
            return miss / smooth
        return self.p * miss * (smooth if self.p == 3 else smooth.pow(self.p - 2))
