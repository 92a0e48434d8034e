"""What a part of the benchmarks hands over: figures with their targets, tables, curves.

Knows the shape of results, in memory and as JSON. Does not know what is measured (the parts) or drawn (`page`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

Cell = str | float | int | None
Row = dict[str, Cell]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number that is held against a target.

    unit: "x" for ratios, "share" for shares of 1.
    at_least, at_most: the target, where there is one.
    """

    name: str
    value: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.at_least is None and self.at_most is None:
            return None
        return (self.at_least is None or self.value >= self.at_least) and (
            self.at_most is None or self.value <= self.at_most
        )


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A line of a plot."""

    name: str
    x: list[float]
    y: list[float]


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Curves over one axis, both axes logarithmic."""

    title: str
    x: str
    y: str
    curves: list[Curve]


@dataclass(frozen=True, kw_only=True)
class Result:
    """One part's results.

    stated: what was run, sizes and what is in it.
    figures: what is compared with targets.
    tables: rows by title; all rows of one table have the same columns.
    """

    title: str
    stated: list[str]
    figures: list[Figure]
    tables: dict[str, list[Row]] = field(default_factory=dict)
    plot: Plot | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain data; every figure says whether it meets its target."""
        document = asdict(self)
        for figure, plain in zip(self.figures, document["figures"], strict=True):
            plain["met"] = figure.met
        return document
