"""`titans slim`: a bundle for one target.

Knows the options.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from titans_cli.options import bundle_argument, json_option
from titans_cli.terminal import print_json, say

TARGETS = ["cpu", "cuda", "webgpu", "ort-tensorrt", "ort-tensorrt-rtx", "tensorrt", "tensorrt-rtx"]


@click.command(
    epilog="""\b
Examples:
  titans slim model.titans --target tensorrt-rtx --out model-rtx.titans
  titans slim model.titans --target tensorrt-rtx --engines tensorrt-rtx-sm89 --out model-sm89.titans"""
)
@bundle_argument
@click.option("--target", type=click.Choice(TARGETS), required=True, help="The provider that will run it.")
@click.option("--engines", help="With tensorrt and tensorrt-rtx: which folder of engines/ to keep.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The bundle directory to make.")
@click.option("--overwrite", is_flag=True, help="Replace the bundle that is there.")
@json_option
def slim(bundle: Path, target: str, engines: str | None, out: Path, overwrite: bool, as_json: bool) -> None:
    """Copy what one target needs of a bundle.

    That is its graphs or its engines, and nothing that the target never reads. Saved states of the whole bundle and of
    the slim one are the same.
    """
    from titans_export.bundle.slim import slim as make

    made = make(bundle, out, target=target, engines=engines, overwrite=overwrite)
    if as_json:
        print_json({"bundle": str(out), **asdict(made)})
        return
    before, after = (f"{size / 2**20:,.1f} MiB" for size in (made.bytes_before, made.bytes_after))
    say(f"{out}: {after} of {before}, for {target}", err=True)
