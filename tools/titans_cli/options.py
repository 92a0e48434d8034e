"""What the commands share: the options they have in common.

Knows click. Does not know what any command does, nor how it writes (`terminal`).
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import click

from titans_format.install import install

if TYPE_CHECKING:
    from titans_format.fields import GenerationDefaults

Command = TypeVar("Command", bound=Callable[..., None])
PICTURES = (".svg", ".png")  # endings that --plot knows
_TEMPERATURE = 0.8  # where neither the command line nor the bundle says
_ESCAPES = {"\\n": "\n", "\\t": "\t", "\\\\": "\\"}


def bundle_argument(function: Command) -> Command:
    """The BUNDLE argument; whether it is a bundle is for the runtime to say."""
    return click.argument("bundle", type=click.Path(path_type=Path))(function)


def checkpoint_option(function: Command) -> Command:
    """`--checkpoint`: what a bundle is compared with."""
    where = click.Path(path_type=Path)
    return click.option("--checkpoint", type=where, required=True, help="What the bundle was made from.")(function)


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


class SamplingArguments(TypedDict):
    """What `Session.generate` and `Session.chat` take."""

    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    seed: int | None


@dataclass(frozen=True)
class Sampling:
    """How tokens are to be chosen, as far as the command line says."""

    given: SamplingArguments
    greedy: bool

    def arguments(self, defaults: GenerationDefaults) -> SamplingArguments:
        """The same for a bundle with these defaults."""
        temperature = self.given["temperature"]
        if self.greedy:
            temperature = 0.0
        elif temperature is None and defaults.temperature is None:
            temperature = _TEMPERATURE
        return {**self.given, "temperature": temperature}

    def check(self) -> None:
        """Raise `InputError` for a value outside of its range, before a bundle is loaded."""
        from titans_format.fields import GenerationDefaults
        from titans_runtime.text.sampling import chosen_options

        chosen_options(GenerationDefaults(), **self.given)


def sampling_options(function: Command) -> Command:
    """The options by which tokens are chosen; the command gets them as one argument, `sampling`."""

    @wraps(function)
    def collected(*args: Any, greedy: bool, **options: Any) -> None:
        given: SamplingArguments = {name: options.pop(name) for name in SamplingArguments.__annotations__}  # type: ignore[assignment]
        if greedy and given["temperature"] is not None:
            raise click.UsageError("--greedy is a temperature of 0; give one of --greedy and --temperature")
        function(*args, sampling=Sampling(given, greedy), **options)

    for option in reversed(
        (
            click.option(
                "--temperature", type=float, help="0 takes the most likely token. [default: the bundle's, or 0.8]"
            ),
            click.option("--greedy", is_flag=True, help="Take the most likely token, whatever the bundle says."),
            click.option("--top-k", type=int, help="Choose among the k most likely tokens; 0 for all. [as the bundle]"),
            click.option("--top-p", type=float, help="Choose among the likely tokens that make up this probability."),
            click.option("--min-p", type=float, help="Drop tokens less likely than this fraction of the likeliest."),
            click.option(
                "--repetition-penalty", type=float, help="Above 1: repeat less. [default: the bundle's, or 1]"
            ),
            click.option("--seed", type=int, help="Makes the choice of tokens repeatable."),
        )
    ):
        collected = option(collected)
    return collected  # type: ignore[return-value]
