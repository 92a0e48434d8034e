"""A drift report as a picture: agreement, divergence and the error of every state along the stream.

Knows matplotlib, which is only imported when a picture is wanted (the `plot` extra).
"""

from __future__ import annotations

from pathlib import Path

from titans_export.errors import ExportError
from titans_export.verification.drift import DriftReport
from titans_format.install import install

STYLES = {"bundle": "-", "arithmetic": "--"}


def plot_drift(report: DriftReport, path: Path) -> None:
    """Write the picture; the ending of `path` chooses the format.

    Raises:
        ExportError: matplotlib is missing, or does not know the ending.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ExportError(str(error), f"run: {install('plot')}") from error
    figure = Figure(figsize=(8, 8), layout="constrained")
    FigureCanvasAgg(figure)
    agreement, divergence, errors = figure.subplots(3, 1, sharex=True)
    for side, curve in report.curves.items():
        style = STYLES[side]
        if curve.top1:
            agreement.plot(report.positions, [100 * share for share in curve.top1], style, label=side)
        divergence.semilogy(report.positions, curve.kl, style, label=side)
        for number, (name, values) in enumerate(curve.states.items()):
            label = name if side == "bundle" else None
            errors.semilogy(report.positions, values, style, color=f"C{number % 10}", linewidth=0.9, label=label)
    agreement.axhline(100 * report.limits.top1, color="grey", linewidth=0.8)
    agreement.set(ylabel="top-1 agreement, %", title=f"{report.dtype} beside fp32")
    divergence.set(ylabel="KL, nats per token" if curve.top1 else "relative error")
    errors.set(ylabel="relative error of states", xlabel="tokens")
    divergence.legend()
    errors.legend(fontsize="xx-small", ncols=3)
    try:
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    except ValueError as error:
        raise ExportError(f"cannot draw {path} ({error})", "use a name that ends in .svg or .png") from error
