"""`titans train`: from options to a checkpoint.

Knows the options that all tasks share. The tasks are in `train_tasks`. Imports PyTorch only when the command runs.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from titans_cli.model_options import CONTROLS, PRESETS, VARIANTS, ModelOptions
from titans_cli.start import Beginning
from titans_cli.task_options import options_of, was_given, with_options
from titans_cli.terminal import print_json, say
from titans_cli.threads import threads_option, wait_passively
from titans_cli.train_tasks import OPTIONS, TASKS
from titans_core.rules import RULES
from titans_runtime.devices.cores import usable_cores

if TYPE_CHECKING:
    from titans_core.config import Variant


@click.command(
    epilog="""\b
Examples:
  titans train --task text --data stdlib --variant mac --preset tiny --steps 300 --out checkpoint
  titans train --task text --data notes.txt more.txt --tokenizer tokenizer.json --steps 2000 --out checkpoint
  titans train --task recall --variant lmm --steps 400 --out recall --json
  titans train --task recall --variant lmm --rule yaad --set memory.initial_threshold=0.2 --steps 400 --out yaad
  titans train ... --steps 2000 --save-every 200 --out checkpoint --resume
  titans train --from checkpoint --data more.txt --steps 500 --lr 1e-3 --out further
  titans train --from grafted --task facts --only memory --steps 300 --batch 8 --out remembers
  torchrun --nproc-per-node 2 -m titans_cli.main train --task text --data stdlib --steps 300 --out checkpoint"""
)
@click.option("--task", type=click.Choice(list(TASKS)), help="What to learn.  [required, but with --from]")
@click.argument("files", nargs=-1, metavar="[FILE]...")
@click.option("--variant", type=click.Choice(VARIANTS), default="mac", show_default=True)
@click.option("--preset", type=click.Choice(PRESETS), default="tiny", show_default=True, help="Size of the model.")
@click.option(
    "--rule", type=click.Choice(list(RULES)), default="titans", show_default=True, help="How the memory learns."
)
@click.option("--config", type=click.Path(path_type=Path), help="A model configuration in JSON, instead of a preset.")
@click.option("--set", "overrides", multiple=True, metavar="NAME=VALUE", help="Model option, such as memory.depth=1.")
@click.option("--control", type=click.Choice(CONTROLS), help="Train what the model is to be compared with instead.")
@click.option("--steps", type=click.IntRange(1), required=True, help="Optimizer steps.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The checkpoint directory to make.")
@click.option("--resume", is_flag=True, help="Continue the checkpoint in --out exactly; start one if there is none.")
@click.option(
    "--from", "start", type=click.Path(path_type=Path), help="Train the model in this checkpoint further, into --out."
)
@click.option(
    "--only",
    metavar="PART",
    help="What of a pretrained model is trained: memory, lora:RANK, memory,lora:RANK or all.  [default: memory]",
)
@click.option("--batch", type=click.IntRange(1), default=16, show_default=True, help="Streams read side by side.")
@click.option("--accumulate", type=click.IntRange(1), default=1, show_default=True, help="Pieces to run a batch in.")
@click.option("--lr", type=float, default=3e-3, show_default=True, help="Peak learning rate.")
@click.option("--warmup", type=click.IntRange(0), help="Warm-up steps. [default: 100, or a fifth of --steps if fewer]")
@click.option(
    "--write-cost",
    type=click.FloatRange(0),
    default=0.0,
    help="Price of writing to the memory, rising to this; 0.2 makes a model leave alone what it need not remember.",
)
@click.option("--eval-every", type=click.IntRange(0), default=0, help="Steps between evaluations; 0: only at the end.")
@click.option("--save-every", type=click.IntRange(0), default=0, help="Steps between checkpoints; 0: only at the end.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), default="auto", show_default=True)
@click.option("--compile", "compiled", is_flag=True, help="Compile the memory's chunks: slow to start, then faster.")
@click.option("--recompute", is_flag=True, help="Keep the activations of one chunk at a time: less memory, more time.")
@threads_option("one or all that this process may use, whichever is quicker at the beginning")
@with_options(OPTIONS)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout at the end.")
@click.pass_context
def train(
    context: click.Context,
    /,
    task: str | None,
    files: tuple[str, ...],
    variant: Variant,
    preset: str,
    rule: str,
    config: Path | None,
    overrides: tuple[str, ...],
    control: str | None,
    steps: int,
    seed: int,
    out: Path,
    resume: bool,
    start: Path | None,
    only: str | None,
    batch: int,
    accumulate: int,
    lr: float,
    warmup: int | None,
    write_cost: float,
    eval_every: int,
    save_every: int,
    device: str,
    precision: Literal["auto", "fp32", "bf16"],
    compiled: bool,
    recompute: bool,
    threads: int | None,
    as_json: bool,
    **_options: Any,
) -> None:
    """Train a model and leave a checkpoint.

    The run can be killed at any time and continued with --resume; log.csv and log.jsonl in the checkpoint directory
    have every step. Under torchrun the batch is divided among the processes. FILEs are more of --data.

    --from takes the model, its tokenizer and its task from a checkpoint, with any data, steps, rates and seed. The
    optimizer and the learning rate begin anew.

    From the --out of titans graft, only the memory is trained unless --only says otherwise. What a memory beside the
    model reads of a stream is computed once and kept in memory for when the stream comes again.

    --control writes-off trains the model with a memory that is never written, attention-only one without memories whose
    feed-forward is widened to at least the same number of parameters.
    """
    wait_passively()
    beginning = None if start is None else Beginning.at(start)
    if beginning is not None:
        beginning.refuse_model_options(context)
        if start is not None and out.resolve() in (start.resolve(), start.resolve().parent):
            raise click.UsageError(f"--out {out} is where --from begins; give another directory for what comes of it")
        task = beginning.task(task)
    if task is None:
        raise click.UsageError(f"Missing option '--task'. Choose from: {', '.join(TASKS)}")
    own = options_of(context, task, files)
    if beginning is not None:
        own = beginning.settle(context, task, own)
    if config is not None:
        for name in ("variant", "preset", "rule"):
            if was_given(context, name):
                raise click.UsageError(
                    f"--{name} is for new models, and --config has a whole model; leave one of them out,"
                    " or change single options with --set"
                )

    decoder = None if beginning is None else beginning.decoder
    if only is not None and decoder is None:
        raise click.UsageError("--only says what of a pretrained model is trained; give one by --from")

    from titans_core.training.log import ProgressLine
    from titans_core.training.loop import TrainOptions
    from titans_core.training.loop import train as run

    options = TrainOptions(
        steps=steps,
        batch=batch,
        seed=seed,
        learning_rate=lr,
        warmup=warmup,
        write_cost=write_cost,
        accumulate=accumulate,
        eval_every=eval_every,
        save_every=save_every,
        device=device,
        precision=precision,
        compile=compiled,
        recompute=recompute,
        threads=threads,
        most_threads=usable_cores(),
    )
    lesson = TASKS[task](ModelOptions(variant, preset, config, overrides, control, beginning, rule), seed, **own)
    if os.environ.get("RANK", "0") == "0":  # of several processes, the one that reports
        for line in lesson.read:
            say(f"data: {line}", err=True)
        for note in lesson.notes:
            say(f"note: {note}", err=True)
    with ProgressLine(sys.stderr, steps=steps) as progress:
        if start is not None and decoder is not None:
            from titans_cli.train_grafted import train_grafted

            result = train_grafted(start, only or "memory", lesson, options, out, resume=resume, progress=progress)
        else:
            result = run(
                lesson.titans,
                lesson.task,
                options,
                out,
                tokenizer_json=lesson.tokenizer_json,
                series_json=lesson.series_json,
                head_scale=lesson.head_scale,
                start=None if beginning is None else beginning.start(),
                resume=resume,
                observers=[progress],
            )
    if as_json and result.rank == 0:
        document = {"checkpoint": str(out), "task": task, "variant": lesson.variant, **dataclasses.asdict(result)}
        document |= {"notes": list(lesson.notes)} if lesson.notes else {}
        print_json(document, indent=None)
