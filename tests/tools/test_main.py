"""The command group: what it lists, and how errors reach a person."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from types import ModuleType

import click
import pytest
from click.testing import CliRunner, Result

from titans_cli.main import COMMANDS, cli

Raising = Callable[[BaseException], Result]


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> Raising:
    """A function that runs `titans run` with a body that raises the given exception."""

    def run(error: BaseException) -> Result:
        @click.command("run")
        def command() -> None:
            raise error

        module = ModuleType("titans_cli.run")
        module.run = command  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "titans_cli.run", module)
        return CliRunner().invoke(cli, ["run"])

    return run


def own_errors() -> list[Exception]:
    from titans_core.errors import ConfigError
    from titans_export.errors import ExportError
    from titans_format.errors import BundleError

    return [ConfigError("wrong", "mend it"), ExportError("wrong", "mend it"), BundleError("wrong", "mend it")]


@pytest.mark.parametrize("error", own_errors(), ids=lambda error: type(error).__name__)
def test_the_packages_errors_become_one_line_and_exit_code_2(raising: Raising, error: Exception) -> None:
    result = raising(error)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", "Error: wrong; mend it\n")


def test_a_message_over_several_lines_is_still_one_line(raising: Raising) -> None:
    from titans_runtime.errors import InputError

    assert raising(InputError("first\n  second", "mend it")).stderr == "Error: first second; mend it\n"


@pytest.mark.parametrize(
    ("code", "remedy"),
    [(errno.ENOSPC, "free some disk space"), (errno.EACCES, "check the permissions"), (errno.EROFS, "read-only")],
)
def test_failing_disks_are_named_with_a_remedy(raising: Raising, code: int, remedy: str) -> None:
    result = raising(OSError(code, os.strerror(code), "some/place"))
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: some/place: {os.strerror(code)}; ")
    assert remedy in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_missing_package_names_the_extra_that_brings_it(raising: Raising) -> None:
    result = raising(ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime"))
    assert result.exit_code == 2
    assert "pip install 'onnxruntime>=" in result.stderr


def test_a_bug_keeps_its_traceback(raising: Raising) -> None:
    result = raising(ZeroDivisionError("a bug"))
    assert isinstance(result.exception, ZeroDivisionError)


def test_titans_debug_keeps_every_traceback(raising: Raising, monkeypatch: pytest.MonkeyPatch) -> None:
    from titans_format.errors import BundleError

    monkeypatch.setenv("TITANS_DEBUG", "1")
    assert isinstance(raising(BundleError("wrong", "mend it")).exception, BundleError)


def test_help_lists_every_command() -> None:
    result = CliRunner().invoke(cli, ["--help"])
    assert result.exit_code == 0
    assert all(f"  {name} " in result.stdout for name in COMMANDS)


def test_an_unknown_command_is_a_usage_error() -> None:
    result = CliRunner().invoke(cli, ["fly"])
    assert result.exit_code == 2
    assert "No such command 'fly'" in result.stderr


def test_the_version_is_the_distributions() -> None:
    from importlib.metadata import version

    assert CliRunner().invoke(cli, ["--version"]).stdout == f"titans, version {version('titans-deploy')}\n"
