"""How fast a bundle of titans-unofficial is beside the package's own forward: both over one stream, in turns.

    python -m studies.family.titans_unofficial_speed [--tokens 256] [--dim 64] [--rounds 3]

Needs titans-unofficial on the path. Times are CPU seconds of this process, on one thread. The last line is one JSON
document.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import titans_runtime
from titans_export.bundle.writer import write_bundle
from titans_export.titans_unofficial.steppable import TitansUnofficialModel

MODELS: dict[str, dict[str, Any]] = {
    "TitansMAC": {"chunk_size": 32},
    "TitansMAG": {"window_size": 32},
    "TitansMAL": {"window_size": 32},
}


def cpu_seconds(work: Callable[[], object]) -> float:
    """What `work` costs."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def measured(name: str, dim: int, tokens: int, rounds: int, folder: Path) -> dict[str, float]:
    """Tokens a CPU second of both, medians of rounds in turns."""
    arguments = {"d_model": dim, "n_layers": 2, "n_heads": 4, **MODELS[name]}
    torch.manual_seed(0)
    theirs: nn.Module = getattr(importlib.import_module("titans.models"), name)(**arguments).eval()
    path = folder / f"{name}.titans"
    path.mkdir()
    ours = TitansUnofficialModel({"class": name, "args": arguments}, theirs.state_dict())
    write_bundle(ours, path, dtype="fp32", provenance={})
    model = titans_runtime.load(path, provider="cpu", threads=1)
    x = torch.randn(1, tokens, dim)

    @torch.no_grad()
    def library() -> object:
        return theirs(x)

    def bundle() -> object:
        return model.driver(1).feed(x.numpy(), all_outputs=True)

    library(), bundle()  # neither is measured while it warms up
    pairs = [(cpu_seconds(library), cpu_seconds(bundle)) for _ in range(rounds)]
    slow, fast = (statistics.median(side) for side in zip(*pairs, strict=True))
    return {"package": tokens / slow, "bundle": tokens / fast, "ratio": slow / fast}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            found[name] = measured(name, options.dim, options.tokens, options.rounds, Path(folder))
            print(f"{name}: {found[name]}", flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
