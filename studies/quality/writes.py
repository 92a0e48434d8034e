"""What writing is worth along a document: models with the default memory, written and never written.

    python -m studies.quality.writes

For every variant and seed the README's model is trained and exported, and reads the held-out files of 32 KiB. *Gain* is
bits per byte with writes off minus bits per byte with the memory kept, at equal positions. The second table follows one
file through the mac of seed 0: what the memory's matrices are after so many bytes, and what the writes so far change.
Everything can be interrupted and started again.

Knows the recipe and the tables. Does not know how bits are counted (`titans eval`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import titans_runtime
from studies.quality.spread import shown, spread, table
from studies.quality.work import Study, options, write
from titans_core.config import VARIANTS
from titans_measure.quality.likelihood import surprisal
from titans_runtime.stream.memories import learned_names
from titans_tasks.documents import read_corpus

SEEDS = (0, 1, 2)
BYTES = 32_768
PLACES = (256, 2048, 6144, 10_240, 16_384)  # bytes read


def main() -> None:
    """Every variant and seed, writes.json and the tables."""
    chosen = options(__doc__).parse_args()
    study = Study(chosen.out, chosen.threads)
    found: dict[str, Any] = {variant: summary([one(study, variant, seed) for seed in SEEDS]) for variant in VARIANTS}
    along = follow(study.out / "bundles" / "writes-mac-0.titans", chosen.threads)
    write(chosen.out / "writes.json", {"variants": found, "along": along})
    print(tables(found))
    print(along_table(along))


def recipe(variant: str, seed: int) -> list[str]:
    """The options of `titans train`: those of the README, on one thread, whose sums have one order."""
    model = ["--variant", variant, "--preset", "tiny"]
    return ["--task", "text", "--data", "stdlib", *model, "--steps", "300", "--seed", str(seed), "--threads", "1"]


def one(study: Study, variant: str, seed: int) -> dict[str, Any]:
    """The report of `titans eval` on one model."""
    name = f"writes-{variant}-{seed}"
    study.train(name, *recipe(variant, seed))
    lengths = ("--shortest", BYTES, "--longest", BYTES)
    return study.evaluate(name, study.export(name), "--task", "text", "--data", "stdlib", *lengths)


def summary(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Bits in every mode, and the gain of writing by position: over the seeds."""
    bits = {mode: spread([report["bits_per_byte"][mode] for report in reports]) for mode in reports[0]["bits_per_byte"]}
    columns = zip(*(report["positions"] for report in reports), strict=True)
    gains = [
        {"start": column[0]["start"], "gain": spread([place["writes_off"] - place["kept"] for place in column])}
        for column in columns
    ]
    return {"bits": bits, "gains": gains}


def follow(bundle: Path, threads: int | None) -> list[dict[str, float]]:
    """Along one held-out file: the memory's matrices, and what its writes change."""
    kept = titans_runtime.load(bundle, provider="cpu", threads=threads)
    off = kept.without_writes()
    file = next(file.data for file in read_corpus(("stdlib",)).held_out if len(file.data) > BYTES)
    ids = np.array(kept.encode(file[: BYTES + 1]), np.int64)
    streams = [kept.driver(), off.driver()]
    names = learned_names(kept.manifest)
    start = {name: streams[0].state()[name] for name in names}
    rows, before = [], 0
    for place in PLACES:
        fed = [stream.feed(ids[None, before:place], all_outputs=True).outputs[0] for stream in streams]
        state = streams[0].state()
        written, never = (float(surprisal(logits, ids[before + 1 : place + 1]).mean()) for logits in fed)
        row = {"bytes": place, "written": written, "never": never}
        row["logits"] = float(np.abs(fed[0][-1] - fed[1][-1]).max())
        for name in names[:2]:  # of the first layer
            row[name] = float(np.abs(state[name]).max())
            row[f"{name} moved"] = float(np.abs(state[name] - start[name]).max())
        rows.append(row)
        before = place
    return rows


def tables(found: dict[str, Any]) -> str:
    """The variants, and their gains by position, in Markdown."""
    modes = ("kept", "writes_off", "frozen", "reset")
    head = ["bits per byte", *(mode.replace("_", " ") for mode in modes)]
    first = table(head, [[name, *(shown(one["bits"][mode]) for mode in modes)] for name, one in found.items()])
    starts = [f"from {place['start']:,}" for place in next(iter(found.values()))["gains"]]
    second = table(
        ["gain", *starts], [[name, *(shown(g["gain"]) for g in one["gains"])] for name, one in found.items()]
    )
    return f"{first}\n\n{second}\n"


def along_table(rows: list[dict[str, float]]) -> str:
    """One file, in Markdown."""
    names = [name for name in rows[0] if name.endswith(("memory_0", "memory_1"))]
    head = ["after bytes", "writes change logits by", "bits, written", "never written"]
    head += [f"largest of {name}, and how far from its start" for name in names]
    cells = [
        [
            f"{row['bytes']:,}", f"{row['logits']:.2g}", f"{row['written']:.3f}", f"{row['never']:.3f}",
            *(f"{row[name]:.2g}, {row[f'{name} moved']:.2g}" for name in names),
        ]
        for row in rows
    ]  # fmt: skip
    return table(head, cells)


if __name__ == "__main__":
    main()
