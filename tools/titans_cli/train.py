"""`titans train`: from options to a checkpoint.

Knows how options become a configuration, a task and a run. Imports PyTorch only when the command runs.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from titans_core.config import TitansConfig, Variant
    from titans_core.training.task import Task

CHUNKS_PER_WINDOW = 4  # tokens per slice, in chunks of the model
VARIANTS = ("lmm", "mac", "mag", "mal")
PRESETS = ("tiny", "small", "170m", "340m", "400m", "760m")


@click.command(
    epilog="""\b
Examples:
  titans train --task text --data stdlib --variant mac --preset tiny --steps 300 --out checkpoint
  titans train --task text --data notes.txt more.txt --tokenizer tokenizer.json --steps 2000 --out checkpoint
  titans train --task recall --variant lmm --steps 400 --out recall --json
  titans train ... --steps 2000 --save-every 200 --out checkpoint --resume
  torchrun --nproc-per-node 2 -m titans_cli.main train --task text --data stdlib --steps 300 --out checkpoint"""
)
@click.option("--task", type=click.Choice(["text", "recall"]), required=True, help="What to learn.")
@click.option("--data", multiple=True, metavar="stdlib|FILE", help="Text to train on; give any number. [text]")
@click.argument("files", nargs=-1, metavar="[FILE]...")
@click.option("--variant", type=click.Choice(VARIANTS), default="mac", show_default=True)
@click.option("--preset", type=click.Choice(PRESETS), default="tiny", show_default=True, help="Size of the model.")
@click.option("--config", type=click.Path(path_type=Path), help="A model configuration in JSON, instead of a preset.")
@click.option("--set", "overrides", multiple=True, metavar="NAME=VALUE", help="Model option, such as memory.depth=1.")
@click.option("--tokenizer", type=click.Path(path_type=Path), help="A tokenizer.json; the default is bytes. [text]")
@click.option("--steps", type=click.IntRange(1), required=True, help="Optimizer steps.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The checkpoint directory to make.")
@click.option("--resume", is_flag=True, help="Continue the checkpoint in --out exactly; start one if there is none.")
@click.option("--batch", type=click.IntRange(1), default=16, show_default=True, help="Streams read side by side.")
@click.option("--accumulate", type=click.IntRange(1), default=1, show_default=True, help="Pieces to run a batch in.")
@click.option("--window-tokens", type=click.IntRange(1), help="Tokens per slice, between memory hand-overs. [text]")
@click.option("--lr", type=float, default=3e-3, show_default=True, help="Peak learning rate.")
@click.option("--warmup", type=click.IntRange(0), help="Warm-up steps. [default: 100, or a fifth of --steps if fewer]")
@click.option("--eval-every", type=click.IntRange(0), default=0, help="Steps between evaluations; 0: only at the end.")
@click.option("--save-every", type=click.IntRange(0), default=0, help="Steps between checkpoints; 0: only at the end.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), default="auto", show_default=True)
@click.option("--keys", type=click.IntRange(1), default=32, show_default=True, help="Keys, and values. [recall]")
@click.option("--pairs", type=click.IntRange(1), default=16, show_default=True, help="Pairs to remember. [recall]")
@click.option("--gap", type=click.IntRange(0), default=128, show_default=True, help="Longest training gap. [recall]")
@click.option("--eval-gap", type=click.IntRange(0), default=4096, show_default=True, help="Held-out gap. [recall]")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout at the end.")
def train(
    task: Literal["text", "recall"],
    data: tuple[str, ...],
    files: tuple[str, ...],
    variant: Variant,
    preset: str,
    config: Path | None,
    overrides: tuple[str, ...],
    tokenizer: Path | None,
    steps: int,
    seed: int,
    out: Path,
    resume: bool,
    batch: int,
    accumulate: int,
    window_tokens: int | None,
    lr: float,
    warmup: int | None,
    eval_every: int,
    save_every: int,
    device: str,
    precision: Literal["auto", "fp32", "bf16"],
    keys: int,
    pairs: int,
    gap: int,
    eval_gap: int,
    as_json: bool,
) -> None:
    """Train a model and leave a checkpoint.

    The run can be killed at any time and continued with --resume; log.csv and log.jsonl in the checkpoint directory
    have every step. Under torchrun the batch is divided among the processes.
    """
    from titans_core.training.log import ProgressLine
    from titans_core.training.loop import TrainOptions
    from titans_core.training.loop import train as run

    options = TrainOptions(
        steps=steps,
        batch=batch,
        seed=seed,
        learning_rate=lr,
        warmup=warmup,
        accumulate=accumulate,
        eval_every=eval_every,
        save_every=save_every,
        device=device,
        precision=precision,
    )
    text_only = bool(data or files or tokenizer or window_tokens)
    if task == "recall" and text_only:
        raise click.UsageError("--data, --tokenizer and --window-tokens belong to --task text; leave them out")
    if task == "text" and not (data or files):
        raise click.UsageError("--task text needs --data: stdlib, or files")
    base = _Model(variant, preset, config, overrides)
    tokenizer_json = None
    source: Task
    if task == "recall":
        sizes = {"keys": keys, "values": keys, "pairs": pairs, "gap": gap, "held_out_gap": eval_gap}
        model, source = _recall(base, seed, sizes)
    else:
        model, source, tokenizer_json = _text(base, seed, (*data, *files), tokenizer, window_tokens)
    with ProgressLine(sys.stderr, steps=steps) as line:
        result = run(model, source, options, out, tokenizer_json=tokenizer_json, resume=resume, observers=[line])
    if as_json and result.rank == 0:
        document = {"checkpoint": str(out), "task": task, "variant": model.variant, **dataclasses.asdict(result)}
        click.echo(json.dumps(document))


@dataclass(frozen=True)
class _Model:
    """The model options of the command line."""

    variant: Variant
    preset: str
    config: Path | None
    overrides: tuple[str, ...]

    def build(self, vocab_size: int) -> TitansConfig:
        """The configuration they describe, for a vocabulary of `vocab_size` ids unless a file says otherwise."""
        from titans_core.config import TitansConfig
        from titans_core.presets import preset

        if self.config is not None:
            values = _read_json(self.config)
        else:
            values = preset(self.preset, variant=self.variant, vocab_size=vocab_size).to_dict()
        for override in self.overrides:
            _override(values, override)
        model = TitansConfig.from_dict(values)
        if (model.vocab_size or 0) < vocab_size:
            raise click.UsageError(
                f"the model has {model.vocab_size} token ids, the data needs {vocab_size}; change one"
            )
        return model


def _recall(base: _Model, seed: int, sizes: dict[str, int]) -> tuple[TitansConfig, Task]:
    from titans_core.training.recall import RecallConfig, RecallTask

    recall = RecallConfig(**sizes)
    model = base.build(recall.vocab_size)
    return model, RecallTask(recall, chunk=model.chunk, seed=seed)


def _text(
    base: _Model, seed: int, sources: tuple[str, ...], tokenizer: Path | None, window: int | None
) -> tuple[TitansConfig, Task, str | None]:
    from titans_core.tokens import load_tokenizer
    from titans_core.training.documents import read_corpus
    from titans_core.training.text import TextTask

    reader = load_tokenizer(tokenizer)
    model = base.build(reader.vocab_size)
    window = window or CHUNKS_PER_WINDOW * model.chunk
    if window % model.chunk:
        raise click.UsageError(f"--window-tokens {window} is not a multiple of the model's chunk, {model.chunk}")
    return model, TextTask(read_corpus(sources), reader, window=window, seed=seed), reader.json


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise click.UsageError(f"{path} is not JSON ({error}); give a model configuration") from error
    if not isinstance(values, dict):
        raise click.UsageError(f"{path} is not a JSON object; give a model configuration")
    return values


def _override(values: dict[str, Any], override: str) -> None:
    """Apply `a.b=VALUE` to nested `values`; VALUE is JSON, or else a plain string."""
    name, equals, text = override.partition("=")
    *parents, last = name.split(".")
    for parent in parents:
        values = values.get(parent, {}) if isinstance(values, dict) else {}
    if not equals or not isinstance(values, dict) or last not in values:
        raise click.UsageError(f"--set {override}: use NAME=VALUE with a model option, such as memory.depth=1")
    try:
        values[last] = json.loads(text)
    except json.JSONDecodeError:
        values[last] = text
