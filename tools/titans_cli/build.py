"""`titans build`: TensorRT engines for a bundle.

Knows the options. Imports TensorRT only when the command runs.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from titans_cli.options import bundle_argument, json_option
from titans_cli.terminal import print_json, progress_bar, say


@click.command(
    epilog="""\b
Examples:
  titans build model.titans --backend tensorrt-rtx
  titans build model-fp16.titans --backend tensorrt-rtx --sm 86 --sm 89 --batch 1 4 16 --json
  titans build model-fp16.titans --backend tensorrt --timing-cache timings.bin --refit"""
)
@bundle_argument
@click.option("--backend", type=click.Choice(["tensorrt-rtx", "tensorrt"]), required=True, help="Which TensorRT.")
@click.option("--sm", type=int, multiple=True, help="Compute capability to build for, such as 86; repeatable.")
@click.option("--batch", type=int, nargs=3, default=(1, 1, 8), show_default=True, help="Streams: min, usual, max.")
@click.option("--workspace", type=click.IntRange(1), help="Limit of the builder's scratch memory, in MiB.")
@click.option("--level", type=click.IntRange(0, 5), help="The builder's optimisation level.")
@click.option("--version-compatible", is_flag=True, help="Engines that later versions run too (tensorrt).")
@click.option("--hardware-compatible", is_flag=True, help="Engines for every GPU from Ampere on (tensorrt).")
@click.option("--refit", is_flag=True, help="Engines whose weights can be replaced.")
@click.option("--strip-weights", is_flag=True, help="Engines without weights, to be refitted before they run.")
@click.option(
    "--timing-cache",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file of timings to use and to write, so that the next build is faster (tensorrt).",
)
@click.option("--ignore-memory", is_flag=True, help="Build even where memory will hardly do.")
@json_option
def build(
    bundle: Path,
    backend: str,
    sm: tuple[int, ...],
    batch: tuple[int, int, int],
    workspace: int | None,
    level: int | None,
    version_compatible: bool,
    hardware_compatible: bool,
    refit: bool,
    strip_weights: bool,
    timing_cache: Path | None,
    ignore_memory: bool,
    as_json: bool,
) -> None:
    """Build TensorRT engines for every graph of a bundle.

    No GPU is needed to build with tensorrt-rtx. Precision is the bundle's (titans export --dtype). The engines and
    their sidecars land in engines/ inside the bundle; the rest of the bundle does not change. What a module does not
    offer is an error.
    """
    from titans_export.tensorrt.engines import build_engines
    from titans_export.tensorrt.options import BuildOptions

    options = BuildOptions(
        batch=batch,
        sm=sm,
        workspace_mib=workspace,
        level=level,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        refit=refit,
        strip_weights=strip_weights,
        timing_cache=timing_cache,
    )
    with progress_bar("building") as progress:
        engines = build_engines(
            bundle, backend=backend, options=options, ignore_memory=ignore_memory, progress=progress
        )
    if as_json:
        print_json({"bundle": str(bundle), "backend": backend, "engines": [asdict(engine) for engine in engines]})
        return
    for engine in engines:
        size = f"{engine.bytes / 2**20:,.1f} MiB in {engine.seconds:.1f} s"
        say(f"{engine.file}: {size}, {engine.dtype}, {backend} {engine.tensorrt}", err=True)
