"""The ablation table: what is left of a model when one part of its memory is taken away.

    python -m evidence.ablations          all rows, all seeds; ablations.json, and the table on stdout

Every row is the base with one change, trained on recall for as many steps as the base, exported, and asked through the
runtime. Steps are few on purpose: after enough of them every row but one knows everything, and nothing could be told
apart; after half as many the base itself knows a fifth of the pairs.

Knows the rows. Does not know how anything is measured.
"""

from __future__ import annotations

from typing import Any

from evidence.recall import WINDOW
from evidence.recipes import run, shape
from evidence.work import Study, mean_and_range, options, write

SEEDS = (0, 1, 2)
GAPS = (0, 128, 4096)
STEPS = 600
BASE: dict[str, object] = {
    "memory__heads": 1,
    "memory__initial_step_size": 0.1,
    "memory__initial_forget": 1e-6,
}
ROWS: dict[str, dict[str, object]] = {
    "base (mag, depth 2)": {},
    "linear memory (depth 1)": {"memory__depth": 1},
    "depth 3": {"memory__depth": 3},
    "depth 4": {"memory__depth": 4},
    "− convolution": {"memory__conv_kernel": 1},
    "− momentum": {"memory__momentum": "false"},
    "− forgetting": {"memory__forget": "false"},
    "− persistent memory": {"persistent_tokens": 0},
    "− bounded surprise": {"memory__surprise_bound": "null"},
    "− writes": {"memory__step_size": "off"},
}


def recipe(changes: dict[str, object], seed: int) -> list[str]:
    """The options of `titans train`."""
    sizes = ["--keys", "32", "--pairs", "16", "--gap", "128", "--eval-gap", "256"]
    return ["--task", "recall", *shape("mag", WINDOW, **{**BASE, **changes}), *sizes, *run(STEPS, seed)]


def main() -> None:
    """Run the study."""
    chosen = options(__doc__).parse_args()
    study = Study(chosen.out, chosen.threads)
    found: dict[str, dict[str, list[Any]]] = {}
    for label in ROWS:
        found[label] = {"accuracy": [], "parameters": [], "seconds": []}
        for seed in SEEDS:
            for name, value in one(study, label, seed).items():
                found[label][name].append(value)
    write(chosen.out / "ablations.json", {"gaps": GAPS, "steps": STEPS, "rows": found})
    print(table(found))


def one(study: Study, label: str, seed: int) -> dict[str, Any]:
    """One training of a row: accuracies by gap, parameters and seconds."""
    name = f"ablation-{list(ROWS).index(label)}-{seed}"
    trained = study.train(name, *recipe(ROWS[label], seed))
    asked = (word for gap in GAPS for word in ("--gap", gap))
    report = study.evaluate(name, study.export(name), "--task", "recall", *asked)
    return {
        "accuracy": [float(point["accuracy"]) for point in report["points"]],
        "parameters": trained["parameters"],
        "seconds": study.seconds(f"train-{name}"),
    }


def table(found: dict[str, dict[str, list[Any]]]) -> str:
    """The rows in Markdown: mean and range over the seeds."""
    lines = ["| | parameters |" + "".join(f" gap {gap:,} |" for gap in GAPS), "|" + "---|" * (2 + len(GAPS))]
    for label, row in found.items():
        cells = [mean_and_range([each[i] for each in row["accuracy"]]) for i in range(len(GAPS))]
        lines.append(f"| {label} | {row['parameters'][0]:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
