"""The evidence drivers on text, series and dna: recipes are commands, and summaries add up what reports say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch

import titans_runtime
from studies.quality import beginnings, dna, peer, series, text
from studies.quality.spread import shown, spread, table
from titans_cli.main import cli
from titans_measure.quality.anomalies import KINDS
from titans_tasks.documents import Corpus, read_corpus

RECIPES: dict[str, tuple[object, ...]] = {
    "text": text.RECIPE,
    "dna": dna.RECIPE,
    **{name: series.recipe(name) for name in series.SHAPES},
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("control", [(), ("--control", "writes-off")], ids=["memory", "control"])
def test_every_recipe_is_a_training_command(recipe: tuple[object, ...], control: tuple[str, ...]) -> None:
    command = cli.get_command(click.Context(cli), "train")
    assert command is not None
    words = [str(word) for word in (*recipe, *control)]
    assert command.make_context("train", [*words, "--out", "nowhere"]).params["steps"] > 0


def report(bits: float) -> dict[str, Any]:
    modes = {"kept": bits, "reset": bits + 1, "frozen": bits + 2}
    position = {"start": 1, "stop": 256, "tokens": 255, **modes}
    return {
        "documents": [],
        "bytes": 256,
        "model": {"parameters": 7},
        "bits_per_byte": modes,
        "positions": [position],
    }


def test_the_gain_is_paired_by_seed() -> None:
    reports = [
        {"memory": report(2.0 + seed), "off": report(4.0), "attention": report(2.5 + 2 * seed)} for seed in text.SEEDS
    ]
    found = text.summary(reports)
    for place in (found["bits_per_byte"], found["positions"][0]):
        assert place["kept"]["values"] == [2.0, 3.0, 4.0]
        assert place["reset"]["mean"] == pytest.approx(4.0)
        assert place["writes off"]["mean"] == 4.0
        assert place["gain"]["values"] == [0.5, 1.5, 2.5]
        assert place["attention only, reset"]["values"] == [3.5, 5.5, 7.5]
        assert place["over frozen"]["values"] == [2.0, 2.0, 2.0]
        assert place["over reset"]["values"] == [1.0, 1.0, 1.0]


def test_the_spread_is_the_sample_deviation() -> None:
    assert spread([1.0, 3.0]) == {"mean": 2.0, "deviation": pytest.approx(2**0.5), "values": [1.0, 3.0]}
    assert spread([1.0])["deviation"] == 0.0


def test_tables_are_markdown() -> None:
    assert shown(spread([1.0, 3.0]), 1) == "2.0 ± 1.4"
    assert table(("a", "b"), [("x", shown(0.25, 2))]) == "| a | b |\n| --- | --- |\n| x | 0.25 |"
    reports = [{name: report(2.0) for name in ("memory", "off", "attention")}]
    assert "| 1 to 255 | 2.000 ± 0.000 |" in text.tables(text.summary(reports))


def test_series_have_a_table_of_errors_and_one_of_areas() -> None:
    one = spread([0.5, 0.7])
    areas = {"overall": one, "by_kind": dict.fromkeys(KINDS, one)}
    errors = {**{who: {"mse": one, "mae": one} for who in series.CONTROLS}, "naive": {"mse": 1.0, "mae": 2.0}}
    errors["seasonal_naive"] = errors["naive"]
    detection = {"forecast": areas, "memory": areas, "last_change": areas}
    found = series.tables(
        {"tides": {"errors": errors, "detection": detection}, "moons": {"errors": errors, "detection": None}}
    )
    assert "| tides | 0.6000 ± 0.1414 |" in found
    assert "| tides, spike | 0.600 ± 0.141 |" in found
    assert "moons, all" not in found


def test_dna_is_summed_up_by_gap() -> None:
    def one(bits: float) -> dict[str, Any]:
        return {"points": [{"gap": gap, "bits": bits} for gap in dna.GAPS], "reset": {"bits": 2.0}}

    reports = [{kind: one(place + seed) for place, kind in enumerate(dna.CONTROLS)} for seed in range(3)]
    found = dna.summary(reports)
    assert [point["gap"] for point in found["points"]] == list(dna.GAPS)
    assert found["points"][0]["switched-off"]["values"] == [1.0, 2.0, 3.0]
    assert found["reset"]["mean"] == 2.0
    assert "| 16 | 1.000 ± 1.000 |" in dna.tables(found)


def test_bits_of_a_model_that_knows_nothing_are_eight() -> None:
    import torch

    documents = [bytes(range(256)) * 8]
    bits = peer.bits_per_byte(lambda ids: torch.zeros(*ids.shape, 256), documents, 512)
    assert bits == pytest.approx(8.0)


def test_our_half_of_the_comparison_reads_any_length_and_nothing_ahead() -> None:
    import torch

    logits = peer.padded(peer.our_model(0).eval())
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 50)))
    with torch.no_grad():
        whole, part = logits(ids), logits(ids[:, :40])
    assert whole.shape == (1, 50, 256)
    assert torch.allclose(whole[:, :40], part, atol=1e-5)


@pytest.mark.parametrize("draw", ["text", "series", "dna"])
def test_pictures_are_drawn_and_small(draw: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.svg"
    if draw == "text":
        text.draw(text.summary([{name: report(2.0) for name in ("memory", "off", "attention")}]), path)
    elif draw == "dna":
        one = {"points": [{"bits": 1.0} for _ in dna.GAPS], "reset": {"bits": 2.0}}
        dna.draw(dna.summary([dict.fromkeys(dna.CONTROLS, one)]), path)
    else:
        error = {"mse": spread([1.0, 2.0]), "mae": spread([1.0, 2.0])}
        errors = {**dict.fromkeys(series.CONTROLS, error), "naive": {"mse": 1.0}, "seasonal_naive": {"mse": 2.0}}
        series.draw({"tides": {"errors": errors}}, path)
    assert 1000 < path.stat().st_size < 100_000


def test_beginnings_are_paired_by_seed() -> None:
    reports = [
        {"memory": [1.0 + seed] * 7, "attention": [1.5 + 2 * seed, *[2.0] * 6]} for seed in text.SEEDS
    ]  # of positions between the edges
    found = beginnings.summary(reports)
    assert found["positions"][0]["gain"]["values"] == [0.5, 1.5, 2.5]
    assert [place["start"] for place in found["positions"]] == list(beginnings.EDGES[:-1])
    assert "| 1 to 31 | 2.000 ± 1.000 | 3.500 ± 2.000 | 1.500 ± 1.000 |" in beginnings.tables(found)


def test_bits_of_beginnings_are_those_of_the_logits(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beginnings, "BYTES", 40)
    monkeypatch.setattr(beginnings, "EDGES", (1, 8, 40))
    files = read_corpus(("stdlib",)).held_out[:2]
    monkeypatch.setattr(beginnings, "read_corpus", lambda data: Corpus((), files))
    found = beginnings.bits(tiny_bundle, 1)
    model, expected = titans_runtime.load(tiny_bundle, provider="cpu", threads=1), []
    for file in files:
        tokens = np.array(model.encode(file.data[:40]))
        logits = torch.tensor(model.session().feed(tokens[:-1], all_logits=True))
        expected.append(-torch.log_softmax(logits, -1).numpy()[np.arange(39), tokens[1:]] / np.log(2))
    told = np.stack(expected)
    assert found == pytest.approx([told[:, :7].mean(), told[:, 7:].mean()], rel=1e-5)
