"""What a bundle forecasts at chosen steps of a series: reading on from the beginning, or from a few steps each time.

Knows how a forecaster is fed, with all channels in one stream or with a stream for each. Does not know what forecasts
are compared with (`series`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from titans_measure.quality.scores import Values
from titans_measure.quality.streams import PIECE
from titans_runtime import Model, SeriesScaling
from titans_runtime.arrays import FloatArray
from titans_tasks.series import Forecasting

Steps = NDArray[np.int64]
OnProgress = Callable[[int], None]
_WINDOWS = 64  # fresh streams that are read side by side, of all channels together


def streamed(model: Model, of: Forecasting, origins: Steps, on_progress: OnProgress) -> Values:
    """Normalised forecasts `[O, H, F]` at the ascending `origins` of a model that reads the series from its beginning.

    of: the series in the units of the model.
    """
    series, values = _lookback(model), of.series.values
    if series is None:
        inputs, streams = of.inputs(values)[None], 1
    else:
        inputs, streams = series.inputs(values[: origins[-1] + 1]), of.series.features
    stream, end = model.driver(streams), int(origins[-1]) + 1
    found = []
    for start in range(0, end, PIECE):
        piece = inputs[:, start : min(start + PIECE, end)]
        wanted = origins[(origins >= start) & (origins < start + PIECE)] - start
        outputs = stream.feed(piece, all_outputs=bool(len(wanted))).outputs
        found.append(outputs[:, wanted] if len(wanted) else outputs[:, :0])
        on_progress(piece.shape[1])
    return _normalised(series, of, np.concatenate(found, axis=1), origins)


def windowed(model: Model, of: Forecasting, origins: Steps, window: int, on_progress: OnProgress) -> Values:
    """Normalised forecasts `[O, H, F]` at `origins`, each of a fresh stream that reads the last `window` steps."""
    series, values = _lookback(model), of.series.values
    found = []
    for start in range(0, len(origins), _WINDOWS):
        some = origins[start : start + _WINDOWS]
        windows = [values[max(0, origin + 1 - window) : origin + 1] for origin in some]
        outputs = [_last(model, series, of, group) for group in _of_equal_length(windows)]
        found.append(np.concatenate(outputs))
        on_progress(len(some))
    return np.concatenate(found)


def _of_equal_length(windows: list[Values]) -> list[list[Values]]:
    """The windows in their order, in groups of one length: those at the beginning of a series may be shorter."""
    groups: list[list[Values]] = []
    for one in windows:
        if not groups or len(groups[-1][0]) != len(one):
            groups.append([])
        groups[-1].append(one)
    return groups


def _last(model: Model, series: SeriesScaling | None, of: Forecasting, windows: list[Values]) -> Values:
    """The forecasts `[W, H, F]` of fresh streams at the ends of windows of one length."""
    if series is None:
        inputs = np.stack([of.inputs(one) for one in windows])
        outputs = model.driver(len(inputs)).feed(inputs).outputs[:, -1]
        return np.stack([of.forecasts(out[None], one[-1:])[0] for out, one in zip(outputs, windows, strict=True)])
    inputs = np.concatenate([series.inputs(one) for one in windows])
    outputs = model.driver(len(inputs)).feed(inputs).outputs[:, -1]
    by_window = outputs.reshape(len(windows), of.series.features, -1)
    ends = [
        series.forecasts(out[:, None], one[-1:], before=one[:-1])[0]
        for out, one in zip(by_window, windows, strict=True)
    ]
    return of.normalised(np.stack(ends))


def _normalised(series: SeriesScaling | None, of: Forecasting, outputs: FloatArray, origins: Steps) -> Values:
    """What `outputs` `[streams, O, targets]` at `origins` say."""
    values = of.series.values
    if series is None:
        return of.forecasts(outputs[0], values[origins])
    first = int(origins[0])
    mean, deviation = series.trailing(values[first : origins[-1] + 1], before=values[:first])
    places = origins - first
    forecasts = mean[places, None] + deviation[places, None] * outputs.transpose(1, 2, 0)
    return of.normalised(forecasts)


def _lookback(model: Model) -> SeriesScaling | None:
    """The arithmetic of a model with a stream for each channel; None for any other, which `Forecasting` can feed."""
    known = model.manifest.series
    return None if known is None or known.lookback is None else model.series
