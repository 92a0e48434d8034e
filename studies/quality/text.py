"""Bits per byte along held-out source files: memory kept, reset, frozen, not written, and attention alone.

    python -m studies.quality.text --plot docs/images/evidence-text.svg

For each seed: a model with memory and one of attention alone with as many parameters and the same window, trained on
the same bytes in the same order; both exported and read through the runtime. Everything can be interrupted and started
again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from studies.quality.spread import shown, spread, table
from studies.quality.work import Study, drawn_study

SEEDS = (0, 1, 2)
RECIPE = (
    *("--task", "text", "--data", "stdlib", "--variant", "mal", "--preset", "tiny", "--set", "memory.depth=1"),
    *("--set", "memory.initial_forget=0.002"),  # a memory of about five hundred tokens to begin with
    *("--steps", 500, "--batch", 8, "--window-tokens", 128, "--warmup", 100),
)
ASK = ("--task", "text", "--data", "stdlib", "--shortest", 32_768, "--longest", 32_768)
# Column in the summary: the run that was asked, and its mode.
COLUMNS = {
    "kept": ("memory", "kept"),
    "reset": ("memory", "reset"),
    "frozen": ("memory", "frozen"),
    "writes off": ("off", "kept"),
    "attention only": ("attention", "kept"),
    "attention only, reset": ("attention", "reset"),
}
# What keeping the memory is worth: the column that it is taken from, seed by seed.
GAINS = {"gain": "attention only", "over frozen": "frozen", "over reset": "reset"}


def main() -> None:
    """Everything."""
    drawn_study("text", __doc__, SEEDS, one_seed, summary, tables, draw)


def one_seed(study: Study, seed: int) -> dict[str, dict[str, Any]]:
    """The reports of the model, of the model without writes, and of attention alone."""
    return {name: study.evaluate(f"text-{name}-{seed}", bundle, *ASK) for name, bundle in bundles(study, seed).items()}


def bundles(study: Study, seed: int) -> dict[str, Path]:
    """The bundles of the three, trained if need be."""
    memory, off, attention = (f"text-{name}-{seed}" for name in ("memory", "off", "attention"))
    study.train(memory, *RECIPE, "--seed", seed)
    study.train(attention, *RECIPE, "--seed", seed, "--control", "attention-only")
    return {
        "memory": study.export(memory),
        "off": study.export(off, "--control", "writes-off", checkpoint=memory),
        "attention": study.export(attention),
    }


def summary(reports: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Mean and spread over the seeds, altogether and by position, and what memory gains over attention alone."""
    first = reports[0]["memory"]
    positions = []
    for number, bucket in enumerate(first["positions"]):
        columns = {
            name: [report[run]["positions"][number][mode] for report in reports]
            for name, (run, mode) in COLUMNS.items()
        }
        positions.append({**{name: bucket[name] for name in ("start", "stop", "tokens")}, **_with_gains(columns)})
    overall = {
        name: [report[run]["bits_per_byte"][mode] for report in reports] for name, (run, mode) in COLUMNS.items()
    }
    return {
        "documents": first["documents"],
        "bytes": first["bytes"],
        "parameters": {name: reports[0][name]["model"]["parameters"] for name in ("memory", "attention")},
        "bits_per_byte": _with_gains(overall),
        "positions": positions,
    }


def _with_gains(columns: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Mean and spread of every column, and of every gain, by its name."""
    gains = {
        name: [theirs - ours for ours, theirs in zip(columns["kept"], columns[other], strict=True)]
        for name, other in GAINS.items()
    }
    return {name: spread(values) for name, values in {**columns, **gains}.items()}


def tables(found: dict[str, Any]) -> str:
    """The figures as Markdown: altogether, and by position."""
    overall = table(("bits per byte", ""), [(name, shown(value)) for name, value in found["bits_per_byte"].items()])
    names = (*COLUMNS, *GAINS)
    rows = [
        (f"{bucket['start']:,} to {bucket['stop'] - 1:,}", *(shown(bucket[name]) for name in names))
        for bucket in found["positions"]
    ]
    return f"{overall}\n\n{table(('bytes', *names), rows)}"


def draw(found: dict[str, Any], path: Path) -> None:
    """Bits per byte, and the gain over attention alone, by position; bars are one standard deviation over the seeds."""
    from titans_measure.quality.plots import picture

    places = [(bucket["start"] * bucket["stop"]) ** 0.5 for bucket in found["positions"]]
    with picture(path, width=9.0, columns=2) as (left, right):
        for name in COLUMNS:
            values = [bucket[name] for bucket in found["positions"]]
            left.errorbar(places, [v["mean"] for v in values], [v["deviation"] for v in values], fmt="o-", label=name)
        gains = [bucket["gain"] for bucket in found["positions"]]
        right.errorbar(places, [v["mean"] for v in gains], [v["deviation"] for v in gains], fmt="o-", color="C0")
        right.axhline(0.0, color="grey", linewidth=0.8, linestyle=":")
        left.set(xscale="log", xlabel="position in the file, bytes", ylabel="bits per byte")
        right.set(xscale="log", xlabel="position in the file, bytes", ylabel="bits per byte gained")
        left.set_title("held-out source files")
        right.set_title("memory kept over attention alone")
        left.legend()


if __name__ == "__main__":
    main()
