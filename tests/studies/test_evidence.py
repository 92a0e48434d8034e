"""The evidence drivers: recipes are commands that exist, a study runs every step once, both sides agree."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import numpy as np
import pytest

import titans_runtime
from studies.quality import ablations, dna, needle, recall, rules, text, writes
from studies.quality.agreement import Eager, needle_answers, recall_answers
from studies.quality.work import Study, mean_and_range, write
from tests.conftest import RECALL, SMALL
from titans_cli.main import cli
from titans_cli.model_options import ModelOptions
from titans_core.config import VARIANTS
from titans_measure.quality.needle import NeedleOptions

RECIPES = {
    **{f"recall-{variant}": recall.recipe(variant, 0) for variant in VARIANTS},
    **{f"recall-{label}": recall.recipe("lmm", 0, *sizes) for label, sizes in recall.SIZES.items()},
    **{f"needle-{variant}": needle.recipe(variant, 0) for variant in VARIANTS},
    **{f"writes-{variant}": writes.recipe(variant, 0) for variant in VARIANTS},
    **{f"ablation-{label}": ablations.recipe(row, 0) for label, row in ablations.ROWS.items()},
    **{f"recall of {label}": rules.recall_recipe(label, 0) for label in rules.ROWS},
    **{f"needle of {label}": rules.needle_recipe(label, 0) for label in rules.ROWS},
    **{f"text of {label}": rules.text_recipe(label, 0) for label in rules.ROWS},
}


@pytest.mark.parametrize("words", RECIPES.values(), ids=RECIPES)
def test_every_recipe_is_a_training_command_with_a_sound_model(words: list[str]) -> None:
    command = cli.get_command(click.Context(cli), "train")
    assert command is not None
    values = command.make_context("train", [*words, "--out", "nowhere"]).params
    told = ModelOptions(values["variant"], values["preset"], None, values["overrides"], rule=values["rule"])
    model = told.build(256)
    assert model.variant == values["variant"]


PRINTED = {
    "recall": recall.recipe("lmm", 0),
    "needle": needle.recipe("mag", 0),
    "text": [*map(str, text.RECIPE), "--seed", "0"],
    "dna": [*map(str, dna.RECIPE), "--seed", "0"],
}


@pytest.mark.parametrize(("page", "words"), PRINTED.items(), ids=PRINTED)
def test_the_command_on_a_page_is_the_recipe(page: str, words: list[str]) -> None:
    told = (Path(__file__).resolve().parents[2] / "docs" / "evidence" / f"{page}.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^titans train .*?(?<!\\)\n", told, re.M | re.S)
    assert shlex.split(command.replace("\\\n", "")) == ["titans", "train", *words, "--out", page]


def test_every_ablation_is_another_model_and_only_bases_change_nothing() -> None:
    def model(row: ablations.Row) -> object:
        words = ablations.recipe(row, 0)
        pairs = tuple(words[i + 1] for i, word in enumerate(words) if word == "--set")
        return ModelOptions(row.variant, "tiny", None, pairs).build(65)

    models = [model(row) for row in ablations.ROWS.values()]
    assert [models.index(each) for each in models] == list(range(len(models)))
    bases = [row.variant for row in ablations.ROWS.values() if not row.changes]
    assert sorted(bases) == sorted({row.variant for row in ablations.ROWS.values()})


def test_every_row_of_the_rules_is_another_memory_of_one_size() -> None:
    models = []
    for label in rules.ROWS:
        words = rules.recall_recipe(label, 0)
        pairs = tuple(words[i + 1] for i, word in enumerate(words) if word == "--set")
        models.append(ModelOptions("lmm", "tiny", None, pairs, rule=words[words.index("--rule") + 1]).build(65))
    assert [models.index(each) for each in models] == list(range(len(models)))
    assert len({model.memory_widths for model in models}) == 1


def test_the_tables_of_the_rules_have_every_row_and_every_figure() -> None:
    rows = {"titans": [{"near": 1.0, "far": 0.5}, {"near": 1.0, "far": 0.7}]}
    found = rules.tables({"recall": rows, "text": {"titans": [{"kept": 2.5}, {"kept": 2.7}]}})
    assert "| titans | 100.0 | 60.0 (50.0 to 70.0) |" in found
    assert "| titans | 2.600 (2.500 to 2.700) |" in found


def test_a_row_has_learned_once_its_mean_loss_is_low(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    steps = [3.5] * 70 + [0.5] * 60
    log.write_text("step,loss\n" + "".join(f"{i + 1},{loss}\n" for i, loss in enumerate(steps)), encoding="utf-8")
    # 3.5 n + 0.5 (50 - n) < 50 holds from n = 8 on: 42 low ones after the 70 high ones
    assert ablations.learned(log) == 70 + 42
    log.write_text("step,loss\n" + 60 * "1,3.5\n", encoding="utf-8")
    assert ablations.learned(log) is None


def test_a_study_runs_the_real_commands_and_keeps_what_they_said(tmp_path: Path) -> None:
    study = Study(tmp_path)
    shape = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
    sizes = ("--task", "recall", *RECALL, "--gap", "8", "--eval-gap", "16", "--steps", "1", "--batch", "2")
    (tmp_path / "checkpoints" / "tiny").mkdir(parents=True)
    (tmp_path / "checkpoints" / "tiny" / "left by a killed run").touch()
    trained = study.train("tiny", *sizes, *shape)
    report = study.evaluate("tiny", study.export("tiny", "--verify-tokens", 0), "--task", "recall", *RECALL, "--gap", 8)
    assert (trained["step"], report["task"]) == (1, "recall")
    kept = {path.name: json.loads(path.read_text()) for path in (tmp_path / "results").iterdir()}
    assert set(kept) == {"train-tiny.json", "export-tiny.json", "eval-tiny.json"}
    assert kept["eval-tiny.json"]["command"].startswith("titans eval")
    assert study.seconds("train-tiny") > 0
    with pytest.raises(SystemExit, match="exit code 2"):
        study.train("other", "--task", "chess")


def test_a_study_runs_every_step_once_and_again_where_it_or_its_source_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        ran.append(command[3])
        return subprocess.CompletedProcess(command, 0, stdout=json.dumps({"run": len(ran)}))

    monkeypatch.setattr(subprocess, "run", run)
    study = Study(tmp_path)

    def steps(seed: int) -> list[dict[str, Any]]:
        trained = study.train("tiny", "--seed", seed)
        return [trained, study.evaluate("tiny", study.export("tiny"), "--task", "recall")]

    first = steps(0)
    assert steps(0) == first
    assert ran == ["train", "export", "eval"]
    assert steps(1) != first
    assert ran == 2 * ["train", "export", "eval"]


def canned(
    self: Study, name: str, _made_from: str | None, *words: object, replaces: Path | None = None
) -> dict[str, Any]:
    """What a command might have said, at once: all right but for the controls."""
    said = [str(word) for word in words]
    gaps = [value for word, value in pairwise(said) if word in ("--gap", "--length")]
    pairs = [value for word, value in pairwise(said) if word == "--pairs"] or ["16"]
    share = 0.0 if "writes-off" in name or "attention-only" in name else 1.0
    points = [{"accuracy": share} for _ in gaps for _ in pairs]
    write(self._result(name), {"seconds": 1.0, "result": {}})
    if replaces:
        replaces.mkdir(parents=True)
        (replaces / "log.csv").write_text("step,loss\n" + 50 * "1,0.5\n", encoding="utf-8")
    known = {"parameters": 9, "points": points, "longest_gap": {"16": 7}}
    return {**known, "reset": {"accuracy": 0.1} if "needle" in said else [{"accuracy": 0.1}]}


@pytest.mark.parametrize(
    ("study", "more", "line"),
    [
        (recall, "--push", "| mac | 100.0 | 10.0 | 0.0 | 0.0 | 1 to 1 |"),
        (needle, "--forms", "| mac, attention only | 0 | 0 | 0 | 0 | 0 | 0 | 0 |"),
        (ablations, None, "| − momentum | 9 | 100.0 | 100.0 | 100.0 | 50, 50, 50 |"),
    ],
)
def test_a_study_ends_with_its_table_and_pictures(
    study: ModuleType,
    more: str | None,
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(Study, "_run", canned)
    monkeypatch.setattr(sys, "argv", ["study", "--out", str(tmp_path), *([more] if more else [])])
    study.main()
    assert line in capsys.readouterr().out.splitlines()
    assert list(tmp_path.glob("*.json"))
    pictures = list(tmp_path.glob("*.svg"))
    assert bool(pictures) == (study is not ablations)
    assert all(picture.stat().st_size < 100_000 for picture in pictures)


def test_means_come_with_their_range() -> None:
    assert mean_and_range([1.0, 1.0]) == "100.0"
    assert mean_and_range([0.5, 0.75, 1.0]) == "75.0 (50.0 to 100.0)"


def test_bundle_and_pytorch_give_the_same_answers(
    recall_checkpoint: Path, recall_bundle: Path, tiny_checkpoint: Path, tiny_bundle: Path
) -> None:
    model = titans_runtime.load(recall_bundle, provider="cpu")
    theirs = recall_answers(Eager.of(recall_checkpoint, 32), 32, keys=4, pairs=2, gap=37)
    assert np.mean(recall_answers(model.driver(32), 32, keys=4, pairs=2, gap=37) == theirs) >= 0.999
    options = NeedleOptions(lengths=(130,), streams=4)
    model = titans_runtime.load(tiny_bundle, provider="cpu")
    found = needle_answers(Eager.of(tiny_checkpoint, 4), options)
    assert np.array_equal(needle_answers(model.driver(4), options), found)


def test_the_tables_of_writes_say_what_the_reports_say(tiny_bundle: Path) -> None:
    def report(kept: float, off: float) -> dict[str, Any]:
        bits = {"kept": kept, "reset": 4.0, "frozen": 3.5, "writes_off": off}
        return {"bits_per_byte": bits, "positions": [{"start": 1, **bits}, {"start": 256, **bits}]}

    found = {"mac": writes.summary([report(2.0, 2.5), report(3.0, 3.7)])}
    lines = writes.tables(found).splitlines()
    assert lines[2] == "| mac | 2.500 ± 0.707 | 3.100 ± 0.849 | 3.500 ± 0.000 | 4.000 ± 0.000 |"
    assert lines[-1] == "| mac | 0.600 ± 0.141 | 0.600 ± 0.141 |"
    rows = writes.follow(tiny_bundle, 1)
    assert [row["bytes"] for row in rows] == list(writes.PLACES)
    assert all(row["logits"] > 0 and row["0.memory_0 moved"] > 0 for row in rows)
    assert writes.along_table(rows).count("\n") == len(writes.PLACES) + 1
