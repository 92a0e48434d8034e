"""Curves of several models in one picture. Knows matplotlib through `titans_measure.quality.plots`; knows no task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from titans_measure.quality.plots import picture


@dataclass(frozen=True)
class Curve:
    """Shares `ys`, from 0 to 1, at the places `xs`."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    style: str = "o-"


def draw(path: Path, curves: Sequence[Curve], across: str, up: str, base: int) -> None:
    """All curves in one picture, in per cent over a logarithmic axis. Raises `EvalError` without matplotlib."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with picture(path) as axes:
        for curve in curves:
            axes.semilogx(curve.xs, [100 * y for y in curve.ys], curve.style, base=base, label=curve.label)
        axes.set(xlabel=across, ylabel=up, ylim=(-2, 102))
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
