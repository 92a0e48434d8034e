"""Two million tokens through one session: does time, memory or exactness drift?

    python -m studies.speed.endurance --checkpoint runs/tiny --plot docs/images/endurance.svg

A stream of bytes of the standard library's source, as long as asked for, goes chunk by chunk through one session.
Timed is each chunk alone. At evenly spread places the session is saved, and a session restored from that file must
give the same logits, bit for bit, for the chunk that follows. Resident memory is read from the operating system.
The last line on stdout is one JSON document; the exit code is 1 if anything was not finite or not equal.
Knows how to measure. Does not know which figures are good.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.progress import Progress

import titans_runtime
from studies.speed.kit import alone
from titans_export.export import export_checkpoint
from titans_runtime import Model, Session
from titans_runtime.arrays import FloatArray, IdArray
from titans_tasks.documents import stdlib_documents

WARM_UP = 0.05  # share of the stream before resident memory counts
SAMPLES = 100  # points in the plot
FAST_WEIGHTS = re.compile(r"\.memory_(\d+|gain)$")  # of a state's name


@dataclass
class Run:
    """What was seen. `seconds` by chunk, allocated beforehand so that keeping it is not growth; the rest by sample."""

    seconds: FloatArray
    positions: list[int] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    norms: list[dict[str, float]] = field(default_factory=list)
    compared: int = 0
    unequal: list[int] = field(default_factory=list)
    finite: bool = True


def resident_bytes() -> int:
    """Resident memory of this process. Linux only."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


def text() -> IdArray:
    """The standard library's source in one piece, which is in memory from the beginning."""
    return np.frombuffer(b"".join(document.data for document in stdlib_documents()), np.uint8).astype(np.int64)


def export(checkpoint: Path, bundle: Path) -> None:
    """The bundle of a checkpoint."""
    export_checkpoint(checkpoint, bundle, verify_tokens=0)


def endure(model: Model, tokens: int, places: int) -> Run:
    """Feed `tokens` tokens, comparing at `places` places."""
    chunk = model.manifest.chunk
    chunks = tokens // chunk
    compare_at = {(i + 1) * chunks // (places + 1) for i in range(places)}
    sample_at = {i * chunks // SAMPLES for i in range(SAMPLES)} | {chunks - 1}
    # Filled, as memory that was never written to is not resident.
    run, session, source = Run(np.full(chunks, np.nan, np.float32)), model.session(), text()
    with tempfile.TemporaryDirectory() as folder, Progress(transient=True) as progress:
        warm_up(model, Path(folder) / "warm")
        for number in progress.track(range(chunks), description="feeding"):
            ids = np.take(source, range(number * chunk, (number + 1) * chunk), mode="wrap")
            restored = through_a_file(model, session, Path(folder) / "state") if number in compare_at else None
            start = time.perf_counter()
            logits = session.feed(ids)
            run.seconds[number] = time.perf_counter() - start
            run.finite = run.finite and bool(np.isfinite(logits).all())
            if restored is not None:
                run.compared += 1
                if not np.array_equal(restored.feed(ids), logits):
                    run.unequal.append(session.position)
            if number in sample_at:
                run.positions.append(session.position)
                run.resident.append(resident_bytes())
                norms = session.stats.state_norms
                run.norms.append({name: norm for name, norm in norms.items() if FAST_WEIGHTS.search(name)})
    return run


def warm_up(model: Model, path: Path) -> None:
    """Do once what the run does now and then, so that what it allocates for good is there when counting begins."""
    session = model.session()
    ids = np.zeros(model.manifest.chunk, np.int64)
    for _ in range(12):
        session.feed(ids)
        through_a_file(model, session, path).feed(ids)
        session.stats  # noqa: B018 - reading it is the point


def through_a_file(model: Model, session: Session, path: Path) -> Session:
    """A fresh session that was restored from what this one saved."""
    session.save(path)
    return model.restore(path)


def figures(run: Run, chunk: int) -> dict[str, object]:
    """The figures that matter."""
    hundredth = max(1, len(run.seconds) // 100)
    warm = next(i for i, position in enumerate(run.positions) if position >= WARM_UP * run.positions[-1])
    first, last = (float(np.median(part)) for part in (run.seconds[:hundredth], run.seconds[-hundredth:]))
    return {
        "tokens": len(run.seconds) * chunk,
        "tokens_per_second": len(run.seconds) * chunk / float(run.seconds.sum(dtype=np.float64)),
        "first_chunk_seconds": first,
        "last_chunk_seconds": last,
        "last_over_first": last / first,
        "resident_after_warm_up": run.resident[warm],
        "resident_growth_bytes": max(run.resident[warm:]) - run.resident[warm],
        "finite": run.finite,
        "places_compared": run.compared,
        "places_unequal": run.unequal,
    }


def plot(run: Run, chunk: int, path: Path) -> None:
    """Time per chunk, resident memory and the memory's norms over the stream."""
    import matplotlib.pyplot as plt

    millions = [position / 1e6 for position in run.positions]
    edges = np.linspace(0, len(run.seconds), SAMPLES + 1).astype(int)
    medians = [1e3 * float(np.median(run.seconds[a:b])) for a, b in itertools.pairwise(edges) if b > a]
    figure, (times, memory, norms) = plt.subplots(3, 1, figsize=(8, 7), sharex=True, layout="constrained")
    times.plot(np.linspace(0, millions[-1], len(medians)), medians)
    times.set(ylabel="ms per chunk", ylim=(0, 1.5 * max(medians)), title=f"one session, chunks of {chunk} tokens")
    memory.plot(millions, [(value - run.resident[0]) / 2**20 for value in run.resident])
    memory.set(ylabel="resident growth, MiB")
    for name in run.norms[0]:
        norms.plot(millions, [sample[name] for sample in run.norms], label=name)
    norms.set(xlabel="million tokens", ylabel="norm of the memory's weights")
    norms.legend(fontsize="x-small")
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure, explain on stderr, print JSON on stdout."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--bundle", type=Path, help="a bundle with a byte tokenizer")
    source.add_argument("--checkpoint", type=Path, help="a checkpoint, exported first")
    parser.add_argument("--tokens", type=int, default=2_097_152)
    parser.add_argument("--places", type=int, default=32, help="where a restored session is compared")
    parser.add_argument("--threads", type=int, default=1, help="of ONNX Runtime")
    parser.add_argument("--plot", type=Path, help="an image file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = options.bundle
        if bundle is None:
            bundle = Path(folder) / "endurance.titans"
            alone(export, options.checkpoint, bundle)  # what it leaves behind is not this process's
        model = titans_runtime.load(bundle, provider="cpu", threads=options.threads)
        run = endure(model, options.tokens, options.places)
    found = figures(run, model.manifest.chunk)
    if options.plot is not None:
        plot(run, model.manifest.chunk, options.plot)
    for name, value in found.items():
        print(f"{name:28} {value}", file=sys.stderr)
    print(json.dumps(found))
    sys.exit(0 if run.finite and not run.unequal else 1)


if __name__ == "__main__":
    main()
