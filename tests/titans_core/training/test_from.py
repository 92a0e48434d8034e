"""`titans train --from`: a model is trained further, on other data or for more steps, and says where it comes from."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from click.testing import CliRunner, Result
from torch import nn

from titans_cli.main import cli
from titans_core.training.checkpoint import load_checkpoint, load_model
from titans_export.export import export_checkpoint
from titans_tasks.documents import read_corpus
from titans_tasks.text import TextTask
from titans_tasks.tokens import ByteTokenizer

SHAPE = ["--variant", "lmm"] + [
    word
    for option in ("dim=16", "layers=1", "chunk=8", "ffn_hidden=16", "memory.heads=1")
    for word in ("--set", option)
]
FEW = ["--batch", "2", "--device", "cpu"]


def train(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["train", *map(str, arguments)])


def succeed(*arguments: object) -> dict[str, object]:
    result = train(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return dict(json.loads(result.stdout))


@pytest.fixture
def other(tmp_path: Path) -> Path:
    path = tmp_path / "other.txt"
    path.write_text("pack my box with five dozen liquor jugs. " * 60)
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A checkpoint of three steps on text."""
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 40)
    out = tmp_path / "base"
    succeed("--task", "text", "--data", tmp_path / "text.txt", *SHAPE, *FEW, "--steps", "3", "--out", out)
    return out


