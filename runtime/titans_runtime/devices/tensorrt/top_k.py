"""Choosing the likeliest tokens with the engine that `top_k_graph` describes: logits in, ids and logits of a few out.

Knows where its tensors are and what comes back to the host. Does not know how an engine runs (`device`).
"""

from __future__ import annotations

import numpy as np

from titans_runtime.arrays import Array, FloatArray, IdArray
from titans_runtime.devices.tensorrt.cuda import Cuda, CudaBuffer
from titans_runtime.devices.tensorrt.top_k_graph import IDS, LARGEST, SCORES, SUM, TopKGraph
from titans_runtime.state.device import Program


class TopKEngine:
    """The engine for so many streams: one token's logits go to its input, and what is wanted comes back."""

    def __init__(self, cuda: Cuda, graph: TopKGraph, program: Program, streams: int) -> None:
        self._cuda = cuda
        spec = graph.spec
        self._places = {
            t.name: cuda.zeros(tuple(streams if isinstance(n, str) else n for n in t.shape), t.dtype)
            for t in (*spec.inputs, *spec.outputs)
        }
        inputs, outputs = {SCORES: self._places[SCORES]}, {t.name: self._places[t.name] for t in spec.outputs}
        self._run = program.bind({}, {}, inputs, outputs)

    def of(self, head: CudaBuffer, row: int, count: int) -> tuple[IdArray, FloatArray, FloatArray]:
        """Of the outputs `[B, T, V]` of one token the `count` largest: ids, logits, and the sum of all."""
        streams, tokens, width = head.shape
        item = width * np.dtype(np.float32).itemsize
        start = head.address + row * item
        self._cuda.move_columns(self._places[SCORES].address, item, start, tokens * item, item, streams)
        self._run()
        ids, largest = np.empty((streams, count), np.int64), np.empty((streams, count), np.float32)
        total = np.empty(streams, np.float32)
        for stream in range(streams):
            self._bring(ids[stream], self._places[IDS], stream)
            self._bring(largest[stream], self._places[LARGEST], stream)
            self._bring(total[stream : stream + 1], self._places[SUM], stream)
        self._cuda.wait()
        return ids, largest, total

    def _bring(self, target: Array, place: CudaBuffer, stream: int) -> None:
        """Put a copy of the beginning of one stream's share of a tensor into the stream."""
        self._cuda.to_host(target.ctypes.data, place.address + stream * (place.nbytes // place.shape[0]), target.nbytes)
