"""Forecasters with a look-back: training, the runtime and the evaluation read the same steps in the same units."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import titans_runtime
from tests.conftest import SMALL, titans
from titans_cli.main import cli
from titans_core.training.checkpoint import load_model
from titans_core.training.objective import Objective, Slice
from titans_format.document import parse
from titans_format.errors import BundleError
from titans_format.manifest import Manifest
from titans_format.seal import seal
from titans_format.series import read_scaling
from titans_runtime.errors import InputError
from titans_runtime.series import SeriesScaling
from titans_tasks.errors import DataError
from titans_tasks.lookback import Lookback, LookbackTask
from titans_tasks.series import Forecasting
from titans_tasks.series_data import Series

STEPS, TRAIN, HORIZON, LAGS, SPAN = 240, 150, 5, 6, 11
SHAPE = [word for name, value in {**SMALL, "persistent_tokens": 0}.items() for word in ("--set", f"{name}={value}")]


def walk(channels: int = 2, seed: int = 0) -> Series:
    values = 50 + np.random.default_rng(seed).standard_normal((STEPS, channels)).cumsum(0)
    return Series("walk", values, np.ones(STEPS, np.bool_), 1)


def reading(series: Series, lags: int = LAGS, span: int = SPAN) -> Lookback:
    return Lookback(Forecasting.of(series, horizon=HORIZON, train_steps=TRAIN), lags, span)


def scaling_of(lookback: Lookback) -> SeriesScaling:
    return SeriesScaling.of(read_scaling(parse(json.dumps(lookback.document()), "series.json"), "series.json"))


@settings(deadline=None, max_examples=20)
@given(
    channels=st.integers(1, 3),
    lags=st.integers(2, 9),
    span=st.integers(2, 30),
    seed=st.integers(0, 99),
    cut=st.integers(1, STEPS - 1),
)
def test_the_runtime_reads_as_training_does_and_in_any_pieces(
    channels: int, lags: int, span: int, seed: int, cut: int
) -> None:
    lookback = reading(walk(channels, seed), lags, span)
    ours, values = scaling_of(lookback), lookback.of.series.values
    assert (ours.features, ours.targets, ours.history) == (lookback.features, HORIZON, lookback.history)
    inputs = ours.inputs(values)
    normalised = lookback.of.normalised(values)
    for channel in range(channels):
        assert inputs[channel] == pytest.approx(lookback.inputs(normalised[:, channel]), abs=1e-5)
    before = values[max(0, cut - ours.history) : cut]
    pieces = [ours.inputs(values[:cut]), ours.inputs(values[cut:], before=before)]
    assert np.concatenate(pieces, axis=1) == pytest.approx(inputs, abs=1e-6)


def test_a_step_is_what_a_person_would_write_down() -> None:
    lookback = reading(walk())
    scaling, values = scaling_of(lookback), lookback.of.series.values
    for step in (3, 100):
        behind = values[max(0, step + 1 - SPAN) : step + 1]
        mean, deviation = behind.mean(0), np.maximum(behind.std(0), 0.1 * lookback.of.deviation)
        lags = [values[max(0, step - lag)] for lag in range(LAGS)]
        row = scaling.inputs(values[: step + 1])[:, -1]
        expected = (np.array(lags) - mean) / deviation
        assert np.allclose(row[:, :-1].T, expected, atol=1e-5)
        assert (row[:, -1] == 1).all()
        answers = np.random.default_rng(step).standard_normal((2, 1, HORIZON))
        forecast = scaling.forecasts(answers, values[step : step + 1], before=values[:step])[0]
        assert forecast == pytest.approx(mean + deviation * answers[:, 0].T)


def test_a_quiet_stretch_is_not_magnified() -> None:
    series = walk()
    series.values[60:100] = series.values[60]
    lookback = reading(series)
    row = scaling_of(lookback).inputs(series.values)[:, 95]
    assert np.abs(row[:, :-1]).max() < 1e-6
    assert lookback.trailing(np.ones(50))[1] == pytest.approx(0.1)


@pytest.mark.parametrize("absolute", [False, True])
def test_the_loss_is_the_error_in_deviations_of_the_training_part(absolute: bool) -> None:
    lookback = reading(walk())
    task = LookbackTask(lookback, window=16, seed=1, stream=64, absolute=absolute)
    batch = task.batch(2, range(3))
    assert not batch.reset.any()
    torch.manual_seed(0)

    class Answers(torch.nn.Module):
        def __init__(self, outputs: torch.Tensor) -> None:
            super().__init__()
            self.outputs = outputs
            self.config = type("Config", (), {"vocab_size": None})

        def initial_state(self, batch: int) -> dict[str, torch.Tensor]:
            return {}

        def forward(self, inputs: torch.Tensor, state: object) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            return self.outputs, {}

    outputs = torch.randn(3, 16, HORIZON)
    objective = Objective(Answers(outputs))  # type: ignore[arg-type]
    loss = float(Slice.of(batch, torch.device("cpu")).under(objective, None, None)[0])
    normalised, expected = lookback.of.normalised(lookback.of.series.values), 0.0
    for row in range(3):
        channel, start = row % 2, int(np.random.default_rng([12, 1, row, 0]).integers(TRAIN - 64 + 1))
        for place in range(16):
            step = start + 32 + place
            behind = normalised[max(start, step + 1 - SPAN) : step + 1, channel]
            forecast = behind.mean() + max(behind.std(), 0.1) * outputs[row, place].numpy()
            truth = normalised[step + 1 : min(step + 1 + HORIZON, TRAIN), channel]  # the rest is not known in training
            off = forecast[: len(truth)] - truth
            expected += (np.abs(off) if absolute else np.square(off)).sum() / HORIZON
    assert batch.mask.all()
    assert loss == pytest.approx(expected, rel=1e-4)


def test_at_the_end_of_training_targets_count_as_far_as_they_are_known() -> None:
    series = walk(1)
    series.observed[120] = False
    task = LookbackTask(reading(series), window=TRAIN, seed=0, stream=TRAIN)
    batch = task.batch(0, range(1))
    known = ~np.isnan(batch.targets[0].astype(np.float64))
    for step in range(TRAIN):
        ahead = np.arange(step + 1, step + 1 + HORIZON)
        assert known[step].tolist() == ((ahead < TRAIN) & (ahead != 120)).tolist()
    assert batch.mask[0].tolist() == [True] * (TRAIN - 1) + [False]


def test_a_fresh_model_answers_next_to_nothing(recording: Path, tmp_path: Path) -> None:
    look = (
        "--lookback",
        LAGS,
        "--horizon",
        HORIZON,
        "--train-steps",
        TRAIN,
        "--steps",
        "1",
        "--lr",
        "1e-9",
        "--batch",
        "1",
    )
    titans(
        "train",
        "--task",
        "series",
        "--data",
        recording,
        *SHAPE,
        "--variant",
        "lmm",
        *map(str, look),
        "--out",
        tmp_path / "x",
    )
    model, _ = load_model(tmp_path / "x")
    assert float(model.head.weight.detach().std()) == pytest.approx(0.1 * 32**-0.5, rel=0.2)


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 100), step=st.integers(TRAIN, STEPS - 1))
def test_the_held_out_part_does_not_reach_training(seed: int, step: int) -> None:
    series, other = walk(seed=seed), walk(seed=seed)
    other.values[step] += 1e3
    for number in range(6):
        ours, theirs = (
            LookbackTask(reading(one), window=32, seed=seed).batch(number, range(3)) for one in (series, other)
        )
        for field in ("inputs", "targets", "weights"):
            assert np.array_equal(getattr(ours, field)[ours.mask], getattr(theirs, field)[ours.mask], equal_nan=True)


def test_the_held_out_evaluation_counts_every_forecast_once_and_ends_where_it_is_told() -> None:
    for held_out, count in ((None, STEPS - TRAIN), (40, 40)):
        task = LookbackTask(reading(walk()), window=32, seed=0, held_out=held_out)
        batches = list(task.held_out())
        assert [bool(batch.reset[0]) for batch in batches] == [True, *[False] * (len(batches) - 1)]
        assert sum(int(batch.mask.sum()) for batch in batches) == 2 * (count - HORIZON)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recording") / "walk.csv"
    path.write_text("\n".join(["a,b", *(f"{a!r},{b!r}" for a, b in walk().values.tolist())]))
    return path


@pytest.fixture(scope="module")
def trained(recording: Path) -> Path:
    folder = recording.parent
    look = ("--lookback", LAGS, "--span", SPAN, "--horizon", HORIZON, "--train-steps", TRAIN, "--loss", "absolute")
    common = ("--variant", "lmm", "--steps", "2", "--batch", "2", "--stream", "64", "--held-out-steps", "40")
    titans(
        "train", "--task", "series", "--data", recording, *SHAPE, *map(str, (*look, *common)), "--out", folder / "ckpt"
    )
    return folder / "ckpt"


@pytest.fixture(scope="module")
def bundle(trained: Path) -> Path:
    titans("export", trained, "--out", trained.parent / "model.titans", "--verify-tokens", "0")
    return trained.parent / "model.titans"


@pytest.mark.parametrize("fresh", [None, 20])
def test_the_evaluation_is_what_sessions_forecast(bundle: Path, recording: Path, fresh: int | None) -> None:
    """By sessions, one for each channel, that are fed step by step or window by window."""
    model, values = titans_runtime.load(bundle, provider="cpu"), walk().values
    first, last, horizon = 190, 230, 3
    ask = ["--task", "series", "--data", str(recording), "--first-step", str(first), "--last-step", str(last)]
    ask += ["--horizon", str(horizon)] + ([] if fresh is None else ["--fresh", str(fresh)])
    document = titans("eval", bundle, *ask)
    off = {HORIZON: [], horizon: []}  # type: dict[int, list[np.ndarray]]
    sessions = [model.session() for _ in range(2)]
    for step in range(last):
        begin = 0 if fresh is None else max(0, step + 1 - fresh)
        if fresh is None:
            inputs = model.series.inputs(values[step : step + 1], before=values[:step])
        elif step >= first - 1:
            inputs, sessions = model.series.inputs(values[begin : step + 1]), [model.session() for _ in range(2)]
        else:
            continue
        answers = np.stack([session.feed(one)[-1:] for session, one in zip(sessions, inputs, strict=True)])
        forecast = model.series.forecasts(answers, values[step : step + 1], before=values[begin:step])[0]
        for ahead, found in off.items():
            if first - 1 <= step < last - ahead:
                found.append((forecast[:ahead] - values[step + 1 : step + 1 + ahead]) / model.series.deviation)
    report = json.loads(json.dumps(document))
    assert report["detection"] is None
    assert report["forecasts"] == len(off[HORIZON]) == last - first - HORIZON + 1
    assert report["horizons"]["3"]["forecasts"] == len(off[3])
    for found, errors in ((off[HORIZON], report["errors"]["model"]), (off[3], report["horizons"]["3"]["model"])):
        assert errors["mse"] == pytest.approx(np.square(found).mean(), rel=1e-4)
        assert errors["mae"] == pytest.approx(np.abs(found).mean(), rel=1e-4)


def test_a_plain_forecaster_is_read_in_windows_too(recording: Path) -> None:
    folder, values = recording.parent, walk().values
    common = ("--variant", "lmm", "--steps", "1", "--batch", "2", "--horizon", "2")
    titans("train", "--task", "series", "--data", recording, *SHAPE, *common, "--out", folder / "plain")
    titans("export", folder / "plain", "--out", folder / "plain.titans", "--verify-tokens", "0")
    ask = ("--task", "series", "--data", recording, "--fresh", "10", "--first-step", "192", "--last-step", "200")
    document = json.loads(json.dumps(titans("eval", folder / "plain.titans", *ask)))
    model, off = titans_runtime.load(folder / "plain.titans", provider="cpu"), []
    for step in range(191, 198):
        window = values[step - 9 : step + 1]
        forecast = model.series.forecasts(model.session().feed(model.series.inputs(window)), window)[-1]
        off.append((forecast - values[step + 1 : step + 3]) / model.series.deviation)
    assert document["errors"]["model"]["mse"] == pytest.approx(np.square(off).mean(), rel=1e-4)


def test_training_further_keeps_the_look_back(trained: Path, recording: Path, tmp_path: Path) -> None:
    words = ("train", "--from", trained, "--data", recording, "--steps", "1", "--batch", "2", "--train-steps", TRAIN)
    titans(*map(str, words), "--out", tmp_path / "more")
    ours, theirs = (
        json.loads(next(path.glob("step-*/series.json")).read_text()) for path in (trained, tmp_path / "more")
    )
    assert ours == theirs


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["--span", "4"], "--span belongs to --lookback"),
        (["--loss", "absolute"], "--loss belongs to --lookback"),
        (["--lookback", "400"], "a lookback of 400 steps does not fit"),
        (["--lookback", "4", "--train-steps", "240"], "train on at most 192"),
    ],
)
def test_what_does_not_fit_is_refused(recording: Path, tmp_path: Path, words: list[str], remedy: str) -> None:
    command = [
        "train",
        "--task",
        "series",
        "--data",
        str(recording),
        "--steps",
        "1",
        "--out",
        str(tmp_path / "x"),
        *words,
    ]
    result = CliRunner().invoke(cli, [*command, "--variant", "lmm"])
    assert result.exit_code == 2
    assert remedy in result.stderr


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["--first-step", "200", "--last-step", "150"], "end after 200"),
        (["--horizon", "9"], "ask for horizons from 1 to 5"),
    ],
)
def test_an_impossible_part_is_refused(bundle: Path, recording: Path, words: list[str], remedy: str) -> None:
    result = CliRunner().invoke(cli, ["eval", str(bundle), "--task", "series", "--data", str(recording), *words])
    assert result.exit_code == 2
    assert remedy in result.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lookback": {"lags": 0, "span": 3, "least": 0.1}}, r"series.lookback.lags"),
        ({"lookback": {"lags": 9, "span": 3, "least": 0.1}}, "10 features and 5 targets"),
        ({"value_scales": [1.0]}, "must be empty lists beside a lookback"),
    ],
)
def test_a_damaged_look_back_is_named(bundle: Path, change: dict[str, object], words: str) -> None:
    document = json.loads((bundle / "manifest.json").read_text())
    document.pop("sha256")
    document["series"] |= change
    with pytest.raises(BundleError, match=words):
        Manifest.from_json(json.dumps(seal(document)))


def test_models_without_a_look_back_say_so() -> None:
    series = walk(1)
    plain = SeriesScaling.of(read_scaling(parse(json.dumps(Forecasting.of(series).document()), "x"), "x"))
    with pytest.raises(InputError, match="no look-back"):
        plain.trailing(series.values)
    with pytest.raises(DataError, match="use 2 to 149"):
        reading(series, lags=1)
