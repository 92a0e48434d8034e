"""Models on a device that needs no GPU: the device machinery of the runtime over ONNX Runtime's CPU provider."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest

from titans_runtime import Model, ProviderError, SamplingOptions, Session
from titans_runtime.bundle import open_bundle
from titans_runtime.devices import ort_copies, select
from titans_runtime.devices.ort import OrtDevice, OrtMemory, OrtTarget
from titans_runtime.devices.tensorrt.device import CudaMemory
from titans_runtime.state.backend import Backend
from titans_runtime.state.device import Traffic


def host_target(in_place: bool = True, replayed: bool = False) -> OrtTarget:
    """Host memory in the role of a device's: tables can be written in place or not, runs are given captures or not.

    The CPU provider makes nothing of a capture's number, and runs as ever.
    """

    def replays(options: onnxruntime.SessionOptions) -> None:
        options.intra_op_num_threads = 1

    return OrtTarget(
        name="host",
        execution_provider="CPUExecutionProvider",
        memory=("cpu", 0, -1),
        configure=lambda options, graph, size: setattr(options, "intra_op_num_threads", 1),
        sizes=lambda batch: 0,
        in_place=in_place,
        spread=replayed,
        replays=replays if replayed else None,
        remedy="",
    )


def on_device(path: Path, target: OrtTarget | None = None) -> Model:
    """A bundle, loaded on such a device."""
    bundle = open_bundle(path)
    device = OrtDevice(onnxruntime, target or host_target(), bundle)
    return Model(bundle, Backend("host", bundle, device))


def skip_without(provider: str) -> None:
    """Skip, with the reason, where a provider or its device is not there; one that is there and fails is a failure."""
    try:
        select.prove(provider)
    except ProviderError as error:
        if error.status not in ("not installed", "no device"):
            raise
        pytest.skip(str(error))


def told(model: Model, session: Session, options: SamplingOptions, tokens: int = 10) -> float:
    """Numbers that come back for each token that is generated after a first one."""
    pieces = session.generate_tokens(None if session.position else [1, 2, 3], tokens + 1, options)
    next(pieces)
    before = traffic(model).outputs
    for _ in range(tokens):
        next(pieces)
    numbers = (traffic(model).outputs - before) / tokens
    pieces.close()
    return numbers


def traffic(model: Model) -> Traffic:
    """What has crossed the bus so far."""
    backend = model._backend
    assert isinstance(backend.device, OrtMemory | CudaMemory)
    return backend.device.traffic


def uncaptured(model: Model) -> set[str]:
    """Graphs, and copies of every step, whose runs were never captured although they have been met often."""
    backend = model._backend
    assert isinstance(backend.device, OrtDevice)
    copies = backend.device._copies._sessions
    assert copies
    found = {name: replays for (name, _), (_, replays) in backend.device._sessions.items()}
    found |= {kind.name: replays for kind, (_, replays) in copies.items() if kind.name in ort_copies._REPLAYED}
    return {name for name, replays in found.items() if replays is None}
