"""A forecaster's bundle carries its scaling: who has the bundle alone makes its inputs and reads its answers."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import titans_runtime
from tests.conftest import SMALL, titans
from titans_format.document import parse
from titans_format.errors import BundleError
from titans_format.manifest import Manifest
from titans_format.seal import seal
from titans_format.series import read_scaling
from titans_runtime.errors import InputError
from titans_runtime.series import SeriesScaling
from titans_tasks.series import Forecasting
from titans_tasks.series_data import Series, read_series

SHAPE = [word for name, value in {**SMALL, "persistent_tokens": 0}.items() for word in ("--set", f"{name}={value}")]
STEPS, HORIZON = 400, 3


def scaling_of(of: Forecasting) -> SeriesScaling:
    return SeriesScaling.of(read_scaling(parse(json.dumps(of.document()), "series.json"), "series.json"))


def walk(channels: int, seed: int) -> Series:
    values = 50 + np.random.default_rng(seed).standard_normal((STEPS, channels)).cumsum(0)
    return Series("walk", values, np.ones(STEPS, np.bool_), 1)


@settings(deadline=None, max_examples=25)
@given(channels=st.integers(1, 3), horizon=st.integers(1, 6), seed=st.integers(0, 99), cut=st.integers(1, STEPS - 1))
def test_the_runtime_scales_as_training_does(channels: int, horizon: int, seed: int, cut: int) -> None:
    of = Forecasting.of(walk(channels, seed), horizon=horizon)
    ours, values = scaling_of(of), of.series.values
    assert (ours.features, ours.targets, ours.horizon) == (of.features, of.targets, horizon)
    assert np.array_equal(ours.inputs(values), of.inputs(values))
    pieces = [ours.inputs(values[:cut]), ours.inputs(values[cut:], before=values[cut - 1])]
    assert np.array_equal(np.concatenate(pieces), of.inputs(values))
    outputs = np.random.default_rng(seed).standard_normal((STEPS, of.targets)).astype(np.float32)
    forecasts = ours.forecasts(outputs, values)
    assert forecasts.shape == (STEPS, horizon, channels)
    assert (forecasts - of.mean) / of.deviation == pytest.approx(of.forecasts(outputs, values))
    count = STEPS - horizon
    right = ours.forecasts(of.changes(values), values[:count])  # right answers make right forecasts, in its own units
    for ahead in range(1, horizon + 1):
        assert right[:, ahead - 1] == pytest.approx(values[ahead : ahead + count])


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recording") / "plant.csv"
    rows = [f"t{i},{20 + 5 * math.sin(i / 9)},{1000 - i % 37}" for i in range(STEPS)]
    path.write_text("\n".join(["time,temperature,pressure", *rows]))
    return path


@pytest.fixture(scope="module", params=["lmm", "mac"])
def bundle(request: pytest.FixtureRequest, recording: Path) -> Path:
    folder = recording.parent / request.param
    common = ("--variant", request.param, "--steps", "2", "--batch", "2", "--horizon", HORIZON)
    titans("train", "--task", "series", "--data", recording, *SHAPE, *map(str, common), "--out", folder / "model")
    titans("export", folder / "model", "--out", folder / "model.titans", "--verify-tokens", "0")
    return folder / "model.titans"


def test_a_bundle_alone_forecasts_what_the_evaluation_judges(bundle: Path, recording: Path) -> None:
    model = titans_runtime.load(bundle, provider="cpu")
    assert model.series.columns == ("temperature", "pressure")
    values = np.array([[20 + 5 * math.sin(i / 9), 1000 - i % 37] for i in range(STEPS)])
    forecasts = model.series.forecasts(model.session().feed(model.series.inputs(values)), values)
    split = round(STEPS * 0.8)
    origins = np.arange(split - 1, STEPS - HORIZON)
    truth = values[origins[:, None] + np.arange(1, HORIZON + 1)]
    error = np.square((forecasts[origins] - truth) / values[:split].std(0)).mean()
    document = titans("eval", bundle, "--task", "series", "--data", recording, "--anomalies", "0")
    assert document["errors"]["model"]["mse"] == pytest.approx(error, rel=1e-4)  # type: ignore[index]


def test_another_recording_is_judged_by_the_scale_of_the_one_trained_on(bundle: Path, recording: Path) -> None:
    rows = [line.split(",") for line in recording.read_text().splitlines()]
    turned = recording.with_name("turned.csv")
    turned.write_text(
        "\n".join(",".join((b, extra, a)) for (_, a, b), extra in zip(rows, ["x", *"7" * STEPS], strict=True))
    )
    ask = ("--task", "series", "--anomalies", "0", "--data")
    ours, theirs = (titans("eval", bundle, *ask, path)["errors"] for path in (recording, turned))
    assert ours == theirs  # columns are found by their names
    mean = read_series(str(recording)).values.mean(0)
    shifted = recording.with_name("shifted.csv")
    shifted.write_text("\n".join([",".join(rows[0]), *(f"{t},{float(a) + mean[0]},{b}" for t, a, b in rows[1:])]))
    assert titans("eval", bundle, *ask, shifted)["errors"] != ours


def test_a_recording_without_the_columns_is_refused(bundle: Path, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from titans_cli.main import cli

    rows = [f"{math.sin(i)},{math.cos(i)}" for i in range(STEPS)]
    (tmp_path / "a.csv").write_text("\n".join(["temperature,humidity", *rows]))
    words = ["eval", str(bundle), "--task", "series", "--data", str(tmp_path / "a.csv")]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 2
    assert "give a file with pressure" in result.stderr


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros(5), r"shape \[5\]; pass \[T, 2\], with the channels temperature, pressure"),
        (np.zeros((5, 3)), r"shape \[5, 3\]"),
        ([[1.0, 2.0], [math.nan, 2.0]], "step 1 of temperature is nan; fill a gap with the last value"),
        ([[1.0, math.inf]], "step 0 of pressure is inf"),
        ([["a", "b"]], "not numbers"),
    ],
)
def test_values_of_another_kind_are_refused(values: object, words: str) -> None:
    series = replace(walk(2, 0), columns=("temperature", "pressure"))
    with pytest.raises(InputError, match=words):
        scaling_of(Forecasting.of(series)).inputs(values)  # type: ignore[arg-type]


def test_outputs_of_other_values_are_refused() -> None:
    scaling = scaling_of(Forecasting.of(walk(1, 0), horizon=4))
    with pytest.raises(InputError, match=r"those of 5 steps are \[5, 4\]"):
        scaling.forecasts(np.zeros((6, 4)), np.ones(5))


def test_models_of_no_series_say_so(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match="knows no series"):
        _ = titans_runtime.load(tiny_bundle, provider="cpu").series


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"columns": []}, "series.columns must be a list with something in it"),
        ({"columns": ["a"]}, "series.(mean|deviation|change)"),
        ({"deviation": [1.0, 0.0]}, r"series.deviation\[1\] must be a number above 0"),
        ({"deviation": [1.0, 1e-320]}, r"series.deviation\[1\] must be a number above 0"),
        ({"mean": [1.0]}, "series.mean must be a list of 2"),
        ({"mean": [1.0, "x"]}, r"series.mean\[1\] must be a number"),
        ({"change": []}, "series.change must be a list of 3 lists"),
        ({"horizon": 2}, "series.change must be a list of 2 lists"),
        ({"value_scales": [1.0]}, "inputs must be continuous, 8 features and 6 targets"),
        ({"name": 3}, "series.name must be a string"),
    ],
)
def test_a_damaged_scaling_is_named(bundle: Path, change: dict[str, object], words: str) -> None:
    document = json.loads((bundle / "manifest.json").read_text())
    document.pop("sha256")
    document["series"] |= change
    with pytest.raises(BundleError, match=words):
        Manifest.from_json(json.dumps(seal(document)))


def test_a_manifest_gives_its_scaling_back(bundle: Path) -> None:
    manifest = Manifest.from_json((bundle / "manifest.json").read_text())
    again = Manifest.from_json(manifest.to_json())
    assert again.series is not None
    assert manifest.series is not None
    assert again.series == manifest.series
