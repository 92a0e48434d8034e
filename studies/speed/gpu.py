"""On a GPU: our bundles beside titans-pytorch and our PyTorch on the same device, and beside what the device can do.

    python -m bench.gpu                        CUDA; `bench.gpu` is this module's short name
    python -m bench.gpu --provider webgpu      ours through another provider; the rest stays on CUDA
    python -m bench.gpu --quick                toy sizes, to see that everything works; on the CPU if there is no GPU

Three comparisons, each in turns, medians: generating text as in `generation`, the memory layer alone as in
`layer`, and a large model's prompts and single tokens against the device's own products and copies. Tables on
stdout; the last line is one JSON document. It is no part of `make bench`, whose figures are a CPU's.

Knows what is compared. Does not know the models (`generation`, `memory_layer`) or providers.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

import titans_runtime
from studies.speed import generation, layer
from studies.speed.kit import inferred, random_bundle
from studies.speed.memory_layer import MemoryLayer, export_layer, layer_config, library_layer
from studies.speed.report import Figure, Result, Row
from titans_core.presets import preset
from titans_format.progress import ReportProgress
from titans_measure.speed.measure import BenchOptions
from titans_measure.speed.measure import measure as measure_bundle
from titans_measure.speed.timing import Work, medians


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, explain on stderr, print tables and JSON on stdout."""
    parser = argparse.ArgumentParser(prog="python -m studies.speed.gpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--provider", default="cuda", help="what our bundles run on; titans doctor lists them")
    parser.add_argument("--variant", default="mac", help="of the large model")
    parser.add_argument("--preset", default="170m", help="its size")
    parser.add_argument("--dtype", default="fp32", help="its precision", choices=["fp32", "fp16", "bf16"])
    parser.add_argument("--batch", action="append", type=int, help="streams in lockstep; repeatable (default: 1, 16)")
    parser.add_argument("--only", action="append", choices=list(PARTS), help="this part alone; repeatable")
    parser.add_argument("--quick", action="store_true", help="toy sizes, to see that everything works")
    options = parser.parse_args(arguments)
    if not options.quick and not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA device; run it on a machine with an NVIDIA GPU, or look at it with --quick")
    torch.backends.cuda.matmul.allow_tf32 = False  # as ours, which rounds no factors
    results = []
    for name in options.only or PARTS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        result = PARTS[name](options, lambda done, total: None)
        results.append(result.as_json())
        print(_markdown(result), flush=True)
    print(json.dumps(results, ensure_ascii=False))


def generate(options: argparse.Namespace, progress: ReportProgress) -> Result:
    """Tokens per second of sampling, ours and titans-pytorch's."""
    sizes = generation.Sizes(dim=64, tokens=16, library_tokens=4, rounds=1) if options.quick else generation.Sizes()
    theirs = generation.library_model(sizes).to(device())
    with tempfile.TemporaryDirectory() as folder:
        random_bundle(generation.config(sizes), Path(folder) / "ours.titans")
        model = titans_runtime.load(Path(folder) / "ours.titans", provider=options.provider)
        prompt = torch.randint(0, 256, (1, sizes.segment))
        ids = prompt[0].tolist()
        work: dict[str, Work] = {
            "runtime": lambda: list(model.session().generate_tokens(ids, sizes.tokens, generation.SAMPLING)),
            "library": finished(
                lambda: theirs.sample(  # type: ignore[operator]
                    prompt.to(device()), sizes.segment + sizes.library_tokens, show_progress=False, use_cache=True
                )
            ),
        }
        seconds = medians(work, min(sizes.rounds, 3), progress)
    ours, library = sizes.tokens / seconds["runtime"], sizes.library_tokens / seconds["library"]
    rows: list[Row] = [
        {"": "titans-pytorch, sample(use_cache=True)", "tokens/s": round(library, 1)},
        {"": f"our bundle, session.generate_tokens, {options.provider}", "tokens/s": round(ours, 1)},
    ]
    figure = Figure(name="runtime over titans-pytorch's cached sampling", unit="x", value=ours / library)
    return Result(title="Generation", stated=[], figures=[figure], tables={"Tokens per second": rows})


