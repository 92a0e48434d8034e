"""`titans bench`: how fast a bundle runs here.

Knows how to lay a report out, as tables for people or as JSON. What is measured, and how, is
`titans_measure.speed`'s knowledge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from titans_cli.options import bundle_argument, json_option
from titans_cli.terminal import PlainTable, print_json, progress_bar, say, show

if TYPE_CHECKING:
    from titans_measure.speed.measure import BenchReport, Speed
    from titans_measure.speed.profile import GraphProfile, Share

_SHOWN = 12  # rows of a profile
_MIB = 2**20


@click.command(
    epilog="""\b
Examples:
  titans bench model.titans
  titans bench model.titans --batch 1 --batch 16 --threads 1
  titans bench model.titans --profile
  titans bench model.titans --json > speed.json"""
)
@bundle_argument
@click.option("--provider", default="auto", show_default=True, help="Where it runs; titans doctor lists them.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads per graph.  [default: one per core it may use]")
@click.option(
    "--batch", "batches", type=click.IntRange(1), multiple=True, default=(1, 4, 16), show_default=True,
    help="Streams in lockstep; repeatable.",
)  # fmt: skip
@click.option("--prompt", type=click.IntRange(1), default=512, show_default=True, help="Tokens of the prompt.")
@click.option("--tokens", type=click.IntRange(1), default=64, show_default=True, help="Tokens that follow one by one.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Turns; medians count.")
@click.option("--profile", "with_profile", is_flag=True, help="Also where the time goes, by part of the model (cpu).")
@json_option
def bench(
    bundle: Path,
    provider: str,
    threads: int | None,
    batches: tuple[int, ...],
    prompt: int,
    tokens: int,
    rounds: int,
    with_profile: bool,
    as_json: bool,
) -> None:
    """Measure how fast a bundle runs here.

    Tokens per second for prompts and for single tokens at several numbers of streams, latency, time to the first
    token, cold start and memory; and on a CPU the share of the machine's own speed, measured in the same run: of its
    matrix products for prompts, of reading memory for single tokens. Everything takes turns, and medians count.
    """
    from titans_measure.speed.measure import BenchOptions, measure
    from titans_measure.speed.profile import profile

    options = BenchOptions(
        provider=provider,
        threads=threads,
        batches=tuple(dict.fromkeys(batches)),
        prompt=prompt,
        tokens=tokens,
        rounds=rounds,
    )
    if with_profile and provider not in ("auto", "cpu"):
        raise click.UsageError("--profile looks into the CPU's graphs only; leave it out, or use --provider cpu")
    with progress_bar("measuring") as progress:
        report = measure(bundle, options, progress)
    profiles = profile(bundle, options) if with_profile else ()
    if as_json:
        document = report.as_json()
        if with_profile:
            document["profile"] = [asdict(graph) for graph in profiles]
        print_json(document)
        return
    _show(report, profiles)


def _show(report: BenchReport, profiles: Sequence[GraphProfile]) -> None:
    model, start, options = report.model, report.start, report.options
    say(
        f"{model['name']}, {model['parameters']:,} parameters, {model['dtype']}, {_mib(model['weight_bytes'])} of"
        f" weights, {_mib(model['state_bytes_per_stream'])} of state a stream"
    )
    threads = options.threads or report.machine["cores"]
    say(f"{report.provider} on {report.machine['processor']}, {threads} of {report.machine['cores']} cores")
    if report.roofline is not None:
        say(
            f"this machine: {report.roofline.sgemm_gflops:.0f} GFLOP/s of products,"
            f" {report.roofline.read_gb_per_second:.1f} GB/s of reading"
        )
    say(
        f"cold start to the first token {_seconds(start.cold_seconds)}, load {_seconds(start.load_seconds)}, a prompt"
        f" of {options.prompt} tokens {_seconds(report.first_token_seconds)}, peak memory {_mib(start.peak_rss_bytes)}"
    )
    table = PlainTable(title=f"Prompts of {options.prompt} tokens")
    for column in ("streams", "tokens/s", "MFLOP a token", "GFLOP/s", "of the machine"):
        table.add_column(column, right=True)
    for speed in report.prefill:
        per_token = _number(speed.flops_per_token, 1e6)
        rate = f"{speed.tokens_per_second:,.0f}"
        table.add_row(str(speed.batch), rate, per_token, _number(speed.gflops), _share(speed))
    show(table)
    table = PlainTable(title=f"{options.tokens} tokens, one by one")
    names = list(report.decode[0].latency_ms or {})
    for column in ("streams", "tokens/s", "MB a token", "GB/s", "of the machine", *(f"{name}, ms" for name in names)):
        table.add_column(column, right=True)
    for speed in report.decode:
        latencies = [f"{value:.2f}" for value in (speed.latency_ms or {}).values()]
        per_token = _number(speed.bytes_per_token, 1e6)
        rate = f"{speed.tokens_per_second:,.0f}"
        table.add_row(str(speed.batch), rate, per_token, _number(speed.gb_per_second), _share(speed), *latencies)
    show(table)
    for graph in profiles:
        say(
            "",
            f"{graph.graph}: {graph.call_microseconds:,.0f} µs a call, {graph.node_microseconds:,.0f} µs of it in"
            " nodes (slowed down by being measured)",
        )
        show(_shares("part of the model", graph.parts))
        show(_shares("operator", graph.operators))


def _shares(title: str, shares: Sequence[Share]) -> PlainTable:
    table = PlainTable(title)
    for column in ("share", "µs a call", "nodes"):
        table.add_column(column, right=True)
    for share in shares[:_SHOWN]:
        table.add_row(share.name, f"{share.share:.1%}", f"{share.microseconds:,.0f}", f"{share.nodes:.0f}")
    if rest := shares[_SHOWN:]:
        values = [sum(getattr(share, name) for share in rest) for name in ("share", "microseconds", "nodes")]
        table.add_row(f"{len(rest)} others", f"{values[0]:.1%}", f"{values[1]:,.0f}", f"{values[2]:.0f}")
    return table


def _share(speed: Speed) -> str:
    return "-" if speed.share is None else f"{speed.share:.0%}"


def _number(value: float | None, unit: float = 1.0) -> str:
    return "-" if value is None else f"{value / unit:,.1f}"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.0f} ms"


def _mib(size: int | None) -> str:
    return "-" if size is None else f"{size / _MIB:,.1f} MiB"
