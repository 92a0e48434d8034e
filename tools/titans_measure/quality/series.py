"""`series`: forecasts of the held-out part of a series, and anomalies found by surprise.

A model reads the series from its beginning, one step at a time as far as it can tell, and forecasts the next H steps at
every step. Errors are counted over forecasts all of whose H steps lie in the held-out part and were measured, in units
of the training part's standard deviation. The naive forecast repeats the last value, the seasonal naive one the value
of one season before.

For anomalies, some are put into the held-out part (see `anomalies`), and a window is as suspicious as its most
suspicious step. Three scores of a step are compared: the surprise of the forecast, which is how far the value is from
the one forecast a step before; the surprise of the memory, which is its own error on the step's key and value before it
writes, as `Session.surprise` has it; and the size of the last change, for whoever has no model.

Knows the task's measure. Does not know where series come from (`titans_tasks.series_data`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from titans_format.fields import ContinuousInputs
from titans_format.progress import ReportProgress
from titans_measure.quality.anomalies import FEWEST_STEPS, KINDS, WINDOW, Injected, inject
from titans_measure.quality.errors import EvalError
from titans_measure.quality.forecasts import streamed, windowed
from titans_measure.quality.report import Subject, unwatched
from titans_measure.quality.scores import Errors, Values, roc_auc
from titans_measure.quality.streams import PIECE
from titans_runtime import Model
from titans_runtime.arrays import FloatArray
from titans_tasks.series import Forecasting, Scaling, features
from titans_tasks.series_data import read_series


@dataclass(frozen=True, kw_only=True)
class SeriesOptions:
    """What to forecast.

    data: the name of a series or a file, as for training.
    season: steps in a period; None is what is known of the series, or 1.
    anomalies: how often anomalies are injected anew and looked for; 0 for not at all.
    size: of the anomalies, in root mean square changes of the training part.
    first, last: forecasts count whose steps lie from `first` up to before `last`; None is the held-out part.
    horizons: shorter horizons to judge by besides, each over all forecasts that fit.
    window: every forecast is made by a fresh stream that reads so many steps; None is one stream from the beginning.
    """

    data: str
    season: int | None = None
    anomalies: int = 4
    size: float = 4.0
    first: int | None = None
    last: int | None = None
    horizons: tuple[int, ...] = ()
    window: int | None = None

    def __post_init__(self) -> None:
        if self.anomalies < 0 or not self.size > 0:
            raise EvalError(f"{self.anomalies} anomaly runs of size {self.size}", "use 0 or more, and a size above 0")


@dataclass(frozen=True, kw_only=True)
class Areas:
    """Areas under ROC curves, pooled over all runs: all anomalies, and each kind of them, against all clean windows."""

    overall: float
    by_kind: dict[str, float]

    @classmethod
    def of(cls, scores: Values, kinds: NDArray[np.int64]) -> Areas:
        """The areas of `scores` `[W]` of windows of `kinds` `[W]`, 0 for clean ones."""
        clean = kinds == 0
        return cls(
            overall=roc_auc(scores, ~clean),
            by_kind={
                name: roc_auc(scores[clean | (kinds == number)], ~clean[clean | (kinds == number)])
                for number, name in enumerate(KINDS, 1)
            },
        )


@dataclass(frozen=True, kw_only=True)
class Detection:
    """How well anomalies were separated from clean windows, by each of three scores.

    memory: None for a model without memory.
    """

    windows: int
    anomalous: int
    forecast: Areas
    memory: Areas | None
    last_change: Areas


@dataclass(frozen=True, kw_only=True)
class SeriesReport:
    """Forecasts and detections.

    read: what was read of the file, and what was not.
    forecasts: origins that were judged.
    model, naive, seasonal: errors over all horizons.
    by_horizon: mean squared errors of the same three, 1..H steps ahead.
    at: for every horizon that was asked for, how many forecasts fit, and errors of the same three over those steps.
    detection: None where no anomalies were asked for, or the held-out part is too short for them.
    """

    subject: Subject
    options: SeriesOptions
    season: int
    horizon: int
    steps: int
    split: int
    read: tuple[str, ...]
    forecasts: int
    model: Errors
    naive: Errors
    seasonal: Errors
    by_horizon: dict[str, tuple[float, ...]]
    at: dict[int, tuple[int, dict[str, Errors]]]
    detection: Detection | None

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "task": "series",
            "model": self.subject.as_json(),
            "options": asdict(self.options),
            "series": {"steps": self.steps, "split": self.split, "season": self.season, "horizon": self.horizon},
            "read": list(self.read),
            "forecasts": self.forecasts,
            "errors": {
                "model": self.model.as_json(),
                "naive": self.naive.as_json(),
                "seasonal_naive": self.seasonal.as_json(),
            },
            "horizons": {
                str(horizon): {"forecasts": count, **{name: one.as_json() for name, one in errors.items()}}
                for horizon, (count, errors) in self.at.items()
            },
            "mse_by_horizon": {name: list(values) for name, values in self.by_horizon.items()},
            "detection": None if self.detection is None else asdict(self.detection),
        }

    def lines(self) -> Sequence[str]:
        """One line per forecaster, and one for the detection."""
        found = [
            f"series: {self.subject}",
            *(f"  read {line}" for line in self.read),
            f"  {self.options.data}: {self.forecasts:,} forecasts of {self.horizon} steps from step {self.split:,} on",
        ]
        for name, errors in (("model", self.model), ("naive", self.naive), ("seasonal naive", self.seasonal)):
            found.append(f"  {name}: MSE {errors.mse:.4g}, MAE {errors.mae:.4g}")
        for horizon, (count, by_name) in self.at.items():
            each = ", ".join(f"{name.replace('_', ' ')} {one.mse:.4g} / {one.mae:.4g}" for name, one in by_name.items())
            found.append(f"  up to {horizon} steps, {count:,} forecasts, MSE / MAE: {each}")
        if self.detection is not None:
            detection, size = self.detection, self.options.size
            found.append(f"  {detection.anomalous} of {detection.windows:,} windows with an anomaly of size {size:g}:")
            scores = (
                ("forecast", detection.forecast),
                ("memory", detection.memory),
                ("last change", detection.last_change),
            )
            for name, areas in scores:
                if areas is not None:
                    kinds = ", ".join(f"{kind} {area:.3f}" for kind, area in areas.by_kind.items())
                    found.append(f"  by the {name}: ROC-AUC {areas.overall:.3f} ({kinds})")
        return found


def evaluate(model: Model, options: SeriesOptions, progress: ReportProgress = unwatched) -> SeriesReport:
    """Forecast with a bundle.

    Raises:
        EvalError: the model takes tokens, or vectors of another size than the series'.
        DataError: the series cannot be read or is too short.
        ExecutionError: a graph failed.
    """
    kind = model.manifest.inputs
    if not isinstance(kind, ContinuousInputs):
        raise EvalError("series needs a model of vectors, and this one takes tokens", "train one with --task series")
    series = read_series(options.data, season=options.season)
    scaling = model.manifest.series
    if scaling is not None:
        series = series.of_columns(scaling.columns)
    lookback = scaling is not None and scaling.lookback is not None
    needs = kind.features if lookback else features(series.features)
    if kind.features != needs or kind.targets % (1 if lookback else series.features):
        raise EvalError(
            f"{series.name} has {series.features} channels, which make {needs} features, and the model"
            f" takes {kind.features} and answers {kind.targets}",
            "use a model trained on this series",
        )
    if scaling is not None and series.features != len(scaling.columns):
        raise EvalError(
            f"{series.name} has {series.features} channels, the model was trained on {len(scaling.columns)}",
            "use a series like the one it was trained on",
        )
    of = Forecasting.of(series, horizon=kind.targets // (1 if lookback else series.features), train_steps=options.first)
    if scaling is not None:  # what the model was trained with, whatever recording it is judged by
        mean, deviation, change = (np.array(numbers) for numbers in (scaling.mean, scaling.deviation, scaling.change))
        units = of.in_units_of(mean, deviation)
        of = units if lookback else of.scaled_as(Scaling(scaling.columns, mean, deviation, change))
    last = _last(of, options)
    held_out = last - of.split
    runs = options.anomalies if held_out >= FEWEST_STEPS and not lookback and options.window is None else 0
    widest = _origins(of, last, min((of.horizon, *options.horizons)))
    origins = _origins(of, last, of.horizon)
    reads = int(widest[-1]) + 1 if options.window is None else len(widest)
    done, total = 0, reads + (len(series.values) if runs else 0)

    def on_progress(steps: int) -> None:
        nonlocal done
        done += steps
        progress(done, total)

    if options.window is None:
        made = streamed(model, of, widest, on_progress)
    else:
        made = windowed(model, of, widest, options.window, on_progress)
    forecasts = {"model": made, "naive": naive(of, widest), "seasonal_naive": seasonal_naive(of, widest)}
    at = {horizon: _judge(of, last, forecasts, widest, horizon) for horizon in sorted(options.horizons)}
    _, errors = _judge(of, last, forecasts, widest, of.horizon)
    some = np.isin(widest, origins)
    truth = of.normalised(series.values)[origins[:, None] + np.arange(1, of.horizon + 1)]
    return SeriesReport(
        subject=Subject.of(model),
        options=options,
        season=series.season,
        horizon=of.horizon,
        steps=len(series.values),
        split=of.split,
        read=series.notes,
        forecasts=len(origins),
        model=errors["model"],
        naive=errors["naive"],
        seasonal=errors["seasonal_naive"],
        by_horizon={name: _by_horizon(values[some], truth) for name, values in forecasts.items()},
        at=at,
        detection=_detection(model, of, options, on_progress) if runs else None,
    )


def naive(of: Forecasting, origins: NDArray[np.int64]) -> Values:
    """The last value, repeated: normalised forecasts float64 [O, H, F]."""
    return np.repeat(of.normalised(of.series.values[origins])[:, None], of.horizon, axis=1)


def seasonal_naive(of: Forecasting, origins: NDArray[np.int64]) -> Values:
    """The value one season before the forecast step, or as many seasons as it takes to lie in the past: [O, H, F].

    Steps before the beginning are taken for the first one.
    """
    values, season = of.normalised(of.series.values), of.series.season
    ahead = np.arange(1, of.horizon + 1)
    back = ahead - season * -(-ahead // season)
    places = origins[:, None] + back
    return values[np.maximum(places, 0)]


def _last(of: Forecasting, options: SeriesOptions) -> int:
    """Where the judged steps end."""
    steps = len(of.series.values)
    last = steps if options.last is None else options.last
    if not of.split < last <= steps:
        raise EvalError(
            f"steps {of.split:,} to {last:,} are not part of {of.series.name}, which has {steps:,}",
            f"end after {of.split:,}, at {steps:,} at most",
        )
    if options.horizons and not all(1 <= horizon <= of.horizon for horizon in options.horizons):
        raise EvalError(f"the model forecasts {of.horizon} steps", f"ask for horizons from 1 to {of.horizon}")
    return last


def _origins(of: Forecasting, last: int, horizon: int) -> NDArray[np.int64]:
    """The steps whose forecasts of `horizon` steps are judged: all their targets before `last`, held out, measured."""
    first = of.split - 1
    found = first + np.flatnonzero(replace(of, horizon=horizon).judged(first, last - horizon))
    if not len(found):
        raise EvalError(f"{of.series.name} has no unbroken {horizon} held-out steps", "use a shorter horizon")
    return found


def _judge(
    of: Forecasting, last: int, forecasts: dict[str, Values], made_at: NDArray[np.int64], horizon: int
) -> tuple[int, dict[str, Errors]]:
    """How many forecasts of `horizon` steps fit, and the errors of each forecaster over them."""
    origins = _origins(of, last, horizon)
    some = np.isin(made_at, origins)
    truth = of.normalised(of.series.values)[origins[:, None] + np.arange(1, horizon + 1)]
    return len(origins), {name: Errors.of(values[some, :horizon], truth) for name, values in forecasts.items()}


def _by_horizon(forecasts: Values, truth: Values) -> tuple[float, ...]:
    return tuple(float(value) for value in np.square(forecasts - truth).mean((0, 2)))


def _read(model: Model, inputs: FloatArray, on_progress: Any) -> tuple[FloatArray, FloatArray]:
    """Outputs `[B, T, O]` and surprise `[B, T]` of fresh streams that are fed `inputs` `[B, T, F]`."""
    stream = model.driver(len(inputs))
    outputs, surprise = [], []
    for start in range(0, inputs.shape[1], PIECE):
        piece = inputs[:, start : start + PIECE]
        fed = stream.feed(piece, all_outputs=True)
        outputs.append(fed.outputs)
        surprise.append(fed.surprise.mean(-1) if fed.surprise.shape[-1] else np.zeros(piece.shape[:2], np.float32))
        on_progress(piece.shape[1])
    return np.concatenate(outputs, 1), np.concatenate(surprise, 1)


def _detection(model: Model, of: Forecasting, options: SeriesOptions, on_progress: Any) -> Detection:
    runs = [
        inject(of.series.values, of.split, of.change[0], size=options.size, seed=seed)
        for seed in range(options.anomalies)
    ]
    outputs, surprise = _read(model, np.stack([of.inputs(run.values) for run in runs]), on_progress)
    kinds = np.concatenate([run.kinds for run in runs])

    def areas(scores: Sequence[Values]) -> Areas:
        return Areas.of(np.concatenate([_highest(run, one) for run, one in zip(runs, scores, strict=True)]), kinds)

    return Detection(
        windows=len(kinds),
        anomalous=int((kinds > 0).sum()),
        forecast=areas([_forecast_error(of, run, one) for run, one in zip(runs, outputs, strict=True)]),
        memory=areas(list(surprise.astype(np.float64))) if model.manifest.surprise_layers else None,
        last_change=areas([_last_change(of, run) for run in runs]),
    )


def _last_change(of: Forecasting, run: Injected) -> Values:
    """The size of the change to each step, float64 [T], in typical changes; the mean over the channels."""
    size: Values = np.abs(np.diff(run.values, axis=0, prepend=run.values[:1]) / of.change[0]).mean(1)
    return size


def _forecast_error(of: Forecasting, run: Injected, outputs: FloatArray) -> Values:
    """How far each step is from what was forecast one step before, float64 [T], in typical changes."""
    forecasts = of.forecasts(outputs, run.values)[:, 0]
    off = (of.normalised(run.values)[1:] - forecasts[:-1]) * of.deviation / of.change[0]
    return np.concatenate([[0.0], np.abs(off).mean(1)])


def _highest(run: Injected, scores: Values) -> Values:
    """The highest score in each judged window `[W]`, of scores `[T]`."""
    highest: Values = scores[run.starts[:, None] + np.arange(WINDOW)].max(1)
    return highest