def memory_layer(options: argparse.Namespace, progress: ReportProgress) -> Result:
    """Tokens per second of a long stream through one memory layer."""
    sizes = layer.Sizes(dim=64, heads=2, tokens=256, slow_tokens=64) if options.quick else layer.Sizes()
    torch.manual_seed(0)
    ours = MemoryLayer(layer_config(sizes.dim, sizes.heads, sizes.chunk))
    x = torch.randn(1, sizes.tokens, sizes.dim)
    theirs = library_layer(sizes.dim, sizes.heads, sizes.chunk, sizes.chunk).eval().to(device())
    finest = library_layer(sizes.dim, sizes.heads, 1, sizes.chunk).eval().to(device())
    with tempfile.TemporaryDirectory() as folder:
        export_layer(ours, Path(folder) / "layer.titans")
        driver = titans_runtime.load(Path(folder) / "layer.titans", provider=options.provider).driver(1)
        vectors, there = np.ascontiguousarray(x.numpy()), x.to(device())
        eager = ours.to(device())
        work = {
            "runtime": layer.streamed(driver, vectors),
            **layer.in_pytorch(eager, theirs, finest, there, sizes.slow_tokens, finished),
        }
        seconds = medians(work, 3, progress)
    tokens = {name: sizes.slow_tokens if name == "finest" else sizes.tokens for name in work}
    rates = {name: tokens[name] / seconds[name] for name in work}
    rows: list[Row] = [{"": layer.NAMES[name], "tokens/s": round(rate)} for name, rate in rates.items()]
    figures = [
        Figure(name=f"runtime over {layer.NAMES[name]}", unit="x", value=rates["runtime"] / rates[name])
        for name in ("eager", "library", "finest")
    ]
    return Result(title="One memory layer", stated=[], figures=figures, tables={"Tokens per second": rows})


def large(options: argparse.Namespace, progress: ReportProgress) -> Result:
    """Prompts and single tokens of a large model, with the device's own speed beside them."""
    size = "tiny" if options.quick else options.preset
    config = preset(size, variant=options.variant)
    lanes = tuple(options.batch or ((1,) if options.quick else (1, 16)))
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "large.titans"
        random_bundle(config, bundle, options.dtype)
        wanted = BenchOptions(provider=options.provider, batches=lanes, prompt=512, tokens=64, rounds=3)
        report = measure_bundle(bundle, wanted, progress)
    gflops, gigabytes = products(options.quick), copies(options.quick)
    rows: list[Row] = []
    for kind, speeds in (("prompt of 512", report.prefill), ("token by token", report.decode)):
        for speed in speeds:
            rows.append(
                {
                    "": f"{kind}, {speed.batch} streams",
                    "tokens/s": round(speed.tokens_per_second),
                    "GFLOP/s": None if speed.gflops is None else round(speed.gflops),
                    "GB/s": None if speed.gb_per_second is None else round(speed.gb_per_second),
                    "p50 ms": None if speed.latency_ms is None else round(speed.latency_ms["p50"], 2),
                    "p99 ms": None if speed.latency_ms is None else round(speed.latency_ms["p99"], 2),
                }
            )
    stated = [
        f"{size} {options.variant}, {options.dtype}; the device beside it: {gflops:,.0f} GFLOP/s of fp32"
        f" products, {gigabytes:,.0f} GB/s of copies; the first token of a new process took"
        f" {report.start.cold_seconds:.1f} s",
    ]
    return Result(title="A large model", stated=stated, figures=[], tables={"Speed": rows})


def device() -> str:
    """Where the PyTorch models run."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def finished(function: Callable[[], object]) -> Work:
    """The work and the wait for the device, which PyTorch only queues it on."""
    run = inferred(function)

    def wait() -> None:
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return wait


def products(quick: bool) -> float:
    """GFLOP/s of a large fp32 product."""
    size = 256 if quick else 8192
    a = torch.randn(size, size, device=device())
    return 2e-9 * size**3 / medians({"product": finished(lambda: a @ a)}, 5)["product"]


def copies(quick: bool) -> float:
    """GB/s of a large copy, bytes read and bytes written."""
    source = torch.empty(2**20 if quick else 2**30, dtype=torch.uint8, device=device())
    target = torch.empty_like(source)
    return 2e-9 * source.numel() / medians({"copy": finished(lambda: target.copy_(source))}, 5)["copy"]


def _markdown(result: Result) -> str:
    lines = [f"## {result.title}", "", *result.stated]
    lines += ["", *(f"- {figure.name}: {figure.value:.1f}" for figure in result.figures)]
    for rows in result.tables.values():
        lines += ["", "| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
        lines += ["| " + " | ".join("" if cell is None else str(cell) for cell in row.values()) + " |" for row in rows]
    return "\n".join(lines) + "\n"


PARTS: dict[str, Callable[[argparse.Namespace, ReportProgress], Result]] = {
    "generation": generate,
    "layer": memory_layer,
    "large": large,
}

if __name__ == "__main__":
    main()
