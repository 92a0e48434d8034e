"""The loop: resuming is exact, splitting a batch changes nothing, and what goes wrong is said."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from titans_core.config import MemoryConfig, TitansConfig
from titans_core.errors import CheckpointError, ConfigError
from titans_core.training.checkpoint import load_checkpoint, load_model
from titans_core.training.log import StepRecord
from titans_core.training.loop import TrainingError, TrainOptions, train
from titans_core.training.optimizer import build_optimizer
from titans_tasks.documents import Corpus, Document
from titans_tasks.recall import RecallConfig, RecallTask
from titans_tasks.task import Batch, Scalar, Totals
from titans_tasks.text import TextTask
from titans_tasks.tokens import ByteTokenizer

CONFIG = TitansConfig(
    variant="mac", dim=16, layers=1, heads=1, ffn_hidden=16, chunk=8, memory=MemoryConfig(heads=1), persistent_tokens=1
)
OPTIONS = TrainOptions(steps=8, batch=4, save_every=3, eval_every=4, device="cpu")


def text_task(seed: int = 0) -> TextTask:
    """Documents of a few slices each, so that rows start new ones at different steps."""
    random = np.random.default_rng(0)
    train = [Document(f"{i}", bytes(random.integers(97, 123, size=40 + 17 * i).tolist())) for i in range(6)]
    corpus = Corpus(tuple(train), (Document("held out", b"the quick brown fox jumps over the lazy dog"),))
    return TextTask(corpus, ByteTokenizer(), window=16, seed=seed, held_out_rows=1, held_out_tokens=32)


class Curve:
    """Records the losses, and kills its own process after step `kill_at`."""

    def __init__(self, kill_at: int = 0) -> None:
        self.losses: list[float] = []
        self.kill_at = kill_at

    def on_step(self, record: StepRecord) -> None:
        self.losses.append(record.loss)
        if record.step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_evaluation(self, step: int, metrics: dict[str, float]) -> None:
        pass


class Series:
    """A continuous task: predict the next point of a wave from this one."""

    carries = True

    @property
    def settings(self) -> dict[str, Scalar]:
        return {"task": "wave"}

    def batch(self, step: int, rows: range) -> Batch:
        times = np.arange(17) + 16 * step + 100 * np.array(rows)[:, None]
        wave = np.stack([np.sin(times / 3), np.cos(times / 5)], axis=-1).astype(np.float32)
        reset = np.full(len(rows), step == 0)
        return Batch(wave[:, :-1], wave[:, 1:], np.ones((len(rows), 16), np.bool_), reset)

    def held_out(self) -> Iterator[Batch]:
        yield replace(self.batch(1000, range(2)), reset=np.ones(2, np.bool_))

    def metrics(self, totals: Totals) -> dict[str, float]:
        return {"squared_error": totals.mean_loss}


def losses(path: Path) -> list[float]:
    """The loss curve in a checkpoint's log."""
    records = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]


