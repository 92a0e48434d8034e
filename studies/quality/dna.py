"""Planted repeats in generated DNA: bits per base of the second copies over the gap, and the controls.

    python -m studies.quality.dna --plot docs/images/evidence-dna.svg

For each seed a model with memory; the same bundle with its writes switched off; and one of the same kind trained
without writes. An lmm has no attention that could remain, so the third control of other tasks has no place here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from studies.quality.spread import shown, spread, table
from studies.quality.work import Study, drawn_study

SEEDS = (0, 1, 2)
LONGEST_TRAINED = 256  # bases of the gap
GAPS = (16, 64, 256, 1024, 4096, 16_384)
RECIPE = (
    *("--task", "dna", "--gap", LONGEST_TRAINED, "--eval-gap", 512, "--variant", "lmm", "--set", "dim=64"),
    *("--set", "chunk=32", "--set", "ffn_hidden=128", "--set", "memory.heads=1", "--set", "memory.depth=1"),
    *("--set", "memory.conv_kernel=16"),  # promoter and body: what a place in a body is told by
    *("--steps", 700, "--lr", "4e-3"),
)
ASK = ("--task", "dna", *(word for gap in GAPS for word in ("--gap", gap)))
CONTROLS = ("memory", "switched-off", "trained-without")


def main() -> None:
    """Everything."""
    drawn_study("dna", __doc__, SEEDS, one_seed, summary, tables, draw)


def one_seed(study: Study, seed: int) -> dict[str, dict[str, Any]]:
    """The reports of the model and of its controls."""
    memory, off, without = (f"dna-{kind}-{seed}" for kind in CONTROLS)
    study.train(memory, *RECIPE, "--seed", seed)
    study.train(without, *RECIPE, "--seed", seed, "--control", "writes-off")
    bundles = {
        "memory": study.export(memory),
        "switched-off": study.export(off, "--control", "writes-off", checkpoint=memory),
        "trained-without": study.export(without),
    }
    return {kind: study.evaluate(f"dna-{kind}-{seed}", bundle, *ASK) for kind, bundle in bundles.items()}


def summary(reports: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Bits per base over the gap, mean and spread over the seeds."""
    return {
        "trained_gap": LONGEST_TRAINED,
        "points": [
            {
                "gap": gap,
                **{kind: spread([report[kind]["points"][place]["bits"] for report in reports]) for kind in CONTROLS},
            }
            for place, gap in enumerate(GAPS)
        ],
        "reset": spread([report["memory"]["reset"]["bits"] for report in reports]),
    }


def tables(found: dict[str, Any]) -> str:
    """The figures as Markdown, by gap; the last row is the memory reset before the second copies."""
    rows = [(f"{point['gap']:,}", *(shown(point[kind]) for kind in CONTROLS)) for point in found["points"]]
    return table(("bases between the copies", *CONTROLS), [*rows, ("memory reset", shown(found["reset"]), "", "")])


def draw(found: dict[str, Any], path: Path) -> None:
    """Bits per base over the gap; bars are one standard deviation over the seeds."""
    from titans_measure.quality.plots import picture

    with picture(path) as axes:
        for kind in CONTROLS:
            values = [point[kind] for point in found["points"]]
            means, deviations = [v["mean"] for v in values], [v["deviation"] for v in values]
            axes.errorbar(GAPS, means, deviations, fmt="o-", label=kind.replace("-", " "))
        axes.axvline(found["trained_gap"], color="grey", linewidth=0.8, linestyle=":", label="longest gap trained")
        axes.axhline(2.0, color="grey", linewidth=0.8, linestyle="--", label="four equal bases")
        axes.set(xscale="log", xlabel="bases between the copies", ylabel="bits per base", ylim=(-0.05, 2.3))
        axes.set_title("second copies of planted repeats")
        axes.legend()


if __name__ == "__main__":
    main()
