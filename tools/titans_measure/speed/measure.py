"""A bundle's speed here: prompts and single tokens at several batch sizes, cold starts, and the machine beside them.

Everything that is compared is measured in turns and medians count. Knows what is measured. Does not know how it is
shown (`titans_cli.bench`).
"""

from __future__ import annotations

import platform
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import titans_runtime
from titans_format.fields import TokenInputs
from titans_format.progress import ReportProgress
from titans_measure.speed.demand import Demand, decoding, reading
from titans_measure.speed.processes import Start, starts
from titans_measure.speed.roofline import Probes, Roofline
from titans_measure.speed.timing import Work, medians
from titans_runtime import Model
from titans_runtime.arrays import Array
from titans_runtime.devices.cores import usable_cores
from titans_runtime.devices.ort_sessions import import_onnxruntime
from titans_runtime.stream.driver import Driver

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What to measure.

    provider, threads: as in `titans_runtime.load`.
    batches: numbers of streams that run in lockstep.
    prompt: tokens of the prompt that is read.
    tokens: tokens that are then fed one at a time, in every round.
    rounds: how often everything takes its turn; medians count.
    """

    provider: str = "auto"
    threads: int | None = None
    batches: tuple[int, ...] = (1, 4, 16)
    prompt: int = 512
    tokens: int = 64
    rounds: int = 5


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Reading prompts, or decoding, with `batch` streams in lockstep.

    tokens_per_second: of all streams together.
    flops_per_token, bytes_per_token: what the graphs need, counted; None where the bundle does not say.
    gflops, gb_per_second: the same per second at that speed, in billions.
    share: of the machine's measured rate, of products for prompts and of reading for decoding; None off the CPU.
    latency_ms: of one call per token, by percentile; None for prompts.
    """

    batch: int
    tokens_per_second: float
    flops_per_token: float | None
    bytes_per_token: float | None
    gflops: float | None
    gb_per_second: float | None
    share: float | None
    latency_ms: dict[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """Everything that was measured; see `BenchOptions`, `Speed`, `Start` and `Roofline`.

    first_token_seconds: from an empty session to the logits after a prompt of `options.prompt` tokens.
    """

    bundle: str
    model: dict[str, Any]
    machine: dict[str, Any]
    options: BenchOptions
    provider: str
    roofline: Roofline | None
    start: Start
    first_token_seconds: float
    prefill: tuple[Speed, ...]
    decode: tuple[Speed, ...]

    def as_json(self) -> dict[str, Any]:
        """The same as plain data; what was asked for is under `wish`."""
        return {"wish" if name == "options" else name: value for name, value in asdict(self).items()}


def measure(bundle: Path, options: BenchOptions, progress: ReportProgress | None = None) -> BenchReport:
    """Measure a bundle.

    Raises:
        BundleError, ProviderError, InputError: as `titans_runtime.load`.
        ExecutionError: a graph, or a process that runs it, failed.
    """
    model = titans_runtime.load(bundle, provider=options.provider, threads=options.threads)
    manifest = model.manifest
    start = starts(bundle, model.provider, options.threads, manifest.chunk)
    on_cpu = model.provider == "cpu"
    probes = Probes(options.threads) if on_cpu else None
    streams = {batch: _Streams(model, batch, options) for batch in options.batches}
    work: dict[str, Work] = {} if probes is None else probes.work()
    work["first"] = lambda: model.session().feed(streams_input(model, 1, options.prompt)[0])
    for batch, these in streams.items():
        work[f"prefill {batch}"] = these.read
        work[f"decode {batch}"] = these.decode
    seconds = medians(work, options.rounds, progress)
    roofline = None if probes is None else probes.roofline(seconds)
    prefill, decode = [], []
    for batch, these in streams.items():
        needs = reading(manifest, options.prompt, batch, widened=on_cpu)
        prefill.append(_speed(batch, options.prompt, seconds[f"prefill {batch}"], needs, roofline, "sgemm"))
        needs = decoding(manifest, options.prompt, options.tokens, batch, widened=on_cpu)
        decode.append(
            _speed(batch, options.tokens, seconds[f"decode {batch}"], needs, roofline, "read", these.latency_ms())
        )
    return BenchReport(
        bundle=str(bundle),
        model=dict(model.describe().as_json()),
        machine=machine(),
        options=options,
        provider=model.provider,
        roofline=roofline,
        start=start,
        first_token_seconds=seconds["first"],
        prefill=tuple(prefill),
        decode=tuple(decode),
    )


def streams_input(model: Model, batch: int, tokens: int) -> Array:
    """Random ids `[batch, tokens]`, or vectors `[batch, tokens, F]`: speed does not depend on their values."""
    random = np.random.default_rng(0)
    kind = model.manifest.inputs
    if isinstance(kind, TokenInputs):
        return random.integers(0, kind.vocab_size, (batch, tokens))
    return random.standard_normal((batch, tokens, kind.features)).astype(np.float32)


class _Streams:
    """`batch` streams in lockstep: a prompt each, then single tokens that follow it."""

    def __init__(self, model: Model, batch: int, options: BenchOptions) -> None:
        self._driver: Driver = model.driver(batch)
        self._prompt = streams_input(model, batch, options.prompt)
        self._tokens = streams_input(model, batch, options.tokens)
        self._latencies: list[list[float]] = []

    def read(self) -> None:
        """The prompt, from the beginning."""
        self._driver.reset()
        self._driver.feed(self._prompt)

    def decode(self) -> None:
        """The tokens, after `read`."""
        latencies = []
        for place in range(self._tokens.shape[1]):
            piece = self._tokens[:, place : place + 1]
            began = time.perf_counter()
            self._driver.feed(piece)
            latencies.append(time.perf_counter() - began)
        self._latencies.append(latencies)

    def latency_ms(self) -> dict[str, float]:
        """Milliseconds of a call, by percentile, of all rounds but the one that warmed up; and the longest."""
        seconds = [latency for latencies in self._latencies[1:] for latency in latencies]
        found = {f"p{rank}": 1e3 * float(np.percentile(seconds, rank)) for rank in PERCENTILES}
        return found | {"max": 1e3 * max(seconds)}


def _speed(
    batch: int,
    tokens: int,
    seconds: float,
    needs: Demand | None,
    roofline: Roofline | None,
    bound: str,
    latency_ms: dict[str, float] | None = None,
) -> Speed:
    gflops = None if needs is None else needs.flops / seconds / 1e9
    gigabytes = None if needs is None else needs.bytes / seconds / 1e9
    share = None
    if roofline is not None and gflops is not None and gigabytes is not None:
        share = gflops / roofline.sgemm_gflops if bound == "sgemm" else gigabytes / roofline.read_gb_per_second
    return Speed(
        batch=batch,
        tokens_per_second=batch * tokens / seconds,
        flops_per_token=None if needs is None else needs.flops / batch / tokens,
        bytes_per_token=None if needs is None else needs.bytes / batch / tokens,
        gflops=gflops,
        gb_per_second=gigabytes,
        share=share,
        latency_ms=latency_ms,
    )


def machine() -> dict[str, Any]:
    """What the figures were measured on and with."""
    return {
        "processor": _processor(),
        "cores": usable_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "titans_deploy": metadata.version("titans-deploy"),
        "onnxruntime": import_onnxruntime().__version__,
        "numpy": np.__version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
