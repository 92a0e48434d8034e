"""An imported model's generation beside titans-pytorch's own, and how large the state of a long stream gets.

One model of the library's defaults goes both ways in one run: its `sample(use_cache=True)` from a short prompt, and
the runtime's `generate` over the bundle, in alternating rounds, medians counted. Then the configuration of its
train_mac.py with weight residual, which its cached sampling cannot run, generates through the runtime, and a stream is
fed `--stream` tokens while the size of its state is watched, beside the cache that the library keeps for a prompt. The
last line on stdout is one JSON document.

Knows how to measure. Does not know which figures are good.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

import titans_runtime
from titans_export.titans_pytorch import installed as library
from titans_export.titans_pytorch.importer import import_checkpoint
from titans_measure.speed.timing import medians
from titans_runtime.text.sampling import SamplingOptions

PROMPT = 16  # tokens


def defaults(dim: int, depth: int, segment: int) -> dict[str, Any]:
    """A transformer of the library's defaults."""
    args = {"num_tokens": 256, "dim": dim, "depth": depth, "segment_len": segment}
    return {"class": "MemoryAsContextTransformer", "args": args}


def with_weight_residual(config: dict[str, Any]) -> dict[str, Any]:
    """The same, each memory taking in the weights of the one before."""
    return {**config, "args": {**config["args"], "neural_mem_weight_residual": True}}


def imported(config: dict[str, Any], folder: Path, name: str) -> tuple[torch.nn.Module, Path]:
    """A fresh model of the library, and its bundle."""
    torch.manual_seed(0)
    model = library.blank(config).eval()
    save_file({key: value.clone() for key, value in model.state_dict().items()}, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(config))
    bundle = folder / f"{name}.titans"
    import_checkpoint(folder / f"{name}.safetensors", folder / f"{name}.json", bundle, verify_tokens=0)
    return model, bundle


def generate(model: titans_runtime.Model, prompt: list[int], tokens: int) -> list[int]:
    """So many tokens after a prompt, sampled as the library does."""
    options = SamplingOptions(temperature=1.5, min_p=0.1, seed=0)
    return list(model.session().generate_tokens(prompt, tokens, options))


def cache_bytes(model: Any, tokens: int) -> int:
    """What the library keeps after reading a prompt of this length."""
    with torch.no_grad():
        _, (_, keys, memories) = model(torch.zeros(1, tokens, dtype=torch.int64), return_cache=True)
    total = keys.nbytes
    for memory in memories:
        parts = [memory.weights, memory.cache_store_segment, *memory.states, memory.updates]
        for part in parts:
            tensors = part.values() if hasattr(part, "values") and not torch.is_tensor(part) else [part]
            total += sum(tensor.nbytes for tensor in tensors if tensor is not None)
    return int(total)


def stream_sizes(model: titans_runtime.Model, tokens: int, pieces: int = 10) -> list[int]:
    """Bytes of a stream's state after each of `pieces` parts of a long stream."""
    random = np.random.default_rng(0)
    session, sizes = model.session(), []
    for _ in range(pieces):
        session.feed(random.integers(0, 256, tokens // pieces))
        sizes.append(len(session.to_bytes()))
    return sizes


def measure(dim: int, depth: int, segment: int, tokens: int, stream: int, rounds: int) -> dict[str, object]:
    """The whole benchmark."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = defaults(dim, depth, segment)
        theirs, bundle = imported(config, folder, "defaults")
        _, residual_bundle = imported(with_weight_residual(config), folder, "residual")
        ours = titans_runtime.load(bundle, provider="cpu")
        residual = titans_runtime.load(residual_bundle, provider="cpu")
        prompt = list(range(PROMPT))
        start = torch.tensor([prompt])

        def library_samples() -> None:
            theirs.sample(start, PROMPT + tokens, show_progress=False, use_cache=True)  # type: ignore[operator]

        seconds = medians(
            {
                "library": library_samples,
                "runtime": lambda: generate(ours, prompt, tokens),
                "weight_residual": lambda: generate(residual, prompt, tokens),
            },
            rounds,
        )
        sizes = stream_sizes(ours, stream)
        caches = {str(length): cache_bytes(theirs, length) for length in (4 * segment, 8 * segment, 16 * segment)}
        reads = ours.manifest.stream_bytes
    return {
        "model": f"titans-pytorch defaults, dim {dim}, depth {depth}, segment {segment}",
        "library_cached_tokens_per_second": tokens / seconds["library"],
        "runtime_tokens_per_second": tokens / seconds["runtime"],
        "ratio": seconds["library"] / seconds["runtime"],
        "weight_residual_tokens_per_second": tokens / seconds["weight_residual"],
        "state_tensor_bytes": reads,
        "saved_state_bytes_along_the_stream": sizes,
        "stream_tokens": stream,
        "library_cache_bytes_by_prompt": caches,
    }


def main() -> None:
    """Measure, print JSON."""
    parser = argparse.ArgumentParser(description="Imported models beside titans-pytorch itself.")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--segment", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=512, help="generated per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stream", type=int, default=100_000, help="length of the long stream")
    options = parser.parse_args()
    print("generating in alternating rounds, then the long stream", file=sys.stderr)
    result = measure(options.dim, options.depth, options.segment, options.tokens, options.stream, options.rounds)
    print(json.dumps(result, indent=1), file=sys.stderr)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
