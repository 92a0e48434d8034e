"""The learning rate follows its closed form."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from titans_core.training.schedule import default_warmup, learning_rate


@given(st.integers(1, 1000), st.data())
def test_the_rate_is_linear_then_a_half_cosine(steps: int, data: st.DataObject) -> None:
    warmup = data.draw(st.integers(0, steps))
    step = data.draw(st.integers(0, steps - 1))
    rate = learning_rate(step, peak=2.0, warmup=warmup, steps=steps)
    if step < warmup:
        assert rate == pytest.approx(2.0 * (step + 1) / warmup)
    else:
        assert rate == pytest.approx(1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
    assert 0 < rate <= 2.0


def test_the_peak_is_reached_at_the_end_of_the_warm_up_and_the_end_is_near_zero() -> None:
    rates = [learning_rate(step, peak=3e-3, warmup=100, steps=300) for step in range(300)]
    assert rates[99] == rates[100] == max(rates) == 3e-3
    assert rates == sorted(rates[:100]) + sorted(rates[100:], reverse=True)
    assert rates[-1] < 1e-6


def test_a_short_run_warms_up_for_a_fifth_of_it() -> None:
    assert [default_warmup(steps) for steps in (3, 50, 500, 5000)] == [0, 10, 100, 100]
