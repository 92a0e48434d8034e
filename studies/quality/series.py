"""Forecasts and anomalies on real series: models with memory, without writes, and the naive forecasts.

    python -m studies.quality.series --plot docs/images/evidence-series.svg

For each series and seed: train, export, evaluate; the same bundle with its writes switched off; and a model of the same
kind that was trained without writes. Everything can be interrupted and started again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from studies.quality.spread import shown, spread, table
from studies.quality.work import Study, options, write
from titans_measure.quality.anomalies import KINDS

SEEDS = (0, 1, 2)
# By trial. Short series are learned by heart by large models; a long kernel sees a year of months at once.
SMALL = {"dim": 16, "ffn_hidden": 32, "memory.conv_kernel": 13}
LARGE = {"dim": 48, "ffn_hidden": 96}
SHAPES: dict[str, dict[str, int]] = {
    "pulse": LARGE,
    "glucose": LARGE,
    "unemployment": SMALL,
    "daily-maximum": SMALL,
    "sea-temperature": {**LARGE, "layers": 1},
}
STEPS = {"pulse": 250, "glucose": 250, "unemployment": 200, "daily-maximum": 200, "sea-temperature": 250}
CONTROLS = ("memory", "switched-off", "trained-without")


def main() -> None:
    """Everything, for the series that are named."""
    parser = options(__doc__, SEEDS)
    parser.add_argument("--series", nargs="*", default=list(SHAPES), choices=list(SHAPES), help="which ones")
    arguments = parser.parse_args()
    study = Study(arguments.out, arguments.threads)
    found = {name: one_series(study, name, arguments.seeds) for name in arguments.series}
    write(arguments.out / "series.json", found)
    print(tables(found))
    if arguments.plot:
        draw(found, arguments.plot)


def recipe(name: str) -> tuple[object, ...]:
    """The options of `titans train` for a series, all but the seed."""
    sizes = {**SHAPES[name], "chunk": 16, "memory.heads": 1, "memory.depth": 1}
    shape = (word for option, value in sizes.items() for word in ("--set", f"{option}={value}"))
    return ("--task", "series", "--data", name, "--variant", "lmm", *shape, "--steps", STEPS[name])


def one_series(study: Study, name: str, seeds: Sequence[int]) -> dict[str, Any]:
    """All seeds and controls of one series: errors and areas, mean and spread."""
    reports: dict[str, list[dict[str, Any]]] = {control: [] for control in CONTROLS}
    ask = ("--task", "series", "--data", name)
    for seed in seeds:
        memory, off, without = (f"series-{name}-{kind}-{seed}" for kind in CONTROLS)
        study.train(memory, *recipe(name), "--seed", seed)
        study.train(without, *recipe(name), "--seed", seed, "--control", "writes-off")
        reports["memory"].append(study.evaluate(memory, study.export(memory), *ask))
        switched_off = study.export(off, "--control", "writes-off", checkpoint=memory)
        reports["switched-off"].append(study.evaluate(off, switched_off, *ask, "--anomalies", 0))
        reports["trained-without"].append(study.evaluate(without, study.export(without), *ask, "--anomalies", 0))
    first = reports["memory"][0]
    errors = {
        control: {
            kind: spread([report["errors"]["model"][kind] for report in reports[control]]) for kind in ("mse", "mae")
        }
        for control in CONTROLS
    }
    return {
        "series": first["series"],
        "forecasts": first["forecasts"],
        "errors": {**errors, **{n: first["errors"][n] for n in ("naive", "seasonal_naive")}},
        "detection": _detection(reports["memory"]),
    }


def _detection(reports: list[dict[str, Any]]) -> dict[str, Any] | None:
    found = [report["detection"] for report in reports]
    if found[0] is None:
        return None
    return {
        "windows": found[0]["windows"],
        "anomalous": found[0]["anomalous"],
        **{
            score: {
                "overall": spread([one[score]["overall"] for one in found]),
                "by_kind": {kind: spread([one[score]["by_kind"][kind] for one in found]) for kind in KINDS},
            }
            for score in ("forecast", "memory", "last_change")
        },
    }


def tables(found: dict[str, Any]) -> str:
    """The figures as Markdown: MSE, MAE, and areas under ROC curves."""
    names = (*CONTROLS, "naive", "seasonal_naive")
    parts = []
    for kind in ("mse", "mae"):
        rows = [(name, *(shown(one["errors"][who][kind], 4) for who in names)) for name, one in found.items()]
        parts.append(table((kind.upper(), *names), rows))
    scores = ("forecast", "memory", "last_change")
    detections = {name: one["detection"] for name, one in found.items() if one["detection"]}
    rows = [
        (f"{name}, {kind}", *(shown({"all": one[score]["overall"], **one[score]["by_kind"]}[kind]) for score in scores))
        for name, one in detections.items()
        for kind in ("all", *KINDS)
    ]
    return "\n\n".join([*parts, table(("ROC-AUC", *scores), rows)])


def draw(found: dict[str, Any], path: Path) -> None:
    """Errors relative to the seasonal naive forecast, with the spread over the seeds."""
    from titans_measure.quality.plots import picture

    names = [*CONTROLS, "naive"]
    with picture(path, width=8.0) as axes:
        for place, who in enumerate(names):
            for row, one in enumerate(found.values()):
                base = one["errors"]["seasonal_naive"]["mse"]
                mse = one["errors"][who]["mse"]
                mean, deviation = (mse["mean"], mse["deviation"]) if isinstance(mse, dict) else (mse, 0.0)
                axes.bar(
                    row + (place - 1.5) * 0.2, mean / base, 0.18, yerr=deviation / base or None, color=f"C{place}",
                    label=who.replace("-", " ") if row == 0 else None,
                )  # fmt: skip
        axes.axhline(1.0, color="grey", linewidth=0.8, linestyle=":", label="seasonal naive")
        axes.set_xticks(range(len(found)), list(found))
        axes.set(ylabel="mean squared error / seasonal naive", yscale="log")
        axes.legend()


if __name__ == "__main__":
    main()
