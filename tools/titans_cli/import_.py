"""`titans import`: models that were trained elsewhere.

Knows the options. Imports PyTorch only when a command runs.
"""

from __future__ import annotations

from pathlib import Path

import click

from titans_cli.options import json_option
from titans_cli.terminal import print_json, progress_bar, say
from titans_cli.threads import threads_option, torch_threads


@click.group(
    name="import",
    epilog="""\b
Example:
  titans import titans-pytorch mac_transformer.pt --config config.json --out model.titans""",
)
def import_() -> None:
    """Turn a model that was trained elsewhere into a bundle."""


@import_.command(
    name="titans-pytorch",
    epilog="""\b
Example:
  titans import titans-pytorch mac_transformer.pt --config config.json --out model.titans""",
)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    required=True,
    help='JSON: {"class": "MemoryAsContextTransformer" or "NeuralMemory", "args": {the constructor\'s arguments}}.',
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The bundle directory to make.")
@click.option("--tokenizer", type=click.Path(path_type=Path), help="A tokenizer.json to carry along.")
@click.option(
    "--verify-tokens",
    type=click.IntRange(0),
    default=600,
    show_default=True,
    help="Length of the stream that the new bundle is verified on; 0 leaves it unverified.",
)
@click.option("--overwrite", is_flag=True, help="Replace the bundle that is there.")
@threads_option("those that this process may use; 1 for small models")
@json_option
@click.pass_context
def titans_pytorch(
    context: click.Context,
    checkpoint: Path,
    config: Path,
    out: Path,
    tokenizer: Path | None,
    verify_tokens: int,
    overwrite: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Turn a titans-pytorch state_dict (.pt or .safetensors) into a bundle, and verify it.

    The bundle is compared with the full forward of the installed titans-pytorch, or, where that package is missing,
    with a PyTorch form of our own. Exits with 1 if they disagree, and leaves no bundle.
    """
    torch_threads(threads)
    from titans_export.errors import VerificationError
    from titans_export.titans_pytorch.importer import NOTES, import_checkpoint

    try:
        with progress_bar("importing") as progress:
            manifest = import_checkpoint(
                checkpoint,
                config,
                out,
                tokenizer=tokenizer,
                verify_tokens=verify_tokens,
                overwrite=overwrite,
                progress=progress,
            )
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
