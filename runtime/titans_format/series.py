"""What a manifest says of the series that a forecaster was trained on: its columns and their statistics.

Knows the fields and their JSON form. Does not know the arithmetic, which is `titans_runtime.series`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

from titans_format.jsonread import JsonObject, Node

Floats: TypeAlias = tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class SeriesInfo:
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


def scaling_object(scaling: SeriesInfo) -> JsonObject:
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


def read_scaling(node: Node) -> SeriesInfo:
    """The scaling in a JSON document from outside. Raises `BundleError` for one that does not hold together."""
    columns = tuple(item.text() for item in node.field("columns").items())
    if not columns:
        node.field("columns").fail("a list of names")
    change = tuple(_positive(item, len(columns)) for item in node.field("change").items())
    if not change or len(change) != node.field("horizon").integer(1):
        node.field("change").fail(f"a list of {node.field('horizon').value} lists")
    mean = node.field("mean")
    return SeriesInfo(
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
