"""What the commands share: the options they have in common.

Knows click. Does not know what any command does, nor how it writes (`terminal`).
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from titans_format.install import install

Command = TypeVar("Command", bound=Callable[..., None])
PICTURES = (".svg", ".png")  # endings that --plot knows
_ESCAPES = {"\\n": "\n", "\\t": "\t", "\\\\": "\\"}


def bundle_argument(function: Command) -> Command:
    """The BUNDLE argument; whether it is a bundle is for the runtime to say."""
    return click.argument("bundle", type=click.Path(path_type=Path))(function)


def json_option(function: Command) -> Command:
    """`--json`: one JSON document on stdout."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")(function)


def unescaped(text: str) -> str:
    """Text from a command line with \\n as a line break, \\t as a tab and \\\\ as a backslash."""
    return re.sub(r"\\[nt\\]", lambda found: _ESCAPES[found[0]], text)


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
        raise click.UsageError(f"--plot needs matplotlib ({error}); run: {install('plot')}") from error
    try:
        check_writable(path)
    except StateError as error:
        raise click.UsageError(f"--plot: {error}") from error
