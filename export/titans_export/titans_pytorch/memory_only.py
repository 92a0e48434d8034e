"""titans-pytorch's `NeuralMemory` by itself over external state: vectors in, vectors out.

A stream is cut into segments of whole chunks, which only says how many inputs wait as rows and how long a prefill is.

Where `chunk_size` has two numbers, token t reads the memory after as many chunks of the store as it is chunks of the
retrieval into the stream. Those two drift apart, and titans-pytorch refuses any sequence that ends where they differ,
so wherever it answers they have been one chunk apart at most: the weights before the last chunk are kept for that.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from titans_core.state import State, StateSpec
from titans_export.titans_pytorch.memory import Memory
from titans_export.titans_pytorch.memory_store import Store, Views
from titans_export.titans_pytorch.options import MemoryOptions
from titans_export.titans_pytorch.parameters import Reader

LONGEST_SEGMENT = 64  # tokens, for chunks shorter than that
MOST_CHUNKS = 16  # of a segment: a prefill unrolls them


class MemoryStream(nn.Module):
    """One memory and the forms of its computation."""

    def __init__(self, options: MemoryOptions, read: Reader) -> None:
        super().__init__()
        self.options = options
        chunk = options.store_chunk
        self.segment_len = chunk * max(1, min(MOST_CHUNKS, LONGEST_SEGMENT // chunk))
        self.store = Store(Memory(options, read), self.segment_len, 0, options.qkv_receives_diff_views)
        self.lags = options.retrieve_chunk != chunk

    @property
    def features(self) -> int:
        """Channels of an input: one vector, or the three that make query, key and value."""
        return self.options.dim * (3 if self.options.qkv_receives_diff_views else 1)

    def state_specs(self) -> list[StateSpec]:
        """The whole state."""
        specs = self.store.state_specs()
        if self.lags:
            updates = [spec for spec in specs if spec.name.startswith("update_")]
            specs += [StateSpec(f"previous_{s.name}", s.kind, s.shape, s.initial) for s in updates]
        return specs

    def initial_tensor(self, name: str) -> Tensor:
        """What fast weights start from."""
        return self.store.initial_tensor(name)

    def _views(self, inputs: Tensor) -> Views:
        if not self.options.qkv_receives_diff_views:
            return Views(inputs, inputs, inputs)
        query, key, value = inputs.chunk(3, dim=-1)
        return Views(query, key, value)

    def token(self, inputs: Tensor, position: Tensor, state: State, closing: bool) -> tuple[Tensor, State]:
        """One vector: inputs `[B, 1, F]`, position `[B]`; the answer `[B, 1, dim]` and the states that change."""
        store, views = self.store, self._views(inputs)
        slot, fast = position % self.segment_len, store.fast(state)
        changed = store.wait(views, slot, False, state)
        previous = fast.update
        if closing:
            key, value = store.closing(views, slot, False, state)
            fast = store.memory.close(key, value, fast, None, store.boundary(position))
            changed |= store.named(fast)
        answering = fast.update
        if self.lags:
            if closing:
                changed |= {f"previous_update_{i}": value for i, value in enumerate(previous)}
            else:
                previous = [state[f"previous_update_{i}"] for i in range(len(fast.update))]
            stored, due = ((position + 1) // n for n in (self.options.store_chunk, self.options.retrieve_chunk))
            behind = due < stored
            answering = [
                torch.where(behind.reshape(-1, *[1] * (u.dim() - 1)), p, u)
                for p, u in zip(previous, fast.update, strict=True)
            ]
        return store.memory.retrieve(views.query, answering), changed

    def segment(self, inputs: Tensor, position: Tensor, state: State) -> tuple[Tensor, State]:
        """A whole segment, `[B, n, F]` to `[B, n, dim]`."""
        answer, changed, _ = self.store.whole_segment(self._views(inputs), position, state, None)
        return answer, changed
