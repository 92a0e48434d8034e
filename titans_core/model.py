"""The whole model: embedding, blocks, head, and the state that ties one call to the next.

`forward` is the training form. `prefill`, `step`, `extend` and `commit` are the forms that are exported; they take
the state as tensors named by `state_specs` and return the entries that change. Knows nothing about files, ONNX or
optimisation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from titans_core.blocks import Block, extension
from titans_core.config import TitansConfig
from titans_core.layers import Linear, RMSNorm
from titans_core.memory import AssociativeMemory
from titans_core.state import State, StateSpec, pick, prefixed

__all__ = ["State", "TitansModel", "detach"]

# An optimiser step moves every coordinate by about the learning rate; from 0.02 that would be a sixth of it. A tied
# embedding is also the head, whose outputs should start near 1.
EMBEDDING_STD = 1.0
Outputs = tuple[Tensor, Tensor | None, State]  # logits or predictions, surprise [B, T, M] or None, changed entries


class TitansModel(nn.Module):
    """A token model (logits over a vocabulary) or a continuous one (regression), as its config says."""

    def __init__(self, config: TitansConfig) -> None:
        super().__init__()
        self.config = config
        if config.vocab_size is not None:
            std = config.dim**-0.5 if config.tie_embeddings else EMBEDDING_STD
            self.embedding = nn.Parameter(torch.randn(config.vocab_size, config.dim) * std)
        else:
            self.to_dim = Linear(config.features or 0, config.dim)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = RMSNorm(config.dim)
        if not config.tie_embeddings:
            self.head = Linear(config.dim, config.outputs)

    def num_parameters(self) -> int:
        """Trainable numbers, a tied embedding counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    # ---------------------------------------------------------------- state

    def state_specs(self) -> list[StateSpec]:
        """The state table; names start with the layer number, `0.memory_0`."""
        specs = []
        for layer, block in enumerate(self._blocks()):
            for spec in block.mixer.state_specs():
                specs.append(StateSpec(f"{layer}.{spec.name}", spec.kind, spec.shape, spec.initial, spec.dtype))
        return specs

    def initial_tensor(self, spec: StateSpec) -> Tensor:
        """What one fresh stream starts `spec` from, `[*spec.shape]`; differentiable where it is learned."""
        weight = next(self.parameters())
        dtype = weight.dtype
        if spec.dtype == "memory" and dtype != torch.float64:
            dtype = torch.float32
        if isinstance(spec.initial, str):
            block = self._blocks()[int(spec.name.split(".")[0])]
            memory = next(module for module in block.modules() if isinstance(module, AssociativeMemory))
            return memory.get_parameter(spec.initial).to(dtype)
        return torch.full(spec.shape, spec.initial, dtype=dtype, device=weight.device)

    def initial_state(self, batch: int, rows: bool = False) -> State:
        """The state of `batch` fresh streams, and their `position` `[batch]`.

        Rows entries exist only between chunk boundaries; `rows` adds them for driving `extend` and `commit`.
        """
        state: State = {}
        for spec in self.state_specs():
            if spec.kind == "carried" or rows:
                axis = 1 if spec.kind == "rows" else 0
                state[spec.name] = self.initial_tensor(spec).unsqueeze(axis).expand(spec.batched(batch))
        state["position"] = torch.zeros(batch, dtype=torch.int64, device=next(self.parameters()).device)
        return state

    def reset(self, state: State, mask: Tensor) -> State:
        """`state` at a chunk boundary with the streams in `mask` `[B]` (bool) started afresh.

        Gradients reach the learned initial memory through the streams that start.
        """
        fresh = self.initial_state(mask.shape[0])
        return {
            name: torch.where(mask.reshape(-1, *[1] * (value.dim() - 1)), value, state[name])
            for name, value in fresh.items()
        }

    # ---------------------------------------------------------------- forms

    def forward(self, inputs: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Whole chunks from a chunk boundary: the training form.

        Args:
            inputs: token ids `[B, T]` (int64) or vectors `[B, T, features]`; T is a multiple of `config.chunk`.
            state: as returned by an earlier call; None for fresh streams.

        Returns:
            Logits or predictions `[B, T, outputs]`, and the state after the last token.

        Raises:
            ValueError: T is not a multiple of the chunk.
        """
        if inputs.shape[1] % self.config.chunk:
            raise ValueError(
                f"{inputs.shape[1]} tokens are not a multiple of the chunk ({self.config.chunk}); pad on the right"
            )
        state = self.initial_state(inputs.shape[0]) if state is None else state
        outputs, _, changed = self.prefill(inputs, state["position"], state)
        return outputs, {**state, **changed, "position": state["position"] + inputs.shape[1]}

    def prefill(self, inputs: Tensor, position: Tensor, state: State) -> Outputs:
        """Whole chunks from a chunk boundary, commit included.

        Args:
            inputs: `[B, n * C]` ids or `[B, n * C, features]`.
            position: `[B]` tokens of each stream before this call, multiples of C.
            state: the carried entries.
        """
        x = self._embed(inputs)
        surprises: list[Tensor] = []
        changed: State = {}
        for layer, block in enumerate(self._blocks()):
            x, new, surprise = block.chunks(x, pick(state, f"{layer}."), position)
            changed |= prefixed(new, f"{layer}.")
            surprises += [] if surprise is None else [surprise]
        return self._head(x), _stacked(surprises), changed

    def extend(self, inputs: Tensor, position: Tensor, length: Tensor | None, state: State) -> Outputs:
        """Some tokens inside a chunk; with one token, the step.

        Args:
            inputs: `[B, T]` ids or `[B, T, features]`, right-padded.
            position: `[B]` tokens of each stream before this call.
            length: `[B]` real tokens, at least 1, not beyond the chunk's end; None means all T.
            state: all entries.

        Returns:
            Outputs for all T places (meaningless beyond `length`), surprise, and the entries that change: rows
            entries are the T new rows.
        """
        x = self._embed(inputs)
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        call = extension(position, inputs.shape[1], self.config.chunk, length, dtype)
        surprises: list[Tensor] = []
        changed: State = {}
        for layer, block in enumerate(self._blocks()):
            x, new, surprise = block.extend(x, pick(state, f"{layer}."), call)
            changed |= prefixed(new, f"{layer}.")
            surprises += [] if surprise is None else [surprise]
        return self._head(x), _stacked(surprises), changed

    def commit(self, state: State) -> State:
        """Fold every layer's full chunk of rows; returns the entries that change."""
        changed: State = {}
        for layer, block in enumerate(self._blocks()):
            changed |= prefixed(block.mixer.commit(pick(state, f"{layer}.")), f"{layer}.")
        return changed

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def _embed(self, inputs: Tensor) -> Tensor:
        if self.config.vocab_size is not None:
            return self.embedding[inputs]
        out: Tensor = self.to_dim(inputs.to(self.to_dim.weight.dtype))
        return out

    def _head(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        out: Tensor = x @ self.embedding.T if self.config.tie_embeddings else self.head(x)
        return out if out.dtype == torch.float64 else out.float()


def _stacked(surprises: list[Tensor]) -> Tensor | None:
    return torch.stack(surprises, dim=-1) if surprises else None


def detach(state: State) -> State:
    """The same state without its history: truncated backpropagation through time."""
    return {name: value.detach() for name, value in state.items()}
