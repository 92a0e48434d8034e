"""`titans audit`: exit codes, JSON alone on stdout, and one line for what is wrong with the target."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from titans_cli.main import cli

MODELS = """
from torch import nn

def sound():
    print("building")
    return nn.GRU(4, 3, batch_first=True)

class Leaks(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x.flip(1))
"""


@pytest.fixture
def audit(tmp_path: Path) -> object:
    """A function that runs `titans audit` on a model of the file above."""
    file = tmp_path / "models_of_a_user.py"
    file.write_text(MODELS)

    def run(name: str, *options: str) -> Result:
        return CliRunner().invoke(cli, ["audit", f"{file}:{name}", "--length", "16", "--noise", "0", *options])

    return run


def test_a_sound_model_exits_with_0_and_what_it_prints_is_not_in_the_json(audit) -> None:  # type: ignore[no-untyped-def]
    result = audit("sound", "--json")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["ok"] is True
    assert [report[check] for check in ("causal", "batch", "prefix", "split", "repeat", "noise")] == [True] * 5 + [None]
    assert "building" in result.stderr


def test_a_leak_exits_with_1_and_says_what_it_means(audit) -> None:  # type: ignore[no-untyped-def]
    result = audit("Leaks")
    assert result.exit_code == 1
    assert "causal  FAILS" in result.stdout
    assert "It has seen its answers in training" in result.stdout


def test_wrong_usage_is_one_line_and_exits_with_2(audit) -> None:  # type: ignore[no-untyped-def]
    for name, options, complaint in (
        ("absent", (), "has no 'absent'"),
        ("sound", ("--ids", "5", "--vectors", "4"), "give one of them"),
        ("sound", ("--multiple", "5"), "not a multiple"),
        ("sound", ("--vectors", "7"), "raised"),
    ):
        result = audit(name, *options)
        assert result.exit_code == 2
        assert [line for line in result.stderr.splitlines() if line.startswith("Error: ")] == [
            result.stderr.splitlines()[-1]
        ]
        assert complaint in result.stderr
