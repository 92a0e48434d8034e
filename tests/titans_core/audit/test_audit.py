"""The audit: sound models pass, each known fault is found and no other, and training on noise shows what a leak is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.titans_core.audit import models
from titans_core.audit import AuditError, Budget, Inputs, Report, audit, build, examine

UNTRAINED = Budget(steps=0)
LENGTH = 24


def audited(module: nn.Module, budget: Budget = UNTRAINED, reset: str | None = None) -> Report:
    """The report on a module of `models`."""
    return audit(examine(module, length=LENGTH, reset=reset), budget=budget)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", models.SOUND)
def test_a_sound_model_passes(name: str) -> None:
    report = audited(models.SOUND[name]())
    assert report.ok, report.explain()
    tested = {check for check, verdict in report.checks.items() if verdict.ok}
    assert tested >= {"causal", "batch", "prefix", "repeat"}


@pytest.mark.parametrize("name", ["lstm", "gru", "cached-attention", "our-mac", "our-mag", "our-lmm"])
def test_a_state_is_found_and_carried(name: str) -> None:
    assert audited(models.SOUND[name]()).checks["split"].ok


@pytest.mark.parametrize("name", models.FAULTS)
def test_each_fault_is_found_and_no_other(name: str) -> None:
    build_one, faults = models.FAULTS[name]
    report = audited(build_one())
    assert {check for check, verdict in report.checks.items() if verdict.ok is False} == faults, report.explain()


def test_a_memory_that_a_method_clears_is_sound() -> None:
    report = audited(models.FastWeights(), reset="forget")
    assert report.ok, report.explain()
    assert report.checks["split"].ok


def test_training_on_noise_shows_a_leak_and_no_more() -> None:
    leaking = audited(models.SeesTheNext(), Budget(seconds=60, steps=60)).checks["noise"]
    assert leaking.ok is False
    assert leaking.change is not None
    assert leaking.change > 0.3
    for name in ("lstm", "dictionary"):
        assert audited(models.SOUND[name](), Budget(seconds=60, steps=25)).checks["noise"].ok


def test_a_model_of_whole_chunks_is_called_with_whole_chunks() -> None:
    assert examine(models.ours("mac"), length=LENGTH).multiple == 4
    assert examine(models.FixedLength(), length=LENGTH).multiple == 0
    assert examine(models.CausalTransformer()).length == 64  # it has so many places


@pytest.mark.parametrize(
    ("name", "inputs"),
    [("causal-transformer", Inputs(ids=models.IDS)), ("lstm", Inputs(features=8)), ("our-mag", Inputs(ids=models.IDS))],
)
def test_what_goes_in_is_found(name: str, inputs: Inputs) -> None:
    assert examine(models.SOUND[name](), length=LENGTH).inputs == inputs


class Constant(nn.Module):
    """Answers the same to everything, however its parameters are moved."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., :1] * 0.0 + 1.0


@pytest.mark.parametrize(
    ("module", "complaint"),
    [
        (nn.LSTM(8, 6), "batch_first=False"),
        (nn.Conv1d(8, 8, 3), "raised RuntimeError"),
        (nn.Sequential(nn.Linear(8, 4), nn.Flatten()), "expected one output for every token"),
        (nn.Sequential(nn.Linear(8, 8), Constant()), "do not depend on the inputs"),
    ],
)
def test_what_cannot_be_audited_is_refused_with_a_remedy(module: nn.Module, complaint: str) -> None:
    with pytest.raises(AuditError, match=complaint) as found:
        audited(module)
    assert found.value.remedy


def test_arguments_that_are_not_there_are_named() -> None:
    with pytest.raises(AuditError, match="no argument 'memory'"):
        examine(models.MeanSoFar(), state="memory")
    with pytest.raises(AuditError, match="no method 'clear'"):
        examine(models.MeanSoFar(), reset="clear")


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("here.py", "names no factory"),
        ("no_such_package_at_all:build", "there is no module"),
        ("json:nothing", "has no 'nothing'"),
        ("json:dumps", "raised TypeError"),
        ("json.encoder:INFINITY", "is a float"),
        ("json:JSONEncoder", "returned a JSONEncoder"),
        ("absent.py:build", "is not a file"),
    ],
)
def test_a_factory_that_cannot_be_called_is_named(target: str, complaint: str) -> None:
    with pytest.raises(AuditError, match=complaint):
        build(target)


def test_a_factory_comes_from_a_file_and_is_built_alike_each_time(tmp_path: Path) -> None:
    file = tmp_path / "some_model_of_a_user.py"
    file.write_text("from torch import nn\ndef build():\n    return nn.GRU(3, 4, batch_first=True)\n")
    first, second = build(f"{file}:build"), build(f"{file}:build")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    file.write_text("raise SystemExit('no licence')\n")
    with pytest.raises(AuditError, match="raised SystemExit: no licence"):
        build(f"{file}:build")


def test_the_report_is_json_with_one_answer_for_each_check() -> None:
    found = json.loads(json.dumps(audited(models.SeesTheNext()).to_json_dict(), allow_nan=False))
    assert found["ok"] is False
    answers = {name: found[name] for name in ("causal", "batch", "prefix", "split", "repeat", "noise")}
    assert answers == {
        "causal": False,
        "batch": True,
        "prefix": False,
        "split": None,
        "repeat": True,
        "noise": None,
    }
    assert found["checks"]["causal"]["change"] > found["checks"]["causal"]["allowed"]
