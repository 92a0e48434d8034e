"""The `titans` command: which subcommands there are, and how their errors reach a person.

Loads a subcommand's module only when that subcommand is asked for, so `titans --help` and `titans run` never pay for
PyTorch; an error of any package has the one root `TitansError`. Does not know what any subcommand does.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import keyword
import os
import signal
import sys
from typing import IO, Any, cast

import click

from titans_cli.terminal import accept_any_text, say, visible
from titans_format.errors import TitansError
from titans_format.install import install
from titans_runtime.errors import os_remedy

# Subcommand -> its line in `titans --help`. The command itself is the attribute of that name in titans_cli.<name>; both
# have a `_` at the end where the name is a word of Python's.
COMMANDS = {
    "train": "Train a model and leave a checkpoint.",
    "graft": "Give a pretrained language model a memory, and leave a checkpoint.",
    "export": "Turn a checkpoint into a bundle of ONNX graphs, and verify it.",
    "import": "Turn a model that was trained elsewhere into a bundle.",
    "verify": "Drive a bundle beside its checkpoint and compare everything.",
    "drift": "Measure what the precision of a bundle costs along a stream.",
    "build": "Build TensorRT engines for every graph of a bundle.",
    "slim": "Copy what one target needs of a bundle.",
    "run": "Generate text with a bundle.",
    "chat": "Talk to a bundle whose memory outlives the process.",
    "serve": "Serve a bundle over HTTP, with a memory for each user.",
    "triton": "Write a model repository for NVIDIA Triton's Python backend.",
    "push": "Push a bundle and its card to a model hub.",
    "state": "Look into saved sessions, compare two, or move one to another model.",
    "inspect": "Show what is inside a bundle.",
    "bench": "Measure how fast a bundle runs here.",
    "eval": "Measure what a bundle has learned.",
    "audit": "Check a PyTorch model for what makes it impossible to deploy.",
    "doctor": "Show what this machine can run, and what to install for the rest.",
}

# Subcommand -> the extra of titans-deploy that brings what it imports beyond the base dependencies.
_EXTRAS = {
    "train": "train",
    "graft": "train",
    "export": "export",
    "import": "export",
    "verify": "export",
    "drift": "export",
    "build": "export",
    "slim": "export",
    "run": "cpu",
    "chat": "cpu",
    "serve": "serve",
    "triton": "serve",
    "push": "cpu",
    "state": "cpu",
    "inspect": "cpu",
    "bench": "cpu",
    "eval": "cpu",
    "audit": "train",
    "doctor": "cpu",
}
_OPTIONAL_PACKAGES = ("torch", "onnx", "onnxruntime", "prometheus_client", "starlette", "uvicorn")


# Exit codes as shells have them; 1 is for a check that failed.
INTERRUPTED = 128 + signal.SIGINT
UNREAD = 128 + 13  # SIGPIPE, which not every system has: whoever read what is written has gone


class CleanError(click.ClickException):
    """One line on stderr, `Error: <message>`, and exit code 2."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"Error: {visible(self.message)}", file=file or sys.stderr)


class LazyGroup(click.Group):
    """A group that imports `titans_cli.<name>` when `<name>` is used, and turns known errors into `CleanError`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        name = f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name
        return cast(click.Command, getattr(importlib.import_module(f"titans_cli.{name}"), name))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """As in click, on streams that take any text."""
        accept_any_text()
        return super().main(*args, **kwargs)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """As in click; what is wrong with the options before the subcommand is one line too."""
        try:
            return super().make_context(*args, **kwargs)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as error:
            raise _usage(error) from error
        except BrokenPipeError:  # the help of `titans` itself
            raise _unread() from None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except KeyboardInterrupt:
            say("Interrupted", err=True)
            ctx.exit(INTERRUPTED)
        except click.UsageError as error:
            raise _usage(error) from error
        except BrokenPipeError:
            raise _unread() from None
        except SystemExit as end:
            if isinstance(end.__context__, BrokenPipeError):  # rich's way of ending
                raise _unread() from None
            raise
        except Exception as error:
            message = explain(error, ctx.invoked_subcommand or "")
            if message is None or os.environ.get("TITANS_DEBUG") == "1":
                raise
            raise CleanError(message) from error


def _usage(error: click.UsageError) -> CleanError:
    path = error.ctx.command_path if error.ctx else "titans"
    return CleanError(f"{error.format_message().rstrip('.')} (see {path} --help)")


def _unread() -> click.exceptions.Exit:
    """End as other programs do when nobody reads what they write, and write nothing more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a stream that is no file
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
    return click.exceptions.Exit(UNREAD)


def explain(error: Exception, command: str) -> str | None:
    """The message a person should see for `error` of subcommand `command`, or None if it deserves its traceback."""
    if isinstance(error, TitansError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in _OPTIONAL_PACKAGES:
        extra = _EXTRAS[command]
        return f"titans {command} needs {error.name}, which is missing; run: {install(extra)}"
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror}; {os_remedy(error)}"
    if isinstance(error, MemoryError):
        return f"titans {command} needs more memory than there is; close other programs, or give it less at a time"
    return None


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="titans-deploy", prog_name="titans")
def cli() -> None:
    """Titans test-time memory models: train in PyTorch, export to ONNX bundles, run them without PyTorch.

    Exit codes: 0 done, 1 a check failed, 2 wrong usage or bad input, 130 interrupted, 141 nobody reads the output.
    Set TITANS_DEBUG=1 for tracebacks.

    \b
    Example:
      titans train --task text --data stdlib --variant mac --preset tiny --steps 300 --out checkpoint
      titans export checkpoint --out model.titans
      titans run model.titans --prompt "def main():" --max-new-tokens 64
    """


def main() -> None:
    """Entry point of the console script.

    A terminal whose encoding lacks a character gets it escaped, and not a traceback in the middle of an answer.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    cli(prog_name="titans")


if __name__ == "__main__":
    main()
