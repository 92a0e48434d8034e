"""What the fused kernels are worth: one bundle with them and without, in turns.

    python -m studies.speed.kernels --preset small --variant mac
    python -m studies.speed.kernels --bundle model.titans

Milliseconds a token of whole chunks, of single tokens, and of a step of 16 streams in lockstep, chunk ends included.
A model is random unless a bundle is given: speed does not depend on its weights. The last line on stdout is one JSON
document. Knows how to measure. Does not know which figures are good.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from studies.speed.kit import random_bundle
from titans_core.presets import PRESETS, preset
from titans_measure.speed.timing import Work, medians
from titans_runtime.arrays import Array
from titans_runtime.bundle import open_bundle
from titans_runtime.devices.select import select
from titans_runtime.native import described, kernels
from titans_runtime.state.calls import LoadOptions
from titans_runtime.stream.driver import Driver

STREAMS = 16


def measure(bundle: Path, rounds: int, threads: int | None) -> dict[str, dict[str, float]]:
    """Milliseconds by work, without (`portable`) and with (`fused`) kernels."""
    opened = open_bundle(bundle)
    manifest, chunk = opened.manifest, opened.manifest.chunk
    ids = np.random.default_rng(0).integers(0, manifest.inputs.outputs, (STREAMS, 4 * chunk))
    work: dict[str, Work] = {}
    tokens = {"chunks": ids.shape[1], "single tokens": chunk, f"{STREAMS} streams": chunk}
    for form in ("portable", "fused"):
        options = LoadOptions(threads=threads, fused=form == "fused")
        backend = select(opened, "cpu", options).backend
        one, many = Driver(manifest, backend), Driver(manifest, backend, STREAMS)
        work |= {
            f"chunks, {form}": lambda one=one: one.feed(ids[:1]),  # type: ignore[misc]
            f"single tokens, {form}": lambda one=one: stepped(one, ids[:1, :chunk]),  # type: ignore[misc]
            f"{STREAMS} streams, {form}": lambda many=many: stepped(many, ids[:, :chunk]),  # type: ignore[misc]
        }
    seconds = medians(work, rounds, None)
    return {
        name: {form: 1e3 * seconds[f"{name}, {form}"] / count for form in ("portable", "fused")}
        for name, count in tokens.items()
    }


def stepped(driver: Driver, ids: Array) -> None:
    """Token by token."""
    for place in range(ids.shape[1]):
        driver.feed(ids[:, place : place + 1])


def main() -> None:
    """Measure, explain on stderr, print JSON on stdout."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--bundle", type=Path, help="measure this one, a token model's, instead of a random model")
    parser.add_argument("--preset", choices=list(PRESETS), default="small")
    parser.add_argument("--variant", choices=["lmm", "mal", "mag", "mac"], default="mac")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of ONNX Runtime; default one per core")
    options = parser.parse_args()
    if kernels() is None:
        parser.error(f"there is nothing to compare {described()}")
    with tempfile.TemporaryDirectory() as folder:
        bundle = options.bundle
        if bundle is None:
            bundle = Path(folder) / "random.titans"
            random_bundle(preset(options.preset, variant=options.variant), bundle)
        found = measure(bundle, options.rounds, options.threads)
    for name, forms in found.items():
        ratio = forms["portable"] / forms["fused"]
        print(f"{name:16} {forms['portable']:9.3f} ms {forms['fused']:9.3f} ms {ratio:6.2f} x", file=sys.stderr)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
