"""What is compared: sides that take the same stream, piece by piece.

A side is a bundle through the runtime, a model in PyTorch, its training form, or outputs that are known beforehand,
such as those of a library's full forward. Knows how each is fed. Does not judge what they compute.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from titans_core.state import State
from titans_export.models.protocol import SteppableModel
from titans_export.models.titans import OurModel
from titans_export.verification.pieces import Piece
from titans_export.verification.torch_stream import TorchStream
from titans_format.progress import ReportProgress
from titans_runtime.arrays import Array
from titans_runtime.bundle import Bundle
from titans_runtime.devices.select import select
from titans_runtime.state.calls import LoadOptions
from titans_runtime.stream.driver import Driver

SMALL_MODEL = 10_000_000  # parameters


class Side(Protocol):
    """One of those that are compared."""

    def feed(self, piece: Piece) -> Array:
        """Outputs `[1, T, V]` of the next piece."""

    def states(self) -> dict[str, Array]:
        """Every state tensor after it, by name; a side without states has none."""


class BundleSide:
    """A bundle through the runtime, on the CPU. One thread: its workers would fight torch's for the cores."""

    def __init__(self, bundle: Bundle, *, fused: bool = True) -> None:
        self.manifest = bundle.manifest
        self._backend = select(bundle, "cpu", LoadOptions(threads=1, fused=fused)).backend
        self.restart()

    def restart(self) -> None:
        """Begin a fresh stream on the graphs that are loaded."""
        self.driver = Driver(self.manifest, self._backend)

    def feed(self, piece: Piece) -> Array:
        """Outputs of the calls that the piece's policy allows."""
        return self.driver.feed(piece.inputs, all_outputs=True, policy=piece.policy).outputs

    def states(self) -> dict[str, Array]:
        """The runtime's."""
        return self.driver.state()

    def load(self, states: Mapping[str, Array]) -> None:
        """Continue from other states."""
        self.driver.load({spec.name: states[spec.name].astype(spec.dtype) for spec in self.manifest.states})


class TorchSide:
    """A steppable model in PyTorch."""

    def __init__(self, model: SteppableModel) -> None:
        self.stream = TorchStream(model, batch=1)
        self._double = any(parameter.dtype == torch.float64 for parameter in model.module.parameters())

    def feed(self, piece: Piece) -> Array:
        """Outputs, of half precision as float32."""
        inputs = torch.from_numpy(piece.inputs)
        return _array(self.stream.feed(inputs.double() if self._double and inputs.is_floating_point() else inputs))

    def states(self) -> dict[str, Array]:
        """The model's, of half precision as float32."""
        return {name: _array(value) for name, value in self.stream.state.items()}

    def load(self, states: Mapping[str, Array]) -> None:
        """Continue from other states."""
        own = self.stream.state
        self.stream.state = {name: torch.tensor(states[name]).to(value.dtype) for name, value in own.items()}


class KnownSide:
    """Outputs that were computed in one go over the whole stream, `[1, T, V]`."""

    def __init__(self, outputs: Array) -> None:
        self.outputs = outputs

    def feed(self, piece: Piece) -> Array:
        """Those of the piece."""
        return self.outputs[:, piece.start : piece.stop]

    def states(self) -> dict[str, Array]:
        """None."""
        return {}


class TrainingSide:
    """The training form of a model along a stream, which knows no pieces: computed some whole chunks at a time."""

    def __init__(self, model: OurModel, stream: Array) -> None:
        self._model, self._stream = model, torch.from_numpy(stream)
        self._state: State | None = None
        self._ready = torch.empty(0)  # [1, n, V], computed and not yet handed out
        self._done = 0

    @torch.no_grad()
    def feed(self, piece: Piece) -> Array:
        """Outputs of the next tokens of its own stream, as many as the piece has."""
        chunk = self._model.config.chunk
        while self._done < piece.stop:
            inputs = self._stream[:, self._done : self._done + 16 * chunk]
            padding = inputs[:, :1].expand(-1, -inputs.shape[1] % chunk, *inputs.shape[2:])  # only the last has any
            out, self._state = self._model(torch.cat([inputs, padding], dim=1), self._state)
            self._done += inputs.shape[1]
            known = out[:, : inputs.shape[1]]
            self._ready = torch.cat([self._ready, known], dim=1) if self._ready.numel() else known
        length = piece.stop - piece.start
        given, self._ready = self._ready[:, :length], self._ready[:, length:]
        return _array(given)

    def states(self) -> dict[str, Array]:
        """None: it has other ones."""
        return {}


def side_by_side(
    sides: Mapping[str, Side], pieces: Iterable[Piece], tokens: int, progress: ReportProgress | None = None
) -> Iterator[tuple[Piece, dict[str, Array]]]:
    """Feed every piece to every side; yields the piece and the outputs of each.

    Args:
        sides: by name.
        pieces: of one stream, in order.
        tokens: length of that stream, for `progress`.
        progress: called after each piece has been judged.
    """
    for piece in pieces:
        yield piece, {name: side.feed(piece) for name, side in sides.items()}
        if progress is not None:
            progress(piece.stop, tokens)


@contextmanager
def threads_for(module: nn.Module) -> Iterator[None]:
    """One torch thread for a small model, whose operators are over before a second thread has woken up."""
    before = torch.get_num_threads()
    if sum(parameter.numel() for parameter in module.parameters()) < SMALL_MODEL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _array(value: Tensor) -> Array:
    """As NumPy has it, which lacks bfloat16."""
    return np.asarray(value.float() if value.dtype in (torch.float16, torch.bfloat16) else value)
