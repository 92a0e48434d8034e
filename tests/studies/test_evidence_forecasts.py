"""The studies of forecasts and genomes: recipes are commands, the baseline is what it is called, summaries add up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch

from studies.quality import forecasting, genomes, least_squares
from studies.quality.dlinear import KERNEL, DLinear, errors, trained
from titans_cli.main import cli
from titans_tasks.dna import read_fasta
from titans_tasks.lookback import Lookback
from titans_tasks.series import Forecasting
from titans_tasks.series_data import Series


@pytest.mark.parametrize(
    ("recipe", "command"),
    [
        (forecasting.recipe(Path("x.csv")), "train"),
        (("--task", "dna", "--data", "x", *genomes.RECIPE), "train"),
        (("x.titans", "--task", "series", "--data", "x", *forecasting.ASK, "--fresh", 96), "eval"),
        (("x.titans", "--task", "dna", "--data", "x", *genomes.ASK), "eval"),
    ],
)
def test_every_recipe_is_a_command(recipe: tuple[object, ...], command: str) -> None:
    found = cli.get_command(click.Context(cli), command)
    assert found is not None
    words = [str(word) for word in recipe]
    assert found.make_context(command, [*words, *(["--out", "nowhere"] if command == "train" else [])]).params


def test_dlinear_is_two_maps_of_the_moving_average_and_the_rest() -> None:
    torch.manual_seed(0)
    model, values = DLinear(30, 4), np.random.default_rng(0).standard_normal(30).astype(np.float32)
    side = KERNEL // 2
    padded = np.concatenate([[values[0]] * side, values, [values[-1]] * side])
    trend = np.array([padded[i : i + KERNEL].mean() for i in range(30)])
    maps = [(layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in (model.trend, model.rest)]
    expected = sum(weight @ part + bias for (weight, bias), part in zip(maps, (trend, values - trend), strict=True))
    assert np.allclose(model(torch.from_numpy(values)).detach().numpy(), expected, atol=1e-5)


def test_the_baseline_is_judged_by_every_window_and_learns() -> None:
    values = np.stack([np.sin(np.arange(400) / 5), np.cos(np.arange(400) / 9)], axis=1)
    model = trained(values, lags=30, horizon=4, train_steps=300, steps=150, rate=3e-3, loss="squared", seed=0)
    count, found = errors(model, values, lags=30, horizon=4, first=320, last=380)
    off = []
    for step in range(319, 376):
        window = torch.from_numpy(values[step - 29 : step + 1].T.astype(np.float32))
        off.append(model(window).detach().numpy().T - values[step + 1 : step + 5])
    assert count == len(off) == 57
    assert found.mse == pytest.approx(np.square(off).mean(), rel=1e-4)
    assert found.mae == pytest.approx(np.abs(off).mean(), rel=1e-4)
    naive = np.mean([np.square(values[s + 1 : s + 5] - values[s]).mean() for s in range(319, 376)])
    assert found.mse < naive / 2


def test_least_squares_finds_a_linear_law() -> None:
    values, random = np.zeros((500, 2)), np.random.default_rng(0)
    values[:3] = random.standard_normal((3, 2))
    for step in range(3, 500):  # two equal laws with a little noise; nothing of a straight line is lost by the scaling
        values[step] = 1.6 * values[step - 1] - 0.9 * values[step - 2] + 0.05 * random.standard_normal(2)
    series = Series("law", values, np.ones(500, np.bool_), 1)
    lookback = Lookback(Forecasting.of(series, horizon=3, train_steps=350), 8, 40)
    count, found = least_squares.errors(lookback, least_squares.weights(lookback, 1), first=400, last=500)
    assert count == 100
    normalised = lookback.of.normalised(values)
    noise = np.square(0.05 / lookback.of.deviation).mean()
    assert found.mse == pytest.approx(noise, rel=0.3)
    assert found.mse < np.square(np.diff(normalised[399:], axis=0)).mean() / 3


def test_forecasts_are_averaged_over_horizons_and_then_over_seeds() -> None:
    rows = [
        {str(h): {"mse": seed + place, "mae": 1.0} for place, h in enumerate(forecasting.HORIZONS)}
        for seed in (0.0, 1.0)
    ]
    found = forecasting.summary(rows)
    assert found["192"]["mse"]["values"] == [1.0, 2.0]
    assert found["average"]["mse"]["values"] == [1.5, 2.5]
    text = forecasting.tables({"ETTh1": {"streaming": found}})
    assert "| streaming | 0.500 ± 0.707 / 1.000 ± 0.000 |" in text
    assert "0.420 / 0.421" in text


def test_genomes_are_cut_into_records_without_loss(tmp_path: Path) -> None:
    bases = "".join(np.random.default_rng(0).choice(list("ACGT"), 2 * genomes.PIECE + 100))
    (tmp_path / "a.fasta").write_text(f">one\n{bases}\n")
    genomes.cut([tmp_path / "a.fasta"], tmp_path / "cut.fasta")
    records = read_fasta([str(tmp_path / "cut.fasta")])
    assert [len(record.data) for record in records] == [genomes.PIECE, genomes.PIECE, 100]
    assert b"".join(record.data for record in records).decode() == bases


def test_bits_of_genomes_are_by_mode_and_position() -> None:
    def report(bits: float) -> dict[str, Any]:
        modes = {"kept": bits, "reset": bits + 1, "frozen": bits + 2, "writes_off": bits + 3}
        position = {"start": 1, "stop": 256, "tokens": 255, **modes}
        return {"documents": [{}], "bases": 256, "bits_per_base": modes, "positions": [position]}

    found = genomes.summary([{"memory": report(1.0 + seed), "attention": report(1.5)} for seed in (0, 1)])
    assert found["bits_per_base"]["writes_off"]["values"] == [4.0, 5.0]
    assert found["bits_per_base"]["attention only"]["mean"] == 1.5
    assert found["positions"][0]["memory"]["values"] == [1.0, 2.0]
    assert "| kept | 1.5000 ± 0.7071 |" in genomes.tables(found)
