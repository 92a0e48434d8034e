"""How far apart two sides are: outputs, and state tensors. Does not know what is allowed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from titans_core.state import StateSpec
from titans_runtime.arrays import Array


def difference(a: Array, b: Array) -> float:
    """Largest absolute difference; infinite where either is not finite."""
    if not a.size:
        return 0.0
    largest = float(np.abs(a - b).max())
    return largest if np.isfinite(largest) else float("inf")


def state_differences(
    got: Mapping[str, Array], want: Mapping[str, Array], specs: Iterable[StateSpec], position: int
) -> dict[str, float]:
    """Of each state the largest difference, divided by the largest value of `want` where that exceeds 1.

    Rows from the current place of the chunk on are stale, and are not compared.
    """
    found = {}
    for spec in specs:
        mine, theirs = got[spec.name], want[spec.name]
        if spec.kind == "rows":
            filled = position % spec.shape[0]
            mine, theirs = mine[:filled], theirs[:filled]
        found[spec.name] = difference(mine, theirs) / max(1.0, float(np.abs(theirs).max(initial=0.0)))
    return found
