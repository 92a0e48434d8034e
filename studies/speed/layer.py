"""The memory layer alone over a long stream: our bundle, our PyTorch eager and compiled, and titans-pytorch.

What bounds it: a chunk of C tokens costs the projections (8 dim^2 flops and more a token, large products), and in the
memory products of 64 x 64 x 128 per head: reading, the gradient, and C x C products for what the chunk's own writes
add to each answer. All in all 2.7 Mflop a token here, counted from the graph; a chunk's weights and state, 5 MB, stay
in the caches, so products bound it and not bytes.

titans-pytorch at its chunk size 64 writes once where we write 64 times; at chunk size 1 it computes what we compute,
and makes the memory's gradient as a tensor of its own for every token, 64 KB per head, so that bytes bound it. Those
are gigabytes that it gives back to the system and gets again; how fast that goes depends on the system, so it is
measured a second time with an allocator that keeps what was freed.

Knows what is compared. Does not know the layers' insides (`memory_layer`).
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import titans_runtime
from studies.speed.kit import THREADS, alone, inferred, keep_memory, pin, with_probes
from studies.speed.memory_layer import MemoryLayer, export_layer, layer_config, library_layer
from studies.speed.report import Figure, Result, Row
from titans_format.progress import ReportProgress
from titans_measure.speed.demand import reading
from titans_measure.speed.timing import Work, medians
from titans_runtime.arrays import FloatArray
from titans_runtime.stream.driver import Driver


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """`tokens` for all but titans-pytorch at chunk size 1, which gets `slow_tokens`."""

    dim: int = 384
    heads: int = 6
    chunk: int = 64
    tokens: int = 16_384
    slow_tokens: int = 2_048
    rounds: int = 3
    compiled: bool = True
    threads: int = THREADS


def measure(sizes: Sizes, progress: ReportProgress) -> Result:
    """Tokens per second of each, and the ratios that have targets."""
    pin(sizes.threads)
    torch.manual_seed(0)
    layer = MemoryLayer(layer_config(sizes.dim, sizes.heads, sizes.chunk))
    x = torch.randn(1, sizes.tokens, sizes.dim)
    theirs = library_layer(sizes.dim, sizes.heads, sizes.chunk, sizes.chunk).eval()
    finest = library_layer(sizes.dim, sizes.heads, 1, sizes.chunk).eval()
    with tempfile.TemporaryDirectory() as folder:
        export_layer(layer, Path(folder) / "layer.titans")
        model = titans_runtime.load(Path(folder) / "layer.titans", provider="cpu", threads=sizes.threads)
        driver, vectors = model.driver(1), np.ascontiguousarray(x.numpy())
        work = {
            "runtime": streamed(driver, vectors),
            **in_pytorch(layer, theirs, finest, x, sizes.slow_tokens, inferred),
        }
        if sizes.compiled:
            compiled = copy.deepcopy(layer)
            compiled.speed_up()
            work["compiled"] = inferred(lambda: compiled(x))
        seconds, machine = with_probes(work, sizes.rounds, progress, sizes.threads)
        needs = reading(model.manifest, sizes.tokens, 1, widened=False)
    seconds |= {f"{name} kept": spent for name, spent in alone(kept, sizes).items()}
    per_token = {
        name: spent / (sizes.slow_tokens if name.startswith("finest") else sizes.tokens)
        for name, spent in seconds.items()
    }
    gflops = needs.flops / seconds["runtime"] / 1e9 if needs else 0.0
    figures = [
        Figure(
            name="runtime over titans-pytorch, chunk size 64", unit="x", at_least=6.0,
            value=per_token["library"] / per_token["runtime"],
        ),
        Figure(
            name="runtime over titans-pytorch, chunk size 1", unit="x", at_least=150.0,
            value=per_token["finest"] / per_token["runtime"],
        ),
        *(
            Figure(
                name=f"the same, where titans-pytorch keeps the memory it frees, chunk size {chunk}", unit="x",
                value=per_token[f"{name} kept"] / per_token["runtime"],
            )
            for chunk, name in ((sizes.chunk, "library"), (1, "finest"))
        ),
        Figure(name="runtime over our PyTorch eager", unit="x", value=per_token["eager"] / per_token["runtime"]),
        Figure(name="runtime's share of the machine's products", unit="share", value=gflops / machine.sgemm_gflops),
    ]  # fmt: skip
    if sizes.compiled:
        ratio = per_token["compiled"] / per_token["runtime"]
        figures.insert(-1, Figure(name="runtime over our torch.compile", unit="x", value=ratio))
    return Result(
        title="One memory layer",
        stated=[
            f"dim {sizes.dim}, {sizes.heads} heads of {sizes.dim // sizes.heads}, a memory of two matrices, expansion"
            f" 2, chunk {sizes.chunk}; {sizes.tokens:,} tokens of one stream, titans-pytorch at chunk size 1:"
            f" {sizes.slow_tokens:,}; medians of {sizes.rounds} rounds",
            f"the machine beside it: {machine.sgemm_gflops:.0f} GFLOP/s of products; the layer needs"
            f" {(needs.flops if needs else 0) / sizes.tokens / 1e6:.2f} Mflop a token",
        ],
        figures=figures,
        tables={"Tokens per second": [_row(name, each) for name, each in per_token.items()]},
    )


def streamed(driver: Driver, vectors: FloatArray) -> Work:
    """Our bundle over a stream `[1, T, dim]` from its beginning."""

    def run() -> None:
        driver.reset()
        driver.feed(vectors, all_outputs=True)

    return run


def in_pytorch(
    ours: nn.Module,
    library: nn.Module,
    finest: nn.Module,
    x: Tensor,
    slow_tokens: int,
    ready: Callable[[Callable[[], object]], Work],
) -> dict[str, Work]:
    """The layers in PyTorch over the same stream; `ready` makes work of a forward pass."""
    return {
        "eager": ready(lambda: ours(x)),
        "library": ready(lambda: library(x)),
        "finest": ready(lambda: finest(x[:, :slow_tokens])),
    }


def kept(sizes: Sizes) -> dict[str, float]:
    """Seconds of titans-pytorch where its process keeps the memory it frees; for a fresh process."""
    keep_memory()
    pin(sizes.threads)
    torch.manual_seed(0)
    x = torch.randn(1, sizes.tokens, sizes.dim)
    theirs = library_layer(sizes.dim, sizes.heads, sizes.chunk, sizes.chunk).eval()
    finest = library_layer(sizes.dim, sizes.heads, 1, sizes.chunk).eval()
    work = {"library": lambda: theirs(x), "finest": lambda: finest(x[:, : sizes.slow_tokens])}
    return medians({name: inferred(each) for name, each in work.items()}, sizes.rounds)


NAMES = {
    "runtime": "our bundle, runtime",
    "eager": "our PyTorch, eager",
    "compiled": "our PyTorch, the memory's chunk compiled",
    "library": "titans-pytorch, a write per 64 tokens",
    "finest": "titans-pytorch, a write per token",
    "library kept": "titans-pytorch, a write per 64 tokens, its process keeping the memory it frees",
    "finest kept": "titans-pytorch, a write per token, its process keeping the memory it frees",
}


def _row(name: str, seconds: float) -> Row:
    return {"": NAMES[name], "tokens/s": round(1 / seconds), "µs a token": round(1e6 * seconds, 2)}
