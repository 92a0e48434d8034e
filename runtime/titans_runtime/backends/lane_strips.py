"""Lanes in strips that are stepped at the same time, each on a thread of its own, and look like one set of lanes.

Knows which lane is in which strip, and that a step happens in all strips or in none. Does not know how a strip steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from titans_runtime.arrays import Array, FloatArray
from titans_runtime.backends.base import Lanes, State, Stepped
from titans_runtime.errors import NonFiniteError


class LaneStrips:
    """Strips of equally many lanes. For one caller at a time. See `base.Lanes` for the contract."""

    def __init__(self, strips: Sequence[Lanes]) -> None:
        self._strips = list(strips)
        self._each = strips[0].width
        self.width = self._each * len(strips)
        self._pool = ThreadPoolExecutor(len(strips) - 1, "titans-lanes")  # the caller's thread takes a strip as well

    def seat(self, lane: int, state: State) -> None:
        """Copy a single stream's state into a lane."""
        strip, place = self._place(lane)
        strip.seat(place, state)

    def copy(self, lane: int, before_commit: bool = False) -> State:
        """The state of a lane as a single stream's; the lane keeps it."""
        strip, place = self._place(lane)
        return strip.copy(place, before_commit)

    def step(self, lanes: Sequence[int], inputs: Array, best: int | None = None) -> Stepped:
        """One token for each of `lanes`; the others stay as they are."""
        shares: list[tuple[int, list[int], Array]] = []  # strip, its lanes, their inputs
        for i in range(len(self._strips)):
            chosen = [n for n, lane in enumerate(lanes) if lane // self._each == i]
            if chosen:
                shares.append((i, [lanes[n] % self._each for n in chosen], inputs[chosen]))
        calls = [partial(self._strips[i].step, places, data) for i, places, data in shares]
        others = [self._pool.submit(call) for call in calls[1:]]
        ends = [_end(call) for call in calls[:1]] + [_end(future.result) for future in others]
        told: dict[int, Stepped] = {}
        errors: list[Exception] = []
        for (i, _, _), end in zip(shares, ends, strict=True):
            if isinstance(end, Exception):
                errors.append(end)
            else:
                told[i] = end
        if errors:
            for i, places, _ in shares:
                for place in places:
                    if i in told and place not in told[i].failed:
                        self._strips[i].undo(place)
            raise errors[0]
        return self._joined(told)

    def undo(self, lane: int) -> None:
        """Take the last step of a lane back, which must have been part of the last call of `step`."""
        strip, place = self._place(lane)
        strip.undo(place)

    def close(self) -> None:
        """Give the memory back."""
        self._pool.shutdown()
        for strip in self._strips:
            strip.close()

    def _place(self, lane: int) -> tuple[Lanes, int]:
        return self._strips[lane // self._each], lane % self._each

    def _joined(self, told: dict[int, Stepped]) -> Stepped:
        """What the strips said, by lane; zeros for a strip that sat this step out."""
        some = next(iter(told.values()))
        outputs: FloatArray = np.zeros((self.width, *some.outputs.shape[1:]), some.outputs.dtype)
        surprise = None if some.surprise is None else np.zeros((self.width, *some.surprise.shape[1:]), np.float32)
        failed: dict[int, NonFiniteError] = {}
        for i, stepped in told.items():
            lanes = slice(i * self._each, (i + 1) * self._each)
            outputs[lanes] = stepped.outputs
            if surprise is not None and stepped.surprise is not None:
                surprise[lanes] = stepped.surprise
            failed |= {i * self._each + place: error for place, error in stepped.failed.items()}
        return Stepped(outputs, surprise, failed)


def _end(call: Callable[[], Stepped]) -> Stepped | Exception:
    """What a call returned, or what it raised."""
    try:
        return call()
    except Exception as error:
        return error
