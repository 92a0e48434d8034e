"""What a manifest says of the series that a forecaster was trained on: its columns and their statistics.

Knows the fields. Does not know the arithmetic, which is `titans_runtime.series`, nor whether they fit the model
(`contract`).
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from titans_format.document import ANY_FLOAT, EXPORT_AGAIN, JsonValue, Number, Positive, Text, read
from titans_format.errors import BundleError

# A number whose reciprocal is finite too.
Scale = Annotated[float, Meta(ge=1 / ANY_FLOAT * (1 + 2**-50), le=ANY_FLOAT)]


class Lookback(Struct, frozen=True, kw_only=True):
    """How a model reads one channel at a time, by the mean and the deviation of the steps that lie just behind.

    lags: last values that a step shows, itself included.
    span: steps that the trailing mean and deviation are taken over, or as many as there are.
    least: smallest trailing deviation, in deviations of the training part; below it a quiet stretch would be magnified.
    """

    lags: Positive
    span: Positive
    least: Scale


class SeriesInfo(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a series was scaled for training: F channels, forecasts of `horizon` steps.

    name: of the recording.
    columns: a name per channel.
    mean, deviation: per channel, of the training part.
    change: `change[h - 1]` is the typical change (root mean square) over h steps, per channel.
    value_scales: in deviations; the inputs of a step are first all channels at the first of them, and so on.
    change_scales: in typical changes of one step; they follow.
    lookback: of a model with a stream for each channel, which has no scales; None of one that reads all at once.
    """

    name: Text
    columns: Annotated[tuple[Text, ...], Meta(min_length=1)]
    horizon: Positive
    mean: tuple[Number, ...]
    deviation: tuple[Scale, ...]
    change: tuple[tuple[Scale, ...], ...]
    value_scales: tuple[Scale, ...]
    change_scales: tuple[Scale, ...]
    lookback: Lookback | None = None

    @property
    def features(self) -> int:
        """Numbers that the model takes per step."""
        if self.lookback is not None:
            return self.lookback.lags + 1
        return len(self.columns) * (len(self.value_scales) + len(self.change_scales))

    @property
    def targets(self) -> int:
        """Numbers that the model answers per step."""
        if self.lookback is not None:
            return self.horizon
        return len(self.columns) * self.horizon


def read_scaling(value: JsonValue, file: str) -> SeriesInfo:
    """The series in a document of its own, such as a checkpoint's. Raises `BundleError`."""
    series = read(value, SeriesInfo, file)
    if problem := misfit(series):
        raise BundleError(problem, EXPORT_AGAIN, where=file)
    return series


def misfit(series: SeriesInfo) -> str:
    """What does not fit within a series, or "": there are as many numbers as columns, and as many lists as steps."""
    wanted = series.horizon if series.lookback is None else 1
    if len(series.change) != wanted:
        return f"change must be a list of {wanted} lists, found {len(series.change)}"
    if series.lookback is not None and (series.value_scales or series.change_scales):
        return "value_scales and change_scales must be empty lists beside a lookback"
    lists = {"mean": series.mean, "deviation": series.deviation}
    lists |= {f"change[{step}]": row for step, row in enumerate(series.change)}
    count = len(series.columns)
    wrong = ((name, len(row)) for name, row in lists.items() if len(row) != count)
    return next((f"{name} must be a list of {count}, a number per column, found {size}" for name, size in wrong), "")
