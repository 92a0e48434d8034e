"""The drift report: what it says of a stream that is known, and that it notices what drifts."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from tests.export.conftest import build
from titans_cli.main import cli
from titans_core.model import TitansModel
from titans_export.errors import ExportError
from titans_export.export import export_model
from titans_export.verification import drift as drifting
from titans_export.verification.drift import Curve, DriftLimits, DriftReport, drift, limits
from titans_runtime.bundle import open_bundle


def report(positions: list[int], **states: list[float]) -> DriftReport:
    curve = Curve(top1=[1.0, 0.5, 0.75, 1.0], kl=[0.0, 0.1, 0.2, 0.1], states=states)
    return DriftReport("fp16", positions[-1], DriftLimits(0.8, 1e-3), positions, [1000] * 4, {"bundle": curve})


def test_growth_is_the_slope_of_the_second_half() -> None:
    found = report([1000, 2000, 3000, 4000], steady=[9.0, 0.0, 0.2, 0.2], growing=[0.0, 0.0, 0.1, 0.3])
    assert found.slope("bundle", "steady") == pytest.approx(0.0, abs=1e-12)
    assert found.slope("bundle", "growing") == pytest.approx(0.2)
    assert found.top1("bundle") == pytest.approx(0.8125)
    assert found.kl("bundle") == pytest.approx(0.1)
    assert not found.ok
    assert ["growing" in excess for excess in found.excesses()] == [True]
    assert "outside the limits" in found.explain()


def test_the_kl_divergence_is_the_definition() -> None:
    random = np.random.default_rng(0)
    got, want = random.standard_normal((2, 1, 3, 5))
    p, q = (torch.softmax(torch.from_numpy(x), -1) for x in (want, got))
    assert drifting._divergence(got, want) == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-9)


def small(kind: str, dtype: str, path: Path) -> TitansModel:
    model = build(kind)
    export_model(model, path, dtype=dtype, verify_tokens=0)
    return model


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "int8", "int4"])
def test_every_precision_stays_near_fp32(dtype: str, tmp_path: Path) -> None:
    model = small("mal-tokens", dtype, tmp_path / "m.titans")
    bundle = open_bundle(tmp_path / "m.titans")
    stream = np.random.default_rng(0).integers(0, 50, (1, 160))
    found = drift(bundle, model, stream)
    assert set(found.curves) == ({"bundle"} if dtype.startswith("int") else {"bundle", "arithmetic"})
    assert found.positions == list(range(16, 161, 16))
    for side, curve in found.curves.items():
        least, most, state_error = (0.6, 0.1, 0.3) if dtype == "int4" else (0.9, 1e-2, 0.1)  # an untrained model's
        assert (found.top1(side) or 0) > least
        assert 0 < found.kl(side) < most
        assert set(curve.states) == {state.name for state in bundle.manifest.states if state.kind == "carried"}
        assert all(0 <= error < state_error for errors in curve.states.values() for error in errors)


def test_a_model_whose_weights_are_others_is_outside_the_limits(tmp_path: Path) -> None:
    model = small("lmm-tokens", "fp16", tmp_path / "m.titans")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter) * parameter.std(correction=0))
    found = drift(open_bundle(tmp_path / "m.titans"), model, np.random.default_rng(0).integers(0, 50, (1, 64)))
    assert not found.ok


def test_a_continuous_model_is_told_by_its_predictions(tmp_path: Path) -> None:
    model = small("lmm-continuous", "bf16", tmp_path / "m.titans")
    stream = np.random.default_rng(0).standard_normal((1, 64, 3), dtype=np.float32)
    found = drift(open_bundle(tmp_path / "m.titans"), model, stream)
    assert found.top1("bundle") is None
    assert 0 < found.kl("arithmetic") < 0.1


def test_numbers_that_leave_the_range_are_an_error_that_names_bf16(tmp_path: Path) -> None:
    model = build("lmm-tokens")
    with torch.no_grad():
        model.embedding *= 1e6
    export_model(model, tmp_path / "m.titans", dtype="fp32", verify_tokens=0)
    export_model(model, tmp_path / "h.titans", dtype="bf16", verify_tokens=0)
    huge = open_bundle(tmp_path / "h.titans")
    assert drift(huge, model, np.zeros((1, 16), np.int64)).tokens == 16
    with pytest.raises(ExportError, match="fp16 ends at 65504; use --dtype bf16"):
        export_model(model, tmp_path / "f.titans", dtype="fp16", verify_tokens=0)
    with pytest.raises(ExportError, match="no drift limits for dtype 'fp32'"):
        drift(open_bundle(tmp_path / "m.titans"), model, np.zeros((1, 16), np.int64))


def test_every_lower_precision_has_its_limits() -> None:
    assert [limits(dtype).top1 for dtype in ("fp16", "bf16", "int8", "int4")] == [0.99, 0.99, 0.97, 0.9]


# ---------------------------------------------------------------- the command


def verify(*arguments: object) -> Any:
    return CliRunner().invoke(cli, ["verify", *map(str, arguments)])


def test_verify_drift_reports_and_draws(tiny_checkpoint: Path, tmp_path: Path) -> None:
    bundle, text, picture = tmp_path / "m.titans", tmp_path / "text.py", tmp_path / "drift.svg"
    text.write_text("def double(x):\n    return 2 * x\n" * 40)
    made = CliRunner().invoke(cli, ["export", str(tiny_checkpoint), "--out", str(bundle), "--dtype", "int8",
                                    "--verify-tokens", "64", "--json"])  # fmt: skip
    assert json.loads(made.stdout)["dtype"] == "int8"
    common = (bundle, "--checkpoint", tiny_checkpoint, "--drift", "--tokens", "96")
    found = verify(*common, "--data", text, "--plot", picture, "--json")
    document = json.loads(found.stdout)
    assert found.exit_code == (0 if document["ok"] else 1)
    assert (document["dtype"], document["tokens"], document["positions"][-1]) == ("int8", 96, 96)
    assert 0 <= document["sides"]["bundle"]["top1"] <= 1
    assert picture.read_text().startswith("<?xml")
    plain = verify(*common)
    assert plain.stdout.startswith("int8 bundle, 96 tokens: top-1 agreement")


def test_titans_drift_is_verify_with_drift(tiny_checkpoint: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "m.titans"
    export = ["export", str(tiny_checkpoint), "--out", str(bundle), "--dtype", "fp16", "--verify-tokens", "0"]
    assert CliRunner().invoke(cli, export).exit_code == 0
    common = [str(bundle), "--checkpoint", str(tiny_checkpoint), "--tokens", "40", "--json"]
    old, new = (CliRunner().invoke(cli, words) for words in (["verify", *common, "--drift"], ["drift", *common]))
    assert (old.exit_code, old.stdout) == (new.exit_code, new.stdout)
    assert json.loads(new.stdout)["dtype"] == "fp16"


def test_drift_is_printed_whatever_becomes_of_the_picture(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise ExportError("cannot draw", "free some space")

    drifted = SimpleNamespace(to_json_dict=lambda: {"ok": True}, explain=lambda: "no drift", ok=True)
    monkeypatch.setattr("titans_export.verification.drift.measure_drift", lambda *_, **__: drifted)
    monkeypatch.setattr("titans_export.verification.drift_plot.plot_drift", full)
    found = verify(tiny_bundle, "--checkpoint", tmp_path, "--drift", "--plot", tmp_path / "drift.svg")
    assert (found.exit_code, found.stdout) == (2, "no drift\n")
    assert "free some space" in found.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "stdlib"], ["--drift"]),
        (["--plot", "x.svg"], ["--drift"]),
        (["--drift", "--tokens", "8", "--plot", "x.doc"], [".svg or .png"]),
        (["--drift", "--data", "short.txt", "--tokens", "5000"], ["5,000"]),
        (["--drift", "--tokens", "8"], ["no drift limits", "fp32"]),
    ],
)
def test_drift_refuses_what_it_cannot_do(
    arguments: list[str], words: list[str], tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "short.txt").write_text("so short\n" * 5)
    arguments = [str(tmp_path / word) if word == "short.txt" else word for word in arguments]
    found = verify(tiny_bundle, "--checkpoint", tiny_checkpoint, *arguments)
    assert found.exit_code == 2
    assert all(word in found.stderr for word in words), found.stderr
