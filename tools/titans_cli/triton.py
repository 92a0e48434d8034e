"""`titans triton`: a bundle as a model of NVIDIA Triton.

Knows the options. What is written is `titans_serve.triton`'s knowledge.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from titans_cli.options import bundle_argument, json_option
from titans_cli.terminal import print_json, say


@click.command(
    epilog="""\b
Examples:
  titans triton model.titans --out repository
  titans triton model.titans --out repository --store redis://redis:6379 --keep always
  tritonserver --model-repository repository"""
)
@bundle_argument
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Model repository to add the model to.",
)  # fmt: skip
@click.option("--name", help="Name of the model in Triton.  [default: that of the bundle]")
@click.option(
    "--store", "address", help="Where memories are kept, as in titans serve; without it no request may name one.",
)  # fmt: skip
@click.option(
    "--keep", type=click.Choice(["end", "always"]), default="end", show_default=True,
    help="When a memory is stored: when its sequence ends or idles, or after every request too.",
)  # fmt: skip
@click.option(
    "--namespace", default="default", show_default=True, help="Of the memories: a key's name of titans serve."
)
@click.option(
    "--idle-seconds", type=click.FloatRange(0.1, 86400), default=60.0, show_default=True,
    help="After so long without a request a sequence is stored and let go.",
)  # fmt: skip
@click.option("--sequences", type=click.IntRange(1, 65536), default=64, show_default=True, help="Open at once at most.")
@click.option("--lanes", type=click.IntRange(1), default=16, show_default=True, help="Streams that one call steps.")
@click.option("--provider", default="auto", show_default=True, help="Where it runs; titans doctor lists them.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads per graph.  [default: one per core it may use]")
@click.option(
    "--python-path", multiple=True, type=click.Path(exists=True, file_okay=False, resolve_path=True),
    help="Folder of packages that Triton's own Python does not have; may be repeated.",
)  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace a model of that name.")
@json_option
def triton(
    bundle: Path,
    out: Path,
    name: str | None,
    address: str | None,
    keep: Literal["end", "always"],
    namespace: str,
    idle_seconds: float,
    sequences: int,
    lanes: int,
    provider: str,
    threads: int | None,
    python_path: tuple[str, ...],
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write a model repository for NVIDIA Triton's Python backend.

    Every sequence of Triton's is a stream with a memory of its own. Requests carry token ids and get the logits after
    the last one back; the parameter max_new_tokens asks for generated ids too. With --store, the first request of a
    sequence may name a memory. The sequence goes on from it and writes it back, so titans serve and other Tritons can
    share it.

    The Python of Triton needs this package with its serve packages, or --python-path.
    """
    from titans_serve.triton.repository import write_repository
    from titans_serve.triton.sequences import Limits

    limits = Limits(lanes=lanes, threads=sequences, idle_seconds=idle_seconds, keep=keep, namespace=namespace)
    target = write_repository(
        bundle, out, name=name, limits=limits, sequences=sequences, store=address, provider=provider, threads=threads,
        python_path=python_path, overwrite=overwrite,
    )  # fmt: skip
    if as_json:
        print_json({"repository": str(out), "model": target.name, "store": address, "sequences": sequences})
        return
    say(f"{target.name} is in {out}; run: tritonserver --model-repository {out}")
