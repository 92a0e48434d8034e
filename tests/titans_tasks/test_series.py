"""Forecasting data: nothing of the future gets into what a model is fed, or into its scale."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from titans_tasks.errors import DataError
from titans_tasks.series import Forecasting, SeriesTask
from titans_tasks.series_data import SOURCES, Series, read_series


def made(steps: int = 400, channels: int = 1, seed: int = 0, season: int = 7) -> Series:
    values = np.random.default_rng(seed).standard_normal((steps, channels)).cumsum(0)
    return Series("made", values, np.ones(steps, np.bool_), season)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), step=st.integers(320, 399))
def test_the_held_out_part_changes_neither_scale_nor_training(seed: int, step: int) -> None:
    series = made(seed=seed)
    other = Series("made", series.values.copy(), series.observed, series.season)
    other.values[step] += 1e6
    first, second = Forecasting.of(series, horizon=5), Forecasting.of(other, horizon=5)
    assert first.split == 320
    assert np.array_equal(first.mean, second.mean)
    assert np.array_equal(first.deviation, second.deviation)
    assert np.array_equal(first.change, second.change)
    assert np.array_equal(first.inputs(series.values)[:step], second.inputs(other.values)[:step])
    for number in range(6):
        batches = [SeriesTask(of, window=64, seed=seed).batch(number, range(3)) for of in (first, second)]
        for field in ("inputs", "targets"):
            ours, theirs = (getattr(batch, field)[batch.mask] for batch in batches)
            assert np.array_equal(ours, theirs)


@settings(deadline=None, max_examples=30)
@given(channels=st.integers(1, 3), horizon=st.integers(1, 9), seed=st.integers(0, 1000))
def test_the_right_answers_make_perfect_forecasts(channels: int, horizon: int, seed: int) -> None:
    of = Forecasting.of(made(channels=channels, seed=seed), horizon=horizon)
    values = of.series.values
    count = len(values) - horizon
    forecasts = of.forecasts(of.changes(values), values[:count])
    truth = of.normalised(values)
    for ahead in range(1, horizon + 1):
        assert forecasts[:, ahead - 1] == pytest.approx(truth[ahead : ahead + count])
    assert of.inputs(values).shape == (len(values), of.features)
    assert of.changes(values).shape[1] == of.targets


def test_an_answer_of_zero_is_the_naive_forecast_and_has_a_loss_of_about_one() -> None:
    of = Forecasting.of(made(), horizon=3)
    values = of.series.values[: of.split]
    forecasts = of.forecasts(np.zeros((len(values), 3)), values)
    assert forecasts == pytest.approx(np.repeat(of.normalised(values)[:, None], 3, 1))
    assert np.square(of.changes(values)).mean() == pytest.approx(1.0, rel=0.05)


def test_nobody_is_judged_by_a_value_that_was_not_measured() -> None:
    series = made()
    series.observed[350] = False
    judged = Forecasting.of(series, horizon=3).judged(0, 400)
    assert np.flatnonzero(~judged).tolist() == [347, 348, 349, 397, 398, 399]


def test_batches_are_consecutive_slices_and_a_function_of_seed_step_and_row() -> None:
    task = SeriesTask(Forecasting.of(made(), horizon=4), window=64, seed=3)
    whole, part = task.batch(2, range(4)), task.batch(2, range(2, 4))
    assert np.array_equal(whole.inputs[2:], part.inputs)
    assert [bool(task.batch(step, range(1)).reset[0]) for step in range(6)] == [True, False, False, False, True, False]
    parts = np.concatenate([task.batch(step, range(1)).inputs[0] for step in range(4)])
    inputs = Forecasting.of(made(), horizon=4).inputs(made().values)
    assert any(np.array_equal(parts, inputs[start : start + 256]) for start in range(65))


def test_the_held_out_evaluation_counts_every_forecast_once() -> None:
    of = Forecasting.of(made(), horizon=4)
    batches = list(SeriesTask(of, window=64, seed=0).held_out())
    assert [bool(batch.reset[0]) for batch in batches] == [True, *[False] * (len(batches) - 1)]
    assert sum(int(batch.mask.sum()) for batch in batches) == 400 - of.split - 4


@pytest.mark.parametrize("name", SOURCES)
def test_the_named_series_are_there_and_whole(name: str) -> None:
    series = read_series(name)
    assert len(series.values) > 700
    assert np.isfinite(series.values).all()
    assert series.observed.mean() > 0.9
    assert 1 < series.season < len(series.values) / 2
    Forecasting.of(series)


def test_files_are_read(tmp_path: Path) -> None:
    values = np.arange(200.0).reshape(100, 2) ** 0.5
    np.save(tmp_path / "a.npy", values)
    lines = [f"2026-01-{i},{a!r},{b!r}" for i, (a, b) in enumerate(values.tolist())]
    (tmp_path / "a.csv").write_text("\n".join(["day,x,y", *lines, ""]))
    (tmp_path / "bare.csv").write_text("\n".join(map(repr, values[:, 0].tolist())))
    for name, expected in (("a.npy", values), ("a.csv", values), ("bare.csv", values[:, :1])):
        series = read_series(str(tmp_path / name), season=5)
        assert np.array_equal(series.values, expected)
        assert series.season == 5


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("x\n" + "1\n" * 70 + "inf\n", "row 72: 'inf' of x is infinite; leave the cell empty"),
        ("1,2\n" * 70 + "1,two\n", "row 71: 'two' of column 2 is not a number"),
        ("1,2\n" * 70 + "1\n", "row 71 has 1 columns, the first has 2"),
        ("1\n" * 10, "has 10 steps; give a series of at least"),
        ("", "has 0 steps"),
    ],
)
def test_bad_files_are_refused_with_a_remedy(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=words):
        read_series(str(path))


def test_what_is_not_a_series_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one of daily-maximum, glucose"):
        read_series("tides")
    (tmp_path / "a.xlsx").write_text("1")
    with pytest.raises(DataError, match=r"does not end in \.csv, \.tsv"):
        read_series(str(tmp_path / "a.xlsx"))
    np.save(tmp_path / "a.npy", np.zeros((80, 2, 2)))
    with pytest.raises(DataError, match="not an array of numbers"):
        read_series(str(tmp_path / "a.npy"))
    (tmp_path / "b.npy").write_bytes(b"pickled?")
    with pytest.raises(DataError, match=r"numpy\.save"):
        read_series(str(tmp_path / "b.npy"))
    with pytest.raises(DataError, match="season of 60"):
        Series("short", np.zeros((100, 1)), np.ones(100, np.bool_), 60)


def test_impossible_splits_are_refused() -> None:
    with pytest.raises(DataError, match="use a horizon below 80"):
        Forecasting.of(made(), horizon=80)
    constant = Series("constant", np.zeros((100, 1)), np.ones(100, np.bool_), 1)
    with pytest.raises(DataError, match="channel 0 never changes"):
        Forecasting.of(constant)


@pytest.mark.parametrize("power", [-200, -30, 0, 30, 200])
def test_the_unit_of_a_series_changes_nothing_that_a_model_sees(power: int) -> None:
    series = made(channels=2)
    unit = 2.0 ** (3 * power)  # of two, so that no digit changes
    scaled = Series("made", series.values * [unit, 1.0], series.observed, series.season)
    ours, theirs = Forecasting.of(series, horizon=5), Forecasting.of(scaled, horizon=5)
    assert np.array_equal(ours.inputs(series.values), theirs.inputs(scaled.values))
    assert np.array_equal(ours.changes(series.values), theirs.changes(scaled.values))
    assert np.array_equal(theirs.deviation, ours.deviation * [unit, 1.0])


def test_a_series_of_1e200_is_scaled_like_any_other() -> None:
    series = made()
    huge = Series("huge", series.values * 1e200, series.observed, series.season)
    of = Forecasting.of(huge, horizon=5)
    assert np.isfinite(of.change).all()
    assert of.inputs(huge.values) == pytest.approx(Forecasting.of(series, horizon=5).inputs(series.values), abs=1e-6)
    assert np.square(of.changes(huge.values)[: of.split - 5]).mean() == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize(
    ("step", "words"),
    [(100, "step 10[01] of column 1 is .* all other changes are lost"), (350, "step 350 of column 1 is 1e\\+200")],
)
def test_one_value_that_hides_all_others_is_refused(step: int, words: str) -> None:
    series = made()
    series.values[step] = 1e200
    with pytest.raises(DataError, match=words):
        Forecasting.of(series, horizon=5)


def test_gaps_that_leave_nothing_to_judge_by_are_refused() -> None:
    for places, part in ((slice(0, 320, 5), "train on"), (slice(320, 400, 5), "hold out")):
        series = made()
        series.observed[places] = False
        with pytest.raises(DataError, match=f"without a gap to {part}; use a shorter horizon than 6"):
            Forecasting.of(series, horizon=6)
        Forecasting.of(series, horizon=2)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install bokeh-sampledata"):
        read_series("glucose")
