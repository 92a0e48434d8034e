"""A pretrained decoder as a steppable model: embedding, layers, head, and the state between calls.

The forms are those of `titans_core.model`: `forward` for whole streams, `prefill`, `extend` and `commit` for graphs.
Everything that a stream leaves behind is in tensors named by `state_specs`, of one size however long it is.
Knows nothing about files (`titans_core.pretrained`), ONNX or training.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from titans_core.decoder.attention import WindowAttention, rotary_table
from titans_core.decoder.config import DecoderConfig
from titans_core.layers import MLP, Linear, RMSNorm
from titans_core.model import Outputs
from titans_core.state import State, StateSpec, pick, prefixed


class DecoderLayer(nn.Module):
    """`x + attention(norm(x))`, then `x + feed_forward(norm(x))`."""

    def __init__(self, config: DecoderConfig, table: Tensor) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = WindowAttention(config, table)
        self.mlp_norm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = MLP(config.dim, config.ffn_hidden, "swiglu")

    def chunks(self, x: Tensor, state: State, position: Tensor) -> tuple[Tensor, State]:
        """`[B, n * C, dim]`, from a chunk boundary."""
        attended, changed = self.attention.chunks(self.attention_norm(x), state, position)
        x = x + attended
        return x + self.mlp(self.mlp_norm(x)), changed

    def extend(self, x: Tensor, state: State, position: Tensor, place: Tensor) -> tuple[Tensor, State]:
        """`[B, T, dim]`, inside a chunk."""
        attended, changed = self.attention.extend(self.attention_norm(x), state, position, place)
        x = x + attended
        return x + self.mlp(self.mlp_norm(x)), changed


class Decoder(nn.Module):
    """Token ids in, logits out."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Parameter(torch.randn(config.vocab_size, config.dim) * config.dim**-0.5)
        turning = rotary_table(config)
        still = rotary_table(config, rotated=False) if config.unrotated_layers else turning
        self.layers = nn.ModuleList(
            DecoderLayer(config, still if layer in config.unrotated_layers else turning)
            for layer in range(config.layers)
        )
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.head = None if config.tie_embeddings else Linear(config.dim, config.vocab_size)

    def num_parameters(self) -> int:
        """Numbers in the weights, a tied embedding counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    # ---------------------------------------------------------------- state

    def state_specs(self) -> list[StateSpec]:
        """The state table; names start with the layer number, `0.key`."""
        return [
            StateSpec(f"{number}.{spec.name}", spec.kind, spec.shape, spec.initial, spec.dtype)
            for number, layer in enumerate(self._layers())
            for spec in layer.attention.state_specs()
        ]

    def initial_tensor(self, spec: StateSpec) -> Tensor:
        """What one fresh stream starts `spec` from, `[*spec.shape]`."""
        return torch.full(spec.shape, float(spec.initial), dtype=self.embedding.dtype, device=self.embedding.device)

    def initial_state(self, batch: int, rows: bool = False) -> State:
        """The state of `batch` fresh streams, and their `position` `[batch]`.

        Rows entries exist only between chunk boundaries; `rows` adds them for driving `extend` and `commit`.
        """
        state: State = {}
        for spec in self.state_specs():
            if spec.kind == "carried" or rows:
                axis = 1 if spec.kind == "rows" else 0
                state[spec.name] = self.initial_tensor(spec).unsqueeze(axis).expand(spec.batched(batch))
        state["position"] = torch.zeros(batch, dtype=torch.int64, device=self.embedding.device)
        return state

    # ---------------------------------------------------------------- forms

    def forward(self, inputs: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Whole chunks from a chunk boundary.

        Args:
            inputs: ids `[B, T]` (int64); T is a multiple of `config.chunk`.
            state: as returned by an earlier call; None for fresh streams.

        Returns:
            Logits `[B, T, vocab_size]`, and the state after the last token.

        Raises:
            ValueError: T is not a multiple of the chunk.
        """
        if inputs.shape[1] % self.config.chunk:
            raise ValueError(
                f"{inputs.shape[1]} tokens are not a multiple of the chunk ({self.config.chunk}); pad on the right"
            )
        state = self.initial_state(inputs.shape[0]) if state is None else state
        outputs = []
        for piece in torch.split(inputs, self.config.prefill, dim=1):
            out, _, changed = self.prefill(piece, state["position"], state)
            state = {**state, **changed, "position": state["position"] + piece.shape[1]}
            outputs.append(out)
        return torch.cat(outputs, dim=1), state

    def prefill(self, inputs: Tensor, position: Tensor, state: State) -> Outputs:
        """Whole chunks from a chunk boundary, at most `config.prefill` tokens; commits included.

        Args:
            inputs: ids `[B, n * C]`.
            position: `[B]` tokens of each stream before this call, multiples of C.
            state: the carried entries.
        """
        x = self.embedding[inputs]
        changed: State = {}
        for number, layer in enumerate(self._layers()):
            x, new = layer.chunks(x, pick(state, f"{number}."), position)
            changed |= prefixed(new, f"{number}.")
        return self.logits(self.norm(x)), None, changed

    def extend(self, inputs: Tensor, position: Tensor, length: Tensor | None, state: State) -> Outputs:
        """Some tokens inside a chunk; with one token, the step.

        Args:
            inputs: ids `[B, T]`, right-padded.
            position: `[B]` tokens of each stream before this call.
            length: `[B]` real tokens, which only the driver has to know: nothing before them depends on padding.
            state: all entries.

        Returns:
            Logits for all T places (meaningless beyond `length`), no surprise, and the T new rows of every rows entry.
        """
        x = self.embedding[inputs]
        place = (position % self.config.chunk)[:, None] + torch.arange(inputs.shape[1], device=position.device)
        changed: State = {}
        for number, layer in enumerate(self._layers()):
            x, new = layer.extend(x, pick(state, f"{number}."), position, place)
            changed |= prefixed(new, f"{number}.")
        return self.logits(self.norm(x)), None, changed

    def commit(self, state: State) -> State:
        """Fold every layer's full chunk of rows; `state` holds `position`, the tokens up to here, as well."""
        changed: State = {}
        for number, layer in enumerate(self._layers()):
            new = layer.attention.commit(pick(state, f"{number}."), state["position"])
            changed |= prefixed(new, f"{number}.")
        return changed

    def logits(self, x: Tensor) -> Tensor:
        """The head over normed hidden states `[B, T, dim]`: `[B, T, vocab_size]`, at least fp32."""
        out: Tensor = x @ self.embedding.T if self.head is None else self.head(x)
        return out if out.dtype == torch.float64 else out.float()

    def _layers(self) -> list[DecoderLayer]:
        return [layer for layer in self.layers if isinstance(layer, DecoderLayer)]
