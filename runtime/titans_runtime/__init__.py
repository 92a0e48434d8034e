"""titans_runtime drives a bundle: Titans models with their memory as external state, without PyTorch.

    import titans_runtime as titans

    model = titans.load("model.titans")
    session = model.session()
    for piece in session.generate("def main():", max_new_tokens=64, temperature=0.8):
        print(piece, end="")

Needs NumPy and, to run a graph, onnxruntime, which is imported when a bundle is loaded. Never imports torch
or onnx.
"""

from titans_format.errors import BundleError, TitansError
from titans_format.manifest import Manifest
from titans_runtime.describe import Description
from titans_runtime.errors import (
    ExecutionError,
    ForkError,
    InputError,
    NonFiniteError,
    ProviderError,
    SessionBusyError,
    SessionPoisonedError,
    StateError,
    TextError,
)
from titans_runtime.model import Model, load
from titans_runtime.series import SeriesScaling
from titans_runtime.stream.driver import Driver
from titans_runtime.stream.observe import FeedEvent, SessionStats
from titans_runtime.stream.run import FeedResult
from titans_runtime.stream.session import Session
from titans_runtime.stream.snapshot import Mark
from titans_runtime.text.sampling import SamplingOptions

Fed = FeedResult

__all__ = [
    "BundleError",
    "Description",
    "Driver",
    "ExecutionError",
    "Fed",
    "FeedEvent",
    "FeedResult",
    "ForkError",
    "InputError",
    "Manifest",
    "Mark",
    "Model",
    "NonFiniteError",
    "ProviderError",
    "SamplingOptions",
    "SeriesScaling",
    "Session",
    "SessionBusyError",
    "SessionPoisonedError",
    "SessionStats",
    "StateError",
    "TextError",
    "TitansError",
    "load",
]
