"""The best linear map from what a look-back shows to what it asks for, in closed form: how far inputs alone go.

Knows `titans_tasks.lookback`. Does not know bundles, and no memory.
"""

from __future__ import annotations

import numpy as np

from titans_measure.quality.scores import Errors, Values
from titans_tasks.lookback import Lookback

RIDGE = 1e-3  # in mean squares of the inputs: a little, so that nearly equal lags do not cancel


def weights(lookback: Lookback, horizon: int) -> Values:
    """`[features, horizon]` that make the squared error in deviations of the training part least, over all channels."""
    of = lookback.of
    normalised = of.normalised(of.series.values[: of.split])
    square, product = np.zeros((lookback.features,) * 2), np.zeros((lookback.features, horizon))
    for channel in normalised.T:
        inputs, mean, deviation = _read(lookback, channel)
        count = len(channel) - horizon
        ahead = np.lib.stride_tricks.sliding_window_view(channel[1:], horizon)
        first = lookback.history  # before it a stream has not seen its whole look-back
        rows = inputs[first:count] * deviation[first:count, None]
        square += rows.T @ rows
        product += rows.T @ (ahead[first:count] - mean[first:count, None])
    square[np.diag_indices_from(square)] += RIDGE * np.trace(square) / len(square)
    found: Values = np.asarray(np.linalg.solve(square, product), np.float64)
    return found


def errors(lookback: Lookback, found: Values, *, first: int, last: int) -> tuple[int, Errors]:
    """How many forecasts lie in steps `first` up to before `last`, and their errors, of streams from the beginning."""
    of, horizon = lookback.of, found.shape[1]
    normalised = of.normalised(of.series.values[:last])
    forecasts, truth = [], []
    for channel in normalised.T:
        inputs, mean, deviation = _read(lookback, channel)
        made = slice(first - 1, last - horizon)
        forecasts.append(inputs[made] @ found * deviation[made, None] + mean[made, None])
        truth.append(np.lib.stride_tricks.sliding_window_view(channel[first:], horizon))
    return len(truth[0]), Errors.of(np.stack(forecasts), np.stack(truth))


def _read(lookback: Lookback, channel: Values) -> tuple[Values, Values, Values]:
    """Inputs `[T, features]`, trailing mean and deviation `[T]` of a whole stream."""
    return lookback.inputs(channel).astype(np.float64), *lookback.trailing(channel)
