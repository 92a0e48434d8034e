"""Where a memory's open chunk waits, and how a memory goes on when it closes: one memory inside a stream.

A chunk's inputs wait as rows of the segment they are in, long-term memory tokens' apart. Chunks that divide the segment
never leave it. Others may: then the last c - 1 inputs before the segment are kept as history, and a closing chunk is
picked from history and segment by matmul with a matrix of ones and zeros, which is exact.

Knows slots, rows and batch boundaries. The mathematics is `memory`'s; which graph runs when is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from titans_core.state import State, StateSpec
from titans_export.titans_pytorch.memory import Fast, Memory


@dataclass(frozen=True)
class Views:
    """What a memory is asked with and what it stores: `[B, n, dim]` each; keys and values may be one tensor."""

    query: Tensor
    key: Tensor
    value: Tensor

    def piece(self, start: int, end: int) -> Views:
        """Some of the tokens."""
        key = self.key[:, start:end]
        value = key if self.value is self.key else self.value[:, start:end]
        return Views(self.query[:, start:end], key, value)


class Store(nn.Module):
    """A memory and what its stream leaves behind.

    Args:
        memory: the parameters.
        segment: tokens of a segment, which is how many rows wait.
        longterm: long-term memory tokens behind them.
        two_views: whether keys and values come from different inputs.
    """

    def __init__(self, memory: Memory, segment: int, longterm: int, two_views: bool) -> None:
        super().__init__()
        self.memory = memory
        self.chunk = memory.options.store_chunk
        self.segment, self.longterm = segment, longterm
        self.names = ("store_key", "store_value") if two_views else ("store_key",)
        self.aligned = (segment + longterm) % self.chunk == 0
        batch = memory.options.batch_size
        self.keeps_in_use = batch is not None and batch != self.chunk

    def state_specs(self) -> list[StateSpec]:
        """Fast weights, momentum, the weights in use where they are others, and the inputs of the open chunk."""
        o, specs = self.memory.options, []
        for index, shape in enumerate(o.weight_shapes):
            full = (o.heads, *shape)
            specs.append(StateSpec(f"update_{index}", "carried", full, "initial"))
            if o.momentum_order:
                specs.append(StateSpec(f"momentum_{index}", "carried", (o.momentum_order, *full)))
            if self.keeps_in_use:
                specs.append(StateSpec(f"weight_{index}", "carried", full, "initial"))
        if self.chunk == 1:
            return specs
        for name in self.names:
            specs.append(StateSpec(name, "rows", (self.segment, o.dim)))
            if self.longterm:
                specs.append(StateSpec(f"longterm_{name}", "carried", (self.longterm, o.dim)))
            if not self.aligned:
                specs.append(StateSpec(f"history_{name}", "carried", (self.chunk - 1, o.dim)))
        return specs

    def initial_tensor(self, name: str) -> Tensor:
        """What fast weights start from."""
        return self.memory.get_parameter(f"initial.{name.rsplit('_', 1)[1]}")

    def fast(self, state: State) -> Fast:
        """The memory's part of the state."""
        o = self.memory.options
        count = range(len(o.weight_shapes))
        update = [state[f"update_{i}"] for i in count]
        momentum = [state[f"momentum_{i}"] for i in count] if o.momentum_order else []
        if o.batch_size is None:
            in_use = [weight.unsqueeze(0) for weight in self.memory.initial]
        else:
            in_use = [state[f"weight_{i}"] for i in count] if self.keeps_in_use else update
        return Fast(update, momentum, in_use)

    def named(self, fast: Fast) -> State:
        """The inverse of `fast`."""
        state = {f"update_{i}": value for i, value in enumerate(fast.update)}
        state |= {f"momentum_{i}": value for i, value in enumerate(fast.momentum)}
        if self.keeps_in_use:
            state |= {f"weight_{i}": value for i, value in enumerate(fast.in_use)}
        return state

    def boundary(self, index: Tensor) -> Tensor | None:
        """Whether a batch ends with the token at `index` `[B]` of the stream, long-term tokens counted."""
        batch = self.memory.options.batch_size
        return (index + 1) % batch == 0 if batch is not None and self.keeps_in_use else None

    def wait(self, views: Views, slot: Tensor, longterm: bool, state: State) -> State:
        """One token's inputs as what changes: rows, or the table of the long-term tokens."""
        if self.chunk == 1:
            return {}
        new = dict(zip(self.names, (views.key, views.value), strict=False))
        if not longterm:
            return {name: value.transpose(0, 1) for name, value in new.items()}
        here = (torch.arange(self.segment, self.segment + self.longterm) == slot[:, None])[:, :, None]
        return {f"longterm_{n}": torch.where(here, value, state[f"longterm_{n}"]) for n, value in new.items()}

    def closing(self, views: Views, slot: Tensor, longterm: bool, state: State) -> tuple[Tensor, Tensor]:
        """The whole chunk, keys' and values' inputs `[B, c, dim]`, that one token at `slot` completes."""
        if self.chunk == 1:
            return views.key, views.value
        both = [
            torch.cat([self._before(name, slot, longterm, state), own], dim=1)
            for name, own in zip(self.names, (views.key, views.value), strict=False)
        ]
        return both[0], both[-1]

    def _before(self, name: str, slot: Tensor, longterm: bool, state: State) -> Tensor:
        """The c - 1 inputs before the token at `slot`, `[B, c - 1, dim]`."""
        waiting = state[name].transpose(0, 1)
        waiting = torch.cat([waiting, state[f"longterm_{name}"]], dim=1) if longterm else waiting
        if not self.aligned:
            places = torch.cat([state[f"history_{name}"], waiting], dim=1)
            wanted = slot[:, None, None] + torch.arange(self.chunk - 1)[:, None]
            return (torch.arange(places.shape[1]) == wanted).to(places.dtype) @ places
        count = waiting.shape[1] // self.chunk
        chunks = waiting[:, : count * self.chunk].reshape(-1, count, self.chunk, waiting.shape[-1])[:, :, :-1]
        if count == 1:
            return chunks.squeeze(1)
        chosen = (torch.arange(count) == (slot // self.chunk)[:, None]).to(chunks.dtype)
        before = chosen.unsqueeze(1) @ chunks.flatten(2)
        return before.reshape(-1, self.chunk - 1, waiting.shape[-1])

    def end_segment(self, state: State) -> State:
        """What the next segment has to know of this one."""
        if self.aligned or self.chunk == 1:
            return {}
        history = {}
        for name in self.names:
            parts = [state[f"history_{name}"], state[name].transpose(0, 1)]
            if self.longterm:
                parts.append(state[f"longterm_{name}"])
            history[f"history_{name}"] = torch.cat(parts, dim=1)[:, -(self.chunk - 1) :]
        return history

    def whole_segment(
        self, views: Views, index: Tensor, state: State, before: list[list[Tensor]] | None
    ) -> tuple[Tensor, State, list[list[Tensor]]]:
        """All tokens of a segment at once, long-term ones included; only where chunks divide it.

        Args:
            views: `[B, window, dim]`.
            index: `[B]` place of the first token in the stream.
            state: this memory's.
            before: an earlier memory's weights before each of the chunks.

        Returns:
            The answers, what changes, and this memory's weights before each chunk.
        """
        fast, answers, history = self.fast(state), [], []
        start, chunk, window = 0, self.chunk, self.segment + self.longterm
        for number in range(window // chunk):
            end = (number + 1) * chunk
            if start < end - 1:
                answers.append(self.memory.retrieve(views.query[:, start : end - 1], fast.update))
            history.append(fast.update)
            own = views.piece(number * chunk, end)
            earlier = None if before is None else before[number]
            fast = self.memory.close(own.key, own.value, fast, earlier, self.boundary(index + (end - 1)))
            start = end - 1
        answers.append(self.memory.retrieve(views.query[:, start:], fast.update))
        changed = self.named(fast)
        if self.longterm and chunk > 1:
            for name, value in zip(self.names, (views.key, views.value), strict=False):
                changed[f"longterm_{name}"] = value[:, self.segment :]
        return torch.cat(answers, dim=1), changed, history
