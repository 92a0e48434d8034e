"""How fast a bundle runs here, beside PyTorch on the same work and beside what this machine can do at all.

A randomly initialised model (speed does not depend on the weights' values) is exported; then the same tokens go
through the runtime, as chunks and one at a time, and through eager PyTorch, in alternating rounds, and the median
counts. The roofline is measured in the same run: a large matrix product for flops, a large copy for bytes. A token
costs about 2 flops per parameter plus the memory's own products; a single step cannot be faster than reading every
weight once. The last line on stdout is one JSON document.

Knows how to measure. Does not know which figures are good.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import torch

import titans_runtime
from titans_core.config import Variant
from titans_core.model import TitansModel
from titans_core.presets import preset
from titans_core.training.checkpoint import Checkpoint, Progress, prepare_directory, save_checkpoint
from titans_export.export import export_checkpoint

ROUNDS = 5
PROBE = 2048  # rows of the roofline's matrices, 16 MiB each: beyond any cache


def median_seconds(work: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds of each piece of work, warmed up once and measured in alternating rounds."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for round_number in range(rounds + 1):
        for name, function in work.items():
            start = time.perf_counter()
            function()
            if round_number:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def roofline() -> dict[str, float]:
    """GFLOP/s of fp32 matrix products and GB/s of copying (read plus write) on this machine, now."""
    a, b = np.random.default_rng(0).standard_normal((2, PROBE, PROBE)).astype(np.float32)
    out = np.empty_like(a)
    source = np.ones(1 << 26, np.float32)  # 256 MiB
    target = np.empty_like(source)
    seconds = median_seconds({"sgemm": lambda: np.matmul(a, b, out=out), "copy": lambda: np.copyto(target, source)})
    return {
        "sgemm_gflops": 2 * PROBE**3 / seconds["sgemm"] / 1e9,
        "copy_gb_per_second": 2 * source.nbytes / seconds["copy"] / 1e9,
    }


def random_checkpoint(path: Path, variant: Variant, size: str) -> TitansModel:
    """A checkpoint of a fresh model at `path`, and the model."""
    torch.manual_seed(0)
    model = TitansModel(preset(size, variant=variant)).eval()
    prepare_directory(path)
    save_checkpoint(path, Checkpoint(model.config, model.state_dict(), None, {}), Progress(0, {}))
    return model


def measure(variant: Variant, size: str, tokens: int) -> dict[str, object]:
    """The whole benchmark for one model and a stream of `tokens` tokens."""
    with tempfile.TemporaryDirectory() as folder:
        model = random_checkpoint(Path(folder) / "checkpoint", variant, size)
        bundle = Path(folder) / "bench.titans"
        export_checkpoint(Path(folder) / "checkpoint", bundle, verify_tokens=0)
        runtime = titans_runtime.load(bundle, provider="cpu")
        stream = np.random.default_rng(0).integers(0, model.config.outputs, tokens)
        steps = min(tokens, 4 * model.config.chunk)  # whole chunks, so that the commits are in the average
        batch = torch.from_numpy(stream[None])

        def chunks() -> None:
            runtime.session().feed(stream)

        def single_steps() -> None:
            session = runtime.session()
            for token in stream[:steps]:
                session.feed([int(token)])

        def eager() -> None:
            with torch.inference_mode():
                model(batch, None)

        seconds = median_seconds({"chunks": chunks, "steps": single_steps, "eager": eager})
    machine = roofline()
    parameters = model.num_parameters()
    per_step = seconds["steps"] / steps
    return {
        "model": f"{size} {variant}",
        "parameters": parameters,
        "tokens": tokens,
        "runtime_tokens_per_second": tokens / seconds["chunks"],
        "eager_tokens_per_second": tokens / seconds["eager"],
        "steps_per_second": 1 / per_step,
        "roofline": machine,
        "chunks_share_of_sgemm": 2 * parameters * tokens / seconds["chunks"] / 1e9 / machine["sgemm_gflops"],
        "step_share_of_copy": 4 * parameters / per_step / 1e9 / machine["copy_gb_per_second"],
    }


def main() -> None:
    """Measure, explain on stderr, print JSON on stdout."""
    parser = argparse.ArgumentParser(description="Runtime against eager PyTorch and the machine's roofline.")
    parser.add_argument("--variant", choices=["lmm", "mal", "mag", "mac"], default="mac")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--tokens", type=int, default=2048)
    options = parser.parse_args()
    figures = measure(cast(Variant, options.variant), options.preset, options.tokens)
    for name, value in figures.items():
        print(f"{name:28} {value}", file=sys.stderr)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
