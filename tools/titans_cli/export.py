"""`titans export`: from a checkpoint to a bundle.

Knows the options. Imports PyTorch only when the command runs.
"""

from __future__ import annotations

from pathlib import Path

import click

from titans_cli.options import json_option, unescaped
from titans_cli.terminal import print_json, progress_bar, say
from titans_cli.threads import threads_option, torch_threads


@click.command(
    epilog="""\b
Examples:
  titans export checkpoint --out model.titans
  titans export checkpoint --out model-fp16.titans --dtype fp16
  titans export checkpoint --out control.titans --control writes-off
  titans export checkpoint --out chat.titans --chat-template chat_template.jinja"""
)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The bundle directory to make.")
@click.option(
    "--dtype",
    type=click.Choice(["fp32", "fp16", "bf16", "int8", "int4"]),
    default="fp32",
    show_default=True,
    help="Weights and activations; norms, gates and memory stay fp32. int8, int4: weights alone, for CPUs.",
)
@click.option(
    "--verify-tokens",
    type=click.IntRange(0),
    default=2048,
    show_default=True,
    help="Length of the stream that the new bundle is verified on; 0 leaves it unverified.",
)
@click.option(
    "--control", type=click.Choice(["writes-off"]), help="Export the same model with its memory never written."
)
@click.option(
    "--eos",
    multiple=True,
    metavar="TOKEN",
    help="A token that ends a text, by its name; repeatable. [default: as trained, or as the tokenizer names it]",
)
@click.option(
    "--stop", multiple=True, metavar="TOKEN", help="A token at which an answer ends besides, by its name; repeatable."
)
@click.option(
    "--chat-template",
    metavar="FILE|none",
    help="A Jinja template for conversations instead of the checkpoint's; none leaves it out.",
)
@click.option("--license", help="SPDX identifier of the model's licence, such as apache-2.0, for its card.")
@click.option("--overwrite", is_flag=True, help="Replace the bundle that is there.")
@threads_option("those that this process may use; 1 for small models")
@json_option
@click.pass_context
def export(
    context: click.Context,
    checkpoint: Path,
    out: Path,
    dtype: str,
    verify_tokens: int,
    control: str | None,
    eos: tuple[str, ...],
    stop: tuple[str, ...],
    chat_template: str | None,
    license: str | None,
    overwrite: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Turn a checkpoint into a bundle of ONNX graphs, and verify it.

    A bundle appears under its name only when it is complete and, unless --verify-tokens is 0, has agreed with the
    PyTorch model on every output and every state tensor. Exits with 1 if they disagree, and leaves no bundle.
    """
    torch_threads(threads)
    from titans_export.bundle.texts import EndNames
    from titans_export.errors import VerificationError
    from titans_export.export import export_checkpoint

    try:
        with progress_bar("exporting") as progress:
            manifest = export_checkpoint(
                checkpoint,
                out,
                dtype=dtype,
                verify_tokens=verify_tokens,
                overwrite=overwrite,
                progress=progress,
                writes_off=control == "writes-off",
                ends=EndNames(eos=tuple(map(unescaped, eos)), stop=tuple(map(unescaped, stop))),
                chat_template=_template(chat_template),
                license=license,
            )
    except VerificationError as error:
        say(f"Error: {error}", err=True)
        context.exit(1)
    if as_json:
        print_json(
            {
                "bundle": str(out),
                "model": manifest.model.name,
                "parameters": manifest.model.parameters,
                "dtype": manifest.dtype,
                "graphs": [graph.name for graph in manifest.graphs],
                "verification": manifest.verification,
            }
        )
        return
    say(f"{out}: {manifest.model.name}, {manifest.model.parameters:,} parameters, {manifest.dtype}", err=True)
    report = manifest.verification
    if report is None:
        say("not verified; titans verify does it", err=True)
    else:
        largest = f"{report['max_abs_error']:.1e}"
        say(f"verified over {report['tokens']:,} tokens, largest error {largest}", err=True)
        dead = report.get("dead_memories")
        if isinstance(dead, list) and dead:
            from titans_runtime.stream.memories import dead_warning

            say(f"warning: {dead_warning([str(name) for name in dead])}", err=True)


def _template(name: str | None) -> str | None:
    """The text of a template; "" for `none`."""
    if name is None or name == "none":
        return None if name is None else ""
    from titans_format.files import read_regular
    from titans_runtime.chat.template import MAX_CHARACTERS

    try:
        return read_regular(Path(name), 4 * MAX_CHARACTERS).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"cannot read the chat template {name} ({error}); give a file of text") from None
