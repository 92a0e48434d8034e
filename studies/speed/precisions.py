"""One stream decoding on the CPU at each precision, in turns: seconds per token, and the bytes that explain them.

    python -m studies.speed.precisions --preset 170m --dtypes fp32 int8

Exports one randomly initialised model at each precision, loads the bundles side by side and lets them take turns of a
few tokens, so that a busy machine slows all of them alike. A step reads every matrix once, so its time follows the
bytes of the weights; the speed of reading is measured in the same run. The last line is one JSON document. Knows
nothing about accuracy (`titans verify --drift`).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import titans_runtime
from titans_core.model import TitansModel
from titans_core.presets import preset
from titans_export.export import export_model
from titans_export.models.precision import PRECISIONS

TURNS, TOKENS = 24, 8  # turns that each takes, and tokens of a turn


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="170m")
    parser.add_argument("--variant", default="mac")
    parser.add_argument("--dtypes", nargs="+", choices=list(PRECISIONS), default=["fp32", "int8"])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = TitansModel(preset(options.preset, variant=options.variant))
    with tempfile.TemporaryDirectory() as folder:
        result: dict[str, Any] = {"preset": options.preset, "variant": options.variant, "threads": options.threads}
        bundles = {dtype: Path(folder) / f"{dtype}.titans" for dtype in options.dtypes}
        for dtype, path in bundles.items():
            export_model(model, path, dtype=dtype, verify_tokens=0)
            print(f"exported {dtype}", file=sys.stderr)
        result["read_gb_per_second"] = round(reading_speed(), 1)
        times = turns(bundles, options.threads)
        weights = {dtype: (path / "weights.safetensors").stat().st_size for dtype, path in bundles.items()}
    for dtype, seconds in times.items():
        median = float(np.median(seconds))
        result[dtype] = {"ms_per_token": round(1e3 * median, 2), "weight_bytes": weights[dtype]}
        if "fp32" in times:
            result[dtype]["faster_than_fp32"] = round(float(np.median(np.array(times["fp32"]) / np.array(seconds))), 2)
    print(json.dumps(result))


def turns(bundles: dict[str, Path], threads: int) -> dict[str, list[float]]:
    """Seconds per token of every turn, by precision."""
    sessions = {
        name: titans_runtime.load(path, provider="cpu", threads=threads).session() for name, path in bundles.items()
    }
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for session in sessions.values():
        session.feed([1] * TOKENS)  # loads what a step needs
    for _ in range(TURNS):
        for name, session in sessions.items():
            start = time.perf_counter()
            for token in range(TOKENS):
                session.feed([token])
            times[name].append((time.perf_counter() - start) / TOKENS)
    return times


def reading_speed() -> float:
    """Gigabytes per second that one thread sums up."""
    data = np.ones(2**26, np.float32)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        data.sum()
        best = min(best, time.perf_counter() - start)
    return data.nbytes / best / 1e9


if __name__ == "__main__":
    main()
