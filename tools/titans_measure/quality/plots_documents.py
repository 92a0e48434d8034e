"""Reports on documents, sequences and series as pictures. Knows matplotlib through `plots`."""

from __future__ import annotations

from pathlib import Path

from titans_measure.quality import dna, reading, series
from titans_measure.quality.likelihood import Bucket, Mode
from titans_measure.quality.plots import picture


def draw_reading(report: reading.ReadingReport, path: Path) -> None:
    """Bits by position, a line per mode."""
    words: dict[Mode, str] = {
        "kept": "memory kept",
        "reset": f"reset every {report.sizes.window}",
        "frozen": f"frozen after {report.sizes.frozen_after:,}",
        "writes_off": "never written",
    }
    with picture(path) as axes:
        for mode in report.bits:
            bits = [getattr(bucket, mode) for bucket in report.positions]
            axes.semilogx([middle(bucket) for bucket in report.positions], bits, "o-", label=words[mode])
        axes.set(xlabel="position in the document, tokens", ylabel=f"bits per {report.unit}")
        axes.set_title(f"{report.task}: {len(report.documents)} held-out documents")
        axes.legend()


def middle(bucket: Bucket) -> float:
    """Where a bucket stands on a logarithmic axis."""
    return float((bucket.start * bucket.stop) ** 0.5)


def draw_dna(report: dna.DnaReport, path: Path) -> None:
    """Bits of the second copies over the gap."""
    with picture(path) as axes:
        gaps = [max(point.gap, 1) for point in report.points]
        axes.semilogx(gaps, [point.bits for point in report.points], "o-", label="memory kept")
        axes.axhline(report.reset.bits, color="tab:red", linewidth=0.8, label="memory reset")
        axes.axhline(2.0, color="grey", linewidth=0.8, linestyle=":", label="four equal bases")
        axes.set(xlabel="bases between the copies", ylabel="bits per base of the second copy", ylim=(-0.05, 2.25))
        axes.set_title(f"dna: {report.options.families} planted repeats")
        axes.legend()


def draw_series(report: series.SeriesReport, path: Path) -> None:
    """Mean squared error over the horizon, a line per forecaster."""
    with picture(path) as axes:
        ahead = range(1, report.horizon + 1)
        for name, values in report.by_horizon.items():
            axes.semilogy(ahead, values, "o-", label=name.replace("_", " "))
        axes.set(xlabel="steps ahead", ylabel="mean squared error, in variances")
        axes.set_title(f"series: {report.options.data}, held-out part")
        axes.legend()
