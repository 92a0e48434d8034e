"""A training step of the memory layer, forward and backward: ours in PyTorch, eager and compiled, and titans-pytorch.

What bounds it: the products of the forward pass once more for each operand, so three times its flops, as long as what
the backward pass needs stays in the caches or is made again. titans-pytorch keeps a gradient of the memory's weights
for every write, and carries each of them through an associative scan; ours never makes one, everything is products over
a chunk's tokens. Peak memory is what a process of its own reaches beyond what it had before its first step.

Knows what is compared. Does not know the layers' insides (`memory_layer`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from studies.speed.kit import THREADS, alone, pin, with_probes
from studies.speed.layer import NAMES as LAYERS
from studies.speed.memory_layer import MemoryLayer, layer_config, library_layer
from studies.speed.report import Figure, Result, Row
from titans_format.progress import ReportProgress
from titans_measure.speed.timing import Work

Shape = tuple[int, int]  # streams, tokens of each
NAMES = {
    "eager": "our PyTorch, eager",
    "compiled": "our PyTorch, --compile",
    "both": "our PyTorch, --compile --recompute",
    "library": LAYERS["library"],
}
COMPILED = ("compiled", "both")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Every shape has as many tokens in all; targets and memory concern the first."""

    dim: int = 384
    heads: int = 6
    chunk: int = 64
    shapes: tuple[Shape, ...] = ((1, 4_096), (8, 512))
    rounds: int = 5
    compiled: bool = True
    threads: int = THREADS

    def kinds(self) -> list[str]:
        """What takes part."""
        return [name for name in NAMES if self.compiled or name not in COMPILED]


def measure(sizes: Sizes, progress: ReportProgress) -> Result:
    """Seconds of a step, and peak memory."""
    pin(sizes.threads)
    work: dict[str, Work] = {}
    for shape in sizes.shapes:
        for kind in sizes.kinds():
            work[f"{kind} {shape}"] = step(sizes, kind, shape)
    seconds, machine = with_probes(work, sizes.rounds, progress, sizes.threads)
    first = sizes.shapes[0]
    peaks = {kind: peak_of(sizes, kind, first) for kind in sizes.kinds()}
    ours = [kind for kind in sizes.kinds() if kind != "library"]
    fastest = min(ours, key=lambda kind: seconds[f"{kind} {first}"])  # what the targets are held against
    figures = [
        Figure(
            name=f"step over titans-pytorch, {NAMES[kind]}, {shape[0]} x {shape[1]:,} tokens", unit="x",
            value=seconds[f"library {shape}"] / seconds[f"{kind} {shape}"],
            at_least=4.0 if (kind, shape) == (fastest, first) else None,
        )
        for shape in sizes.shapes
        for kind in ours
    ]  # fmt: skip
    figures += [
        Figure(
            name=f"peak memory over titans-pytorch's, {NAMES[kind]}", unit="share",
            value=peaks[kind] / peaks["library"], at_most=1.0 if kind == fastest else None,
        )
        for kind in ours
    ]  # fmt: skip
    rows = [
        _row(kind, shape, seconds[f"{kind} {shape}"], peaks[kind] if shape == first else None)
        for shape in sizes.shapes
        for kind in sizes.kinds()
    ]
    return Result(
        title="A training step of the memory layer",
        stated=[
            f"dim {sizes.dim}, {sizes.heads} heads of {sizes.dim // sizes.heads}, a memory of two matrices, expansion"
            f" 2, chunk {sizes.chunk}; forward, mean square, backward to all parameters and the inputs; medians of"
            f" {sizes.rounds} rounds",
            f"the machine beside it: {machine.sgemm_gflops:.0f} GFLOP/s of products; targets are held against our"
            f" fastest form, memory was measured at {first[0]} x {first[1]:,} tokens",
        ],
        figures=figures,
        tables={"A step": rows},
    )


def step(sizes: Sizes, kind: str, shape: Shape) -> Work:
    """Forward and backward of one of `NAMES`."""
    torch.manual_seed(0)
    x = torch.randn(*shape, sizes.dim, requires_grad=True)
    module, forward = layer(sizes, kind)

    def run() -> None:
        x.grad = None
        module.zero_grad(set_to_none=True)
        forward(x).square().mean().backward()  # type: ignore[no-untyped-call]

    return run


def layer(sizes: Sizes, kind: str) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """The module and its forward pass."""
    if kind == "library":
        theirs = library_layer(sizes.dim, sizes.heads, sizes.chunk, sizes.chunk)
        return theirs, lambda x: theirs(x)[0]
    ours = MemoryLayer(layer_config(sizes.dim, sizes.heads, sizes.chunk))
    if kind == "eager":
        return ours, ours
    ours.speed_up(recompute=kind == "both")
    return ours, ours


def peak_of(sizes: Sizes, kind: str, shape: Shape) -> int:
    """Bytes that a process of its own reaches beyond what it held before its first step."""
    return alone(_peak, sizes, kind, shape)


def _peak(sizes: Sizes, kind: str, shape: Shape) -> int:
    pin(sizes.threads)
    if kind in COMPILED:
        step(sizes, kind, (1, sizes.chunk))()  # so that it is not the compiler's memory
    run = step(sizes, kind, shape)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    for _ in range(2):
        run()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    """A size in bytes that Linux keeps of this process."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(text.partition(f"{name}:")[2].split()[0])


def _row(kind: str, shape: Shape, seconds: float, peak: int | None) -> Row:
    return {
        "": f"{NAMES[kind]}, {shape[0]} x {shape[1]:,}",
        "seconds": round(seconds, 3),
        "tokens/s": round(shape[0] * shape[1] / seconds),
        "peak, MB": None if peak is None else round(peak / 1e6),
    }
