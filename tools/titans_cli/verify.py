"""`titans verify`: a bundle beside the PyTorch model it came from.

Knows the options and the exit code. Imports PyTorch only when the command runs.
"""

from __future__ import annotations

from pathlib import Path

import click

from titans_cli.drift import report_drift
from titans_cli.options import bundle_argument, checkpoint_option, json_option, plot_option
from titans_cli.terminal import print_json, progress_bar, say
from titans_cli.threads import threads_option, torch_threads


@click.command(
    epilog="""\b
Example:
  titans verify model.titans --checkpoint checkpoint --tokens 8192 --json"""
)
@bundle_argument
@checkpoint_option
@click.option("--tokens", type=click.IntRange(1), default=8192, show_default=True, help="Length of the stream.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the stream and its splits.")
@click.option("--drift", is_flag=True, help="The same as `titans drift`.")
@click.option("--data", multiple=True, help="With --drift: text to feed, a file or stdlib; repeatable.")
@plot_option("With --drift: draw it, .svg or .png.")
@threads_option("those that this process may use; 1 for small models")
@json_option
@click.pass_context
def verify(
    context: click.Context,
    bundle: Path,
    checkpoint: Path,
    tokens: int,
    seed: int,
    drift: bool,
    data: tuple[str, ...],
    plot: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Drive a bundle beside its checkpoint and compare everything.

    A long stream goes through both, split at random into whole chunks, parts of chunks and single tokens; after every
    call the outputs and all state tensors are compared. Exits with 1 if anything is outside its tolerance.

    With --drift this is `titans drift`.
    """
    if drift:
        report_drift(context, bundle, checkpoint, tokens, data, seed, plot, threads, as_json)
        return
    if data or plot:
        raise click.UsageError("--data and --plot belong to --drift")
    torch_threads(threads)
    with progress_bar("verifying") as progress:
        from titans_export.verification.agreement import verify_bundle

        report = verify_bundle(bundle, checkpoint, tokens=tokens, seed=seed, progress=progress)
    if as_json:
        print_json(report.to_json_dict())
    else:
        say(*report.explain().splitlines())
    if not report.ok:
        context.exit(1)
