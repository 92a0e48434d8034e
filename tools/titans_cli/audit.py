"""`titans audit`: any PyTorch sequence model, checked for what makes it impossible to deploy.

Knows the options and the exit code. Imports PyTorch, and the user's code, only when the command runs.
"""

from __future__ import annotations

import contextlib
import sys

import click

from titans_cli.options import json_option
from titans_cli.terminal import print_json, progress_bar, say
from titans_cli.threads import threads_option, torch_threads


@click.command(
    epilog="""\b
Examples:
  titans audit my_package.models:build
  titans audit model.py:Model --vectors 64 --length 256
  titans audit model.py:build --reset reset_memory --noise 60 --json"""
)
@click.argument("target", metavar="MODULE:FACTORY")
@click.option("--ids", type=click.IntRange(2), help="It takes token ids below this.  [default: found by trying]")
@click.option("--vectors", type=click.IntRange(1), help="It takes vectors this wide.  [default: found by trying]")
@click.option("--length", type=click.IntRange(8), help="Tokens of a sequence.  [default: 96, or fewer where it fails]")
@click.option(
    "--multiple",
    type=click.IntRange(1),
    help="All calls have a multiple of so many tokens.  [default: found by trying]",
)
@click.option(
    "--state", help="The argument of forward that takes a state, which is returned; none.  [default: by its name]"
)
@click.option("--reset", help="For a module that keeps its state: the method that makes it forget.")
@click.option(
    "--noise",
    type=click.FloatRange(0),
    default=20.0,
    show_default=True,
    help="Seconds to train a copy on random tokens; 0 leaves it out.",
)
@threads_option("those that this process may use; 1 for small models")
@json_option
@click.pass_context
def audit(
    context: click.Context,
    target: str,
    ids: int | None,
    vectors: int | None,
    length: int | None,
    multiple: int | None,
    state: str | None,
    reset: str | None,
    noise: float,
    threads: int | None,
    as_json: bool,
) -> None:
    """Check a PyTorch model for what makes it impossible to deploy.

    MODULE is an import name or a .py file, and FACTORY a function in it that returns a torch.nn.Module. The module
    takes ids [streams, tokens] or vectors [streams, tokens, features] and returns one output for every token. The
    code is imported and run, so audit only what you would run.

    \b
    causal  no output changes when a later token does
    batch   a stream does not depend on the streams beside it
    prefix  a shorter call gives the same first outputs
    split   calls that carry the state give what one call gives
    repeat  the same call gives the same outputs
    noise   trained on random tokens, it predicts no better than chance

    The comparisons run in float64 where the module can, as it is built and with every parameter moved. Exits with 1
    if a check fails.
    """
    if ids is not None and vectors is not None:
        raise click.UsageError("--ids and --vectors say what goes in; give one of them")
    if multiple is not None and length is not None and length % multiple:
        raise click.UsageError(f"--length {length} is not a multiple of --multiple {multiple}")
    torch_threads(threads)
    from titans_core.audit import Budget, Inputs, build, examine
    from titans_core.audit import audit as run

    inputs = Inputs(ids=ids or 0, features=vectors or 0) if ids or vectors else None
    # What the user's code prints is no part of the report.
    with contextlib.redirect_stdout(sys.stderr), progress_bar("auditing") as progress:
        module = build(target)
        subject = examine(module, inputs=inputs, length=length, multiple=multiple, state=state, reset=reset)
        report = run(subject, target, Budget(seconds=noise), progress)
    if as_json:
        print_json(report.to_json_dict())
    else:
        say(*report.explain().splitlines())
    if not report.ok:
        context.exit(1)
