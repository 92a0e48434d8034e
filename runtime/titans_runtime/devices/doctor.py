"""Which execution providers work on this machine, and what to do about the rest.

Runs something tiny at each (`select.prove`) and reports what came of it; loads no model, and lets no error out. Does
not know how a provider is used (`select`).
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import asdict, dataclass
from typing import cast

from titans_format.document import JsonObject
from titans_runtime.devices.select import PROVIDERS, prove
from titans_runtime.errors import ProviderError, ProviderStatus

# Where each comes from, for the version; the first that is installed.
_DISTRIBUTIONS = {
    "cpu": ("onnxruntime", "onnxruntime-gpu"),
    "cuda": ("onnxruntime-gpu",),
    "tensorrt": ("tensorrt", "tensorrt-cu12", "tensorrt-cu13"),
    "tensorrt-rtx": ("tensorrt-rtx",),
    "webgpu": ("onnxruntime-ep-webgpu",),
    "ort-tensorrt": ("onnxruntime-gpu",),
    "ort-tensorrt-rtx": (
        "onnxruntime-ep-nv-tensorrt-rtx",
        "onnxruntime-ep-nv-tensorrt-rtx-cu12",
        "onnxruntime-ep-nv-tensorrt-rtx-cu13",
    ),
}


@dataclass(frozen=True, kw_only=True)
class ProviderReport:
    """One provider on this machine.

    status: "ready" (`load(provider=name)` works); "not installed" (packages are missing); "no device" (installed, but
        there is nothing to run on); "not working" (there is a device, and it fails).
    version: of the package that provides it, or None.
    detail: one line of evidence.
    remedy: what to do to get it ready; "" where it is.
    """

    name: str
    status: ProviderStatus
    version: str | None
    detail: str
    remedy: str

    def as_json(self) -> JsonObject:
        """The same as a JSON object."""
        return cast(JsonObject, asdict(self))


def report() -> list[ProviderReport]:
    """Every provider this project knows of. Never raises."""
    return [_report(name) for name in PROVIDERS]


def _report(name: str) -> ProviderReport:
    status: ProviderStatus = "ready"
    remedy = ""
    try:
        detail = prove(name)
    except ProviderError as error:
        detail, status, remedy = error.what, error.status, error.remedy
    except Exception as error:  # a broken installation can fail in many ways, and a report must survive them all
        detail, status = f"{type(error).__name__}: {error}".splitlines()[0], "not working"
        remedy = "install the package again, or leave it out"
    version = None if status == "not installed" else _version(_DISTRIBUTIONS[name])
    return ProviderReport(name=name, status=status, version=version, detail=detail, remedy=remedy)


def _version(distributions: tuple[str, ...]) -> str | None:
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
