"""What a thousand branches of one memory cost, against a thousand copies of it.

    python -m studies.speed.branches --preset tiny

A session consumes 10,000 tokens and is forked; then every branch consumes a token of its own, and one more chunk.
Resident memory is read from the operating system after each stage, and as many sessions restored from a saved state
show what full copies take. Sampled branches must equal a restored session that is fed the same. Also how large a saved
state is, and how much compression saves. The last line on stdout is one JSON document; the exit code is 1 if a branch
was not equal. Knows how to measure. Does not know which figures are good.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import cast

import numpy as np

import titans_runtime
from studies.speed.endurance import resident_bytes
from studies.speed.kit import random_bundle
from titans_core.config import Variant
from titans_core.presets import preset
from titans_runtime import Model, Session

SAMPLED = 25  # branches that are compared


def measure(model: Model, tokens: int, branches: int) -> dict[str, object]:
    """All figures."""
    vocab = model.vocab_size or 1
    stream = np.random.default_rng(0).integers(0, vocab, tokens)
    session = model.session()
    session.feed(stream)
    saved, packed = session.to_bytes(), session.to_bytes(compress=True)
    before = settled()
    began = time.perf_counter()
    forks = [session.fork() for _ in range(branches)]
    seconds = time.perf_counter() - began
    forked = settled() - before
    for number, fork in enumerate(forks):
        fork.feed([number % vocab])
    diverged = settled() - before
    unequal = [
        n for n in range(0, branches, max(1, branches // SAMPLED)) if not equal(model, saved, forks[n], n, vocab)
    ]
    position = session.position
    del forks, fork
    before = settled()
    copies = [model.restore_bytes(saved) for _ in range(branches)]
    copied = settled() - before
    return {
        "tokens": position,
        "branches": len(copies),
        "state_bytes": model.state_bytes,
        "seconds_per_fork": seconds / branches,
        "forked_bytes": forked,
        "diverged_bytes": diverged,
        "copies_bytes": copied,
        "forked_over_copies": forked / copied,
        "diverged_over_copies": diverged / copied,
        "unequal": unequal,
        "saved_bytes": len(saved),
        "compressed_bytes": len(packed),
        "compression_saves": 1 - len(packed) / len(saved),
    }


def equal(model: Model, saved: bytes, fork: Session, number: int, vocab: int) -> bool:
    """Whether a branch that consumed its token stands where a restored session stands after it, and goes on equally."""
    twin = model.restore_bytes(saved)
    twin.feed([number % vocab])
    if fork.to_bytes() != twin.to_bytes():
        return False
    again = fork.fork()  # so that the branch itself keeps what it shares
    chunk = np.arange(model.manifest.chunk) % vocab
    return np.array_equal(again.feed(chunk), twin.feed(chunk))


def settled() -> int:
    """Resident memory once garbage is collected."""
    gc.collect()
    return resident_bytes()


def main() -> None:
    """Measure, explain on stderr, print JSON on stdout."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bundle", type=Path, help="measure this one instead of a random model")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--variant", choices=["lmm", "mal", "mag", "mac"], default="mac")
    parser.add_argument("--tokens", type=int, default=10_000)
    parser.add_argument("--branches", type=int, default=1_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = options.bundle
        if bundle is None:
            bundle = Path(folder) / "bench.titans"
            random_bundle(preset(options.preset, variant=cast(Variant, options.variant)), bundle)
        found = measure(titans_runtime.load(bundle, provider="cpu", threads=1), options.tokens, options.branches)
    for name, value in found.items():
        print(f"{name:28} {value}", file=sys.stderr)
    print(json.dumps(found))
    sys.exit(1 if found["unequal"] else 0)


if __name__ == "__main__":
    main()
