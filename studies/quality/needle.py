"""Evidence for `needle`: a pass key in real text, at up to 64 times the training length.

    python -m studies.quality.needle             pass keys: every variant and its controls; needle.json and the picture
    python -m studies.quality.needle --forms     the best variant's numbers and UUIDs too

Knows the recipes. Does not know how anything is measured.
"""

from __future__ import annotations

from typing import Any

from studies.quality.pictures import Curve, draw
from studies.quality.recipes import run, shape
from studies.quality.work import Study, options, write

LENGTH = 256  # longest training stream, in bytes
LENGTHS = tuple(LENGTH * 2**power for power in range(7))
WINDOW = 32
SEEDS = {"mag": (0, 1, 2), "mal": (0,), "mac": (0,), "lmm": (0,)}
STEPS = {"mag": 2000, "mal": 2000, "mac": 2000, "lmm": 1000}
BEST = "mag"


def recipe(variant: str, seed: int, form: str = "passkey") -> list[str]:
    """The options of `titans train`."""
    model = shape(
        variant,
        WINDOW,
        memory__heads=1,
        memory__conv_kernel=8,
        memory__initial_step_size=0.05,
        memory__initial_forget=3e-6,
    )
    if variant != "lmm":  # below a memory, attention alone: what is worth writing shows in what stands around it
        model += ["--set", "memory_layers=[1]"]
    sizes = ["--form", form, "--length", str(LENGTH), "--eval-length", str(4 * LENGTH)]
    # with the others' rate and price mac had learned nothing after 1,000 steps
    rate, cost = ("2e-3", "0.05") if variant == "mac" else ("4e-3", "0.3")
    return ["--task", "needle", *model, *sizes, *run(STEPS[variant], seed, rate), "--write-cost", cost]


def main() -> None:
    """Run the study."""
    parser = options(__doc__)
    parser.add_argument("--forms", action="store_true", help="also numbers and UUIDs")
    chosen = parser.parse_args()
    study = Study(chosen.out, chosen.threads)
    summary: dict[str, Any] = {"lengths": LENGTHS, "passkey": passkeys(study)}
    if chosen.forms:
        summary["forms"] = {form: one(study, BEST, 0, form)["memory"] for form in ("number", "uuid")}
    write(chosen.out / "needle.json", summary)
    curves = []
    for number, (variant, seeds) in enumerate(summary["passkey"].items()):
        for seed in seeds:
            curves.append(Curve(f"{variant}, seed {seed['seed']}", LENGTHS, seed["memory"], f"C{number}o-"))
            curves += [
                Curve(f"{variant}, {label}", LENGTHS, seed[label], f"C{number}{style}")
                for label, style in (("writes off", ":"), ("attention only", "--"))
                if label in seed
            ]
    draw(chosen.out / "needle.svg", curves, "bytes of the stream", "pass keys found, %", base=2)
    print(table(summary["passkey"]))


def passkeys(study: Study) -> dict[str, list[dict[str, Any]]]:
    """Per variant a list with an entry per seed: shares of right answers by length, of the controls too."""
    found = {}
    for variant, seeds in SEEDS.items():
        found[variant] = [one(study, variant, seed, "passkey", controls=seed == seeds[0]) for seed in seeds]
    return found


def one(study: Study, variant: str, seed: int, form: str, *, controls: bool = False) -> dict[str, Any]:
    """One training and what it found, at every length."""
    name = f"needle-{form}-{variant}-{seed}"
    study.train(name, *recipe(variant, seed, form))
    found: dict[str, Any] = {"seed": seed, "seconds": study.seconds(f"train-{name}")}
    report = study.evaluate(name, study.export(name), *asking(form))
    found["memory"], found["reset"] = shares(report), report["reset"]["accuracy"]
    if controls:
        off = f"{name}-writes-off"
        bundle = study.export(off, "--control", "writes-off", checkpoint=name)
        found["writes off"] = shares(study.evaluate(off, bundle, *asking(form)))
        if variant != "lmm":
            alone = f"{name}-attention-only"
            study.train(alone, *recipe(variant, seed, form), "--control", "attention-only")
            found["attention only"] = shares(study.evaluate(alone, study.export(alone), *asking(form)))
    return found


def asking(form: str) -> list[object]:
    """The options of `titans eval`."""
    return ["--task", "needle", "--form", form, *(word for length in LENGTHS for word in ("--length", length))]


def shares(report: dict[str, Any]) -> list[float]:
    """The share of right answers at every length."""
    return [float(point["accuracy"]) for point in report["points"]]


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """The curves in Markdown, one line per model."""
    lines = ["| |" + "".join(f" {length // LENGTH} × |" for length in LENGTHS), "|" + "---|" * (1 + len(LENGTHS))]
    for variant, seeds in found.items():
        for seed in seeds:
            for label in ("memory", "writes off", "attention only"):
                if label in seed:
                    cells = " | ".join(f"{100 * share:.0f}" for share in seed[label])
                    lines.append(f"| {variant}, {label} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
