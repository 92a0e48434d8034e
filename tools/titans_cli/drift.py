"""`titans drift`: a bundle of lower precision beside the fp32 model it came from.

Knows the options and the exit code. Imports PyTorch only when the command runs.
"""

from __future__ import annotations

from pathlib import Path

import click

from titans_cli.options import bundle_argument, check_plot, checkpoint_option, json_option, plot_option
from titans_cli.terminal import print_json, progress_bar, say
from titans_cli.threads import threads_option, torch_threads


@click.command(
    epilog="""\b
Examples:
  titans drift model-fp16.titans --checkpoint checkpoint --data stdlib --tokens 16384 --plot drift.svg
  titans drift model-int8.titans --checkpoint checkpoint --json"""
)
@bundle_argument
@checkpoint_option
@click.option("--tokens", type=click.IntRange(1), default=8192, show_default=True, help="Length of the stream.")
@click.option("--data", multiple=True, help="Text to feed, a file or stdlib; repeatable. Without: random tokens.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the random tokens.")
@plot_option("Draw the report, .svg or .png.")
@threads_option("those that this process may use; 1 for small models")
@json_option
@click.pass_context
def drift(
    context: click.Context,
    bundle: Path,
    checkpoint: Path,
    tokens: int,
    data: tuple[str, ...],
    seed: int,
    plot: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure what the precision of a bundle costs along a stream.

    The bundle and the fp32 model read the same tokens, and neither is ever brought back to the other's state. The
    report has top-1 agreement, KL divergence and the error of every state along the stream. Exits with 1 outside the
    limits of the precision.
    """
    report_drift(context, bundle, checkpoint, tokens, data, seed, plot, threads, as_json)


def report_drift(
    context: click.Context,
    bundle: Path,
    checkpoint: Path,
    tokens: int,
    data: tuple[str, ...],
    seed: int,
    plot: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """What `titans drift` and `titans verify --drift` do."""
    check_plot(plot)
    torch_threads(threads)
    with progress_bar("measuring") as progress:
        from titans_export.verification.drift import measure_drift

        report = measure_drift(bundle, checkpoint, tokens=tokens, data=data, seed=seed, progress=progress)
    if as_json:
        print_json(report.to_json_dict())
    else:
        say(*report.explain().splitlines())
    if plot is not None:  # after the figures, which no picture can take away
        from titans_export.verification.drift_plot import plot_drift

        plot_drift(report, plot)
    if not report.ok:
        context.exit(1)
