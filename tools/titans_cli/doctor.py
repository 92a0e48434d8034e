"""`titans doctor`: what this machine can run, and what to install for the rest.

Knows which packages the commands need. Which execution providers there are is the runtime's knowledge.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
from pathlib import Path

import click

from titans_cli.options import json_option
from titans_cli.terminal import print_json, say, say_entry
from titans_format.install import install

# Commands -> the packages they need beyond the base dependencies, and the extra that brings them.
_NEEDS: dict[str, tuple[tuple[str, ...], str]] = {
    "titans train, graft, audit": (("torch",), "train"),
    "titans export, import, verify, drift": (("torch", "onnx", "onnxruntime"), "export"),
    "titans slim": (("torch", "onnx"), "export"),
    "titans build --backend tensorrt-rtx": (("onnx", "tensorrt-rtx"), "export,tensorrt-rtx"),
    "titans build --backend tensorrt": (("onnx", "tensorrt"), "export,tensorrt"),
    "titans run, chat, bench, eval": (("onnxruntime",), "cpu"),
    "titans serve, triton": (("onnxruntime", "prometheus-client", "starlette", "uvicorn"), "serve"),
    "titans serve --store redis://": (("redis",), "redis"),
    "titans serve --store postgresql://": (("psycopg", "psycopg-binary", "psycopg-pool"), "postgresql"),
    "titans serve --ray": (("ray",), "ray"),
    "titans serve --encrypt": (("cryptography",), "encrypt"),
    "titans inspect, state, push": ((), ""),
    "titans eval --plot, verify --plot": (("matplotlib",), "plot"),
    "titans train, eval --task series --data NAME": (("bokeh-sampledata", "heartpy", "vega-datasets"), "data"),
}


_SHOWN_STREAMS = (1, 10, 100, 1000)
_UNITS = {"": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """A size such as 8GiB, in bytes."""
    if value is None:
        return None
    found = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)\s*([a-z]*)", value.strip().lower())
    if found is None or found[2] not in _UNITS:
        raise click.BadParameter(f"{value!r} is not a size; write one such as 8GiB or 512MiB", ctx, param)
    return int(float(found[1]) * _UNITS[found[2]])


@click.command(
    epilog="""\b
Examples:
  titans doctor
  titans doctor --budget model.titans --memory 8GiB"""
)
@click.option(
    "--budget",
    "bundle",
    type=click.Path(path_type=Path),
    metavar="BUNDLE",
    help="Show instead how many streams of a bundle fit into memory on the CPU.",
)
@click.option(
    "--memory",
    metavar="SIZE",
    callback=_size,
    help="With --budget: how much there is, such as 8GiB.  [default: what is free here]",
)
@json_option
def doctor(bundle: Path | None, memory: int | None, as_json: bool) -> None:
    """Show what this machine can run, and what to install for the rest.

    Runs something tiny at every execution provider and says what came of it; no model is loaded. With --budget a bundle
    is loaded in a process of its own, and what that takes is measured.
    """
    if memory is not None and bundle is None:
        raise click.UsageError("--memory goes with --budget BUNDLE")
    if bundle is not None:
        _budget(bundle, memory, as_json)
        return
    from titans_runtime.devices.doctor import report

    providers = [provider.as_json() for provider in report()]
    commands = [_command(name, packages, extra) for name, (packages, extra) in _NEEDS.items()]
    machine = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    if as_json:
        print_json({"machine": machine, "commands": commands, "providers": providers})
        return
    say(f"Python {machine['python']} on {machine['system']}")
    say("", "Commands")
    for command in commands:
        _show(command["name"], command["status"], command["versions"], command["remedy"])
    say("", "Execution providers")
    for provider in providers:
        version = f"version {provider['version']}" if provider["version"] else ""
        _show(provider["name"], provider["status"], version, provider["detail"], provider["remedy"])


def _budget(bundle: Path, memory: int | None, as_json: bool) -> None:
    """How many streams of a bundle fit."""
    from titans_measure.speed.budget import FORMULA, budget
    from titans_runtime.memory import available

    found, there = budget(bundle), available() if memory is None else memory
    takes = {str(streams): found.bytes(streams) for streams in _SHOWN_STREAMS}
    if as_json:
        print_json(
            {"bundle": str(bundle), **found.as_json(), "bytes": takes, "memory": there, "streams": found.streams(there)}
        )
        return
    say(FORMULA, "")
    measured = {"runtime": "measured", "working": "measured at the peak"}
    for name in ("runtime", "weights", "float32_copies", "working", "state_per_stream"):
        say_entry(name, f"{getattr(found, name) / 2**20:,.1f} MiB ({measured.get(name, 'from the bundle')})")
    say(f"One more stream took {found.measured_per_stream / 2**20:,.1f} MiB, by {found.measured_streams} of them.", "")
    for streams, size in takes.items():
        say_entry(f"{streams} streams", f"{size / 2**20:,.0f} MiB")
    say("", f"{found.streams(there):,} streams fit into {there / 2**30:,.1f} GiB.")


def _command(name: str, packages: tuple[str, ...], extra: str) -> dict[str, str]:
    versions = {package: _version(package) for package in packages}
    missing = [package for package, version in versions.items() if version is None]
    return {
        "name": name,
        "status": f"{', '.join(missing)} missing" if missing else "ready",
        "versions": ", ".join(f"{package} {version}" for package, version in versions.items() if version),
        "remedy": f"run: {install(extra)}" if missing else "",
    }


def _version(package: str) -> str | None:
    """The installed version; every package that claims the import name `onnxruntime` counts as onnxruntime."""
    for name in (package, f"{package}-gpu") if package == "onnxruntime" else (package,):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _show(name: object, status: object, *lines: object) -> None:
    """Never broken, so that a command can be copied as it stands."""
    say_entry(name, status)
    for line in lines:
        if line:
            say(f"      {line}")
