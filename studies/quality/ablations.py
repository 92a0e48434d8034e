"""The ablation table: what is left of a model when one part of its memory is taken away.

    python -m studies.quality.ablations          all rows, all seeds; ablations.json, and the table on stdout

Every row is a base with one change, trained on recall with the base's recipe, exported, and asked through the runtime.
The base is the plain memory, where no attention can stand in for it; persistent memory belongs to attention, so its
row stands beside mag. A row may know as much as its base in the end and still have needed longer for it: so the table
also has the step at which each had learned.

Knows the rows. Does not know how anything is measured.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, NamedTuple

from studies.quality import recall
from studies.quality.work import Study, mean_and_range, options, write

SEEDS = (0, 1, 2)
GAPS = (0, 128, 4096)
LEARNED = 1.0  # nats a question, of ln 32 = 3.5 for a guess
WINDOW = 50  # steps that a loss is averaged over


class Row(NamedTuple):
    """A model of the table: its variant, and what differs from the base."""

    variant: str
    changes: dict[str, object]


ROWS: dict[str, Row] = {
    "memory alone (lmm), depth 2": Row("lmm", {}),
    "linear memory (depth 1)": Row("lmm", {"memory__depth": 1}),
    "depth 3": Row("lmm", {"memory__depth": 3}),
    "depth 4": Row("lmm", {"memory__depth": 4}),
    "− convolution": Row("lmm", {"memory__conv_kernel": 1}),
    "− momentum": Row("lmm", {"memory__momentum": "false"}),
    "− forgetting": Row("lmm", {"memory__forget": "false"}),
    "− writes": Row("lmm", {"memory__step_size": "off"}),
    "beside attention (mag), depth 2": Row("mag", {}),
    "− persistent memory": Row("mag", {"persistent_tokens": 0}),
}


def recipe(row: Row, seed: int) -> list[str]:
    """The options of `titans train`: those of recall, with the row's changes."""
    return recall.recipe(row.variant, seed, changes=row.changes)


def main() -> None:
    """Run the study."""
    chosen = options(__doc__).parse_args()
    study = Study(chosen.out, chosen.threads)
    found: dict[str, dict[str, list[Any]]] = {}
    for label in ROWS:
        found[label] = {"accuracy": [], "learned": [], "parameters": [], "seconds": []}
        for seed in SEEDS:
            for name, value in one(study, label, seed).items():
                found[label][name].append(value)
    write(chosen.out / "ablations.json", {"gaps": GAPS, "rows": found})
    print(table(found))


def one(study: Study, label: str, seed: int) -> dict[str, Any]:
    """One training of a row: accuracies by gap, when it had learned, parameters and seconds."""
    name = f"ablation-{list(ROWS).index(label)}-{seed}"
    trained = study.train(name, *recipe(ROWS[label], seed))
    gaps = (word for gap in GAPS for word in ("--gap", gap))
    report = study.evaluate(name, study.export(name), "--task", "recall", *gaps)
    return {
        "accuracy": [float(point["accuracy"]) for point in report["points"]],
        "learned": learned(study.out / "checkpoints" / name / "log.csv"),
        "parameters": trained["parameters"],
        "seconds": study.seconds(f"train-{name}"),
    }


def learned(log: Path) -> int | None:
    """The first step at which the loss, averaged over the steps before it, is below `LEARNED`; None if it never is."""
    with log.open(encoding="utf-8", newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    for step in range(WINDOW, len(losses) + 1):
        if sum(losses[step - WINDOW : step]) < WINDOW * LEARNED:
            return step
    return None


def table(found: dict[str, dict[str, list[Any]]]) -> str:
    """The rows in Markdown: mean and range over the seeds."""
    heads = ["", "parameters", *(f"gap {gap:,}" for gap in GAPS), "learned at step"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for label, row in found.items():
        cells = [mean_and_range([each[i] for each in row["accuracy"]]) for i in range(len(GAPS))]
        when = ", ".join("never" if step is None else f"{step:,}" for step in row["learned"])
        lines.append(f"| {label} | {row['parameters'][0]:,} | " + " | ".join(cells) + f" | {when} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
