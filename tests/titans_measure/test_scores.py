"""Scores, against answers worked out by hand or by a definition that is obviously right."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from titans_measure.quality.errors import EvalError
from titans_measure.quality.scores import Errors, roc_auc


def test_areas_worked_out_by_hand() -> None:
    positive = np.array([False, False, True, True])
    assert roc_auc(np.array([1.0, 2.0, 3.0, 4.0]), positive) == 1.0
    assert roc_auc(np.array([4.0, 3.0, 2.0, 1.0]), positive) == 0.0
    assert roc_auc(np.array([1.0, 3.0, 2.0, 4.0]), positive) == 0.75  # three of four pairs are in order
    assert roc_auc(np.array([1.0, 1.0, 1.0, 1.0]), positive) == 0.5


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40))
def test_the_area_is_the_share_of_ordered_pairs(pairs: list[tuple[int, bool]]) -> None:
    scores, positive = np.array([float(s) for s, _ in pairs]), np.array([p for _, p in pairs])
    if positive.all() or not positive.any():
        with pytest.raises(EvalError, match="only one kind"):
            roc_auc(scores, positive)
        return
    wins = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    assert roc_auc(scores, positive) == pytest.approx(np.mean(wins))


def test_errors_worked_out_by_hand() -> None:
    errors = Errors.of(np.array([[1.0, 2.0]]), np.array([[0.0, 5.0]]))
    assert errors.as_json() == {"mse": 5.0, "mae": 2.0}
