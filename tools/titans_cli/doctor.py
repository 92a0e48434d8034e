"""`titans doctor`: what this machine can run, and what to install for the rest.

Knows which packages the commands need. Which execution providers there are is the runtime's knowledge.
"""

from __future__ import annotations

import importlib.metadata
import platform

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
