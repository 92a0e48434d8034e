"""What sharing a model pays: tokens per second of 16 streams that decode together, against one alone.

    python -m studies.speed.streams --preset 170m --variant mac
    python -m studies.speed.streams --preset 340m --variant mac --set "memory_layers=[3,7,11,15]"

Decoding one stream reads every weight for one token; streams that are stepped together share that reading, and each
adds its own state. Measured in alternating rounds of one process, random weights (speed does not depend on them):
one session alone; as many sessions through `Model.batch`, fed by one caller; and the same from one thread per
session. Every figure includes the chunk ends, where each stream's memory is written.
The last line on stdout is one JSON document. Knows how to measure. Does not know which figures are good.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
from pathlib import Path
from typing import cast

import numpy as np

import titans_runtime
from studies.speed.kit import random_bundle
from titans_cli.model_options import ModelOptions
from titans_core.config import Variant
from titans_core.presets import PRESETS
from titans_measure.speed.timing import medians


def measure(bundle: Path, streams: int, chunks: int, rounds: int, threads: int | None) -> dict[str, float | int]:
    """Tokens per second of one stream and of `streams`, each over `chunks` whole chunks a round."""
    model = titans_runtime.load(bundle, provider="cpu", threads=threads)
    steps = chunks * model.manifest.chunk
    ids = np.random.default_rng(0).integers(0, model.vocab_size or 1, (streams, steps)).tolist()
    alone = model.session()
    with model.batch(lanes=streams) as batch:
        together = [batch.session() for _ in range(streams)]

        def one() -> None:
            for token in ids[0]:
                alone.feed([token])

        def one_caller() -> None:
            for step in range(steps):
                batch.feed(together, [[ids[i][step]] for i in range(streams)])

        def one_each(i: int) -> None:
            for token in ids[i]:
                together[i].feed([token])

        def many_callers() -> None:
            callers = [threading.Thread(target=one_each, args=(i,)) for i in range(streams)]
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join()

        seconds = medians({"alone": one, "one_caller": one_caller, "many_callers": many_callers}, rounds)
    return {
        "streams": streams,
        "steps": steps,
        "weights_bytes": model.manifest.weights.bytes or 0,
        "state_bytes": model.state_bytes,
        "alone_tokens_per_second": steps / seconds["alone"],
        "together_tokens_per_second": streams * steps / seconds["one_caller"],
        "threads_tokens_per_second": streams * steps / seconds["many_callers"],
        "together_over_alone": streams * seconds["alone"] / seconds["one_caller"],
        "threads_over_alone": streams * seconds["alone"] / seconds["many_callers"],
    }


def main() -> None:
    """Measure, explain on stderr, print JSON on stdout."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bundle", type=Path, help="measure this one instead of a random model")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--variant", choices=["lmm", "mal", "mag", "mac"], default="mac")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="model option, repeatable")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--chunks", type=int, default=2, help="whole chunks per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of ONNX Runtime; default one per core")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = options.bundle
        if bundle is None:
            bundle = Path(folder) / "bench.titans"
            described = ModelOptions(cast(Variant, options.variant), options.preset, None, tuple(options.set))
            random_bundle(described.build(PRESETS[options.preset].vocab_size), bundle)
        figures = measure(bundle, options.streams, options.chunks, options.rounds, options.threads)
    named = {"model": str(options.bundle or " ".join([options.preset, options.variant, *options.set])), **figures}
    for name, value in named.items():
        print(f"{name:28} {value}", file=sys.stderr)
    print(json.dumps(named))


if __name__ == "__main__":
    main()
