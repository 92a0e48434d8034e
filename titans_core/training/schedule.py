"""The learning rate as a function of the step: linear warm-up, then a cosine to zero.

Knows nothing else, so that a resumed run needs no scheduler state.
"""

from __future__ import annotations

import math


def learning_rate(step: int, *, peak: float, warmup: int, steps: int) -> float:
    """The rate of step `step`, 0 <= step < steps: `peak` at the end of the warm-up, towards 0 at the last step."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def default_warmup(steps: int) -> int:
    """100 steps, or a fifth of a run shorter than 500."""
    return min(100, steps // 5)
