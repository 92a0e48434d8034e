"""`titans train`: what it prints, and what it says to bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from titans_cli.main import cli


def train(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["train", *map(str, arguments)])


def is_one_line_error(result: Result, *words: str) -> bool:
    """Exit code 2, nothing on stdout, one `Error: …` line on stderr that contains `words`."""
    text = result.stderr
    return (result.exit_code, result.stdout, text.count("\n")) == (2, "", 1) and all(word in text for word in words)


def test_json_is_one_document_and_progress_stays_on_stderr(tmp_path: Path) -> None:
    sizes = ("--keys", "4", "--pairs", "2", "--gap", "4", "--eval-gap", "8", "--batch", "2", "--variant", "lmm")
    result = train("--task", "recall", "--steps", "1", *sizes, "--out", tmp_path / "model", "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["step"] == 1
    assert 0 <= document["metrics"]["accuracy"] <= 1
    assert "step 1" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--task", "recall", "--variant", "mamba", "--steps", "1"], ["--variant", "mamba", "lmm"]),
        (["--task", "chess", "--steps", "1"], ["--task", "chess", "recall"]),
        (["--task", "recall", "--steps", "0"], ["--steps"]),
        (["--task", "recall", "--steps", "1", "--set", "memory.depth=0"], ["memory.depth", "0"]),
    ],
)
def test_bad_options_are_one_line_and_leave_nothing_behind(
    tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    result = train(*arguments, "--out", tmp_path / "model")
    assert is_one_line_error(result, *words), result.output
    assert list(tmp_path.iterdir()) == []


def test_a_directory_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    result = train("--task", "recall", "--steps", "1", "--out", tmp_path)
    assert is_one_line_error(result, "not a checkpoint"), result.output
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    result = train("--task", "recall", "--steps", "1", "--out", tmp_path / "file" / "model")
    assert is_one_line_error(result, "file"), result.output
