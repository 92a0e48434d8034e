"""Writes docs/cli.md from the click commands themselves, so that it cannot promise what they don't do.

`make docs` runs it; a test compares the file with what it would write. Knows click and the list of commands, and
nothing about what they do.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from titans_cli.main import cli

HEADER = """\
# Command line

<!-- Written by scripts/docs/generate_cli.py; run `make docs` after changing a command. -->

Results go to stdout, progress and messages to stderr. With `--json`, stdout is exactly one JSON document. Exit codes:
0 done, 1 a check failed, 2 wrong usage or bad input (one line on stderr says what and how to mend it), 130 interrupted,
141 nobody reads the output any more, as when `| head` has seen enough.

Names and texts from files are shown with their control characters spelled out (`\\x1b`), so no file can steer the
terminal. What a model generates is shown so on a terminal, tabs and line breaks aside; into a file or a pipe it goes
unchanged. In JSON such characters are `\\u001b`, which any reader turns back.
"""
HELP_WIDTH = 100  # columns; fixed, so that the page doesn't depend on the terminal that made it


def help_text(command: click.Command, name: str, parent: click.Context | None = None) -> str:
    """The `--help` of one command as a fenced block."""
    context = click.Context(command, info_name=name, parent=parent, terminal_width=HELP_WIDTH, max_content_width=120)
    return f"```\n{command.get_help(context).rstrip()}\n```\n"


def page() -> str:
    """The whole of docs/cli.md."""
    root = click.Context(cli, info_name="titans")
    sections = [HEADER, help_text(cli, "titans")]
    for name in cli.list_commands(root):
        command = cli.get_command(root, name)
        if command is not None:
            sections += [f"## titans {name}\n", help_text(command, name, root)]
        if isinstance(command, click.Group):
            group = click.Context(command, info_name=name, parent=root)
            for word, part in sorted(command.commands.items()):
                sections += [f"### titans {name} {word}\n", help_text(part, word, group)]
    return "\n".join(sections)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
