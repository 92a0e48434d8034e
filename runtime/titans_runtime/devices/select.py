"""Execution providers: where graphs run and where state lives.

Each is a module here that offers `state.device.Device`. This is the only place that knows them all; it imports the
one that is asked for, and for "auto" those that come before the first that works.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from titans_format.errors import BundleError
from titans_runtime import native
from titans_runtime.arguments import is_unicode, shown
from titans_runtime.bundle import Bundle
from titans_runtime.errors import ProviderError
from titans_runtime.logs import record
from titans_runtime.state.backend import Backend
from titans_runtime.state.calls import LoadOptions

# What `provider=` may name besides "auto".
PROVIDERS = ("cpu", "cuda", "tensorrt", "tensorrt-rtx", "webgpu", "ort-tensorrt", "ort-tensorrt-rtx")
# What "auto" tries, best first; the first two need engines in the bundle. ONNX Runtime's TensorRT providers are not
# among them: they build engines for minutes when first used, which nobody should meet who did not ask for it.
AUTO = ("tensorrt", "tensorrt-rtx", "cuda", "webgpu", "cpu")
_NATIVE = ("tensorrt", "tensorrt-rtx")


@dataclass(frozen=True)
class Selected:
    """A backend, and why others that "auto" would have liked better were passed over, by name."""

    backend: Backend
    passed_over: dict[str, str] = field(default_factory=dict)


def select(bundle: Bundle, provider: str, options: LoadOptions) -> Selected:
    """The backend for `provider` over an opened bundle; "auto" is the best one this machine can use.

    Raises:
        ProviderError: an unknown provider, one that does not work here, or one that this bundle is not for.
    """
    if not isinstance(provider, str) or provider != "auto":
        return Selected(_backend(bundle, provider, options))
    passed_over: dict[str, str] = {}
    for name in AUTO[:-1]:
        try:
            if software(name):
                raise ProviderError("its device is the processor in disguise", "use provider='cpu', which is faster")
            backend = _backend(bundle, name, options)
        except ProviderError as error:
            passed_over[name] = str(error)
            continue
        record(logging.INFO, "provider.chosen", provider=name, passed_over=passed_over)
        return Selected(backend, passed_over)
    record(logging.INFO, "provider.chosen", provider=AUTO[-1], passed_over=passed_over)
    return Selected(_backend(bundle, AUTO[-1], options), passed_over)


def prove(name: str) -> str:
    """Run something tiny at a provider; one line of evidence. Raises `ProviderError` if it does not work."""
    if name in _NATIVE:
        from titans_runtime.devices.tensorrt import modules as tensorrt_modules

        return tensorrt_modules.prove(name)
    from titans_runtime.devices.ort_sessions import import_onnxruntime

    module = import_onnxruntime()
    if name == "cpu":
        return f"bundles run here, {native.described()}"
    from titans_runtime.devices.ort import OrtMemory
    from titans_runtime.devices.ort_providers import TARGETS

    OrtMemory(module, TARGETS[name](module, ""))
    if software(name):
        return f'bundles run here, on a software device; "auto" prefers {AUTO[-1]}'
    return "bundles run here"


def software(name: str) -> bool:
    """Whether a provider's device is the processor in disguise. Raises `ProviderError` as `select` does."""
    if name != "webgpu":
        return False
    from titans_runtime.devices.ort_providers import TARGETS
    from titans_runtime.devices.ort_sessions import import_onnxruntime

    module = import_onnxruntime()
    return TARGETS[name](module, "").software


def _backend(bundle: Bundle, provider: str, options: LoadOptions) -> Backend:
    if not isinstance(provider, str) or provider not in PROVIDERS:
        raise ProviderError(f"unknown provider {shown(provider)}", f"use one of {', '.join((*PROVIDERS, 'auto'))}")
    manifest = bundle.manifest
    if manifest.providers is not None and provider not in manifest.providers:
        raise ProviderError(
            f"{bundle.path} is a {manifest.dtype} bundle for {', '.join(manifest.providers)} only, not for {provider}",
            "export the checkpoint with another --dtype",
        )
    if not is_unicode(bundle.path):
        raise BundleError(f"{bundle.path} has a name that is not UTF-8, which no provider can open", "rename it")
    if provider in _NATIVE:
        from titans_runtime.devices.tensorrt import modules as tensorrt_modules

        return Backend(provider, bundle, tensorrt_modules.device(provider, bundle))

    if provider == "cpu":
        from titans_runtime.devices.host import HostDevice

        return Backend(provider, bundle, HostDevice(bundle, options))
    from titans_runtime.devices.ort import OrtDevice
    from titans_runtime.devices.ort_providers import TARGETS
    from titans_runtime.devices.ort_sessions import import_onnxruntime

    module = import_onnxruntime()
    target = TARGETS[provider](module, bundle.manifest.weights.sha256)
    return Backend(provider, bundle, OrtDevice(module, target, bundle))
