"""The one place where the commands write to a terminal: lines, tables, generated text, progress, one JSON document.

A file's name, and every string in a bundle, a state or a checkpoint, may have been made by somebody who wants to write
to this terminal: move its cursor, set its title, or turn a line round. So nothing is written here before characters
that steer a terminal are spelled out. Knows click and rich. Does not know what any command does.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TextIO

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from titans_format.progress import ReportProgress

# Controls (C0, DEL, C1); marks that order text from right to left or end a line; halves of characters, which stand for
# the bytes of a file name that is not UTF-8.
_STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and line feed
_WIDE = 1000  # columns where there is no terminal: nothing is cut or folded for a file or a pipe


def visible(text: object) -> str:
    """One line in which every character is seen: those that steer a terminal become `\\x1b` or `\\u202e`."""
    return _STEERING.sub(_spelled, str(text))


def say(*lines: object, err: bool = False) -> None:
    """Write lines to stdout, or stderr; a line break inside of one is spelled out.

    The stream is named, because click chooses one that writes UTF-8 where the encoding is ASCII.
    """
    for line in lines or ("",):
        click.echo(visible(line), file=sys.stderr if err else sys.stdout)


def say_entry(name: object, value: object) -> None:
    """Write `name: value` to stdout, the name in bold on a terminal."""
    click.echo(f"  {click.style(visible(name), bold=True)}: {visible(value)}", file=sys.stdout)


def write_text(text: str, nl: bool = False, err: bool = False) -> None:
    """Write what a model said, as it is; on a terminal, controls but tab and line feed are spelled out."""
    stream: TextIO = sys.stderr if err else sys.stdout
    text = _CONTROLS.sub(_spelled, text) if stream.isatty() else text
    click.echo(text, nl=nl, file=stream, color=True)  # nothing is stripped from it


def print_json(document: object, indent: int | None = 2) -> None:
    """Write `document` to stdout as one JSON document; NaN and infinity are not JSON and are errors.

    What a terminal would obey, or stdout's encoding lacks, is written as JSON's `\\uXXXX`: the values are the same.
    """
    text = json.dumps(document, indent=indent, ensure_ascii=False, allow_nan=False)
    text = "\n".join(_STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", line) for line in text.split("\n"))
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        text = json.dumps(document, indent=indent, allow_nan=False)
    click.echo(text, file=sys.stdout)


class PlainTable(Table):
    """A table whose cells are text: nothing in them is markup, steers a terminal, or is cut."""

    def __init__(self, *headers: str, title: str | None = None) -> None:
        super().__init__(title=None if title is None else Text(visible(title)), title_justify="left")
        for header in headers:
            self.add_column(header)

    def add_column(self, header: object = "", *, right: bool = False) -> None:  # type: ignore[override]
        """A column of text, or of numbers, which stand at its right."""
        super().add_column(Text(visible(header)), justify="right" if right else "left", overflow="fold")

    def add_row(self, *cells: object) -> None:  # type: ignore[override]
        """A cell for each column."""
        super().add_row(*(Text(visible(cell)) for cell in cells))


def show(table: PlainTable) -> None:
    """Write a table to stdout."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, emoji=False, width=_WIDE)
    console.print(table)


@contextmanager
def progress_bar(label: str) -> Iterator[ReportProgress]:
    """A progress bar on stderr, gone when it is done; silent where stderr is not a terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(visible(label), total=None)

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


def accept_any_text() -> None:
    """Have stdout and stderr spell out characters that their encoding lacks, instead of failing on them."""
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _spelled(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is not UTF-8
        code -= 0xDC00
    return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(found[0]) or (
        f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    )
