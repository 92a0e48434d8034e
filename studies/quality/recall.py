"""Evidence for `recall`: every variant beside its controls, over seeds, and how far the memory reaches.

    python -m studies.quality.recall             every variant and its controls, and the curve up to a million tokens
    python -m studies.quality.recall --push      more keys, more pairs and more heads

Everything goes through `titans train`, `titans export` and `titans eval`, one command after the other; summary.json
and the pictures come last. Knows the recipes. Does not know how anything is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from studies.quality.pictures import Curve, draw
from studies.quality.recipes import run, shape
from studies.quality.work import Study, mean_and_range, options, write

VARIANTS = ("lmm", "mal", "mag", "mac")
SEEDS = (0, 1, 2)
STEPS = {"lmm": 600, "mal": 1200, "mag": 1200, "mac": 900}  # about twice what each needs
WINDOW = 16
# At 0.05 the first layer of a mal went on writing filler, with a step size of 0.02, and lost 15 % of the pairs over a
# million tokens.
WRITE_COST = {"mal": "0.2"}
# In segments of 16 mac wrote a little of the filler and lost 3 to 5 % of some seeds' pairs to it. In segments of 32 it
# does not. A wider memory keeps apart the 16 pairs that are then written at once, and one embedding for what is read
# and what is answered keeps apart the values, of which some seeds mixed two up.
MAC = {"chunk": 32, "memory__expansion": 4, "tie_embeddings": "true"}
GAPS = (0, 128, 1024, 4096)  # the last is 32 times the longest gap in training, 128 times the longest window
FAR = (0, 100, 1000, 4096, 10_000, 31_623, 100_000, 316_228, 1_000_000)
SIZES = {
    "32 keys, 16 pairs, 2 heads": (32, 16, 2),
    "32 keys, 16 pairs, 4 heads": (32, 16, 4),
    "64 keys, 32 pairs": (64, 32, 1),
    "128 keys, 64 pairs": (128, 64, 1),
}


def recipe(
    variant: str,
    seed: int,
    keys: int = 32,
    pairs: int = 16,
    heads: int = 1,
    changes: Mapping[str, object] = MappingProxyType({}),
) -> list[str]:
    """The options of `titans train`; `changes` are options of the model, as `recipes.shape` takes them."""
    start = {"memory__heads": heads, "memory__initial_step_size": 0.1, "memory__initial_forget": 1e-6}
    model = shape(variant, WINDOW, **{**start, **(MAC if variant == "mac" else {}), **changes})
    sizes = ["--keys", str(keys), "--pairs", str(pairs), "--gap", "128", "--eval-gap", "256"]
    rate = "3e-3" if variant == "mac" else "4e-3"  # at 4e-3 gradients through its attention may explode
    learning = [*run(STEPS[variant], seed, rate), "--write-cost", WRITE_COST.get(variant, "0.05")]
    return ["--task", "recall", *model, *sizes, *learning]


def main() -> None:
    """Run the study."""
    parser = options(__doc__)
    parser.add_argument("--push", action="store_true", help="also more keys, pairs and heads")
    chosen = parser.parse_args()
    study = Study(chosen.out, chosen.threads)
    summary: dict[str, Any] = {"gaps": GAPS, "variants": variants(study), "far": far(study, chosen.out)}
    if chosen.push:
        summary["sizes"] = sizes(study, chosen.out)
    write(chosen.out / "recall.json", summary)
    print(table(summary["variants"]))


def variants(study: Study) -> dict[str, dict[str, list[Any]]]:
    """Per variant, a list with an entry per seed: accuracies by gap, of the controls too, and seconds of training."""
    names = ("memory", "reset", "writes_off", "attention_only", "seconds")
    found: dict[str, dict[str, list[Any]]] = {variant: {name: [] for name in names} for variant in VARIANTS}
    for seed in SEEDS:
        for variant, rows in found.items():
            for name, value in one(study, variant, seed).items():
                rows[name].append(value)
    return found


def one(study: Study, variant: str, seed: int) -> dict[str, Any]:
    """One training and its controls: accuracies by gap, and seconds of training."""
    name = f"recall-{variant}-{seed}"
    study.train(name, *recipe(variant, seed))
    report = ask(study, name, study.export(name))
    off = study.export(f"{name}-writes-off", "--control", "writes-off", checkpoint=name)
    found = {
        "seconds": study.seconds(f"train-{name}"),
        "memory": accuracies(report),
        "reset": report["reset"][0]["accuracy"],
        "writes_off": accuracies(ask(study, f"{name}-writes-off", off)),
    }
    if variant != "lmm":
        alone = f"{name}-attention-only"
        study.train(alone, *recipe(variant, seed), "--control", "attention-only")
        found["attention_only"] = accuracies(ask(study, alone, study.export(alone)))
    return found


def ask(study: Study, name: str, bundle: Path, *more: object) -> dict[str, Any]:
    """The report at the usual gaps."""
    return study.evaluate(name, bundle, "--task", "recall", *(word for gap in GAPS for word in ("--gap", gap)), *more)


def accuracies(report: dict[str, Any]) -> list[float]:
    """The accuracy at every gap, or at every number of pairs."""
    return [float(point["accuracy"]) for point in report["points"]]


def far(study: Study, out: Path) -> dict[str, Any]:
    """The curves up to a million tokens, seed 0 of every variant; and the longest gap that is bridged."""
    gaps = [word for gap in FAR for word in ("--gap", gap)]
    found: dict[str, Any] = {}
    for variant in VARIANTS:
        bundle = out / "bundles" / f"recall-{variant}-0.titans"
        report = study.evaluate(f"far-{variant}", bundle, "--task", "recall", *gaps, "--streams", 4)
        found[variant] = {"accuracy": accuracies(report), "longest": report["longest_gap"]["16"]}
    curves = [Curve(variant, [max(gap, 1) for gap in FAR], each["accuracy"]) for variant, each in found.items()]
    draw(out / "recall-far.svg", curves, "tokens between pairs and questions", "right answers, %", base=10)
    return {"gaps": FAR, **found}


def sizes(study: Study, out: Path) -> dict[str, Any]:
    """Accuracy of the plain memory over the number of pairs, for more keys, pairs and heads."""
    found: dict[str, Any] = {}
    curves = []
    for label, (keys, pairs, heads) in SIZES.items():
        name = f"recall-lmm-{keys}-{pairs}-{heads}"
        study.train(name, *recipe("lmm", 0, keys, pairs, heads))
        pair_counts = [count for count in (4, 8, 16, 32, 64, 128) if count <= keys]
        each = [word for count in pair_counts for word in ("--pairs", count)]
        report = study.evaluate(name, study.export(name), "--task", "recall", "--keys", keys, *each, "--gap", GAPS[-1])
        found[label] = {"pairs": pair_counts, "accuracy": accuracies(report)}
        curves.append(Curve(label, pair_counts, found[label]["accuracy"]))
    draw(out / "recall-pairs.svg", curves, "pairs to remember", f"right answers after {GAPS[-1]:,} tokens, %", base=2)
    return found


def table(found: dict[str, dict[str, list[Any]]]) -> str:
    """The variants as a table in Markdown: after the longest gap, mean and range over the seeds."""
    names = ("variant", "memory", "memory reset", "writes off", "attention only", "training, core seconds")
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for variant, rows in found.items():
        last = {
            name: mean_and_range([each[-1] for each in rows[name]]) if rows[name] else "–"
            for name in ("memory", "writes_off", "attention_only")
        }
        reset = mean_and_range(rows["reset"])
        seconds = f"{min(rows['seconds']):.0f} to {max(rows['seconds']):.0f}"
        lines.append(
            f"| {variant} | {last['memory']} | {reset} | {last['writes_off']} | {last['attention_only']} | {seconds} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
