"""Reports as pictures. Knows matplotlib, which is imported only when a picture is wanted (the `plot` extra).

One function per task, report and path in, and the ending of the path chooses the format.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from titans_format.install import install
from titans_measure.quality import facts, needle, recall
from titans_measure.quality.errors import EvalError


@contextmanager
def picture(path: Path, width: float = 7.0, height: float = 4.0, columns: int = 1) -> Iterator[Any]:
    """Axes (an array of them for more than one column) that are written to `path` afterwards.

    Raises:
        EvalError: matplotlib is missing, or does not know the ending.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EvalError(str(error), f"run: {install('plot')}") from error
    # Text stays text, and ids do not change from run to run: files are small, and equal where the figures are.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "titans"}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure.subplots(1, columns)
        try:
            figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        except ValueError as error:
            raise EvalError(f"cannot draw {path} ({error})", "use a name that ends in .svg or .png") from error


def draw_recall(report: recall.RecallReport, path: Path) -> None:
    """Accuracy over the gap, a line per number of pairs."""
    with picture(path) as axes:
        for pairs in report.options.pairs:
            points = [point for point in report.points if point.pairs == pairs]
            gaps = [max(point.gap, 1) for point in points]
            axes.semilogx(gaps, [100 * point.accuracy for point in points], "o-", label=f"{pairs} pairs")
        axes.axhline(100 * report.chance, color="grey", linewidth=0.8, linestyle=":", label="chance")
        axes.set(xlabel="tokens between pairs and questions", ylabel="right answers, %", ylim=(-2, 102))
        axes.set_title(f"recall of {report.options.keys} keys")
        axes.legend()


def draw_facts(report: facts.FactsReport, path: Path) -> None:
    """Accuracy over the gap, a line per form and number of facts."""
    with picture(path) as axes:
        for kind, count in dict.fromkeys((point.kind, point.facts) for point in report.points):
            points = [point for point in report.points if (point.kind, point.facts) == (kind, count)]
            gaps = [max(point.gap, 1) for point in points]
            label = f"{kind}, {count} facts" if len(report.options.facts) > 1 else kind
            axes.semilogx(gaps, [100 * point.accuracy for point in points], "o-", label=label)
        axes.set(xlabel="tokens between facts and questions", ylabel="right answers, %", ylim=(-2, 102))
        axes.set_title("facts")
        axes.legend()


def draw_needle(report: needle.NeedleReport, path: Path) -> None:
    """Whole answers and single bytes over the length of the stream."""
    with picture(path) as axes:
        lengths = [point.length for point in report.points]
        axes.semilogx(lengths, [100 * point.accuracy for point in report.points], "o-", base=2, label="whole answers")
        axes.semilogx(lengths, [100 * point.bytes_right for point in report.points], "o--", base=2, label="bytes")
        axes.axhline(100 * report.reset.bytes_right, color="grey", linewidth=0.8, linestyle=":", label="bytes, unread")
        axes.set(xlabel="bytes of the stream", ylabel="right, %", ylim=(-2, 102))
        axes.set_title(f"needle, {report.options.form}")
        axes.legend()
