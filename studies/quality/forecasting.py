"""Forecasts of ETTh1 and ETTh2 as the papers judge them, and with a memory that runs on over the whole test part.

    python -m studies.quality.forecasting --data DIR

DIR has ETTh1.csv and ETTh2.csv, which are the user's own: their licence (CC BY-ND 4.0) is not this project's. For each
series and seed: a model with memory, judged by one stream for each channel and by fresh streams of 96 steps; the same
kind trained without writes, judged by one stream; and DLinear. Everything can be interrupted and started again.

Knows the protocol and the tables. Does not know how a stream is driven.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from studies.quality.spread import shown, spread, table
from studies.quality.work import Study, options, write

SEEDS = (0, 1, 2)
SERIES = ("ETTh1", "ETTh2")
LOOKBACK, HORIZONS = 96, (96, 192, 336, 720)
TRAIN, VALIDATION, TEST = 8640, 11_520, 14_400  # where each part ends, in rows
SPAN = 336  # two weeks of trailing mean and deviation
RECIPE = (
    *("--lookback", LOOKBACK, "--span", SPAN, "--stream", 1920, "--horizon", HORIZONS[-1], "--loss", "absolute"),
    *("--train-steps", TRAIN, "--held-out-steps", VALIDATION - TRAIN, "--window-tokens", 240, "--batch", 7),
    *("--variant", "lmm", "--set", "layers=1", "--set", "dim=48", "--set", "ffn_hidden=32", "--set", "chunk=48"),
    *("--set", "memory.heads=1", "--set", "memory.depth=1", "--set", "memory.initial_forget=0.003"),
    *("--steps", 240, "--lr", "3e-3", "--threads", 1),
)
ASK = ("--first-step", VALIDATION, "--last-step", TEST, "--season", 24)
LINEAR = ((96, 96), (96, 336), (336, 336), (96, 504))  # values shown, and hours of trailing mean and deviation
DLINEAR_STEPS, DLINEAR_RATE = 500, 3e-3
# arXiv 2501.00663, table 3; DLinear's row is that of arXiv 2310.06625. Averages over the four horizons.
PUBLISHED = {
    "ETTh1": {"Titans, published": (0.420, 0.421), "DLinear, published": (0.456, 0.452)},
    "ETTh2": {"Titans, published": (0.336, 0.382), "DLinear, published": (0.559, 0.515)},
}
Row = dict[str, dict[str, float]]  # by horizon: mse and mae


def main() -> None:
    """Everything, for the series and seeds that are named."""
    parser = options(__doc__, SEEDS)
    parser.add_argument("--data", type=Path, required=True, help="folder with ETTh1.csv and ETTh2.csv")
    parser.add_argument("--series", nargs="*", default=list(SERIES), choices=SERIES, help="which ones")
    arguments = parser.parse_args()
    study = Study(arguments.out, arguments.threads)
    found = {name: one_series(study, name, arguments.data, arguments.seeds) for name in arguments.series}
    linear = {name: closed_form(arguments.data / f"{name}.csv") for name in arguments.series}
    write(arguments.out / "forecasting.json", {"forecasts": found, "linear": linear})
    print(tables(found), linear_table(linear), sep="\n\n")
    if arguments.plot:
        draw(found, arguments.plot)


def recipe(path: Path) -> tuple[object, ...]:
    """The options of `titans train` for a series, all but the seed."""
    return ("--task", "series", "--data", path, *RECIPE)


def one_series(study: Study, name: str, data: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """The errors of every forecaster over the seeds, by horizon and on average."""
    path = data / f"{name}.csv"
    rows: dict[str, list[Row]] = {}
    for seed in seeds:
        for who, row in one_seed(study, name, path, seed).items():
            rows.setdefault(who, []).append(row)
        write(study.out / f"forecasting-{name}-{seed}.json", {who: rows[who][-1] for who in rows})
    return {who: summary(by_seed) for who, by_seed in rows.items()}


def one_seed(study: Study, name: str, path: Path, seed: int) -> dict[str, Row]:
    """The errors of every forecaster of one seed."""
    memory, without = (f"forecasting-{name}-{kind}-{seed}" for kind in ("memory", "without"))
    ask = ("--task", "series", "--data", path, *ASK, *(word for h in HORIZONS for word in ("--horizon", h)))
    study.train(memory, *recipe(path), "--seed", seed)
    bundle = study.export(memory)
    streamed = study.evaluate(memory, bundle, *ask)
    windowed = study.evaluate(f"{memory}-windowed", bundle, *ask, "--fresh", LOOKBACK)
    baseline = dlinear(study, name, path, seed)
    study.train(without, *recipe(path), "--seed", seed, "--control", "writes-off")
    never = study.evaluate(without, study.export(without), *ask)
    return {
        "streaming": errors_of(streamed),
        "streaming, trained without writes": errors_of(never),
        "windowed": errors_of(windowed),
        "DLinear": baseline,
        "naive": errors_of(streamed, "naive"),
        "seasonal naive": errors_of(streamed, "seasonal_naive"),
    }


def errors_of(report: dict[str, Any], who: str = "model") -> Row:
    """What a report of `titans eval` says of one forecaster, by horizon."""
    return {str(horizon): report["horizons"][str(horizon)][who] for horizon in HORIZONS}


def dlinear(study: Study, name: str, path: Path, seed: int) -> Row:
    """DLinear's errors by horizon, kept or made now."""
    from studies.quality.dlinear import errors, trained
    from titans_tasks.series import Forecasting
    from titans_tasks.series_data import read_series

    kept = study.out / "results" / f"dlinear-{name}-{seed}.json"
    settings = {"steps": DLINEAR_STEPS, "rate": DLINEAR_RATE}
    if kept.exists() and (known := json.loads(kept.read_text(encoding="utf-8")))["settings"] == settings:
        return dict(known["errors"])
    row: Row = {}
    for horizon in HORIZONS:
        of = Forecasting.of(read_series(str(path)), horizon=horizon, train_steps=TRAIN)
        values = of.normalised(of.series.values)
        model = trained(
            values,
            lags=LOOKBACK,
            horizon=horizon,
            train_steps=TRAIN,
            steps=DLINEAR_STEPS,
            rate=DLINEAR_RATE,
            loss="squared",
            seed=seed,
        )
        _, found = errors(model, values, lags=LOOKBACK, horizon=horizon, first=VALIDATION, last=TEST)
        row[str(horizon)] = found.as_json()
    write(kept, {"settings": settings, "errors": row})
    return row


