"""Injected anomalies are where they are said to be, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from titans_measure.quality.anomalies import FEWEST_STEPS, KINDS, WINDOW, inject
from titans_measure.quality.errors import EvalError


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), extra=st.integers(0, 300), channels=st.integers(1, 3))
def test_exactly_the_windows_of_a_kind_change(seed: int, extra: int, channels: int) -> None:
    split = 100
    values = np.random.default_rng(seed).standard_normal((split + FEWEST_STEPS + extra, channels))
    made = inject(values, split, np.ones(channels), size=8.0, seed=seed)
    changed = np.flatnonzero((made.values != values).any(1))
    assert set(made.kinds) == set(range(len(KINDS) + 1))
    assert changed.min() >= split
    where = made.starts[:, None] + np.arange(WINDOW)
    assert [bool(np.isin(window, changed).any()) for window in where] == (made.kinds > 0).tolist()
    assert set(changed) <= set(where[made.kinds > 0].ravel().tolist())


def test_the_window_after_an_anomaly_is_not_judged() -> None:
    made = inject(np.zeros((2000, 1)), 100, np.ones(1), size=8.0, seed=0)
    after = made.starts[made.kinds > 0] + WINDOW
    assert not set(after.tolist()) & set(made.starts.tolist())


def test_the_same_seed_makes_the_same_anomalies() -> None:
    values = np.zeros((2000, 1))
    first, second, other = (inject(values, 100, np.ones(1), size=8.0, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.values, second.values)
    assert not np.array_equal(first.values, other.values)


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(EvalError, match=f"at least {FEWEST_STEPS}"):
        inject(np.zeros((FEWEST_STEPS + 99, 1)), 100, np.ones(1), size=8.0, seed=0)
