"""The gain of a memory over attention alone at the beginning of files: inside the attention's window, and past it.

    python -m studies.quality.beginnings         after `python -m studies.quality.text`, or trains what that would train

`text` reads the few held-out files that are 32 KiB long; their first bytes are too few to tell anything. Here the first
2 KiB of every held-out file that has as much are read by the same bundles, and the bytes are sorted more finely.
Everything can be interrupted and started again.

Knows positions. Does not know how the models are trained (`text`).
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import titans_runtime
from studies.quality import text
from studies.quality.spread import shown, spread, table
from studies.quality.work import Study, options, write
from titans_measure.quality.likelihood import document_bits
from titans_tasks.documents import read_corpus

BYTES = 2048
EDGES = (1, 32, 64, 128, 256, 512, 1024, BYTES)


def main() -> None:
    """Every seed, beginnings.json and the table."""
    chosen = options(__doc__).parse_args()
    study = Study(chosen.out, chosen.threads)
    found = summary([one_seed(study, seed) for seed in text.SEEDS])
    write(chosen.out / "beginnings.json", found)
    print(tables(found))


def one_seed(study: Study, seed: int) -> dict[str, list[float]]:
    """Bits per byte by position, of the model and of attention alone."""
    bundles = text.bundles(study, seed)
    return {name: bits(bundles[name], study.threads) for name in ("memory", "attention")}


def bits(bundle: Path, threads: int | None) -> list[float]:
    """Means between the edges, over all files."""
    model = titans_runtime.load(bundle, provider="cpu", threads=threads)
    files = [file.data[:BYTES] for file in read_corpus(("stdlib",)).held_out if len(file.data) >= BYTES]
    stream = model.driver(1)
    each = [
        document_bits(stream, np.array(model.encode(file), np.int64), "kept", window=BYTES, frozen_after=BYTES)
        for file in files
    ]
    return [float(np.concatenate([one[a - 1 : b - 1] for one in each]).mean()) for a, b in pairwise(EDGES)]


def summary(reports: list[dict[str, list[float]]]) -> dict[str, Any]:
    """Mean and spread over the seeds, and of the gain seed by seed."""
    places = []
    for number, (start, stop) in enumerate(pairwise(EDGES)):
        memory, attention = ([report[name][number] for report in reports] for name in ("memory", "attention"))
        gain = [theirs - ours for ours, theirs in zip(memory, attention, strict=True)]
        named = {"kept": spread(memory), "attention only": spread(attention), "gain": spread(gain)}
        places.append({"start": start, "stop": stop, **named})
    return {"positions": places}


def tables(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    names = ("kept", "attention only", "gain")
    rows = [
        (f"{place['start']:,} to {place['stop'] - 1:,}", *(shown(place[name]) for name in names))
        for place in found["positions"]
    ]
    return table(("bytes", *names), rows)


if __name__ == "__main__":
    main()
