"""Forecasting as a training task: at every step of a series, all of the next `horizon` steps at once.

The model sees the value and its last change, each at several scales, and answers with changes from the value it has
just seen, so that an answer of zero is the naive forecast. Every number it sees is squashed into -1..1: what matters of
a vector inside the model is its direction, and the direction of a plain number is the same for a large change and a
huge one, while tanh at several scales points somewhere else for each. Everything is scaled by statistics of the
training part alone, which is the earlier part of the series; the later part is held out.

Knows the split, the scaling and the layout of inputs and targets. Does not know models, files or torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from titans_tasks.errors import DataError
from titans_tasks.series_data import Series
from titans_tasks.task import Batch, Scalar, Totals

TRAINING_SHARE = 0.8
HORIZON = 12
_LONGEST_STREAM = 4096  # steps a training stream is read on from a random place before its memory starts afresh
_CONTEXT = 1024  # steps before the held-out part that a training's own evaluation reads first
_LEAST = 1e-12  # smallest deviation and change, in units of a channel's largest value
_SHADOW = 1e9  # times the usual change; beside a larger one the usual ones are nothing in float32
_FARTHEST = 1e15  # largest value in typical changes; its square must be a float32
_TRAINING = 7  # first number of the random seeds, as in `recall`

_VALUE_SCALES = (1.0, 3.0)  # in deviations
_CHANGE_SCALES = (1.0, 4.0, 16.0)  # in typical changes

Values = NDArray[np.float64]


def features(channels: int) -> int:
    """Numbers a model takes per step of a series of so many channels."""
    return channels * (len(_VALUE_SCALES) + len(_CHANGE_SCALES))


@dataclass(frozen=True)
class Scaling:
    """What `Forecasting.document` says of a series: its columns and the statistics of its training part."""

    columns: tuple[str, ...]
    mean: Values  # [F]
    deviation: Values  # [F]
    change: Values  # [H, F]

    @classmethod
    def from_json(cls, text: str) -> Scaling:
        """The scaling in a checkpoint's document. Raises `DataError`."""
        try:
            values = json.loads(text)
            columns = tuple(str(column) for column in values["columns"])
            mean, deviation, change = (np.array(values[name], np.float64) for name in ("mean", "deviation", "change"))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise DataError(f"the scaling of the series is damaged ({error!r})", "train the model again") from error
        shapes = (mean.shape, deviation.shape, change.shape[1:]), ((len(columns),),) * 3
        if shapes[0] != shapes[1] or not np.isfinite(mean).all() or not (deviation > 0).all() or not (change > 0).all():
            raise DataError("the scaling of the series is damaged (its numbers do not fit)", "train the model again")
        return cls(columns, mean, deviation, change)


