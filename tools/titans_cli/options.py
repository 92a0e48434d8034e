"""What the commands share: the options they have in common, one JSON document on stdout, progress on stderr.

Knows click and rich. Does not know what any command does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

Command = TypeVar("Command", bound=Callable[..., None])
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
