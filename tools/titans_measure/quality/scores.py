"""Scores: how well a number tells two kinds apart, and how far forecasts are off.

Knows arithmetic. Does not know models or tasks.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from titans_measure.quality.errors import EvalError

Values = NDArray[np.float64]


def roc_auc(scores: Values, positive: NDArray[np.bool_]) -> float:
    """The probability that a positive has a higher score than a negative, ties counting half.

    Args:
        scores: float64 `[N]`.
        positive: bool `[N]`, with at least one of each kind.

    Raises:
        EvalError: there is only one kind.
    """
    count, others = int(positive.sum()), int((~positive).sum())
    if not count or not others:
        raise EvalError("a ROC needs positives and negatives, there is only one kind", "use a longer series")
    _, group, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(sizes) - (sizes - 1) / 2)[group]  # mean rank of a group of equal scores, from 1
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * others))


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Mean squared and mean absolute error, in the units of what was compared and their square."""

    mse: float
    mae: float

    @classmethod
    def of(cls, forecasts: Values, truth: Values) -> Errors:
        """The errors of `forecasts` against `truth`, of the same shape."""
        off = forecasts - truth
        return cls(mse=float(np.square(off).mean()), mae=float(np.abs(off).mean()))

    def as_json(self) -> dict[str, float]:
        """The same as plain data."""
        return asdict(self)
