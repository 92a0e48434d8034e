"""Sixteen streams in lockstep against one: what sharing the weights pays, for all four variants.

What bounds it: one stream reads every weight for one token. Sixteen read the weights once for sixteen tokens, but each
has a memory of its own to read, so a batch's bytes are the weights and sixteen states. The table gives those bytes and
their ratio, which is the limit where reading rules; the rest of the way up is operators, which a batch calls once and
not sixteen times.
Knows what is asked. Does not know how it is measured (`titans_measure.speed`). `streams` measures sessions that come
and go, through `Model.batch`.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from studies.speed.kit import THREADS, pin, random_bundle
from studies.speed.report import Figure, Result, Row
from titans_core.config import VARIANTS, Variant
from titans_core.presets import preset
from titans_format.progress import ReportProgress
from titans_measure.speed.measure import BenchOptions, BenchReport
from titans_measure.speed.measure import measure as measure_bundle


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """`tokens` whole chunks, so that the commits are in the average."""

    preset: str = "small"
    variants: tuple[Variant, ...] = VARIANTS
    streams: int = 16
    prompt: int = 128
    tokens: int = 64
    rounds: int = 5
    threads: int = THREADS


def measure(sizes: Sizes, progress: ReportProgress) -> Result:
    """Tokens per second of one stream and of all."""
    pin(sizes.threads)
    options = BenchOptions(
        provider="cpu", threads=sizes.threads, batches=(1, sizes.streams), prompt=sizes.prompt,
        tokens=sizes.tokens, rounds=sizes.rounds,
    )  # fmt: skip
    figures: list[Figure] = []
    rows: list[Row] = []
    for variant in sizes.variants:
        with tempfile.TemporaryDirectory() as folder:
            bundle = Path(folder) / "batch.titans"
            random_bundle(preset(sizes.preset, variant=variant), bundle)
            report = measure_bundle(bundle, options, progress)
        figures.append(
            Figure(
                name=f"{variant}, {sizes.streams} streams over one", unit="x", at_least=8.0,
                value=report.decode[1].tokens_per_second / report.decode[0].tokens_per_second,
            )
        )  # fmt: skip
        rows.append(_row(variant, report))
    return Result(
        title="Sixteen streams at once",
        stated=[
            f"`{sizes.preset}` preset, fp32, {sizes.streams} streams in lockstep, {sizes.tokens} tokens each after a"
            f" prompt of {sizes.prompt}, commits included; medians of {sizes.rounds} rounds"
        ],
        figures=figures,
        tables={"Tokens per second, all streams together": rows},
    )


def _row(variant: Variant, report: BenchReport) -> Row:
    one, many = report.decode
    bytes_each = [(speed.bytes_per_token or 0.0) / 1e6 for speed in (one, many)]
    return {
        "": variant,
        "one": round(one.tokens_per_second, 1),
        "all": round(many.tokens_per_second, 1),
        "MB a token, one": round(bytes_each[0], 2),
        "MB a token, all": round(bytes_each[1], 2),
        "ratio of bytes": round(bytes_each[0] / bytes_each[1], 2) if bytes_each[1] else None,
        "of reading, one": _share(one.share),
        "of reading, all": _share(many.share),
    }


def _share(share: float | None) -> str | None:
    return None if share is None else f"{share:.0%}"
