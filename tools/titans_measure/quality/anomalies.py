"""Anomalies put into a series on purpose, so that it is known where they are.

The held-out steps are cut into windows. Some windows, never two in a row, get one anomaly that begins and ends inside
them; the window after such a one is not judged, since a memory may still be busy with what it saw. Sizes are in units
of the root mean square change from step to step in the training part, so they mean the same for every series.

Knows the procedure. Does not know models or scores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from titans_measure.quality.errors import EvalError

WINDOW = 32  # steps
LENGTH = 16  # steps of an anomaly, a spike's single step excepted
SHARE = 0.2  # of the windows get an anomaly

Values = NDArray[np.float64]


def _spike(piece: Values, unit: Values, size: float, random: np.random.Generator) -> Values:
    """One step that is off."""
    changed = piece.copy()
    changed[0] += random.choice([-1.0, 1.0]) * size * unit
    return changed


def _shift(piece: Values, unit: Values, size: float, random: np.random.Generator) -> Values:
    """The level is off for a while."""
    changed: Values = piece + random.choice([-1.0, 1.0]) * size * unit
    return changed


def _noise(piece: Values, unit: Values, size: float, random: np.random.Generator) -> Values:
    """White noise on top, of half the size."""
    noisy: Values = piece + random.standard_normal(piece.shape) * size / 2 * unit
    return noisy


def _frequency(piece: Values, unit: Values, size: float, random: np.random.Generator) -> Values:
    """A fast oscillation on top, four steps per period, that was not there before."""
    phase = 2 * np.pi * (np.arange(len(piece)) / 4 + random.random())
    faster: Values = piece + size / 2 * np.sqrt(2) * np.sin(phase)[:, None] * unit
    return faster


KINDS: dict[str, Callable[[Values, Values, float, np.random.Generator], Values]] = {
    "spike": _spike,
    "shift": _shift,
    "noise": _noise,
    "frequency": _frequency,
}
FEWEST_STEPS = round(len(KINDS) / SHARE) * WINDOW  # held-out steps, for every kind to appear


@dataclass(frozen=True)
class Injected:
    """A series with anomalies.

    values: float64 [T, F], unchanged before the held-out part.
    starts: int64 [W], the first step of every judged window of `WINDOW` steps.
    kinds: int64 [W], 0 for a clean window, otherwise 1 + the place of the anomaly's kind in `KINDS`.
    """

    values: Values
    starts: NDArray[np.int64]
    kinds: NDArray[np.int64]


def inject(values: Values, split: int, unit: Values, *, size: float, seed: int) -> Injected:
    """Put anomalies into the steps from `split` on.

    Args:
        values: float64 [T, F].
        split: the first step that may be changed.
        unit: float64 [F], the change that `size` is measured in.
        size: how large they are.
        seed: of the places, the kinds, the signs and the noise.

    Raises:
        EvalError: too few steps for every kind to appear.
    """
    random = np.random.default_rng([12, seed])
    count = (len(values) - split) // WINDOW
    wanted = int(SHARE * count)
    if len(values) - split < FEWEST_STEPS:
        raise EvalError(
            f"{len(values) - split} held-out steps are too few for anomalies of {len(KINDS)} kinds",
            f"use a series with at least {FEWEST_STEPS}",
        )
    changed = values.copy()
    kinds = np.zeros(count, np.int64)
    judged = np.ones(count, np.bool_)
    for number, window in enumerate(_apart(count, wanted, random)):
        kind = number % len(KINDS)
        start = split + window * WINDOW + int(random.integers(2, WINDOW - LENGTH - 1))
        piece = slice(start, start + LENGTH)
        changed[piece] = list(KINDS.values())[kind](changed[piece], unit, size, random)
        kinds[window] = 1 + kind
        judged[window + 1 : window + 2] = False
    starts = split + np.arange(count) * WINDOW
    return Injected(changed, starts[judged], kinds[judged])


def _apart(count: int, wanted: int, random: np.random.Generator) -> list[int]:
    """`wanted` of the windows 0..count-1 in random order, no two next to each other."""
    # Choosing from a shorter row and spreading out makes every such choice equally likely.
    places = np.sort(random.choice(count - wanted + 1, wanted, replace=False)) + np.arange(wanted)
    return [int(place) for place in random.permutation(places)]