def closed_form(path: Path) -> dict[str, dict[str, float]]:
    """The errors of linear maps in closed form, averaged over the horizons, by what they are shown."""
    from studies.quality.least_squares import errors, weights
    from titans_tasks.lookback import Lookback
    from titans_tasks.series import Forecasting
    from titans_tasks.series_data import read_series

    of = Forecasting.of(read_series(str(path)), horizon=HORIZONS[-1], train_steps=TRAIN)
    found = {}
    for lags, span in LINEAR:
        lookback = Lookback(of, lags, span)
        each = [errors(lookback, weights(lookback, h), first=VALIDATION, last=TEST)[1] for h in HORIZONS]
        means = {kind: sum(getattr(one, kind) for one in each) / len(each) for kind in ("mse", "mae")}
        found[f"{lags} values, scaled over {span} hours"] = means
    return found


def linear_table(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """MSE / MAE of the linear maps as Markdown, a column for each series."""
    rows = [
        (what, *(f"{shown(by_inputs[what]['mse'])} / {shown(by_inputs[what]['mae'])}" for by_inputs in found.values()))
        for what in next(iter(found.values()))
    ]
    return table(("least squares", *found), rows)


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Mean and spread over the seeds of both errors, at each horizon and averaged over the horizons."""
    at = {
        horizon: {kind: spread([row[horizon][kind] for row in rows]) for kind in ("mse", "mae")} for horizon in rows[0]
    }
    mean = {
        kind: spread([sum(row[horizon][kind] for horizon in row) / len(row) for row in rows]) for kind in ("mse", "mae")
    }
    return {**at, "average": mean}


def tables(found: dict[str, Any]) -> str:
    """The figures as Markdown: MSE / MAE by horizon and on average, a table for each series."""
    parts = []
    for name, by_forecaster in found.items():
        places = [*map(str, HORIZONS), "average"]
        rows = [
            (who, *(f"{shown(one[place]['mse'])} / {shown(one[place]['mae'])}" for place in places))
            for who, one in by_forecaster.items()
        ]
        rows += [(who, *[""] * len(HORIZONS), f"{mse:.3f} / {mae:.3f}") for who, (mse, mae) in PUBLISHED[name].items()]
        parts.append(table((name, *places), rows))
    return "\n\n".join(parts)


def draw(found: dict[str, Any], path: Path) -> None:
    """Mean squared error averaged over the horizons, a bar per forecaster; bars are one deviation over the seeds."""
    from titans_measure.quality.plots import picture

    shown_ones = ("streaming", "streaming, trained without writes", "windowed", "DLinear")
    with picture(path, width=8.0) as axes:
        for place, who in enumerate(shown_ones):
            for row, (name, one) in enumerate(found.items()):
                mse = one[who]["average"]["mse"]
                axes.bar(
                    row + (place - 1.5) * 0.2, mse["mean"], 0.18, yerr=mse["deviation"] or None, color=f"C{place}",
                    label=who if row == 0 else None,
                )  # fmt: skip
                if place == 0:
                    axes.hlines(
                        PUBLISHED[name]["Titans, published"][0], row - 0.4, row + 0.4, colors="grey",
                        linestyles=":", label="Titans, published" if row == 0 else None,
                    )  # fmt: skip
        axes.set_xticks(range(len(found)), list(found))
        axes.set(ylabel="mean squared error, average of four horizons")
        axes.legend()


if __name__ == "__main__":
    main()
