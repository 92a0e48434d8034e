"""What is allowed to differ: the table in `tolerances.json`, by precision and by what is compared."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from titans_export.errors import ExportError


@dataclass(frozen=True)
class Tolerance:
    """The largest errors that are still agreement.

    outputs, states: absolute, of states divided by the tensor's largest value where that exceeds 1.
    relative: whether errors of outputs are divided so too.
    rounding: two implementations may be this much further apart than one of them is from itself in fp64.
    """

    outputs: float
    states: float
    relative: bool
    rounding: float


@dataclass(frozen=True)
class DriftLimits:
    """The least top-1 agreement, and the fastest growth of a state's relative error in a thousand tokens."""

    top1: float
    slope: float


@cache
def _table() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(
        resources.files(__package__).joinpath("tolerances.json").read_text(encoding="utf-8")
    )
    return found


def tolerance(name: str) -> Tolerance:
    """The tolerances of a precision, or of an import by the name of its source. Raises `ExportError`."""
    if name not in _table():
        raise ExportError(f"there is no tolerance for dtype {name!r}", f"verify knows {', '.join(_table())}")
    entry = {"relative": False, "rounding": _table()["fp32"]["rounding"], **_table()[name]}
    return Tolerance(entry["outputs"], entry["states"], entry["relative"], entry["rounding"])


def limits(dtype: str) -> DriftLimits:
    """What is allowed of a precision. Raises `ExportError` where nothing is."""
    if "drift" not in _table().get(dtype, {}):
        known = ", ".join(name for name, entry in _table().items() if "drift" in entry)
        raise ExportError(f"there are no drift limits for dtype {dtype!r}", f"drift is known for {known}")
    entry = _table()[dtype]["drift"]
    return DriftLimits(entry["top1"], entry["slope_per_1000_tokens"])
