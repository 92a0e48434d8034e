"""Runs that ONNX Runtime captures once and then launches as one: CUDA graphs of the CUDA provider.

A step is a thousand small kernels, and telling the device about each takes longer than running it. A captured run
tells it all at once, but is bound to its addresses; so each binding gets a capture of its own, once it has been met
often enough to be worth it. ONNX Runtime keeps captures by number, for each thread that made one, for as long as the
session; so numbers are given to threads, and there are few of them. What finds none left runs as it would without.

Capturing may run the graph more often than the stream advances. That does no harm, because no run writes what it
reads. Knows bindings and numbers. Does not know which provider captures.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from titans_format.dtypes import BY_ONNXRUNTIME
from titans_runtime.arrays import Array
from titans_runtime.logs import record

if TYPE_CHECKING:
    import onnxruntime as ort

_NUMBER = "gpu_graph_id"  # of a run: the capture it is to be, or -1
_MET = 2  # runs of a binding before the one that is captured
_MOST = 64  # captures of a session: a stream that decodes and reads prompts in turn needs eight or so


class Replays:
    """The captures of one session."""

    def __init__(self, module: ModuleType, session: ort.InferenceSession) -> None:
        self.session = session
        self._module = module
        self._given = 0
        self.plain = self._options(-1)

    def next(self) -> ort.RunOptions | None:
        """What makes a run a new capture, and later runs with it replays; None if there are no more."""
        if self._given >= _MOST:
            return None
        self._given += 1
        return self._options(self._given)

    def _options(self, number: int) -> ort.RunOptions:
        options = self._module.RunOptions()
        options.add_run_config_entry(_NUMBER, str(number))
        return options


class Replay:
    """One binding of a session whose runs may be captured: the same addresses in every run."""

    def __init__(self, replays: Replays, binding: ort.IOBinding) -> None:
        self._replays = replays
        self._binding = binding
        self._met: dict[int, int] = {}  # thread -> runs
        self._captured: dict[int, ort.RunOptions] = {}  # by thread

    def run(self) -> None:
        """Run once, on what the bound tensors hold now; it is done when this returns."""
        thread = threading.get_ident()
        options = self._captured.get(thread) or self._capture(thread) or self._replays.plain
        self._replays.session.run_with_iobinding(self._binding, options)

    def _capture(self, thread: int) -> ort.RunOptions | None:
        met = self._met[thread] = self._met.get(thread, 0) + 1
        if met <= _MET:
            return None
        options = self._replays.next()
        if options is not None:
            self._captured[thread] = options
        return options


@dataclass(frozen=True)
class Staged:
    """An array of the host's and the tensor of the device's that stands for it."""

    host: Array
    device: ort.OrtValue

    def send(self) -> None:
        """Host to device."""
        self.device.update_inplace(self.host)

    def bring(self) -> None:
        """Device to host."""
        self.host[...] = self.device.numpy()


def with_replays(
    module: ModuleType,
    create: Callable[[bool], ort.InferenceSession],
    allocate: Callable[[tuple[int, ...], str], ort.OrtValue] | None,
) -> tuple[ort.InferenceSession, Replays | None]:
    """A session, and its captures if it can have any: one is made and launched here, on zeros.

    Args:
        module: onnxruntime.
        create: makes a session, one that captures or not. The first is refused where not all operators are on the
            device.
        allocate: makes a tensor on the device; None where nothing is captured.
    """
    if allocate is not None:
        try:
            replays = Replays(module, create(True))
            _try(replays, allocate)
        except Exception as error:  # onnxruntime's exceptions have no common base; the other way says what is wrong
            record(logging.DEBUG, "replay.refused", reason=str(error))
        else:
            return replays.session, replays
    return create(False), None


def _try(replays: Replays, allocate: Callable[[tuple[int, ...], str], ort.OrtValue]) -> None:
    """Some operators refuse to be captured, and say so when it is tried. Sizes that are open are 1 here."""
    session, options = replays.session, replays.next()
    binding = session.io_binding()
    for tensors, bind in (
        (session.get_inputs(), binding.bind_ortvalue_input),
        (session.get_outputs(), binding.bind_ortvalue_output),
    ):
        for tensor in tensors:
            shape, dtype = tuple(n if isinstance(n, int) else 1 for n in tensor.shape), BY_ONNXRUNTIME[tensor.type].name
            value = allocate(shape, dtype)
            value.update_inplace(np.zeros(shape, dtype))
            bind(tensor.name, value)
    for _ in range(2):
        session.run_with_iobinding(binding, options)
