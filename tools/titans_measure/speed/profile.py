"""Where the time of a graph goes, by part of the model and by operator.

Knows the profiles that ONNX Runtime writes, and that a node's name begins with the path of the module that made it.
Reads them as JSON. Works on the CPU alone.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from titans_measure.speed.measure import BenchOptions, streams_input
from titans_runtime.bundle import open_bundle
from titans_runtime.devices.host import HostDevice
from titans_runtime.model import Model
from titans_runtime.state.backend import Backend
from titans_runtime.state.calls import LoadOptions
from titans_runtime.stream.driver import Driver

_KERNEL = "_kernel_time"
_CALL = "model_run"


@dataclass(frozen=True)
class Share:
    """A part of the model, or an operator.

    microseconds: per call of the graph. nodes: run in one call. share: of all nodes' time.
    """

    name: str
    microseconds: float
    nodes: float
    share: float


@dataclass(frozen=True)
class GraphProfile:
    """One graph. Microseconds per call: in all, and in nodes; the rest is ONNX Runtime's own."""

    graph: str
    calls: int
    call_microseconds: float
    node_microseconds: float
    parts: tuple[Share, ...]
    operators: tuple[Share, ...]


def profile(bundle: Path, options: BenchOptions) -> tuple[GraphProfile, ...]:
    """Run a prompt and some tokens of one stream on the CPU with ONNX Runtime's profiler on.

    The profiler makes small nodes look slower than they are: trust the shares, not the sums.

    Raises:
        BundleError, ProviderError: as `titans_runtime.load`.
        ExecutionError: a graph failed.
    """
    opened = open_bundle(bundle)
    with tempfile.TemporaryDirectory() as folder:
        device = HostDevice(opened, LoadOptions(threads=options.threads, profiles=Path(folder)))
        backend = Backend("cpu", opened, device)
        model = Model(opened, backend)
        driver = Driver(opened.manifest, backend)
        driver.feed(streams_input(model, 1, options.prompt))
        for place in range(options.tokens):
            driver.feed(streams_input(model, 1, options.tokens)[:, place : place + 1])
        files = device.finish_profiles()
        return tuple(read_profile(name, path) for name, path in files.items())


def read_profile(graph: str, path: Path) -> GraphProfile:
    """One of ONNX Runtime's files, without the first call, which plans memory."""
    events = json.loads(path.read_text(encoding="utf-8"))
    runs = sorted((event["ts"], event["dur"]) for event in events if event.get("name") == _CALL)
    warm = sum(runs[0]) if len(runs) > 1 else 0  # when the first call, which plans memory, was over
    calls = max(1, len(runs) - 1)
    parts: dict[str, list[float]] = defaultdict(list)
    operators: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL) and event["ts"] > warm:
            parts[part_of(event["name"].removesuffix(_KERNEL))].append(event["dur"])
            operators[event["args"].get("op_name", "?")].append(event["dur"])
    return GraphProfile(
        graph,
        calls,
        sum(spent for began, spent in runs if began > warm) / calls,
        sum(map(sum, parts.values())) / calls,
        _shares(parts, calls),
        _shares(operators, calls),
    )


def part_of(node: str) -> str:
    """The part of the model that a node belongs to, the same for all blocks: `blocks.*.mixer.attention`."""
    path, separator, _ = node.partition("/")
    return re.sub(r"\.\d+(?=\.|$)", ".*", path) if separator else "(graph)"


def _shares(found: dict[str, list[float]], calls: int) -> tuple[Share, ...]:
    total = sum(map(sum, found.values())) or 1.0
    rows = [Share(name, sum(times) / calls, len(times) / calls, sum(times) / total) for name, times in found.items()]
    return tuple(sorted(rows, key=lambda row: -row.microseconds))
