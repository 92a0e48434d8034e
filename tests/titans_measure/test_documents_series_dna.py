"""`titans eval` on text, series and dna: what is in the report, and that its figures are what they are said to be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

import titans_runtime
from tests.conftest import SMALL, titans
from titans_cli.main import cli
from titans_measure.quality.series import naive, seasonal_naive
from titans_tasks.series import Forecasting
from titans_tasks.series_data import Series

SHAPE = [word for name, value in {**SMALL, "persistent_tokens": 0}.items() for word in ("--set", f"{name}={value}")]
STEPS = 4000  # the last fifth has room for anomalies of every kind
READ = ("--shortest", "100", "--window", "32", "--frozen-after", "40", "--longest", "600")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["eval", *map(str, arguments)])


def bundle(folder: Path, *options: str | Path) -> Path:
    """An lmm of two training steps."""
    titans("train", *options, *SHAPE, "--variant", "lmm", "--steps", "2", "--batch", "2", "--out", folder / "model")
    titans("export", folder / "model", "--out", folder / "model.titans", "--verify-tokens", "0")
    return folder / "model.titans"


@pytest.fixture(scope="module")
def wave(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a noisy sine of 20 steps per period."""
    path = tmp_path_factory.mktemp("wave") / "wave.npy"
    noise = np.random.default_rng(0).standard_normal(STEPS)
    np.save(path, np.sin(2 * np.pi * np.arange(STEPS) / 20) + 0.05 * noise)
    return path


@pytest.fixture(scope="module")
def series_bundle(wave: Path) -> Path:
    return bundle(wave.parent, "--task", "series", "--data", wave, "--horizon", "3")


@pytest.fixture(scope="module")
def dna_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = ("--families", "2", "--gap", "8", "--eval-gap", "16")
    return bundle(tmp_path_factory.mktemp("dna"), "--task", "dna", *sizes)


# -- text --------------------------------------------------------------------------------------------------------------


