"""What the commands share: the options they have in common, one JSON document on stdout, progress on stderr.

Knows click and rich. Does not know what any command does.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

Command = TypeVar("Command", bound=Callable[..., None])
PICTURES = (".svg", ".png")  # endings that --plot knows
ReportProgress = Callable[[int, int], None]  # (done, total), in the same unit


def bundle_argument(function: Command) -> Command:
    """The BUNDLE argument; whether it is a bundle is for the runtime to say."""
    return click.argument("bundle", type=click.Path(path_type=Path))(function)


def json_option(function: Command) -> Command:
    """`--json`: one JSON document on stdout."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")(function)


def print_json(document: object) -> None:
    """Write `document` to stdout as one JSON document; NaN and infinity are not JSON and are errors."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))


def plot_option(help: str) -> Callable[[Command], Command]:
    """`--plot`: a picture beside the figures. `check_plot` looks at the rest of what can be wrong with it."""
    picture = click.Path(path_type=Path, dir_okay=False, readable=False, writable=True)
    return click.option("--plot", type=picture, help=help)


def check_plot(path: Path | None) -> None:
    """Raise `UsageError` where `--plot` could not be drawn, before work is done that is to end in it."""
    from titans_runtime.atomic import check_writable
    from titans_runtime.errors import StateError

    if path is None:
        return
    if path.suffix.lower() not in PICTURES:
        raise click.UsageError(f"--plot {path} is no picture; use a name that ends in {' or '.join(PICTURES)}")
    try:
        importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise click.UsageError(f"--plot needs matplotlib ({error}); run: pip install 'titans-deploy[plot]'") from error
    try:
        check_writable(path)
    except StateError as error:
        raise click.UsageError(f"--plot: {error}") from error


@contextmanager
def progress_bar(label: str) -> Iterator[ReportProgress]:
    """A progress bar on stderr, gone when it is done; silent where stderr is not a terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=None)

        def report(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield report


@contextmanager
def prompt_progress() -> Iterator[ReportProgress]:
    """A progress bar for a prompt that is read in more than one piece, gone once it is read."""
    with ExitStack() as bar:
        report: ReportProgress | None = None

        def read(done: int, total: int) -> None:
            nonlocal report
            if done == total:
                bar.close()
                return
            report = report or bar.enter_context(progress_bar("reading the prompt"))
            report(done, total)

        yield read
