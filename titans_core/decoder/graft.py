"""How a graft takes part in a decoder's forms: what it does before a layer, and behind the last norm.

One call of a decoder makes a `GraftCall`, which asks the memories in turn and collects what they say. Knows both forms.
Does not know the decoder.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from titans_core.blocks import Extension
from titans_core.decoder.config import DecoderConfig
from titans_core.decoder.side_memory import SideMemory
from titans_core.decoder.stream_memory import StreamConfig, StreamMemory
from titans_core.state import State, StateSpec, pick, prefixed


class BesideGraft(SideMemory):
    """A memory beside the decoder."""

    def start_of(self, name: str, initial: str) -> Tensor:
        """What state `name` starts from, by the parameter that its table names."""
        return self.get_parameter(initial)


class StreamGraft(nn.ModuleDict):
    """Memories in the stream, by the number of their layer."""

    def __init__(self, config: StreamConfig, decoder: DecoderConfig) -> None:
        super().__init__()
        self.place = config.place
        for layer in config.layers:
            self[str(layer)] = StreamMemory(config, decoder.dim, decoder.chunk, decoder.norm_eps)

    def memories(self) -> dict[str, StreamMemory]:
        """By their layer's number."""
        return {layer: memory for layer, memory in self.items() if isinstance(memory, StreamMemory)}

    def state_specs(self) -> list[StateSpec]:
        """All memories', under their layer's number."""
        return [
            StateSpec(f"{layer}.{spec.name}", spec.kind, spec.shape, spec.initial, spec.dtype)
            for layer, memory in self.memories().items()
            for spec in memory.state_specs()
        ]

    def start_of(self, name: str, initial: str) -> Tensor:
        """What state `name` starts from, by the parameter that its table names."""
        return self.memories()[name.partition(".")[0]].reader.memory.get_parameter(initial)

    def commit(self, state: State) -> State:
        """All memories'."""
        changed: State = {}
        for layer, memory in self.memories().items():
            changed |= prefixed(memory.commit(pick(state, f"{layer}.")), f"{layer}.")
        return changed


Graft = BesideGraft | StreamGraft


def graft_of(config: DecoderConfig) -> Graft | None:
    """The graft of a configuration, silent: it changes nothing until it has been trained."""
    if config.graft is None:
        return None
    if isinstance(config.graft, StreamConfig):
        return StreamGraft(config.graft, config)
    beside = BesideGraft(config.graft, config.dim, config.chunk)
    with torch.no_grad():
        beside.scale.zero_()
    return beside


class GraftCall:
    """One call of a decoder.

    Attributes:
        changed: the entries of the graft's state that change.
    """

    def __init__(self, graft: Graft | None, state: State, call: Extension | None) -> None:
        """Args: the graft's part of the state; where inside a chunk the tokens lie, or None for whole chunks."""
        self.graft, self.state, self.call = graft, state, call
        self.changed: State = {}
        self._surprise: list[Tensor] = []
        self._read: list[Tensor] = []

    @property
    def surprise(self) -> Tensor | None:
        """Of all memories, `[B, T, M]`; None without any."""
        return torch.stack(self._surprise, dim=-1) if self._surprise else None

    def at(self, number: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The input `x` `[B, T, dim]` of a layer as it is to be, and what is added beside its attention."""
        if isinstance(self.graft, SideMemory) and number in self.graft.config.read:
            self._read.append(x)
        if not isinstance(self.graft, StreamGraft) or str(number) not in self.graft:
            return x, None
        memory, own = self.graft.memories()[str(number)], pick(self.state, f"{number}.")
        added, new, surprise = memory.chunks(x, own) if self.call is None else memory.extend(x, own, self.call)
        self.changed |= prefixed(new, f"{number}.")
        self._surprise.append(surprise)
        return (x, added) if self.graft.place == "beside" else (x + added, None)

    def behind(self, normed: Tensor, tokens: Tensor) -> Tensor:
        """The last norm's output `[B, T, dim]`, and as far as a memory beside the decoder is sure, its answer instead.

        Args:
            normed: behind the last norm.
            tokens: the tokens' embeddings, `[B, T, dim]`.
        """
        if not isinstance(self.graft, SideMemory):
            return normed
        wide = torch.float64 if normed.dtype == torch.float64 else torch.float32  # whatever the decoder's precision
        features = self.graft.features(torch.cat(self._read, dim=-1).to(wide))
        tokens, own = tokens.to(wide), normed.to(wide)
        if self.call is None:
            answer, new, surprise = self.graft.run_chunks(features, tokens, own, self.state)
        else:
            answer, new, surprise = self.graft.run_piece(features, tokens, own, self.state, self.call)
        self.changed |= new
        self._surprise.append(surprise)
        return normed + answer.to(normed.dtype)
