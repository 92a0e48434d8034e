"""`titans doctor`: what this machine can run, and what to install for the rest.

Knows which packages the commands need. Which execution providers there are is the runtime's knowledge.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence

import click
from rich.console import Console
from rich.table import Table

from titans_cli.options import json_option, print_json

# Command -> the packages it needs beyond the base dependencies, and the extra that brings them.
_NEEDS = {
    "titans train": (("torch",), "train"),
    "titans export, verify": (("torch", "onnx", "onnxruntime"), "export"),
    "titans run": (("onnxruntime",), "cpu"),
}


@click.command(
    epilog="""\b
Example:
  titans doctor"""
)
@json_option
def doctor(as_json: bool) -> None:
    """Show what this machine can run, and what to install for the rest.

    Runs something tiny at every execution provider and says what came of it; no model is loaded.
    """
    from titans_runtime.providers import report

    providers = [provider.as_json() for provider in report()]
    commands = [_command(name, packages, extra) for name, (packages, extra) in _NEEDS.items()]
    machine = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    if as_json:
        print_json({"machine": machine, "commands": commands, "providers": providers})
        return
    console = Console(highlight=False)
    console.print(f"Python {machine['python']} on {machine['system']}")
    console.print(_table("Commands", ("command", "status", "versions", "to do"), [tuple(c.values()) for c in commands]))
    columns = ("name", "status", "version", "detail", "remedy")
    rows = [tuple(provider[column] or "" for column in columns) for provider in providers]
    console.print(_table("Execution providers", ("provider", *columns[1:4], "to do"), rows))


def _command(name: str, packages: tuple[str, ...], extra: str) -> dict[str, str]:
    versions = {package: _version(package) for package in packages}
    missing = [package for package, version in versions.items() if version is None]
    return {
        "name": name,
        "status": f"{', '.join(missing)} missing" if missing else "ready",
        "versions": ", ".join(f"{package} {version}" for package, version in versions.items() if version),
        "remedy": f"pip install 'titans-deploy[{extra}]'" if missing else "",
    }


def _version(package: str) -> str | None:
    """The installed version; every package that claims the import name `onnxruntime` counts as onnxruntime."""
    for name in (package, f"{package}-gpu") if package == "onnxruntime" else (package,):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(str(cell).replace("[", r"\[") for cell in row))
    return table
