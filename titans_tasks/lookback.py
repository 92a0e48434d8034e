"""Forecasting with a look-back: every channel is a stream of its own, scaled by what lies just behind it.

At every step the model sees the channel's last values in trailing deviations from their trailing mean, and answers with
the next `horizon` values in the same units, so that an answer of zero is the trailing mean. Mean and deviation are
taken over the last `span` steps, or over as many as the stream has had: a stream that has just begun knows no more.
What counts is the error in deviations of the training part, so a step is weighted by its trailing deviation.

Knows the layout of inputs and targets. Does not know models, files or torch. The runtime's `series` has the same
arithmetic for what is served; a test holds them equal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from titans_tasks.errors import DataError
from titans_tasks.series import Forecasting, Values
from titans_tasks.task import Batch, Scalar, Totals

LEAST = 0.1  # smallest trailing deviation, in deviations of the training part
LONGEST_STREAM = 2048  # steps a training stream is read on from a random place before its memory starts afresh
_CONTEXT = 1024  # steps before the held-out part that a training's own evaluation reads first
_TRAINING = 12  # first number of the random seeds, as in `recall`


@dataclass(frozen=True)
class Lookback:
    """A series and how one of its channels is read: `lags` values per step, scaled over `span` steps."""

    of: Forecasting
    lags: int
    span: int

    def __post_init__(self) -> None:
        for name, value in (("lookback", self.lags), ("span", self.span)):
            if not 2 <= value < self.of.split:
                raise DataError(
                    f"a {name} of {value} steps does not fit {self.of.series.name}, which has {self.of.split:,} to"
                    " train on",
                    f"use 2 to {self.of.split - 1:,}",
                )

    @property
    def features(self) -> int:
        """Numbers a model takes per step of a channel: the last values, and a constant."""
        return self.lags + 1

    @property
    def targets(self) -> int:
        """Numbers a model answers with per step of a channel."""
        return self.of.horizon

    @property
    def history(self) -> int:
        """Steps before a piece of a stream that its inputs depend on."""
        return max(self.lags, self.span) - 1

    def trailing(self, stream: Values) -> tuple[Values, Values]:
        """Mean and deviation over the last steps of a whole stream `[T]` in deviations of the training part: `[T]`."""
        sums = np.concatenate([[0.0], np.cumsum(stream)])
        squares = np.concatenate([[0.0], np.cumsum(np.square(stream))])
        stops = np.arange(1, len(stream) + 1)
        starts = np.maximum(stops - self.span, 0)
        count = stops - starts
        mean = (sums[stops] - sums[starts]) / count
        variance = (squares[stops] - squares[starts]) / count - np.square(mean)
        return mean, np.maximum(np.sqrt(np.maximum(variance, 0.0)), LEAST)

    def inputs(self, stream: Values) -> NDArray[np.float32]:
        """What the model is fed for a whole stream `[T]` in deviations of the training part: float32 `[T, lags + 1]`.

        Row t depends on steps up to t only. Before its beginning a stream has its first value.
        """
        mean, deviation = self.trailing(stream)
        padded = np.concatenate([np.full(self.lags - 1, stream[0]), stream])
        lags = np.lib.stride_tricks.sliding_window_view(padded, self.lags)[:, ::-1]
        scaled = (lags - mean[:, None]) / deviation[:, None]
        return np.concatenate([scaled, np.ones((len(stream), 1))], axis=1).astype(np.float32)

    def document(self) -> dict[str, object]:
        """The scaling as plain data; `titans_runtime.series` reads it."""
        known = self.of.document()
        known |= {"change": [self.of.change[0].tolist()], "value_scales": [], "change_scales": []}
        return known | {"lookback": {"lags": self.lags, "span": self.span, "least": LEAST}}


class LookbackTask:
    """Streams of single channels from random places of the training part, with the memory carried along."""

    carries = True

    def __init__(
        self,
        lookback: Lookback,
        *,
        window: int,
        seed: int,
        stream: int | None = None,
        held_out: int | None = None,
        absolute: bool = False,
    ) -> None:
        """Training slices of `window` steps.

        Args:
            lookback: what to read, and how.
            window: steps per slice, a multiple of the model's chunk.
            seed: of the places.
            stream: steps after which a stream starts afresh elsewhere; None is `LONGEST_STREAM`.
            held_out: steps after the training part that a training's own evaluation judges by; None is all of them.
            absolute: train on the size of errors instead of their squares.
        """
        stream = LONGEST_STREAM if stream is None else stream
        self._lookback, self._window, self._seed, self._stream = lookback, window, seed, stream
        self._absolute = absolute
        of = lookback.of
        self._values = of.normalised(of.series.values).T.copy()  # [F, T]
        self._known = np.where(of.series.observed, self._values, np.nan)  # nobody is judged by what nobody measured
        self._slices = max(1, min(stream, of.split - 1) // window)
        steps = len(of.series.values)
        self._end = steps if held_out is None else min(steps, of.split + held_out)

    @property
    def settings(self) -> dict[str, Scalar]:
        """The series by its hash, the split, the horizon, what a step shows, the stream, the window and the seed."""
        of = self._lookback.of
        return {
            "task": "series",
            "series": of.series.name,
            "series_sha256": hashlib.sha256(of.series.values.tobytes()).hexdigest(),
            "horizon": of.horizon,
            "lookback": self._lookback.lags,
            "span": self._lookback.span,
            "stream": self._stream,
            "loss": "absolute" if self._absolute else "squared",
            "split": of.split,
            "window": self._window,
            "seed": self._seed,
        }

    def batch(self, step: int, rows: range) -> Batch:
        """One slice further in every row's stream; the rows take turns with the channels."""
        of = self._lookback.of
        block, slice_ = divmod(step, self._slices)
        last = max(0, of.split - self._slices * self._window)
        places = []
        for row in rows:
            random = np.random.default_rng([_TRAINING, self._seed, row, block])
            places.append(((row + block) % len(self._values), int(random.integers(last + 1))))
        # No target of a training step lies in the held-out part: there it is not known.
        return self._pack(places, slice_ * self._window, (0, of.split), of.split, reset=slice_ == 0)

    def held_out(self) -> Iterator[Batch]:
        """The held-out part as one stream for each channel, with a stretch of the training part before it."""
        of = self._lookback.of
        start = max(0, of.split - _CONTEXT)
        places = [(channel, start) for channel in range(len(self._values))]
        for offset in range(0, self._end - start, self._window):
            yield self._pack(places, offset, (of.split, self._end - of.horizon), self._end, reset=offset == 0)

    def metrics(self, totals: Totals) -> dict[str, float]:
        """`loss`: squared or absolute error in deviations of the training part."""
        return {"loss": totals.mean_loss}

    def _pack(
        self, places: list[tuple[int, int]], offset: int, judged: tuple[int, int], end: int, *, reset: bool
    ) -> Batch:
        """The slices `offset` into the streams of channels from starts.

        Forecasts made at steps of the range `judged` count, by what was measured of their targets before `end`.
        """
        lookback, window, horizon = self._lookback, self._window, self._lookback.of.horizon
        shape = (len(places), window)
        inputs = np.zeros((*shape, lookback.features), np.float32)
        targets = np.full((*shape, horizon), np.nan, np.float32)
        mask, weights = np.zeros(shape, np.bool_), np.zeros(shape, np.float32)
        for i, (channel, start) in enumerate(places):
            here = start + offset
            begin = max(start, here - lookback.history)
            stream = self._values[channel, begin : here + window]
            skip = here - begin
            if (count := len(stream) - skip) <= 0:
                continue
            mean, deviation = (values[skip:] for values in lookback.trailing(stream))
            inputs[i, :count] = lookback.inputs(stream)[skip:]
            ahead = np.full(count + horizon - 1, np.nan)
            known = self._known[channel, here + 1 : min(here + count + horizon, end)]
            ahead[: len(known)] = known
            windows = np.lib.stride_tricks.sliding_window_view(ahead, horizon)
            targets[i, :count] = (windows - mean[:, None]) / deviation[:, None]
            steps = np.arange(here, here + count)
            mask[i, :count] = (steps >= judged[0]) & (steps < judged[1]) & ~np.isnan(targets[i, :count]).all(1)
            weights[i, :count] = deviation if self._absolute else np.square(deviation)
        return Batch(inputs, targets, mask, np.full(len(places), reset), weights, self._absolute)
