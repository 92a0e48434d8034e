"""Strips of lanes look like one set of lanes, and step all together or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from titans_runtime.arrays import Array
from titans_runtime.backends.base import State, Stepped
from titans_runtime.backends.lane_strips import LaneStrips
from titans_runtime.errors import ExecutionError, NonFiniteError

WIDTH = 2


class CountingLanes:
    """Lanes whose state is how often they were stepped and the sum of their inputs."""

    width = WIDTH

    def __init__(self) -> None:
        self.steps = [0] * WIDTH
        self.calls = 0
        self.fails = False
        self.bad: int | None = None

    def seat(self, lane: int, state: State) -> None:
        self.steps[lane] = state.position

    def copy(self, lane: int, before_commit: bool = False) -> State:
        raise NotImplementedError

    def step(self, lanes: Sequence[int], inputs: Array, best: int | None = None) -> Stepped:
        self.calls += 1
        if self.fails:
            raise ExecutionError("no")
        outputs = np.zeros((WIDTH, 1), np.float32)
        failed = {}
        for lane, value in zip(lanes, inputs, strict=True):
            if lane == self.bad:
                failed[lane] = NonFiniteError("step", self.steps[lane], None)
                continue
            self.steps[lane] += 1
            outputs[lane] = value
        return Stepped(outputs, 10 + outputs, failed)

    def undo(self, lane: int) -> None:
        self.steps[lane] -= 1

    def close(self) -> None: ...


@pytest.fixture
def parts() -> list[CountingLanes]:
    return [CountingLanes() for _ in range(3)]


@pytest.fixture
def strips(parts: list[CountingLanes]) -> Iterator[LaneStrips]:
    made = LaneStrips(parts)
    yield made
    made.close()


def steps(parts: list[CountingLanes]) -> list[int]:
    return [count for part in parts for count in part.steps]


def test_every_lane_gets_its_own_input_and_output(parts: list[CountingLanes], strips: LaneStrips) -> None:
    assert strips.width == 6
    told = strips.step([5, 0, 3], np.array([50, 1, 30]))
    outputs, surprise, failed = told.outputs, told.surprise, told.failed
    assert outputs[[0, 3, 5], 0].tolist() == [1, 30, 50]
    assert surprise is not None
    assert surprise[[0, 3, 5], 0].tolist() == [11, 40, 60]
    assert not failed
    assert steps(parts) == [1, 0, 0, 1, 0, 1]


def test_a_strip_without_a_lane_to_step_is_left_alone(parts: list[CountingLanes], strips: LaneStrips) -> None:
    outputs = strips.step([4], np.array([7])).outputs
    assert [part.calls for part in parts] == [0, 0, 1]
    assert outputs[4, 0] == 7


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_if_one_strip_fails_no_lane_has_moved(parts: list[CountingLanes], strips: LaneStrips, broken: int) -> None:
    parts[broken].fails = True
    with pytest.raises(ExecutionError):
        strips.step(range(6), np.arange(6))
    assert steps(parts) == [0] * 6


def test_a_lane_that_failed_by_itself_is_not_undone_with_the_others(
    parts: list[CountingLanes], strips: LaneStrips
) -> None:
    parts[0].bad = 1
    parts[2].fails = True
    with pytest.raises(ExecutionError):
        strips.step(range(6), np.arange(6))
    assert steps(parts) == [0] * 6


def test_lanes_with_numbers_that_are_not_finite_keep_their_names(
    parts: list[CountingLanes], strips: LaneStrips
) -> None:
    parts[1].bad = 1
    failed = strips.step(range(6), np.arange(6)).failed
    assert list(failed) == [3]


def test_undo_reaches_the_right_lane(parts: list[CountingLanes], strips: LaneStrips) -> None:
    strips.step(range(6), np.arange(6))
    strips.undo(3)
    assert steps(parts) == [1, 1, 1, 0, 1, 1]