@dataclass(frozen=True)
class Forecasting:
    """A series with its split, and the arithmetic between its values and a model's numbers.

    mean, deviation: float64 [F], of the training part. change: float64 [H, F], the root mean square of the change over
    1..H steps in the training part.
    """

    series: Series
    horizon: int
    split: int  # first held-out step
    mean: Values
    deviation: Values
    change: Values

    @classmethod
    def of(
        cls,
        series: Series,
        *,
        horizon: int = HORIZON,
        share: float = TRAINING_SHARE,
        train_steps: int | None = None,
    ) -> Forecasting:
        """`series` with its first `share` to train on, or its first `train_steps`.

        Raises:
            DataError: a part is too short for the horizon, or a channel never changes in the training part.
        """
        split = round(len(series.values) * share) if train_steps is None else train_steps
        least = min(split, len(series.values) - split)
        if not 1 <= horizon < least:
            if train_steps is not None and least < 2:
                raise DataError(
                    f"{series.name} has {len(series.values):,} steps, and {split:,} to train on leave too few",
                    f"train on at most {round(len(series.values) * TRAINING_SHARE):,}",
                )
            raise DataError(
                f"{series.name} has {split} steps to train on and {len(series.values) - split} held out, too few for a"
                f" horizon of {horizon}",
                f"use a horizon below {least}, or a longer series",
            )
        seen = series.values[:split]
        # In units of a power of two, which changes no digit: squares of 1e200 would be infinite, those of 1e-200 zero.
        unit = np.ldexp(1.0, np.frexp(np.abs(seen).max(0))[1] - 1)
        scaled = seen / unit
        steps = range(1, horizon + 1)
        change = np.sqrt(np.stack([np.square(scaled[h:] - scaled[:-h]).mean(0) for h in steps]))
        _check_spread(series, scaled, change)
        of = cls(series, horizon, split, scaled.mean(0) * unit, scaled.std(0) * unit, change * unit)
        _check_range(of)
        for first, last, part in ((0, split - horizon, "train on"), (split, len(series.values), "hold out")):
            if not of.judged(first, last).any():
                raise DataError(
                    f"{series.name} has no {horizon + 1} steps in a row without a gap to {part}",
                    f"use a shorter horizon than {horizon}, or fill the gaps",
                )
        return of

    @property
    def features(self) -> int:
        """Numbers a model takes per step: value and change of every channel at every scale."""
        return features(self.series.features)

    @property
    def targets(self) -> int:
        """Numbers a model answers with per step: H changes of every channel, horizon by horizon."""
        return self.horizon * self.series.features

    def normalised(self, values: Values) -> Values:
        """`values` [T, F] in deviations of the training part from its mean."""
        return (values - self.mean) / self.deviation

    def inputs(self, values: Values) -> NDArray[np.float32]:
        """What the model is fed for `values` [T, F]: float32 [T, features]. Row t depends on rows up to t only."""
        level, change = self.normalised(values), np.diff(values, axis=0, prepend=values[:1]) / self.change[0]
        scaled = [level / scale for scale in _VALUE_SCALES] + [change / scale for scale in _CHANGE_SCALES]
        squashed: NDArray[np.float32] = np.tanh(np.concatenate(scaled, axis=1)).astype(np.float32)
        return squashed

    def changes(self, values: Values) -> Values:
        """What the model should answer: float64 [T - H, H * F] for `values` [T, F]."""
        count = len(values) - self.horizon
        ahead = [values[h : h + count] - values[:count] for h in range(1, self.horizon + 1)]
        return (np.stack(ahead, 1) / self.change).reshape(count, -1)

    def forecasts(self, outputs: NDArray[np.floating], values: Values) -> Values:
        """Normalised forecasts [T, H, F] of a model that answered `outputs` [T, H * F] to `values` [T, F]."""
        changes = outputs.astype(np.float64).reshape(len(values), self.horizon, -1) * self.change
        return (values[:, None] + changes - self.mean) / self.deviation

    def scaled_as(self, scaling: Scaling) -> Forecasting:
        """The same series in the scaling of another one, which a model has learned to read.

        Raises:
            DataError: it has other channels or another horizon.
        """
        if scaling.change.shape != self.change.shape:
            (ours, channels), (theirs, known) = self.change.shape, scaling.change.shape
            raise DataError(
                f"{self.series.name} has {channels} channels and a horizon of {ours}, the scaling {known} and {theirs}",
                "use a series like the one it comes from",
            )
        of = replace(self, mean=scaling.mean, deviation=scaling.deviation, change=scaling.change)
        _check_range(of)
        return of

    def in_units_of(self, mean: Values, deviation: Values) -> Forecasting:
        """The same series, normalised by another one's mean and deviation `[F]`."""
        return replace(self, mean=mean, deviation=deviation)

    def document(self) -> dict[str, object]:
        """The scaling as plain data: what it takes to feed a model and to read its answers, without the series itself.

        `titans_runtime.series` reads it.
        """
        return {
            "name": self.series.name,
            "columns": list(self.series.columns),
            "horizon": self.horizon,
            "mean": self.mean.tolist(),
            "deviation": self.deviation.tolist(),
            "change": self.change.tolist(),
            "value_scales": list(_VALUE_SCALES),
            "change_scales": list(_CHANGE_SCALES),
        }

    def judged(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Which of the steps start..stop-1 have all H steps after them measured and before the end: bool [T]."""
        observed = self.series.observed
        complete = np.zeros(len(observed), np.bool_)
        windows = np.lib.stride_tricks.sliding_window_view(observed[1:], self.horizon)
        complete[: len(windows)] = windows.all(1)
        return complete[start:stop]


def _check_spread(series: Series, seen: Values, change: Values) -> None:
    """Raise for a channel of the training part `seen` that does not change, or hardly beside its largest value."""
    constant = ~(np.ptp(seen, axis=0) > 0)
    if constant.any():
        channel = int(np.argmax(constant))
        name = series.columns[channel]
        raise DataError(f"channel {channel} never changes in the training part", f"leave {name} out", where=series.name)
    if (small := change.min(0) < _LEAST).any():
        name = series.columns[int(np.argmax(small))]
        raise DataError(
            f"{name} changes by less than {_LEAST:g} of its largest value, which is hardly more than rounding",
            "take an offset off",
            where=series.name,
        )
    for channel, steps in enumerate(np.abs(np.diff(seen, axis=0)).T):
        step = int(np.argmax(steps))
        if steps[step] > _SHADOW * np.median(steps[steps > 0]):
            where = f"step {step + 1} of {series.columns[channel]} is {series.values[step + 1, channel]:g}"
            raise DataError(
                f"{where} after {series.values[step, channel]:g}, beside which all other changes are lost",
                "empty that cell or cut the series there",
                where=series.name,
            )


def _check_range(of: Forecasting) -> None:
    """Raise for a value so far from the training part's that errors would overflow."""
    with np.errstate(over="ignore"):
        far = np.abs(of.series.values / of.change.min(0)) > _FARTHEST
    if far.any():
        step, channel = (int(i) for i in np.argwhere(far)[0])
        where = f"step {step} of {of.series.columns[channel]} is {of.series.values[step, channel]:g}"
        raise DataError(
            f"{where}, where the typical change is {of.change[0, channel]:g}",
            "fill it in or cut the series there",
            where=of.series.name,
        )


class SeriesTask:
    """Streams from random places of the training part, `window` steps per slice, with the memory carried along."""

    carries = True

    def __init__(self, forecasting: Forecasting, *, window: int, seed: int) -> None:
        self._of, self._window, self._seed = forecasting, window, seed
        self._slices = max(1, min(_LONGEST_STREAM, forecasting.split - 1) // window)
        values = forecasting.series.values
        self._inputs = forecasting.inputs(values)
        self._targets = forecasting.changes(values).astype(np.float32)

    @property
    def settings(self) -> dict[str, Scalar]:
        """The series by its hash, the split, the horizon, the window and the seed."""
        of = self._of
        return {
            "task": "series",
            "series": of.series.name,
            "series_sha256": hashlib.sha256(of.series.values.tobytes()).hexdigest(),
            "horizon": of.horizon,
            "split": of.split,
            "window": self._window,
            "seed": self._seed,
        }

    def batch(self, step: int, rows: range) -> Batch:
        """One slice further in every row's stream."""
        block, slice_ = divmod(step, self._slices)
        last = max(0, self._of.split - self._slices * self._window)
        starts = [int(np.random.default_rng([_TRAINING, self._seed, row, block]).integers(last + 1)) for row in rows]
        # No target of a training step lies in the held-out part.
        end = self._of.split - self._of.horizon
        return self._pack([start + slice_ * self._window for start in starts], 0, end, reset=slice_ == 0)

    def held_out(self) -> Iterator[Batch]:
        """The held-out part as one stream, with a stretch of the training part before it."""
        first = max(0, self._of.split - _CONTEXT)
        for start in range(first, len(self._inputs), self._window):
            yield self._pack([start], self._of.split, len(self._targets), reset=start == first)

    def metrics(self, totals: Totals) -> dict[str, float]:
        """`loss`: squared error in units of the training part's own changes, where the naive forecast is about 1."""
        return {"loss": totals.mean_loss}

    def _pack(self, starts: list[int], first: int, end: int, *, reset: bool) -> Batch:
        """The slices from `starts`; predictions made at steps first..end-1 count."""
        shape = (len(starts), self._window)
        inputs = np.zeros((*shape, self._of.features), np.float32)
        targets = np.zeros((*shape, self._of.targets), np.float32)
        mask = np.zeros(shape, np.bool_)
        for i, start in enumerate(starts):
            stop = start + self._window
            piece, answers = self._inputs[start:stop], self._targets[start:stop]
            inputs[i, : len(piece)], targets[i, : len(answers)] = piece, answers
            judged = self._of.judged(start, stop)
            steps = np.arange(start, start + len(judged))
            mask[i, : len(judged)] = judged & (steps >= first) & (steps < end)
        return Batch(inputs, targets, mask, np.full(len(starts), reset))
