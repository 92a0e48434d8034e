"""Engine files beside a bundle's graphs: found by their sidecars, and refused if they are not what must run here.

Knows the sidecars that `titans build` writes, and what makes an engine useless: other graphs, another TensorRT, another
device, damage, another maker than this user (`engine_key`). Does not know how an engine runs (`device`). Every
refusal names the command that rebuilds.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from msgspec import Struct, structs

from titans_format import files
from titans_format.document import Count, Digest, JsonObject, JsonValue, Positive, Text, parse, read, refuse
from titans_format.errors import BundleError
from titans_format.specs import GraphSpec
from titans_runtime.bundle import Bundle
from titans_runtime.devices.tensorrt.engine_key import is_ours
from titans_runtime.errors import ProviderError

ENGINES = "engines"
FORMAT = "titans-engine"
FORMAT_VERSION = 1
TRUST = "TITANS_TRUST_ENGINE_CODE"  # environment variable that agrees to run engines that somebody else built
_AMPERE = 80
_MAX_SIDECAR_BYTES = files.MIB  # the largest that we write has 10 KiB


@dataclass(frozen=True, kw_only=True)
class EngineFile:
    """What a sidecar says about the engine beside it.

    batch: fewest, usual and most streams.
    sm: compute capabilities it was built for; () where the builder did not name any.
    version_compatible: later versions of TensorRT run it too, with host code that it carries.
    hardware_compatible: every GPU from Ampere on runs it.
    strip_weights: it has no weights and gets them from the bundle.
    ours: this user built it.
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
    version_compatible: bool
    hardware_compatible: bool
    strip_weights: bool
    ours: bool


@dataclass(frozen=True)
class Environment:
    """What engines have to run on: the provider, its TensorRT's version, and the device's compute capability."""

    backend: str
    tensorrt: str
    sm: int


class EngineFiles:
    """The engines of one bundle that fit this machine, one per graph.

    Args:
        bundle: the bundle.
        here: what they have to run on.
        besides: graphs that are not the bundle's and may have an engine, too.

    Raises:
        ProviderError: there are none, or a graph's do not fit.
    """

    def __init__(self, bundle: Bundle, environment: Environment, besides: Sequence[GraphSpec] = ()) -> None:
        self._bundle = bundle
        self._here = environment
        known = list(self._sidecars())
        if not known:
            raise self._refuse(f"{bundle.path} has no engines for {environment.backend}")
        there = {engine.graph for engine in known}
        graphs = [*bundle.manifest.graphs, *(graph for graph in besides if graph.name in there)]
        self._fitting = {graph.name: self._choose(graph, known) for graph in graphs}

    def __contains__(self, graph: GraphSpec) -> bool:
        """Whether a graph has an engine."""
        return graph.name in self._fitting

    def read(self, graph: GraphSpec) -> tuple[EngineFile, bytes]:
        """A graph's engine. Raises `ProviderError` if the file is not the one that was built."""
        engine = self._fitting[graph.name]
        try:
            data = files.read_regular(engine.path, engine.bytes + 1)
        except OSError as error:
            raise self._refuse(files.shown(engine.path, error)) from None
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
                text = files.read_regular(path, _MAX_SIDECAR_BYTES).decode("utf-8")
                engine = _read(parse(text, path.name), path)
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
        later = engine.version_compatible and _runs_later(engine.tensorrt, here.tensorrt)
        if engine.tensorrt != here.tensorrt and not later:
            built_by = f"{engine.path} was built by {engine.backend} {engine.tensorrt}"
            what = f"and {here.tensorrt} is installed here"
            if engine.version_compatible:
                what = f"for that and later versions, {what}"
            return 2, self._refuse(f"{built_by}, {what}", *_compatible(engine))
        if engine.sm and here.sm not in engine.sm and not (engine.hardware_compatible and here.sm >= _AMPERE):
            built = ", ".join(map(str, engine.sm))
            if engine.hardware_compatible:
                built += f" and everything from {_AMPERE} on"
            options = (
                [f"--sm {here.sm}"] if here.backend == "tensorrt-rtx" else []
            )  # the other builds for what it is on
            return 3, self._refuse(
                f"{engine.path} was built for compute capability {built}, and this device has {here.sm}", *options
            )
        if not engine.ours and os.environ.get(TRUST) != "1":
            return 4, self._refuse(
                f"{engine.path} was built by somebody else, and an engine carries code that runs on the host",
                remedy=f"set {TRUST}=1 if you trust whoever built it, or",
            )
        return None

    def _refuse(self, what: str, *options: str, remedy: str = "") -> ProviderError:
        command = [
            "titans build",
            shlex.quote(str(self._bundle.path)),
            f"--backend {self._here.backend}",
            *options,
        ]
        return ProviderError(what, f"{remedy} run: {' '.join(command)}".strip(), "no engines")


def _compatible(engine: EngineFile) -> list[str]:
    """The options that build an engine of the same kind again."""
    names = ("version_compatible", "hardware_compatible", "strip_weights")
    return [f"--{name.replace('_', '-')}" for name in names if getattr(engine, name)]


def _runs_later(built: str, here: str) -> bool:
    """Whether a version-compatible engine runs: later versions of the same major one do, and 11 runs those of 10.

    Source: NVIDIA's support matrix of TensorRT 11.4, "Engine Portability".
    """
    old, new = ([int(part) for part in re.findall(r"\d+", version)] for version in (built, here))
    return old <= new and (old[:1] == new[:1] or (old[:1], new[:1]) == ([10], [11]))


class _Kind(Struct):
    format: Text
    format_version: Positive


class _Sidecar(Struct):
    """An engine's sidecar as it is written; the last three came later than the rest."""

    backend: Text
    tensorrt: Text
    graph: Text
    sha256: Digest
    bytes: Count
    onnx_sha256: Digest
    weights_sha256: Digest
    batch: tuple[Positive, Positive, Positive]
    sm: tuple[Positive, ...]
    version_compatible: bool = False
    hardware_compatible: bool = False
    strip_weights: bool = False


def _read(document: JsonValue, path: Path) -> EngineFile:
    kind = read(document, _Kind, path.name)
    if kind.format != FORMAT or kind.format_version > FORMAT_VERSION:
        refuse(path.name, "format", f'"{FORMAT}", version {FORMAT_VERSION} or below', kind.format)
    sidecar = read(document, _Sidecar, path.name)
    ours = is_ours(cast(JsonObject, document))  # or it would not have been a sidecar
    return EngineFile(path=path.with_suffix(".engine"), ours=ours, **structs.asdict(sidecar))
