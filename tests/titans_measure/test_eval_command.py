"""`titans eval`: one JSON document, a picture on request, and clean errors."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.conftest import RECALL, titans
from titans_cli.main import cli


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["eval", *map(str, arguments)])


def test_json_is_one_document_and_a_picture_is_drawn(recall_bundle: Path, tmp_path: Path) -> None:
    picture = tmp_path / "recall.svg"
    document = titans("eval", recall_bundle, "--task", "recall", *RECALL, "--gap", "4", "--plot", picture)
    assert document["task"] == "recall"
    assert picture.read_text(encoding="utf-8").startswith("<?xml")


def test_without_json_a_person_reads_lines(recall_bundle: Path) -> None:
    result = run(recall_bundle, "--task", "recall", *RECALL, "--gap", "4", "--streams", "2")
    assert result.exit_code == 0, result.output
    assert "2 pairs of 4 keys, gap 4:" in result.stdout
    assert "memory reset:" in result.stdout


def test_needles_are_looked_for_in_files(tiny_bundle: Path, tmp_path: Path) -> None:
    text, picture = tmp_path / "hay.txt", tmp_path / "needle.svg"
    text.write_text("sphinx of black quartz, judge my vow. " * 99)
    options = ("--form", "number", "--data", text, "--length", "256", "--streams", "2", "--plot", picture)
    document = titans("eval", tiny_bundle, "--task", "needle", *options)
    assert document["wish"]["data"] == [str(text)]  # type: ignore[index]
    assert picture.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--task", "chess"], ["--task", "recall"]),
        (["--task", "recall", "--keys", "64"], ["129 token ids", "use --keys 4"]),
        (["--task", "recall", "--keys", "3", "--pairs", "2"], ["7 token ids and the model 9", "use --keys 4"]),
        (["--task", "recall", "--keys", "4", "--pairs", "8"], ["use fewer pairs"]),
        (["--task", "recall", "--gap", "-1"], ["--gap"]),
        (["--task", "recall", "--length", "256"], ["--length belongs to --task needle"]),
        (["--task", "needle"], ["256 token ids", "trained with --task recall", "train one with --task needle"]),
        (["--task", "dna"], ["learned those of recall", "train one with --task dna"]),
        (["--task", "recall", "--provider", "abacus"], ["abacus"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(recall_bundle: Path, arguments: list[str], words: list[str]) -> None:
    result = run(recall_bundle, *arguments)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert all(word in result.stderr for word in words), result.stderr


@pytest.mark.parametrize(
    ("place", "words"),
    [("recall.doc", ".svg or .png"), ("none/recall.svg", "is no directory"), ("kept.svg", "is not writable")],
)
def test_a_picture_that_cannot_be_drawn_is_refused_before_anything_is_measured(
    recall_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, words: str
) -> None:
    (tmp_path / "kept.svg").touch()
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK or "kept" not in str(path))  # root may write
    monkeypatch.setattr("titans_runtime.load", None)
    result = run(recall_bundle, "--task", "recall", *RECALL, "--plot", tmp_path / place)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1), result.output
    assert words in result.stderr


def test_without_matplotlib_no_picture_is_promised(
    recall_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = run(recall_bundle, "--task", "recall", *RECALL, "--plot", tmp_path / "recall.svg")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "pip install 'matplotlib>=" in result.stderr


def test_figures_are_printed_whatever_becomes_of_the_picture(
    recall_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("titans_measure.quality.plots.draw_recall", full)
    result = run(recall_bundle, "--task", "recall", *RECALL, "--gap", "4", "--plot", tmp_path / "a.svg", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["task"] == "recall"
    assert "free some disk space" in result.stderr


def test_a_missing_bundle_is_named(tmp_path: Path) -> None:
    result = run(tmp_path / "none.titans", "--task", "recall")
    assert result.exit_code == 2
    assert "none.titans" in result.stderr
