"""Options that only some tasks have, in commands that serve all tasks.

Knows click. Does not know the tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
from click.core import ParameterSource

Command = TypeVar("Command", bound=Callable[..., None])
Decorator = Callable[[Any], Any]

_WITH, _WITHOUT = "with --data", "without --data"


class TaskOption(click.Option):
    """An option of some tasks; its help says which. A task may have it only `with --data` or only `without --data`."""

    def __init__(self, *names: Any, tasks: Sequence[str], **settings: Any) -> None:
        settings["help"] = f"{settings['help']} [{', '.join(tasks)}]"
        super().__init__(*names, **settings)
        self.tasks = tuple(tasks)
        self._conditions = dict(task.partition(" ")[::2] for task in tasks)

    def of(self, task: str) -> bool:
        """Whether `task` has it, whatever its data."""
        return task in self._conditions

    def belongs_to(self, task: str, data: bool) -> bool:
        """Whether `task` has it where `--data` is given, or is not."""
        return self.of(task) and self._conditions[task] in ("", _WITH if data else _WITHOUT)


def task_option(*names: str, tasks: Sequence[str], **settings: Any) -> Decorator:
    """`click.option` for the commands' `tasks` alone, such as `recall` or `dna without --data`."""
    return click.option(*names, cls=TaskOption, tasks=tasks, **settings)


def with_options(options: Sequence[Decorator]) -> Callable[[Command], Command]:
    """A decorator that applies all of `options`, shown in this order."""

    def decorate(function: Command) -> Command:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def options_of(context: click.Context, task: str, files: Sequence[str] = ()) -> dict[str, Any]:
    """The values of the options that `task` has, by name; `files` are more of its `--data`.

    Raises `UsageError` for an option given that it has not.
    """
    options = [parameter for parameter in context.command.params if isinstance(parameter, TaskOption)]
    chosen = {option.name or "": context.params[option.name or ""] for option in options if option.of(task)}
    if files and "data" not in chosen:
        raise click.UsageError(f"--task {task} reads no files; leave {files[0]} out")
    if files:
        chosen["data"] = (*chosen["data"], *files)
    data = bool(chosen.get("data"))
    for option in options:
        if was_given(context, option.name) and not option.belongs_to(task, data):
            here = f"{task} {_WITH if data else _WITHOUT}" if option.of(task) else task
            raise click.UsageError(
                f"{option.opts[0]} belongs to --task {_listed(option.tasks)}; leave it out for {here}"
            )
    return chosen


def was_given(context: click.Context, name: str | None) -> bool:
    """Whether the parameter `name` was given on the command line; otherwise its value is its default."""
    return name is not None and context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def _listed(names: Sequence[str]) -> str:
    """Names as a sentence has them: a, b and c."""
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)
