"""`titans eval`: what a bundle has learned, by one of several tasks.

Knows the options that all tasks share. The tasks are in `eval_tasks`, what they measure in `titans_measure.quality`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from titans_cli.eval_tasks import OPTIONS, TASKS
from titans_cli.options import bundle_argument, check_plot, json_option, plot_option
from titans_cli.task_options import options_of, with_options
from titans_cli.terminal import print_json, progress_bar, say


@click.command(
    epilog="""\b
Examples:
  titans eval recall.titans --task recall --json
  titans eval recall.titans --task recall --gap 0 --gap 1000 --gap 100000 --plot recall.svg
  titans eval model.titans --task text --data stdlib --plot text.svg
  titans eval sea.titans --task series --data sea-temperature --json"""
)
@bundle_argument
@click.option("--task", type=click.Choice(list(TASKS)), required=True, help="What to measure.")
@click.option("--provider", default="auto", show_default=True, help="Where it runs; titans doctor lists them.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads per graph.  [default: one per core it may use]")
@plot_option("Also draw it, .svg or .png.")
@with_options(OPTIONS)
@json_option
@click.pass_context
def eval(
    context: click.Context,
    /,
    bundle: Path,
    task: str,
    provider: str,
    threads: int | None,
    plot: Path | None,
    as_json: bool,
    **_options: Any,
) -> None:
    """Measure what a bundle has learned.

    Everything goes through the exported graphs and the runtime, as any user would drive them; PyTorch is not needed.
    Beside every figure stands a control, such as the same questions with the memory reset.
    """
    import titans_runtime

    options = options_of(context, task)
    check_plot(plot)
    model = titans_runtime.load(bundle, provider=provider, threads=threads)
    with progress_bar(task) as progress:
        report = TASKS[task].evaluate(model, progress, **options)
    if as_json:
        print_json(report.as_json())
    else:
        say(*report.lines())
    if plot is not None:  # last, so that whatever goes wrong with it, the figures are there
        TASKS[task].draw(report, plot)