def test_text_reports_bits_by_position_in_every_mode(tiny_bundle: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.py"
    text.write_text("def double(x):\n    return 2 * x\n\n" * 300)
    picture = tmp_path / "text.svg"
    document = titans("eval", tiny_bundle, "--task", "text", "--data", text, *READ, "--plot", picture)
    keys = {"task", "model", "wish", "documents", "bytes", "bits_per_byte", "positions", "dead_memories"}
    assert set(document) == keys
    assert set(json.loads(json.dumps(document["bits_per_byte"]))) == {"kept", "reset", "frozen", "writes_off"}
    assert document["bytes"] == 600
    positions = document["positions"]
    assert isinstance(positions, list)
    assert [(one["start"], one["stop"]) for one in positions] == [(1, 256), (256, 512), (512, 600)]
    for mode, overall in document["bits_per_byte"].items():  # type: ignore[attr-defined]
        assert overall == pytest.approx(sum(one["tokens"] * one[mode] for one in positions) / 599)
    assert picture.read_text(encoding="utf-8").startswith("<?xml")


def test_memory_kept_is_what_one_session_says(tiny_bundle: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.py"
    text.write_bytes(bytes(range(32, 127)) * 40)
    document = titans("eval", tiny_bundle, "--task", "text", "--data", text, *READ, "--longest", "300")
    model = titans_runtime.load(tiny_bundle, provider="cpu")
    held_out = np.frombuffer(text.read_bytes()[-380:][:300], np.uint8).astype(np.int64)
    logits = model.session().feed(held_out[:-1], all_logits=True).astype(np.float64)
    chances = np.exp(logits - logits.max(-1, keepdims=True))
    chances /= chances.sum(-1, keepdims=True)
    bits = -np.log2(chances[np.arange(299), held_out[1:]]).mean()
    assert document["bits_per_byte"]["kept"] == pytest.approx(bits, rel=1e-5)  # type: ignore[index]


def test_writes_off_is_what_the_exported_control_says(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.py"
    text.write_bytes(bytes(range(32, 127)) * 40)
    titans(
        "export", tiny_checkpoint, "--control", "writes-off", "--out", tmp_path / "off.titans", "--verify-tokens", "0"
    )
    ask = ("--task", "text", "--data", text, *READ)
    with_switch, control = (
        titans("eval", path, *ask)["bits_per_byte"] for path in (tiny_bundle, tmp_path / "off.titans")
    )
    assert with_switch["writes_off"] == pytest.approx(control["kept"], rel=1e-6)  # type: ignore[index]
    assert "writes_off" not in control  # type: ignore[operator]


# -- series ------------------------------------------------------------------------------------------------------------


def test_the_naive_forecasts_are_what_a_person_would_write_down() -> None:
    values = np.arange(100.0)[:, None] ** 2
    of = Forecasting.of(Series("squares", values, np.ones(100, np.bool_), 4), horizon=6)
    place = np.array([50])
    back = of.mean + of.deviation * np.array([naive(of, place)[0, :, 0], seasonal_naive(of, place)[0, :, 0]]).T
    assert back[:, 0] == pytest.approx([50**2] * 6)
    # The next four steps are those of the last season, and so are the four after them.
    assert back[:, 1] == pytest.approx([47**2, 48**2, 49**2, 50**2, 47**2, 48**2])


def test_series_reports_errors_and_detections(series_bundle: Path, wave: Path, tmp_path: Path) -> None:
    ask = ("--task", "series", "--data", wave, "--season", "20", "--anomalies", "2")
    document = titans("eval", series_bundle, *ask, "--plot", tmp_path / "wave.svg")
    assert document["series"] == {"steps": STEPS, "split": 3200, "season": 20, "horizon": 3}
    assert document["forecasts"] == 800 - 3 + 1
    errors = json.loads(json.dumps(document["errors"]))
    # A sine with noise: the last season is right up to two draws of noise, the last value is not.
    noise = 2 * 0.05**2 / np.var(np.load(wave)[:3200])
    assert errors["seasonal_naive"]["mse"] == pytest.approx(noise, rel=0.2)
    assert errors["naive"]["mse"] > 10 * noise
    assert errors["model"]["mse"] > 0
    detection = json.loads(json.dumps(document["detection"]))
    for score in ("forecast", "memory", "last_change"):
        assert set(detection[score]["by_kind"]) == {"spike", "shift", "noise", "frequency"}
        assert 0 <= detection[score]["overall"] <= 1
    assert detection["last_change"]["overall"] > 0.9
    assert (tmp_path / "wave.svg").exists()


def test_a_person_reads_lines_and_short_series_have_no_anomalies(series_bundle: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "short.npy", np.sin(np.arange(300.0)))
    result = run(series_bundle, "--task", "series", "--data", tmp_path / "short.npy")
    assert result.exit_code == 0, result.output
    assert "58 forecasts of 3 steps from step 240 on" in result.stdout
    assert "anomalies" not in result.stdout


# -- dna ---------------------------------------------------------------------------------------------------------------


def test_dna_reports_bits_per_gap(dna_bundle: Path, tmp_path: Path) -> None:
    ask = ("--task", "dna", "--families", "2", "--gap", "50", "--gap", "10", "--streams", "2")
    document = titans("eval", dna_bundle, *ask, "--plot", tmp_path / "dna.svg")
    points = json.loads(json.dumps(document["points"]))
    assert [point["gap"] for point in points] == [10, 50]
    for point in [*points, json.loads(json.dumps(document["reset"]))]:
        assert point["bases"] == 2 * 2 * 8
        assert point["bits"] == pytest.approx(np.mean(point["by_offset"]))
        assert 1.5 < point["bits"] < 3  # it has learned nothing
    assert (tmp_path / "dna.svg").exists()


def test_fasta_is_read_like_text(dna_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "a.fa").write_text(">a\n" + "ACGT" * 500 + "\n")
    document = titans("eval", dna_bundle, "--task", "dna", "--data", tmp_path / "a.fa", *READ)
    assert document["bases"] == 200
    assert set(json.loads(json.dumps(document["bits_per_base"]))) == {"kept", "reset", "frozen", "writes_off"}


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--task", "series", "--data", "glucose"], "takes tokens; train one with --task series"),
        (["--task", "series"], "needs one --data"),
        (["--task", "text", "--data", "none.txt"], "none.txt"),
        (["--task", "text", "--shortest", "10000000", "--longest", "10000000"], "a smaller --shortest"),
        (["--task", "text", "--longest", "20"], "longest that is not below the shortest"),
        (["--task", "text", "--season", "3"], "belongs to --task series"),
        (["--task", "dna", "--data", "none.fa"], "learned those of text"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tiny_bundle: Path, arguments: list[str], words: str) -> None:
    result = run(tiny_bundle, *arguments)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1), result.output
    assert words in result.stderr


@pytest.mark.parametrize("option", ["--families", "--gap", "--streams"])
def test_options_of_planted_repeats_are_refused_for_fasta(dna_bundle: Path, option: str) -> None:
    result = run(dna_bundle, "--task", "dna", "--data", "a.fa", option, "4")
    assert result.exit_code == 2
    assert f"{option} belongs to --task" in result.stderr
    assert "leave it out for dna with --data" in result.stderr


@pytest.mark.parametrize("option", ["--window", "--shortest", "--longest", "--frozen-after"])
def test_options_of_fasta_are_refused_for_planted_repeats(dna_bundle: Path, option: str) -> None:
    result = run(dna_bundle, "--task", "dna", option, "128")
    assert result.exit_code == 2
    assert f"{option} belongs to --task text and dna with --data" in result.stderr
    assert "leave it out for dna without --data" in result.stderr


def test_fasta_that_is_not_there_is_named(dna_bundle: Path) -> None:
    result = run(dna_bundle, "--task", "dna", "--data", "none.fa")
    assert result.exit_code == 2
    assert "none.fa" in result.stderr


def test_another_series_is_refused(series_bundle: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "two.npy", np.random.default_rng(0).standard_normal((400, 2)))
    result = run(series_bundle, "--task", "series", "--data", tmp_path / "two.npy")
    assert result.exit_code == 2
    assert "2 channels, which make 10 features" in result.stderr
    result = run(series_bundle, "--task", "text")
    assert "takes vectors" in result.stderr
