"""The scaling of a forecaster: from measured values to what its model takes, and from its answers to forecasts.

A model of a series takes each channel's value in standard deviations and its last change in typical changes, at several
scales and squashed by tanh, and answers with changes in typical changes. The statistics are those of the recording it
was trained on, and travel in the manifest.

Knows the arithmetic. Does not know models or sessions. `titans_tasks.series` has the same
arithmetic for training; a test holds them equal.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from msgspec import structs
from numpy.typing import ArrayLike, NDArray

from titans_format.series import SeriesInfo
from titans_runtime.arguments import shown
from titans_runtime.arrays import FloatArray
from titans_runtime.errors import InputError

Values: TypeAlias = NDArray[np.float64]


class SeriesScaling(SeriesInfo, frozen=True, kw_only=True):
    """The arithmetic of a series: its fields are those of `SeriesInfo`."""

    @classmethod
    def of(cls, info: SeriesInfo) -> SeriesScaling:
        """The arithmetic for what a manifest says."""
        return cls(**structs.asdict(info))

    def inputs(self, values: ArrayLike, before: ArrayLike | None = None) -> FloatArray:
        """What to feed a session for measured `values`.

        Args:
            values: `[T, F]` in the units of the recording, or `[T]` where there is one channel.
            before: the step before them, `[F]` or a number, where the stream goes on; None at its beginning.

        Returns:
            float32 `[T, features]`; row t depends on no later row of `values`.

        Raises:
            InputError: another number of channels, or a value that is not finite.
        """
        steps = self._steps(values)
        first = steps[:1] if before is None else self._steps(_array(before, "the step before").reshape(1, -1))
        level = (steps - np.array(self.mean)) / np.array(self.deviation)
        change = np.diff(steps, axis=0, prepend=first) / np.array(self.change[0])
        scaled = [level / scale for scale in self.value_scales] + [change / scale for scale in self.change_scales]
        squashed: FloatArray = np.tanh(np.concatenate(scaled, axis=1)).astype(np.float32)
        return squashed

    def forecasts(self, outputs: ArrayLike, values: ArrayLike) -> Values:
        """What a session's answers say.

        Args:
            outputs: `[T, targets]`, what `Session.feed` returned for `inputs(values)`.
            values: the same as there, `[T, F]` or `[T]`.

        Returns:
            float64 `[T, H, F]` in the units of the recording: at step t, the next H steps.

        Raises:
            InputError: outputs that do not belong to these values.
        """
        steps = self._steps(values)
        answers = _array(outputs, "outputs")
        if answers.shape != (len(steps), self.targets):
            raise InputError(
                f"outputs are of shape {list(answers.shape)}, those of {len(steps)} steps are [{len(steps)},"
                f" {self.targets}]",
                "pass what feed() returned for these values",
            )
        changes = answers.reshape(len(steps), self.horizon, len(self.columns)) * np.array(self.change)
        return np.asarray(steps[:, None] + changes)

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
