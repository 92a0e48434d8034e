"""What the rules of learning are worth: Titans' own beside those of MIRAS, on recall, needles and text.

    python -m studies.quality.rules                          all rules, all tasks, all seeds; rules.json and the tables
    python -m studies.quality.rules --tasks recall --rules titans yaad --seeds 0          a part of it

Every rule is trained with the recipe of its task (the plain memory on recall and needles, MAL on text) and questions
through its bundle. All memories have as many weights as the recipe's: `memory.expansion` is 2, in text the depth is 1.
Every training has half as many steps as on the task's own page.

Knows the rules and the tasks. Does not know how anything is measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from studies.quality import needle, recall, text
from studies.quality.spread import table
from studies.quality.work import Study, mean_and_range, options, write

SEEDS = (0, 1, 2)
# Label: the rule, and what differs from it.
ROWS: dict[str, tuple[str, dict[str, object]]] = {
    "titans": ("titans", {}),
    "momentum-free": ("momentum-free", {}),
    "momentum-free, normed": ("momentum-free", {"residual_norm": "true", "initial_gain": 0.3}),
    "yaad": ("yaad", {}),
    "moneta": ("moneta", {}),
    "memora": ("memora", {}),
}
FAR = 4096  # tokens between pairs and questions
LENGTHS = (256, 4096)  # bytes around a needle: the longest in training, and 16 times that

Found = dict[str, float]


def ruled(words: list[str], label: str) -> list[str]:
    """A recipe with the rule of a row and half its steps; what else the recipe sets stays as it is."""
    rule, changes = ROWS[label]
    place = words.index("--steps") + 1
    words = [*words[:place], str(int(words[place]) // 2), *words[place + 1 :]]
    sets = [
        word for name, value in ({"expansion": 2} | changes).items() for word in ("--set", f"memory.{name}={value}")
    ]
    return [*words, "--rule", rule, *sets]


def recall_recipe(label: str, seed: int) -> list[str]:
    """That of recall's page, for the memory alone."""
    return ruled(recall.recipe("lmm", seed), label)


def needle_recipe(label: str, seed: int) -> list[str]:
    """That of the needles' page, for the memory alone."""
    return ruled(needle.recipe("lmm", seed), label)


def text_recipe(label: str, seed: int) -> list[str]:
    """That of the text's page."""
    return ruled([*map(str, text.RECIPE), "--seed", str(seed)], label)


def recall_figures(study: Study, label: str, seed: int) -> Found:
    """Shares of right answers: at once, far away, of fresh streams, and without writes."""
    name = _name("recall", label, seed)
    study.train(name, *recall_recipe(label, seed))
    questions = ("--task", "recall", "--gap", 0, "--gap", FAR)
    report = study.evaluate(name, study.export(name), *questions)
    off = study.export(f"{name}-off", "--control", "writes-off", checkpoint=name)
    silent = study.evaluate(f"{name}-off", off, *questions)
    near, far = recall.accuracies(report)
    return {"near": near, "far": far, "reset": report["reset"][0]["accuracy"], "off": recall.accuracies(silent)[1]}


def needle_figures(study: Study, label: str, seed: int) -> Found:
    """Shares of right streams: at the training length, at 16 times that, and of streams that begin at the question."""
    name = _name("needle", label, seed)
    study.train(name, *needle_recipe(label, seed))
    questions = (
        "--task",
        "needle",
        "--form",
        "passkey",
        *(word for length in LENGTHS for word in ("--length", length)),
    )
    report = study.evaluate(name, study.export(name), *questions)
    near, far = needle.shares(report)
    return {"near": near, "far": far, "reset": report["reset"]["accuracy"]}


def text_figures(study: Study, label: str, seed: int) -> Found:
    """Bits per byte with the memory kept, frozen and reset."""
    name = _name("text", label, seed)
    study.train(name, *text_recipe(label, seed))
    found = study.evaluate(name, study.export(name), *text.ASK)["bits_per_byte"]
    return {mode: found[mode] for mode in ("kept", "frozen", "reset")}


TASKS: dict[str, Callable[[Study, str, int], Found]] = {
    "recall": recall_figures,
    "needle": needle_figures,
    "text": text_figures,
}


def _name(task: str, label: str, seed: int) -> str:
    return f"rule-{task}-{label.replace(', ', '-')}-{seed}"


def main() -> None:
    """Run the study, or a part of it."""
    parser: argparse.ArgumentParser = options(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="of the trainings (default 0 1 2)")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="default all")
    parser.add_argument("--rules", nargs="+", choices=ROWS, default=list(ROWS), help="default all")
    chosen = parser.parse_args()
    study = Study(chosen.out, chosen.threads)
    found: dict[str, dict[str, list[Found]]] = {task: {} for task in chosen.tasks}
    for seed in chosen.seeds:
        for task in chosen.tasks:
            for label in chosen.rules:
                found[task].setdefault(label, []).append(TASKS[task](study, label, seed))
    write(chosen.out / "rules.json", {"seeds": list(chosen.seeds), "far": FAR, "lengths": LENGTHS, "tasks": found})
    print(tables(found))


def tables(found: dict[str, dict[str, list[Found]]]) -> str:
    """A table in Markdown for every task: mean and range over the seeds; shares in per cent, text in bits per byte."""
    return "\n\n".join(_table(task, rows) for task, rows in found.items())


def _table(task: str, rows: dict[str, list[Found]]) -> str:
    names = list(next(iter(rows.values()))[0])
    cells = [[label, *(_cell(task, [each[name] for each in seeds]) for name in names)] for label, seeds in rows.items()]
    return table([task, *names], cells)


def _cell(task: str, values: list[Any]) -> str:
    if task != "text":
        return mean_and_range(values)
    mean = f"{sum(values) / len(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()
