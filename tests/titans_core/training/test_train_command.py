"""`titans train`: options become a checkpoint, one JSON document, and clean errors."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from titans_cli.main import cli
from titans_core.config import TitansConfig
from titans_core.training.checkpoint import load_checkpoint
from titans_core.training.loop import TrainOptions, TrainResult
from titans_runtime.devices.cores import usable_cores
from titans_tasks.task import Task

SMALL = [
    "--set",
    "dim=16",
    "--set",
    "layers=1",
    "--set",
    "heads=1",
    "--set",
    "ffn_hidden=16",
    "--set",
    "memory.heads=1",
]
RUN = ["train", *SMALL, "--set", "chunk=8", "--steps", "2", "--batch", "2", "--device", "cpu"]


def titans(*arguments: object) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A little file to train on."""
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog. " * 40)
    return path


@pytest.mark.parametrize("variant", ["lmm", "mac", "mag", "mal"])
def test_text_training_leaves_a_checkpoint_and_one_json_document(tmp_path: Path, text: Path, variant: str) -> None:
    out = tmp_path / "checkpoint"
    result = titans(*RUN, "--task", "text", "--data", text, "--variant", variant, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert (document["checkpoint"], document["variant"], document["step"]) == (str(out), variant, 2)
    assert document["metrics"]["bits_per_byte"] > 0
    checkpoint = load_checkpoint(out)
    assert (checkpoint.config.variant, checkpoint.config.dim) == (variant, 16)
    assert checkpoint.provenance["task.task"] == "text"


def test_recall_training_sizes_the_vocabulary(tmp_path: Path) -> None:
    sizes = ["--keys", "4", "--pairs", "2", "--gap", "8", "--eval-gap", "32"]
    result = titans(*RUN, "--task", "recall", "--variant", "lmm", *sizes, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    assert "accuracy" in json.loads(result.stdout)["metrics"]
    checkpoint = load_checkpoint(tmp_path / "out")
    assert checkpoint.config.vocab_size == 9
    assert checkpoint.provenance["task.held_out_gap"] == 32


def test_every_option_of_the_run_reaches_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[TrainOptions] = []

    def record(model: TitansConfig, task: Task, options: TrainOptions, out: Path, **others: object) -> TrainResult:
        asked.append(options)
        return TrainResult(rank=0, step=7, loss=0.0, metrics={}, parameters=1, tokens=1, seconds=1.0)

    monkeypatch.setattr("titans_core.training.loop.train", record)
    wishes = {"steps": 7, "batch": 6, "seed": 5, "lr": 0.25, "warmup": 4, "accumulate": 3, "eval-every": 2}
    wishes |= {"save-every": 1, "write-cost": 0.5, "threads": 2}
    arguments = [str(part) for name, value in wishes.items() for part in (f"--{name}", value)]
    flags = ["--device", "cpu", "--precision", "bf16", "--compile", "--recompute"]
    result = titans("train", "--task", "recall", *arguments, *flags, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert asked == [
        TrainOptions(
            steps=7,
            batch=6,
            seed=5,
            learning_rate=0.25,
            warmup=4,
            write_cost=0.5,
            accumulate=3,
            eval_every=2,
            save_every=1,
            device="cpu",
            precision="bf16",
            compile=True,
            recompute=True,
            threads=2,
            most_threads=usable_cores(),
        )
    ]


def test_needle_training_hides_needles_in_files(tmp_path: Path, text: Path) -> None:
    sizes = ["--form", "number", "--length", "200", "--eval-length", "256"]
    result = titans(*RUN, "--task", "needle", "--data", text, *sizes, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    assert "accuracy" in json.loads(result.stdout)["metrics"]
    assert load_checkpoint(tmp_path / "out").provenance["task.form"] == "number"


def test_several_files_may_follow_data(tmp_path: Path, text: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("sphinx of black quartz, judge my vow. " * 40)
    assert titans(*RUN, "--task", "text", "--data", text, other, "--out", tmp_path / "out").exit_code == 0


def test_a_configuration_file_replaces_the_preset(tmp_path: Path, text: Path) -> None:
    assert titans(*RUN, "--task", "text", "--data", text, "--out", tmp_path / "a").exit_code == 0
    config = next((tmp_path / "a").glob("step-*")) / "config.json"
    arguments = ["train", "--task", "text", "--data", text, "--config", config, "--steps", 2, "--batch", 2]
    assert titans(*arguments, "--out", tmp_path / "b").exit_code == 0
    assert load_checkpoint(tmp_path / "a").config == load_checkpoint(tmp_path / "b").config


def test_a_rule_is_the_memory_that_single_options_change(tmp_path: Path) -> None:
    options = ["--rule", "memora", "--set", "memory.expansion=1", "--set", "memory.link_at=read"]
    small = ["--set", "dim=16", "--set", "chunk=8", "--pairs", 4, "--keys", 4, "--gap", 4, "--eval-gap", 8]
    result = titans(*RUN, "--task", "recall", *options, *small, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    memory = load_checkpoint(tmp_path / "out").config.memory
    assert (memory.retention, memory.link_at, memory.expansion, memory.momentum) == ("kl", "read", 1, False)


def test_resume_continues_and_its_absence_is_refused(tmp_path: Path, text: Path) -> None:
    arguments = [*RUN, "--task", "text", "--data", text, "--out", tmp_path / "out"]
    assert titans(*arguments, "--resume").exit_code == 0
    refused = titans(*arguments)
    assert refused.exit_code == 2
    assert "add --resume" in refused.stderr
    assert titans(*arguments, "--resume").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "text"], "needs --data"),
        (["--task", "text", "--data", "missing.txt"], "there is no file missing.txt"),
        (["--task", "text", "--data", "stdlib", "--window-tokens", "12"], "not a multiple of the model's chunk"),
        (["--task", "text", "--data", "stdlib", "--set", "memory.size=3"], "use NAME=VALUE with a model option"),
        (["--task", "text", "--data", "stdlib", "--set", "variant=rnn"], "choose one of"),
        (["--task", "text", "--data", "stdlib", "--preset", "huge"], "'huge' is not one of"),
        (["--task", "text", "--data", "stdlib", "--tokenizer", "none.json"], "cannot read the tokenizer none.json"),
        (["--task", "text", "--data", "stdlib", "--set", "vocab_size=100"], "the data needs 256"),
        (["--task", "recall", "--data", "stdlib"], "belongs to --task text"),
        (["--task", "recall", "--pairs", "40"], "use fewer pairs"),
        (["--task", "recall", "some.txt"], "reads no files"),
        (["--task", "needle", "--length", "20"], "use more"),
        (["--task", "recall", "--batch", "3", "--accumulate", "2"], "does not divide into 2 equal pieces"),
        (["--task", "recall", "--config", "none.json"], "none.json"),
        (["--task", "recall", "--config", "none.json", "--variant", "mac"], "--variant is for new models"),
        (["--task", "recall", "--config", "none.json", "--preset", "tiny"], "--preset is for new models"),
        (["--task", "recall", "--config", "none.json", "--rule", "yaad"], "--rule is for new models"),
        (["--task", "recall", "--set", "memory.objective=l7"], "choose one of l2, l1, lp, huber, huber-switch"),
        (["--task", "recall", "--set", "memory.retention=kl"], "set memory.residual_norm=true"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = titans(*RUN, *arguments, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr.replace("\n", " ")
    assert not list((tmp_path).glob("out/step-*"))


def test_help_shows_an_example_and_does_not_import_torch() -> None:
    program = (
        "import sys; from click.testing import CliRunner; from titans_cli.main import cli\n"
        "result = CliRunner().invoke(cli, ['train', '--help'])\n"
        "assert 'titans train --task text --data stdlib' in result.output, result.output\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{program}"], check=True)
