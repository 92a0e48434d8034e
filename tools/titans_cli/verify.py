"""`titans verify`: a bundle beside the PyTorch model it came from.

Knows the options and the exit code. Imports PyTorch only when the command runs.
"""

from __future__ import annotations

from pathlib import Path

import click

from titans_cli.options import bundle_argument, check_plot, json_option, plot_option
from titans_cli.terminal import print_json, progress_bar, say
from titans_cli.threads import threads_option, torch_threads


@click.command(
    epilog="""\b
Examples:
  titans verify model.titans --checkpoint checkpoint --tokens 8192 --json
  titans verify model-fp16.titans --checkpoint checkpoint --drift --data stdlib --tokens 16384 --plot drift.svg"""
)
@bundle_argument
@click.option("--checkpoint", type=click.Path(path_type=Path), required=True, help="What the bundle was made from.")
@click.option("--tokens", type=click.IntRange(1), default=8192, show_default=True, help="Length of the stream.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the stream and its splits.")
@click.option("--drift", is_flag=True, help="Compare with the fp32 model instead: what does the precision cost?")
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

    With --drift both sides run freely, and the report says how far a bundle of lower precision gets from the fp32
    model: top-1 agreement, KL divergence and the error of every state along the stream. Exits with 1 outside limits.
    """
    if (data or plot) and not drift:
        raise click.UsageError("--data and --plot belong to --drift")
    check_plot(plot)
    torch_threads(threads)
    drifted = None
    with progress_bar("verifying") as progress:
        if drift:
            from titans_export.verification.drift import measure_drift

            drifted = measure_drift(bundle, checkpoint, tokens=tokens, data=data, seed=seed, progress=progress)
            document, text, ok = drifted.to_json_dict(), drifted.explain(), drifted.ok
        else:
            from titans_export.verification.agreement import verify_bundle

            report = verify_bundle(bundle, checkpoint, tokens=tokens, seed=seed, progress=progress)
            document, text, ok = report.to_json_dict(), report.explain(), report.ok
    if as_json:
        print_json(document)
    else:
        say(*text.splitlines())
    if drifted is not None and plot is not None:  # after the figures, which no picture can take away
        from titans_export.verification.drift_plot import plot_drift

        plot_drift(drifted, plot)
    if not ok:
        context.exit(1)