def program(out: Path, resume: bool, kill_at: int) -> str:
    """The source of a program that trains into `out`."""
    return (
        f"import sys; sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}\n"
        "from pathlib import Path\n"
        "from test_loop import CONFIG, OPTIONS, Curve, text_task\n"
        "from titans_core.training.loop import train\n"
        f"train(CONFIG, text_task(), OPTIONS, Path({str(out)!r}), resume={resume}, observers=[Curve({kill_at})])\n"
    )


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is left of a run that was killed after step 5; its last checkpoint is that of step 3."""
    out = tmp_path_factory.mktemp("killed") / "checkpoint"
    done = subprocess.run([sys.executable, "-c", program(out, False, kill_at=5)], check=False)
    assert done.returncode == -signal.SIGKILL
    return out


def run_on_two_processes(script: Path, out: Path, resume: bool = False) -> None:
    """Train under torchrun, on the CPU."""
    script.write_text(program(out, resume, 0))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([sys.executable, *torchrun, str(script)], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_a_killed_run_resumes_to_the_same_losses_and_weights_bit_for_bit(tmp_path: Path, killed: Path) -> None:
    whole = train(CONFIG, text_task(), OPTIONS, tmp_path / "whole")
    shutil.copytree(killed, tmp_path / "killed")
    resumed = train(CONFIG, text_task(), OPTIONS, tmp_path / "killed", resume=True)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert (resumed.loss, resumed.metrics, resumed.tokens) == (whole.loss, whole.metrics, whole.tokens)
    first, second = (load_checkpoint(tmp_path / name).tensors for name in ("whole", "killed"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_csv_log_has_every_step_once_after_a_resume(tmp_path: Path, killed: Path) -> None:
    shutil.copytree(killed, tmp_path / "killed")
    train(CONFIG, text_task(), OPTIONS, tmp_path / "killed", resume=True)
    lines = (tmp_path / "killed" / "log.csv").read_text().splitlines()
    assert lines[0].startswith("step,loss,learning_rate,")
    assert [line.split(",")[0] for line in lines[1:]] == [str(step) for step in range(1, OPTIONS.steps + 1)]


def test_a_run_may_resume_with_its_batch_cut_differently(tmp_path: Path, killed: Path) -> None:
    whole = train(CONFIG, text_task(), OPTIONS, tmp_path / "whole")
    shutil.copytree(killed, tmp_path / "killed")
    resumed = train(CONFIG, text_task(), replace(OPTIONS, accumulate=2), tmp_path / "killed", resume=True)
    assert resumed.loss == pytest.approx(whole.loss, abs=1e-3)


def test_two_processes_walk_the_loss_curve_of_one(tmp_path: Path) -> None:
    one = train(CONFIG, text_task(), OPTIONS, tmp_path / "one")
    run_on_two_processes(tmp_path / "run.py", tmp_path / "two")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-3)
    assert load_checkpoint(tmp_path / "two").provenance["tokens"] == one.tokens


def test_two_processes_may_finish_what_one_began(tmp_path: Path, killed: Path) -> None:
    whole = train(CONFIG, text_task(), OPTIONS, tmp_path / "whole")
    shutil.copytree(killed, tmp_path / "killed")
    run_on_two_processes(tmp_path / "run.py", tmp_path / "killed", resume=True)
    assert losses(tmp_path / "killed") == pytest.approx(losses(tmp_path / "whole"), abs=1e-3)
    assert load_checkpoint(tmp_path / "killed").provenance["loss"] == pytest.approx(whole.loss, abs=1e-3)


def test_accumulation_does_not_change_the_loss_curve(tmp_path: Path) -> None:
    for pieces in (1, 2, 4):
        train(CONFIG, text_task(), replace(OPTIONS, accumulate=pieces), tmp_path / str(pieces))
    for pieces in (2, 4):
        assert losses(tmp_path / str(pieces)) == pytest.approx(losses(tmp_path / "1"), abs=1e-3)


def test_the_seed_decides_everything(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(CONFIG, text_task(seed), replace(OPTIONS, seed=seed), tmp_path / name)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert losses(tmp_path / "a")[0] != losses(tmp_path / "c")[0]


def test_the_loss_falls_and_the_model_loads(tmp_path: Path) -> None:
    result = train(CONFIG, text_task(), replace(OPTIONS, steps=40), tmp_path)
    curve = losses(tmp_path)
    assert np.mean(curve[-5:]) < np.mean(curve[:5]) - 0.5
    controls = {"bits_per_byte_memory_reset", "bits_per_byte_writes_off"}
    assert set(result.metrics) == {"bits_per_byte", "loss", "accuracy"} | controls
    assert len({result.metrics[name] for name in ("bits_per_byte", *controls)}) == 3
    model, checkpoint = load_model(tmp_path)
    assert model.num_parameters() == result.parameters == checkpoint.provenance["parameters"]
    assert checkpoint.provenance["held_out.bits_per_byte"] == result.metrics["bits_per_byte"]


def test_a_continuous_model_trains_through_the_same_loop(tmp_path: Path) -> None:
    config = replace(CONFIG, vocab_size=None, features=2)
    result = train(config, Series(), replace(OPTIONS, steps=40), tmp_path)
    curve = losses(tmp_path)
    assert np.mean(curve[-5:]) < np.mean(curve[:5]) / 2
    assert math.isfinite(result.metrics["squared_error"])


def test_recall_trains_with_streams_of_changing_length(tmp_path: Path) -> None:
    recall = RecallConfig(keys=4, values=4, pairs=2, gap=20, held_out_gap=64, held_out_streams=2)
    config = replace(CONFIG, vocab_size=recall.vocab_size)
    result = train(config, RecallTask(recall, chunk=8, seed=0), OPTIONS, tmp_path)
    assert 0 <= result.metrics["accuracy"] <= 1


def test_bf16_is_an_autocast_over_fp32_weights(tmp_path: Path) -> None:
    train(CONFIG, text_task(), replace(OPTIONS, precision="bf16"), tmp_path / "bf16")
    train(CONFIG, text_task(), OPTIONS, tmp_path / "fp32")
    assert losses(tmp_path / "bf16") == pytest.approx(losses(tmp_path / "fp32"), rel=0.05)
    assert losses(tmp_path / "bf16") != losses(tmp_path / "fp32")
    assert {value.dtype for value in load_checkpoint(tmp_path / "bf16").tensors.values()} == {torch.float32}


def test_a_loss_that_is_not_finite_names_the_step_and_the_remedy(tmp_path: Path) -> None:
    class Broken(Series):
        def batch(self, step: int, rows: range) -> Batch:
            good = super().batch(step, rows)
            return replace(good, targets=good.targets * np.float32(np.inf)) if step == 4 else good

    with pytest.raises(TrainingError, match=r"step 5: the loss is .*lower --lr .*longer --warmup"):
        train(replace(CONFIG, vocab_size=None, features=2), Broken(), OPTIONS, tmp_path)
    assert load_checkpoint(tmp_path).provenance["step"] == 3


def test_a_checkpoint_is_never_overwritten_by_accident(tmp_path: Path) -> None:
    train(CONFIG, text_task(), OPTIONS, tmp_path)
    with pytest.raises(CheckpointError, match="add --resume"):
        train(CONFIG, text_task(), OPTIONS, tmp_path)


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    first = train(CONFIG, text_task(), OPTIONS, tmp_path)
    again = train(CONFIG, text_task(), OPTIONS, tmp_path, resume=True)
    assert (again.step, again.loss, again.metrics) == (first.step, first.loss, first.metrics)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"learning_rate": 1e-4}, r"run\.learning_rate = 0\.003, now it is 0\.0001"), ({"batch": 8}, r"run\.batch = 4")],
)
def test_a_run_resumes_only_as_what_it_was(tmp_path: Path, change: dict[str, float], message: str) -> None:
    train(CONFIG, text_task(), OPTIONS, tmp_path)
    with pytest.raises(ConfigError, match=message):
        train(CONFIG, text_task(), replace(OPTIONS, **change), tmp_path, resume=True)
    with pytest.raises(ConfigError, match="another configuration"):
        train(replace(CONFIG, dim=32), text_task(), OPTIONS, tmp_path, resume=True)
    with pytest.raises(ConfigError, match=r"task\.seed = 0, now it is 5"):
        train(CONFIG, text_task(5), OPTIONS, tmp_path, resume=True)


@pytest.mark.parametrize(
    "option",
    [{"steps": 0}, {"batch": 0}, {"accumulate": 3}, {"warmup": 9}, {"learning_rate": 0.0}, {"save_every": -1}],
    ids=str,
)
def test_impossible_options_are_refused(tmp_path: Path, option: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        train(CONFIG, text_task(), replace(OPTIONS, **option), tmp_path)


def test_only_projections_decay() -> None:
    from titans_core.model import TitansModel

    model = TitansModel(CONFIG)
    decayed, others = build_optimizer(model, weight_decay=0.1).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)].rpartition(".")[2] for p in decayed["params"]} == {"weight"}
    assert decayed["weight_decay"] == 0.1
    assert others["weight_decay"] == 0.0
    kept = {names[id(p)] for p in others["params"]}
    assert {"embedding", "norm.gain"} <= kept
    assert any("initial" in name for name in kept)
    assert any("gate_bias" in name for name in kept)
    assert any("conv" in name for name in kept)


@pytest.mark.parametrize("flushed", [False, True])
def test_training_leaves_the_callers_denormals_alone(tmp_path: Path, flushed: bool) -> None:
    def flushes() -> bool:
        return bool(torch.tensor(1e-310, dtype=torch.float64) * 0.5 == 0)

    torch.set_flush_denormal(flushed)
    try:
        train(CONFIG, text_task(), replace(OPTIONS, steps=1), tmp_path / "run")
        assert flushes() == flushed
    finally:
        torch.set_flush_denormal(False)
