"""Engine files beside a bundle's graphs: found by their sidecars, and refused if they are not what must run here.

Knows the sidecars that `titans build` writes, and what makes an engine useless: other graphs, another TensorRT, another
device, damage. Does not know how an engine runs (`tensorrt_device`). Every refusal names the command that rebuilds.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from titans_runtime.bundle import Bundle
from titans_runtime.errors import BundleError, ProviderError
from titans_runtime.jsonread import Node, parse
from titans_runtime.manifest import GraphSpec

ENGINES = "engines"
FORMAT = "titans-engine"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class EngineFile:
    """What a sidecar says about the engine beside it.

    batch: fewest, usual and most streams.
    sm: compute capabilities it was built for; () where the builder did not name any.
    """

    path: Path
    backend: str
    tensorrt: str
    graph: str
    sha256: str
    bytes: int
    onnx_sha256: str
    weights_sha256: str
    batch: tuple[int, int, int]
    sm: tuple[int, ...]


@dataclass(frozen=True)
class Here:
    """What engines have to run on: the provider, its TensorRT's version, and the device's compute capability."""

    backend: str
    tensorrt: str
    sm: int


class EngineFiles:
    """The engines of one bundle that fit this machine, one per graph.

    Raises:
        ProviderError: there are none, or a graph's do not fit.
    """

    def __init__(self, bundle: Bundle, here: Here) -> None:
        self._bundle = bundle
        self._here = here
        known = list(self._sidecars())
        if not known:
            raise self._refuse(f"{bundle.path} has no engines for {here.backend}")
        self._fitting = {graph.name: self._choose(graph, known) for graph in bundle.manifest.graphs}

    def read(self, graph: GraphSpec) -> tuple[EngineFile, bytes]:
        """A graph's engine. Raises `ProviderError` if the file is not the one that was built."""
        engine = self._fitting[graph.name]
        try:
            data = engine.path.read_bytes()
        except OSError as error:
            raise self._refuse(f"{engine.path} cannot be read ({error.strerror})") from None
        if len(data) != engine.bytes:
            raise self._refuse(f"{engine.path} is truncated or another file: {len(data)} bytes, not {engine.bytes}")
        if hashlib.sha256(data).hexdigest() != engine.sha256:
            raise self._refuse(f"{engine.path} is damaged: its sha256 is not the one that its sidecar records")
        return engine, data

    def check_batch(self, engine: EngineFile, batch: int) -> None:
        """Raise `ProviderError` if an engine cannot take so many streams."""
        low, usual, high = engine.batch
        if not low <= batch <= high:
            bounds = min(low, batch), min(max(usual, low), max(high, batch)), max(high, batch)
            raise self._refuse(
                f"{engine.path} was built for {low} to {high} streams, and {batch} are wanted",
                f"--batch {' '.join(map(str, bounds))}",
            )

    def refused(self, engine: EngineFile, reason: str) -> ProviderError:
        """The error for an engine that TensorRT itself refuses."""
        return self._refuse(f"{engine.path} is refused by {self._here.backend} {self._here.tensorrt}: {reason}")

    def _sidecars(self) -> Iterable[EngineFile]:
        for path in sorted((self._bundle.path / ENGINES).glob("*/*.json")):
            try:
                engine = _read(parse(path.read_text(encoding="utf-8"), path.name), path)
            except (BundleError, OSError, UnicodeDecodeError) as error:
                raise self._refuse(f"{path} is not an engine's sidecar ({error})") from None
            if engine.backend == self._here.backend:
                yield engine

    def _choose(self, graph: GraphSpec, known: list[EngineFile]) -> EngineFile:
        """The first that fits; if none does, what is wrong with the one that comes closest."""
        reasons: list[tuple[int, ProviderError]] = []
        for engine in known:
            if engine.graph == graph.name:
                found = self._misfit(engine, graph)
                if found is None:
                    return engine
                reasons.append(found)
        if not reasons:
            raise self._refuse(f"{self._bundle.path} has no {self._here.backend} engine for graph {graph.name!r}")
        raise max(reasons, key=lambda reason: reason[0])[1]

    def _misfit(self, engine: EngineFile, graph: GraphSpec) -> tuple[int, ProviderError] | None:
        """What is wrong, and how many checks were passed before it."""
        here = self._here
        if engine.onnx_sha256 != graph.sha256:
            return 0, self._refuse(f"{engine.path} was built from another {graph.file} than the bundle's")
        if engine.weights_sha256 != self._bundle.manifest.weights.sha256:
            return 1, self._refuse(f"{engine.path} was built with other weights than the bundle's")
        if engine.tensorrt != here.tensorrt:
            return 2, self._refuse(
                f"{engine.path} was built by {engine.backend} {engine.tensorrt}, and {here.tensorrt} is installed here"
            )
        if engine.sm and here.sm not in engine.sm:
            built = ", ".join(map(str, engine.sm))
            return 3, self._refuse(
                f"{engine.path} was built for compute capability {built}, and this device has {here.sm}",
                f"--sm {here.sm}",
            )
        return None

    def _refuse(self, what: str, *options: str) -> ProviderError:
        command = ["titans build", shlex.quote(str(self._bundle.path)), f"--backend {self._here.backend}", *options]
        return ProviderError(what, f"run: {' '.join(command)}", "no engines")


def _read(root: Node, path: Path) -> EngineFile:
    if root.field("format").value != FORMAT or root.field("format_version").integer(1) > FORMAT_VERSION:
        root.field("format").fail(f'"{FORMAT}", version {FORMAT_VERSION} or below')
    batch = tuple(node.integer(1) for node in root.field("batch").items())
    if len(batch) != 3:
        root.field("batch").fail("three numbers of streams")
    return EngineFile(
        path=path.with_suffix(".engine"),
        backend=root.field("backend").text(),
        tensorrt=root.field("tensorrt").text(),
        graph=root.field("graph").text(),
        sha256=root.field("sha256").sha256(),
        bytes=root.field("bytes").integer(0),
        onnx_sha256=root.field("onnx_sha256").sha256(),
        weights_sha256=root.field("weights_sha256").sha256(),
        batch=(batch[0], batch[1], batch[2]),
        sm=tuple(node.integer(1) for node in root.field("sm").items()),
    )
