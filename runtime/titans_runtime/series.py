"""The scaling of a forecaster: from measured values to what its model takes, and from its answers to forecasts.

A model of a series takes each channel's value in standard deviations and its last change in typical changes, at several
scales and squashed by tanh, and answers with changes in typical changes. The statistics are those of the recording it
was trained on, and travel in the manifest.

A model with a look-back has a stream for each channel. It takes the last values of the channel in trailing deviations
from their trailing mean, and answers in the same units.

Knows the arithmetic. Does not know models or sessions. `titans_tasks.series` has the same
arithmetic for training; a test holds them equal.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from msgspec import structs
from numpy.typing import ArrayLike, NDArray

from titans_format.series import Lookback, SeriesInfo
from titans_runtime.arguments import shown
from titans_runtime.arrays import FloatArray
from titans_runtime.errors import InputError

Values: TypeAlias = NDArray[np.float64]

_PIECE = 1024  # steps whose trailing windows are held at once


class SeriesScaling(SeriesInfo, frozen=True, kw_only=True):
    """The arithmetic of a series: its fields are those of `SeriesInfo`."""

    @classmethod
    def of(cls, info: SeriesInfo) -> SeriesScaling:
        """The arithmetic for what a manifest says."""
        return cls(**structs.asdict(info))

    @property
    def history(self) -> int:
        """Steps before a piece of the stream that `inputs` needs: 1, or those of the look-back."""
        return 1 if self.lookback is None else max(self.lookback.lags, self.lookback.span) - 1

    def inputs(self, values: ArrayLike, before: ArrayLike | None = None) -> FloatArray:
        """What to feed a session for measured `values`.

        Args:
            values: `[T, F]` in the units of the recording, or `[T]` where there is one channel.
            before: the steps before them where the stream goes on, `[K, F]`, or `[F]` of one step; None at its
                beginning. The last `history` of them count, or all since the beginning where those are fewer.

        Returns:
            float32 `[T, features]`, or `[F, T, features]` of a model with a look-back: a stream for each channel. Row t
            depends on no later row of `values`.

        Raises:
            InputError: another number of channels, or a value that is not finite.
        """
        steps, earlier = self._steps(values), self._before(before)
        if self.lookback is not None:
            return self._lookback_inputs(steps, earlier, self.lookback)
        first = steps[:1] if earlier is None else earlier[-1:]
        level = (steps - np.array(self.mean)) / np.array(self.deviation)
        change = np.diff(steps, axis=0, prepend=first) / np.array(self.change[0])
        scaled = [level / scale for scale in self.value_scales] + [change / scale for scale in self.change_scales]
        squashed: FloatArray = np.tanh(np.concatenate(scaled, axis=1)).astype(np.float32)
        return squashed

    def forecasts(self, outputs: ArrayLike, values: ArrayLike, before: ArrayLike | None = None) -> Values:
        """What a session's answers say.

        Args:
            outputs: `[T, targets]`, what `Session.feed` returned for `inputs(values)`; `[F, T, targets]` of a model
                with a look-back.
            values: the same as there, `[T, F]` or `[T]`.
            before: the same as there; only a look-back needs it.

        Returns:
            float64 `[T, H, F]` in the units of the recording: at step t, the next H steps.

        Raises:
            InputError: outputs that do not belong to these values.
        """
        steps = self._steps(values)
        answers = _array(outputs, "outputs")
        wanted = [len(steps), self.targets]
        wanted = wanted if self.lookback is None else [len(self.columns), *wanted]
        if list(answers.shape) != wanted:
            raise InputError(
                f"outputs are of shape {list(answers.shape)}, those of {len(steps)} steps are {wanted}",
                "pass what feed() returned for these values",
            )
        if self.lookback is not None:
            mean, deviation = self.trailing(steps, before)
            return np.asarray(mean[:, None] + deviation[:, None] * answers.transpose(1, 2, 0))
        changes = answers.reshape(len(steps), self.horizon, len(self.columns)) * np.array(self.change)
        return np.asarray(steps[:, None] + changes)

    def trailing(self, values: ArrayLike, before: ArrayLike | None = None) -> tuple[Values, Values]:
        """Mean and deviation of the steps that lie just behind, which a model with a look-back answers in.

        Args:
            values: as for `inputs`.
            before: as for `inputs`.

        Returns:
            float64 `[T, F]` and `[T, F]`, in the units of the recording.

        Raises:
            InputError: the model has no look-back, or takes other values.
        """
        if self.lookback is None:
            raise InputError("this model has no look-back", "train one with --lookback, or use `mean` and `deviation`")
        return self._trailing(self._steps(values), self._before(before), self.lookback)

    def _lookback_inputs(self, steps: Values, before: Values | None, lookback: Lookback) -> FloatArray:
        mean, deviation = self._trailing(steps, before, lookback)
        earlier = lookback.lags - 1
        known = steps if before is None else np.concatenate([before[max(0, len(before) - earlier) :], steps])
        missing = earlier + len(steps) - len(known)
        padded = np.concatenate([np.repeat(known[:1], missing, axis=0), known])
        lags = np.lib.stride_tricks.sliding_window_view(padded, lookback.lags, axis=0)[..., ::-1]  # [T, F, lags]
        scaled = (lags - mean[..., None]) / deviation[..., None]
        inputs = np.concatenate([scaled, np.ones((*mean.shape, 1))], axis=-1)
        return np.ascontiguousarray(inputs.transpose(1, 0, 2), np.float32)

    def _trailing(self, steps: Values, before: Values | None, lookback: Lookback) -> tuple[Values, Values]:
        """Mean and deviation `[T, F]` of the last `span` steps up to each one, or of as many as there are."""
        earlier = lookback.span - 1
        known = steps if before is None else np.concatenate([before[max(0, len(before) - earlier) :], steps])
        missing = earlier + len(steps) - len(known)
        origin = np.array(self.mean)
        padded = np.concatenate([np.zeros((missing, known.shape[1])), known - origin])
        real = np.arange(len(padded)) >= missing
        mean, deviation = np.empty_like(steps), np.empty_like(steps)
        for start in range(0, len(steps), _PIECE):
            stop = min(start + _PIECE, len(steps))
            piece = slice(start, stop + earlier)
            windows = np.lib.stride_tricks.sliding_window_view(padded[piece], lookback.span, axis=0)  # [t, F, span]
            there = np.lib.stride_tricks.sliding_window_view(real[piece], lookback.span)[:, None]
            count = there.sum(-1)
            middle = windows.sum(-1) / count
            spread = np.where(there, windows - middle[..., None], 0.0)
            mean[start:stop] = middle
            deviation[start:stop] = np.sqrt(np.square(spread).sum(-1) / count)
        return mean + origin, np.maximum(deviation, lookback.least * np.array(self.deviation))

    def _before(self, before: ArrayLike | None) -> Values | None:
        if before is None:
            return None
        array = _array(before, "the steps before")
        steps = self._steps(array if array.ndim == 2 else array.reshape(1, -1))
        return steps if len(steps) else None

    def _steps(self, values: ArrayLike) -> Values:
        array = _array(values, "values")
        if array.ndim == 1 and len(self.columns) == 1:
            array = array[:, None]
        if array.ndim != 2 or array.shape[1] != len(self.columns):
            raise InputError(
                f"values are of shape {list(array.shape)}",
                f"pass [T, {len(self.columns)}], with the channels {', '.join(self.columns)}",
            )
        if not np.isfinite(array).all():
            step, channel = np.argwhere(~np.isfinite(array))[0]
            raise InputError(
                f"step {step} of {self.columns[channel]} is {array[step, channel]}",
                "fill a gap with the last value before it, as training did",
            )
        return array


def _array(values: ArrayLike, what: str) -> Values:
    """An array of float64. Raises `InputError`."""
    try:
        return np.asarray(values, np.float64)
    except Exception as error:  # also what an object of the caller's raises
        raise InputError(f"{what} are not numbers ({shown(values)})", "pass an array of numbers") from error
