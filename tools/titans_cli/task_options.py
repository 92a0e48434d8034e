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


class TaskOption(click.Option):
    """An option of some tasks; its help says which."""

    def __init__(self, *names: Any, tasks: Sequence[str], **settings: Any) -> None:
        settings["help"] = f"{settings['help']} [{', '.join(tasks)}]"
        super().__init__(*names, **settings)
        self.tasks = tuple(tasks)


def task_option(*names: str, tasks: Sequence[str], **settings: Any) -> Decorator:
    """`click.option` for the commands' `tasks` alone."""
    return click.option(*names, cls=TaskOption, tasks=tasks, **settings)


def with_options(options: Sequence[Decorator]) -> Callable[[Command], Command]:
    """A decorator that applies all of `options`, shown in this order."""

    def decorate(function: Command) -> Command:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def options_of(context: click.Context, task: str) -> dict[str, Any]:
    """The values of the options that `task` has, by name. Raises `UsageError` for one given that it has not."""
    chosen = {}
    for parameter in context.command.params:
        if not isinstance(parameter, TaskOption):
            continue
        name = parameter.name or ""
        if task in parameter.tasks:
            chosen[name] = context.params[name]
        elif context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"{parameter.opts[0]} belongs to --task {' and '.join(parameter.tasks)}; leave it out for {task}"
            )
    return chosen
