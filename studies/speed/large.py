"""170 million parameters in fp32, one stream: how much of the machine's own speed is reached.

What bounds it: a prompt's chunk of 64 tokens multiplies every weight 64 times, 2 flops each, and the memory's products
come on top; so the measured rate of matrix products is the limit. A single token reads every weight once, 580 MB
beside 13 MB of state, so reading memory is. Both limits are measured in the same turns, the flops and bytes are counted
from the graphs (`titans_measure.speed`), and the profile says where the rest goes.
Knows what is asked. Does not know how it is measured (`titans_measure.speed.measure`, `titans_measure.speed.profile`).
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from studies.speed.kit import THREADS, pin, random_bundle
from studies.speed.report import Figure, Result, Row
from titans_core.presets import preset
from titans_format.progress import ReportProgress
from titans_measure.speed.measure import BenchOptions, Speed
from titans_measure.speed.measure import measure as measure_bundle
from titans_measure.speed.profile import GraphProfile, profile

SHOWN = 8  # rows of each profile


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """See `titans_measure.speed.measure.BenchOptions`."""

    preset: str = "170m"
    prompt: int = 512
    tokens: int = 64
    rounds: int = 7
    threads: int = THREADS


def measure(sizes: Sizes, progress: ReportProgress) -> Result:
    """Shares of the machine's products and of its reading, and profiles."""
    pin(sizes.threads)
    options = BenchOptions(
        provider="cpu", threads=sizes.threads, batches=(1,), prompt=sizes.prompt, tokens=sizes.tokens,
        rounds=sizes.rounds,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "large.titans"
        random_bundle(preset(sizes.preset, variant="mac"), bundle)
        report = measure_bundle(bundle, options, progress)
        profiles = profile(bundle, options)
    (prefill,), (decode,) = report.prefill, report.decode
    machine = report.roofline
    stated = [
        f"`{sizes.preset}` mac, fp32, one stream: a prompt of {sizes.prompt:,} tokens, then {sizes.tokens} tokens one"
        f" by one, commits included; medians of {sizes.rounds} rounds",
    ]
    if machine is not None:
        stated.append(
            f"the machine beside it: {machine.sgemm_gflops:.0f} GFLOP/s of products, {machine.read_gb_per_second:.1f}"
            " GB/s of reading"
        )
    return Result(
        title="170 million parameters",
        stated=stated,
        figures=[
            Figure(name="prefill, share of products", unit="share", at_least=0.7, value=prefill.share or 0.0),
            Figure(name="decode, share of reading", unit="share", at_least=0.8, value=decode.share or 0.0),
        ],
        tables={
            "Speed": [_speed("prefill", prefill), _speed("decode", decode)],
            **{f"Profile of `{graph.graph}`": _parts(graph) for graph in profiles if graph.graph != "extend"},
        },
    )


def _speed(name: str, speed: Speed) -> Row:
    return {
        "": name,
        "tokens/s": round(speed.tokens_per_second, 1),
        "GFLOP/s": round(speed.gflops or 0.0, 1),
        "GB/s": round(speed.gb_per_second or 0.0, 1),
        "median, ms": None if speed.latency_ms is None else round(speed.latency_ms["p50"], 2),
        "p99, ms": None if speed.latency_ms is None else round(speed.latency_ms["p99"], 2),
    }


def _parts(graph: GraphProfile) -> list[Row]:
    rows: list[Row] = [
        {"part of the model": f"`{part.name}`", "share": f"{part.share:.1%}", "µs a call": round(part.microseconds)}
        for part in graph.parts[:SHOWN]
    ]
    rest = graph.parts[SHOWN:]
    if rest:
        share, spent = sum(part.share for part in rest), sum(part.microseconds for part in rest)
        rows.append({"part of the model": f"{len(rest)} others", "share": f"{share:.1%}", "µs a call": round(spent)})
    return rows
