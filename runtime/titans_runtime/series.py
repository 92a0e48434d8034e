"""The scaling of a forecaster: from measured values to what its model takes, and from its answers to forecasts.

A model of a series takes each channel's value in standard deviations and its last change in typical changes, at several
scales and squashed by tanh, and answers with changes in typical changes. The statistics are those of the recording it
was trained on, and travel in the manifest.

Knows the arithmetic and its JSON form. Does not know models or sessions. `titans_tasks.series` has the same
arithmetic for training; a test holds them equal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from titans_runtime.arguments import shown
from titans_runtime.arrays import FloatArray
from titans_runtime.errors import InputError
from titans_runtime.jsonread import JsonObject, Node

Values: TypeAlias = NDArray[np.float64]
Floats: TypeAlias = tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class SeriesScaling:
    """How a series was scaled for training: F channels, forecasts of `horizon` steps.

    name: of the recording.
    columns: a name per channel.
    mean, deviation: per channel, of the training part.
    change: `change[h - 1]` is the typical change (root mean square) over h steps, per channel.
    value_scales: in deviations; the inputs of a step are first all channels at the first of them, and so on.
    change_scales: in typical changes of one step; they follow.
    """

    name: str
    columns: tuple[str, ...]
    mean: Floats
    deviation: Floats
    change: tuple[Floats, ...]
    value_scales: Floats
    change_scales: Floats

    @property
    def horizon(self) -> int:
        """Steps that are forecast."""
        return len(self.change)

    @property
    def features(self) -> int:
        """Numbers that the model takes per step."""
        return len(self.columns) * (len(self.value_scales) + len(self.change_scales))

    @property
    def targets(self) -> int:
        """Numbers that the model answers per step."""
        return len(self.columns) * self.horizon

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


def scaling_object(scaling: SeriesScaling) -> JsonObject:
    """The scaling as it is written; `read_scaling` gives back an equal one."""
    return {
        "name": scaling.name,
        "columns": list(scaling.columns),
        "horizon": scaling.horizon,
        "mean": list(scaling.mean),
        "deviation": list(scaling.deviation),
        "change": [list(row) for row in scaling.change],
        "value_scales": list(scaling.value_scales),
        "change_scales": list(scaling.change_scales),
    }


def read_scaling(node: Node) -> SeriesScaling:
    """The scaling in a JSON document from outside. Raises `BundleError` for one that does not hold together."""
    columns = tuple(item.text() for item in node.field("columns").items())
    if not columns:
        node.field("columns").fail("a list of names")
    change = tuple(_positive(item, len(columns)) for item in node.field("change").items())
    if not change or len(change) != node.field("horizon").integer(1):
        node.field("change").fail(f"a list of {node.field('horizon').value} lists")
    mean = node.field("mean")
    return SeriesScaling(
        name=node.field("name").text(),
        columns=columns,
        mean=_numbers(mean, len(columns)),
        deviation=_positive(node.field("deviation"), len(columns)),
        change=change,
        value_scales=_positive(node.field("value_scales")),
        change_scales=_positive(node.field("change_scales")),
    )


def _numbers(node: Node, count: int | None = None) -> Floats:
    numbers = tuple(item.number() for item in node.items())
    if count is not None and len(numbers) != count:
        node.fail(f"a list of {count}, a number per column")
    return numbers


def _positive(node: Node, count: int | None = None) -> Floats:
    numbers = _numbers(node, count)
    for item, number in zip(node.items(), numbers, strict=True):
        if not (number > 0 and math.isfinite(1 / number)):
            item.fail("a number above 0")
    return numbers
