"""A run takes the number of threads that is quicker, keeps it to its end, and obeys who names one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from titans_cli import threads as command
from titans_cli.main import cli
from titans_core.errors import ConfigError
from titans_core.training import loop
from titans_core.training.checkpoint import load_checkpoint
from titans_core.training.loop import TrainOptions
from titans_core.training.threads import own_threads, quicker

SHAPE = [w for o in ("dim=16", "layers=1", "chunk=8", "ffn_hidden=16", "memory.heads=1") for w in ("--set", o)]


@pytest.mark.parametrize(
    ("alone", "several", "expected"),
    [(1.0, 0.5, 4), (1.0, 0.95, 1), (1.0, 1.0, 1), (0.1, 1.3, 1), (30.0, 100.0, 4)],
)
def test_the_quicker_number_is_taken(alone: float, several: float, expected: int) -> None:
    now, calls = 0.0, []

    def once() -> None:
        nonlocal now
        calls.append(torch.get_num_threads())
        now += alone if calls[-1] == 1 else several

    with own_threads():
        assert quicker(once, 4, clock=lambda: now) == expected
    assert set(calls) == ({1} if alone > 3 else {1, 4})  # a long pass is not tried again and again


def test_one_core_leaves_nothing_to_choose() -> None:
    assert quicker(lambda: pytest.fail("nothing to try"), 1) == 1


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Trains with the threads that a run may use and those that a trial finds; gives those that steps ran with."""
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 40)
    seen: list[int] = []
    step = loop._Run._train_step
    monkeypatch.setattr(loop._Run, "_train_step", lambda *a: (seen.append(torch.get_num_threads()), step(*a))[1])

    def train(out: str, *arguments: str, found: int = 2) -> list[int]:
        seen.clear()
        monkeypatch.setattr(loop, "quicker", lambda once, most: found)
        common = ["train", "--task", "text", "--data", str(tmp_path / "text.txt"), "--variant", "lmm", *SHAPE]
        common += ["--batch", "2", "--steps", "4", "--out", str(tmp_path / out), *arguments, "--json"]
        with own_threads():
            torch.set_num_threads(3)
            result = CliRunner().invoke(cli, common)
            assert torch.get_num_threads() == 3
        assert result.exit_code == 0, result.output
        return list(seen)

    return train


def test_every_step_has_the_threads_of_the_trial_and_a_resumed_run_keeps_them(
    run: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("titans_cli.train.usable_cores", lambda: 2)
    assert run("out", "--save-every", "2", found=2) == [2] * 4  # type: ignore[operator]
    assert load_checkpoint(tmp_path / "out").provenance["threads"] == 2
    (tmp_path / "out" / "step-00000004").rename(tmp_path / "lost")
    assert run("out", "--resume", found=1) == [2] * 2  # type: ignore[operator]


def test_a_number_that_is_named_is_used(run: object) -> None:
    for threads in ("1", "2", "3"):
        assert run(threads, "--threads", threads, found=1) == [int(threads)] * 4  # type: ignore[operator]


def test_a_trial_changes_nothing_that_is_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 40)
    common = ["train", "--task", "text", "--data", str(tmp_path / "text.txt"), "--variant", "lmm", *SHAPE]
    common += ["--batch", "2", "--steps", "2", "--json"]

    def trial(once: object, most: int) -> int:
        for _ in range(3):
            once()  # type: ignore[operator]
        return 1

    found = []
    for out, choose in (("tried", trial), ("untried", lambda once, most: 1)):
        monkeypatch.setattr(loop, "quicker", choose)
        with own_threads():
            torch.set_num_threads(2)
            monkeypatch.setattr("titans_cli.train.usable_cores", lambda: 2)
            result = CliRunner().invoke(cli, [*common, "--out", str(tmp_path / out)])
        found.append(json.loads(result.stdout)["metrics"])
    assert found[0] == found[1]
    ours, theirs = (load_checkpoint(tmp_path / out).tensors for out in ("tried", "untried"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("given", [{}, {"OMP_WAIT_POLICY": "active"}, {"KMP_BLOCKTIME": "200"}])
def test_threads_sleep_at_barriers_unless_the_environment_says_otherwise(given: dict[str, str]) -> None:
    code = "import os; from titans_cli.threads import wait_passively; wait_passively();"
    code += "print(os.environ.get('OMP_WAIT_POLICY'))"
    environment = {name: value for name, value in os.environ.items() if name not in command._WAITING} | given
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == (given.get("OMP_WAIT_POLICY", "None") if given else "passive")


@pytest.mark.parametrize("name", ["train", "export", "verify", "run", "chat", "bench", "eval"])
def test_every_command_that_computes_takes_threads(name: str) -> None:
    assert "--threads" in CliRunner().invoke(cli, [name, "--help"]).output


@pytest.mark.parametrize("name", ["train", "graft", "export", "import", "verify", "drift"])
def test_no_command_starts_a_hundred_thousand_threads(name: str, tmp_path: Path) -> None:
    """PyTorch and OpenMP would, and the process would end without a word."""
    arguments = {
        "train": ["--out", "x"],
        "graft": ["x", "--out", "y"],
        "export": ["x"],
        "verify": ["x"],
        "drift": ["x"],
    }
    result = CliRunner().invoke(cli, [name, *arguments.get(name, []), "--threads", "99999"])
    assert result.exit_code == 2
    if name != "import":  # which has commands of its own
        assert "99999 is more than the" in result.output
    with pytest.raises(ConfigError, match="use at most"):
        TrainOptions(steps=1, threads=99_999)
