"""`titans import`: models that were trained elsewhere.

Knows the options. Imports PyTorch only when a command runs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from titans_cli.options import json_option
from titans_cli.terminal import print_json, progress_bar, say
from titans_cli.threads import threads_option, torch_threads

if TYPE_CHECKING:
    from titans_format.manifest import Manifest

Command = TypeVar("Command", bound=Callable[..., None])

# What to say of code bases whose models are not carried over, where somebody names them.
_REFUSED = {
    "tf-titans": "its models take one length only and see their future, so no stream can agree with them; what they"
    " were for is `titans train --task text`, and a bundle runs beside TensorFlow",
    "aheschl1-titans": "its attention sees the future, and its memory climbs its loss and is one for the whole batch;"
    " what it was for is `titans train --task series`",
    "open-titans": "its generation has no cache of keys, and its models cannot be read back from what they save;"
    " train with `titans train --variant mag`",
    "titans-memory": "its models see their future (titans audit shows it); train with `titans train --variant mac`",
    "titans-trainer": "its models see their future and share one memory over the batch (titans audit shows it);"
    " train with `titans train --variant mac`",
    "tptt": "its models compute another function at every length (titans audit shows it); give a pretrained model a"
    " memory with `titans graft`",
}


class Sources(click.Group):
    """A group that says why a source that somebody may ask for is not there."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] in _REFUSED:
            raise click.UsageError(f"{args[0]} is not carried over: {_REFUSED[args[0]]}")
        return super().resolve_command(ctx, args)


@click.group(
    name="import",
    cls=Sources,
    epilog="""\b
Examples:
  titans import titans-pytorch mac_transformer.pt --config config.json --out model.titans
  titans import titans-unofficial model.pt --config config.json --out model.titans""",
)
def import_() -> None:
    """Turn a model that was trained elsewhere into a bundle."""


def _importing(config_help: str) -> Callable[[Command], Command]:
    """The arguments and options that all sources have."""

    def decorate(function: Command) -> Command:
        @wraps(function)
        def with_threads(*args: Any, threads: int | None, **options: Any) -> None:
            torch_threads(threads)
            function(*args, **options)

        where = click.Path(path_type=Path)
        for option in reversed(
            (
                click.argument("checkpoint", type=where),
                click.option("--config", type=where, required=True, help=config_help),
                click.option("--out", type=where, required=True, help="The bundle directory to make."),
                click.option("--tokenizer", type=where, help="A tokenizer.json to carry along."),
                click.option(
                    "--verify-tokens",
                    type=click.IntRange(0),
                    default=600,
                    show_default=True,
                    help="Length of the stream that the new bundle is verified on; 0 leaves it unverified.",
                ),
                click.option("--overwrite", is_flag=True, help="Replace the bundle that is there."),
                threads_option("those that this process may use; 1 for small models"),
                json_option,
                click.pass_context,
            )
        ):
            with_threads = option(with_threads)
        return with_threads  # type: ignore[return-value]

    return decorate


@import_.command(
    name="titans-pytorch",
    epilog="""\b
Example:
  titans import titans-pytorch mac_transformer.pt --config config.json --out model.titans""",
)
@_importing('JSON: {"class": "MemoryAsContextTransformer" or "NeuralMemory", "args": {the constructor\'s arguments}}.')
def titans_pytorch(context: click.Context, checkpoint: Path, out: Path, as_json: bool, **options: Any) -> None:
    """Turn a titans-pytorch state_dict (.pt or .safetensors) into a bundle, and verify it.

    The bundle is compared with the full forward of the installed titans-pytorch, or, where that package is missing,
    with a PyTorch form of our own. Exits with 1 if they disagree, and leaves no bundle.
    """
    from titans_export.titans_pytorch.importer import import_checkpoint

    _import(context, import_checkpoint, checkpoint, out, as_json, options)


@import_.command(
    name="titans-unofficial",
    epilog="""\b
Example:
  titans import titans-unofficial model.pt --config config.json --out model.titans""",
)
@_importing(
    'JSON: {"class": "TitansMAC", "TitansMAG" or "TitansMAL", "args": {the constructor\'s arguments}, "prefix": before'
    ' the model\'s names, "embedding" and "head": the names of your own modules}.'
)
def titans_unofficial(context: click.Context, checkpoint: Path, out: Path, as_json: bool, **options: Any) -> None:
    """Turn a titans-unofficial state_dict (.pt or .safetensors) into a bundle, and verify it.

    The bundle is compared with the full forward of the installed titans-unofficial, or, where that package is missing,
    with a PyTorch form of our own. Exits with 1 if they disagree, and leaves no bundle.
    """
    from titans_export.titans_unofficial.importer import import_checkpoint

    _import(context, import_checkpoint, checkpoint, out, as_json, options)


def _import(
    context: click.Context,
    import_checkpoint: Callable[..., Manifest],
    checkpoint: Path,
    out: Path,
    as_json: bool,
    options: dict[str, Any],
) -> None:
    """Import, and report what came of it."""
    from titans_export.errors import VerificationError
    from titans_export.titans_pytorch.importer import NOTES

    config = options.pop("config")
    try:
        with progress_bar("importing") as progress:
            manifest = import_checkpoint(checkpoint, config, out, progress=progress, **options)
    except VerificationError as error:
        say(f"Error: {error}", err=True)
        context.exit(1)
    if NOTES in manifest.provenance:
        say(f"{checkpoint}: {manifest.provenance[NOTES]}", err=True)
    report = manifest.verification
    if as_json:
        print_json(
            {
                "bundle": str(out),
                "model": manifest.model.name,
                "parameters": manifest.model.parameters,
                "graphs": [graph.name for graph in manifest.graphs],
                "stream_bytes": manifest.stream_bytes,
                "verification": report,
            }
        )
        return
    say(f"{out}: {manifest.model.name}, {manifest.model.parameters:,} parameters", err=True)
    if report is None:
        say("not verified; import it again without --verify-tokens 0", err=True)
    else:
        against = f"{report['reference']} over {report['tokens']:,} tokens"
        say(f"verified against {against}, largest error {report['max_abs_error']:.1e}", err=True)
