"""Figures over seeds: the mean, the spread, and the figures themselves; and tables of them for a page.

Knows arithmetic and Markdown. Does not know what the figures are of.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation over the seeds (n - 1), and the values."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "deviation": deviation, "values": list(values)}


def shown(value: Any, digits: int = 3) -> str:
    """`mean ± deviation` of a spread, or a plain number, with so many digits."""
    if isinstance(value, dict):
        return f"{value['mean']:.{digits}f} ± {value['deviation']:.{digits}f}"
    return f"{value:.{digits}f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