def files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_the_first_step_has_the_loss_of_the_checkpoint_on_the_new_data(base: Path, other: Path, tmp_path: Path) -> None:
    before = files(base)
    found = succeed("--from", base, "--data", other, *FEW, "--steps", "1", "--seed", "5", "--out", tmp_path / "further")
    assert (found["task"], found["variant"], found["step"]) == ("text", "lmm", 1)
    model, _ = load_model(base)
    batch = TextTask(read_corpus([str(other)]), ByteTokenizer(), window=32, seed=5).batch(0, range(2))
    with torch.no_grad():
        logits, _ = model(torch.from_numpy(batch.inputs), model.initial_state(2))
    mask = torch.from_numpy(batch.mask)
    loss = nn.functional.cross_entropy(logits[mask], torch.from_numpy(batch.targets)[mask])
    assert found["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert files(base) == before


def test_a_run_from_a_checkpoint_that_is_killed_goes_on_as_if_nothing_had_happened(
    base: Path, other: Path, tmp_path: Path
) -> None:
    common = ("--from", base, "--data", other, *FEW, "--steps", "4", "--lr", "1e-2")
    once = succeed(*common, "--out", tmp_path / "once")
    succeed(*common, "--save-every", "2", "--out", tmp_path / "twice")
    (tmp_path / "twice" / "step-00000004").rename(tmp_path / "lost")
    twice = succeed(*common, "--out", tmp_path / "twice", "--resume")
    assert twice["metrics"] == once["metrics"]
    ours, theirs = (load_checkpoint(tmp_path / name).tensors for name in ("once", "twice"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_provenance_says_where_the_weights_come_from(base: Path, other: Path, tmp_path: Path) -> None:
    succeed("--from", base, "--data", other, *FEW, "--steps", "2", "--out", tmp_path / "further")
    origin, known = load_checkpoint(base), load_checkpoint(tmp_path / "further").provenance
    assert known["run.from_sha256"] == origin.weights_sha256
    assert (known["from.name"], known["from.step"], known["step"]) == ("base", 3, 2)
    assert known["from.task.corpus_sha256"] == origin.provenance["task.corpus_sha256"]
    assert known["task.corpus_sha256"] != origin.provenance["task.corpus_sha256"]
    manifest = export_checkpoint(tmp_path / "further", tmp_path / "further.titans", verify_tokens=0)
    assert manifest.provenance["from.name"] == "base"


def test_other_weights_do_not_resume_a_run(base: Path, other: Path, tmp_path: Path) -> None:
    common = ("--data", other, *FEW, "--steps", "4", "--save-every", "2")
    succeed("--from", base, *common, "--out", tmp_path / "further")
    (tmp_path / "further" / "step-00000004").rename(tmp_path / "lost")
    result = train("--from", tmp_path / "lost", *common, "--out", tmp_path / "further", "--resume")
    assert result.exit_code == 2
    assert "began with other weights" in result.stderr
    result = train("--task", "text", *SHAPE, *common, "--out", tmp_path / "further", "--resume")
    assert "began with other weights" in result.stderr


def test_a_forecaster_keeps_its_scaling_its_horizon_and_its_columns(tmp_path: Path) -> None:
    rows = [(20 + 5 * math.sin(i / 9), 1000.0 - i % 37) for i in range(300)]
    (tmp_path / "a.csv").write_text("\n".join(["a,b", *(f"{a},{b}" for a, b in rows)]))
    (tmp_path / "b.csv").write_text("\n".join(["b,more,a", *(f"{b},{a * b},{a + 3}" for a, b in rows)]))
    common = ("--horizon", "3", *FEW, "--steps", "2", "--out", tmp_path / "base")
    succeed("--task", "series", "--data", tmp_path / "a.csv", *SHAPE, *common)
    succeed("--from", tmp_path / "base", "--data", tmp_path / "b.csv", *FEW, "--steps", "2", "--out", tmp_path / "more")
    ours, theirs = (json.loads(str(load_checkpoint(tmp_path / name).series_json)) for name in ("base", "more"))
    assert {**theirs, "name": "a.csv"} == ours
    assert theirs["columns"] == ["a", "b"]


def test_recall_keeps_its_keys(tmp_path: Path) -> None:
    gaps = ("--gap", "8", "--eval-gap", "16", "--pairs", "2", *FEW, "--steps", "1")
    succeed("--task", "recall", "--keys", "4", *SHAPE, *gaps, "--out", tmp_path / "base")
    succeed("--from", tmp_path / "base", *gaps, "--out", tmp_path / "more")
    assert load_checkpoint(tmp_path / "more").provenance["task.keys"] == 4
    result = train("--from", tmp_path / "base", "--keys", "5", *gaps, "--out", tmp_path / "other")
    assert result.exit_code == 2
    assert "was trained with --keys 4, and --keys 5 needs a model of its own" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "small"], "--preset describes a new model"),
        (["--variant", "mac"], "--variant describes a new model"),
        (["--set", "dim=32"], "--set describes a new model"),
        (["--config", "a.json"], "--config describes a new model"),
        (["--control", "writes-off"], "--control describes a new model"),
        (["--task", "recall"], "was trained on --task text, and --task recall needs a model of its own"),
        (["--horizon", "3"], "--horizon belongs to --task series"),
        (["--window-tokens", "12"], "not a multiple of the model's chunk, 8"),
        (["--tokenizer", "WORDS"], "was trained with bytes"),
        (["--out", "BASE"], "is where --from begins"),
        (["--from", "nowhere"], "there is no checkpoint at nowhere"),
    ],
)
def test_what_would_need_another_model_is_refused_by_name(
    base: Path, other: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    file = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")).save(str(file))
    given = [{"WORDS": str(file), "BASE": str(base)}.get(word, word) for word in arguments]
    result = train("--from", base, "--data", other, *FEW, "--steps", "1", "--out", tmp_path / "out", *given)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.output
    assert words in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_keeps_its_tokenizer(other: Path, tmp_path: Path) -> None:
    words = {word: i for i, word in enumerate(sorted(set(other.read_text().split())))}
    for name, ids in (("one", words), ("two", {word: len(words) - 1 - i for word, i in words.items()})):
        tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="box"))
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
        tokenizer.save(str(tmp_path / f"{name}.json"))
    common = ("--data", other, *FEW, "--steps", "1")
    succeed("--task", "text", *common, *SHAPE, "--tokenizer", tmp_path / "one.json", "--out", tmp_path / "base")
    succeed("--from", tmp_path / "base", *common, "--out", tmp_path / "same")
    succeed("--from", tmp_path / "base", *common, "--tokenizer", tmp_path / "one.json", "--out", tmp_path / "also")
    stored = [load_checkpoint(tmp_path / name).tokenizer_json for name in ("base", "same", "also")]
    assert stored[0] == stored[1] == stored[2]
    result = train("--from", tmp_path / "base", *common, "--tokenizer", tmp_path / "two.json", "--out", tmp_path / "no")
    assert result.exit_code == 2
    assert "was trained with another tokenizer" in result.stderr


def test_who_asks_for_more_steps_is_shown_the_way(base: Path, tmp_path: Path) -> None:
    common = ("--task", "text", "--data", tmp_path / "text.txt", *SHAPE, *FEW, "--out", base)
    for arguments in (("--steps", "9", "--resume"), ("--steps", "9")):
        result = train(*common, *arguments)
        assert result.exit_code == 2
        assert f"train it further with --from {base} and another --out" in " ".join(result.stderr.split())


def test_a_task_has_to_be_named_without_a_checkpoint(tmp_path: Path) -> None:
    result = train("--steps", "1", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "Missing option '--task'" in result.stderr


@pytest.mark.parametrize(
    "text", ["{}", "[]", "1", '{"columns": ["a"], "mean": [0], "deviation": [0], "change": [[1]]}']
)
def test_a_damaged_scaling_is_refused(text: str) -> None:
    from titans_tasks.errors import DataError
    from titans_tasks.series import Scaling

    with pytest.raises(DataError, match="scaling of the series is damaged"):
        Scaling.from_json(text)
    assert np.array_equal(
        Scaling.from_json('{"columns": ["a"], "mean": [0], "deviation": [2], "change": [[1]]}').deviation, [2.0]
    )
