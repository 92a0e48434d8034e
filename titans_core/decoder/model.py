"""A pretrained decoder as a steppable model: embedding, layers, head, and the state between calls.

The forms are those of `titans_core.model`: `forward` for whole streams, `prefill`, `extend` and `commit` for graphs.
Everything that a stream leaves behind is in tensors named by `state_specs`, of one size however long it is.
A decoder may have a graft, a memory beside it or memories in its stream, under `graft.`, and adapters under `lora.`;
everything else is what it was trained with. Knows nothing about files (`titans_core.pretrained`), ONNX or training.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from titans_core.blocks import Extension, extension
from titans_core.decoder.adapters import Adapters
from titans_core.decoder.attention import WindowAttention, rotary_table
from titans_core.decoder.config import DecoderConfig
from titans_core.decoder.graft import GraftCall, graft_of
from titans_core.decoder.side_memory import SideConfig
from titans_core.decoder.stream_memory import StreamConfig
from titans_core.layers import MLP, Linear, RMSNorm
from titans_core.model import Outputs
from titans_core.state import State, StateSpec, pick, prefixed

GRAFT, LORA = "graft.", "lora."  # below which everything stands that a decoder did not come with


class DecoderLayer(nn.Module):
    """`x + attention(norm(x))`, then `x + feed_forward(norm(x))`.

    `beside` is what a memory adds that reads the same x as attention.
    """

    def __init__(self, config: DecoderConfig, table: Tensor) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = WindowAttention(config, table)
        self.mlp_norm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = MLP(config.dim, config.ffn_hidden, "swiglu")

    def chunks(self, x: Tensor, state: State, position: Tensor, beside: Tensor | None = None) -> tuple[Tensor, State]:
        """`[B, n * C, dim]`, from a chunk boundary."""
        attended, changed = self.attention.chunks(self.attention_norm(x), state, position)
        x = x + attended if beside is None else x + attended + beside
        return x + self.mlp(self.mlp_norm(x)), changed

    def extend(self, x: Tensor, state: State, call: Extension, beside: Tensor | None = None) -> tuple[Tensor, State]:
        """`[B, T, dim]`, inside a chunk."""
        attended, changed = self.attention.extend(self.attention_norm(x), state, call.position, call.place)
        x = x + attended if beside is None else x + attended + beside
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
        # Matrices as their file has them, by parameter: the blocks' type and the bytes of each output's, `[out, n]`.
        # Whoever stores them in blocks again need not round a second time.
        self.stored: dict[str, tuple[str, NDArray[np.uint8]]] = {}
        self.head = None if config.tie_embeddings else Linear(config.dim, config.vocab_size)
        self.graft = graft_of(config)
        self.lora = Adapters(self.layers, config.lora) if config.lora else None

    def attach(self, graft: SideConfig | StreamConfig | None, lora: int = 0) -> None:
        """Take a graft and adapters that change nothing yet; the weights that were there stay as they are.

        Args:
            graft: a memory beside this decoder or memories in its stream, or None.
            lora: rank of the adapters; 0 is none.

        Raises:
            ConfigError: the graft does not fit.
        """
        self.config = dataclasses.replace(self.config, graft=graft, lora=lora)
        self.graft = graft_of(self.config)
        for linear in (module for module in self.modules() if isinstance(module, Linear)):
            linear.adapted = ()
        self.lora = Adapters(self.layers, lora) if lora else None

    def num_parameters(self) -> int:
        """Numbers in the weights, a tied embedding counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    # ---------------------------------------------------------------- state

    def state_specs(self) -> list[StateSpec]:
        """The state table; names start with the layer number, `0.key`."""
        tables = {f"{number}.": layer.attention.state_specs() for number, layer in enumerate(self._layers())}
        if self.graft is not None:
            tables[GRAFT] = self.graft.state_specs()
        return [
            StateSpec(f"{prefix}{spec.name}", spec.kind, spec.shape, spec.initial, spec.dtype)
            for prefix, specs in tables.items()
            for spec in specs
        ]

    def initial_tensor(self, spec: StateSpec) -> Tensor:
        """What one fresh stream starts `spec` from, `[*spec.shape]`; differentiable where it is learned."""
        dtype = self.embedding.dtype
        if spec.dtype == "memory" and dtype != torch.float64:
            dtype = torch.float32
        if isinstance(spec.initial, str) and self.graft is not None:
            return self.graft.start_of(spec.name.removeprefix(GRAFT), spec.initial).to(dtype)
        return torch.full(spec.shape, float(spec.initial), dtype=dtype, device=self.embedding.device)

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
        tokens = x = self.embedding[inputs]
        graft = self._grafted(state, None)
        changed: State = {}
        for number, layer in enumerate(self._layers()):
            x, beside = graft.at(number, x)
            x, new = layer.chunks(x, pick(state, f"{number}."), position, beside)
            changed |= prefixed(new, f"{number}.")
        x = graft.behind(self.norm(x), tokens)
        return self.logits(x), graft.surprise, changed | prefixed(graft.changed, GRAFT)

    def extend(self, inputs: Tensor, position: Tensor, length: Tensor | None, state: State) -> Outputs:
        """Some tokens inside a chunk; with one token, the step.

        Args:
            inputs: ids `[B, T]`, right-padded.
            position: `[B]` tokens of each stream before this call.
            length: `[B]` real tokens, at least 1, not beyond the chunk's end; None means all T.
            state: all entries.

        Returns:
            Logits for all T places (meaningless beyond `length`), the memories' surprise, and the entries that change:
            rows entries are the T new rows.
        """
        tokens = x = self.embedding[inputs]
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        call = extension(position, inputs.shape[1], self.config.chunk, length, dtype)
        graft = self._grafted(state, call)
        changed: State = {}
        for number, layer in enumerate(self._layers()):
            x, beside = graft.at(number, x)
            x, new = layer.extend(x, pick(state, f"{number}."), call, beside)
            changed |= prefixed(new, f"{number}.")
        x = graft.behind(self.norm(x), tokens)
        return self.logits(x), graft.surprise, changed | prefixed(graft.changed, GRAFT)

    def commit(self, state: State) -> State:
        """Fold every layer's full chunk of rows; `state` holds `position`, the tokens up to here, as well."""
        changed: State = {}
        for number, layer in enumerate(self._layers()):
            new = layer.attention.commit(pick(state, f"{number}."), state["position"])
            changed |= prefixed(new, f"{number}.")
        if self.graft is not None:
            changed |= prefixed(self.graft.commit(pick(state, GRAFT)), GRAFT)
        return changed

    @torch.no_grad()
    def folded(self) -> Decoder:
        """The same without adapters: they become part of the weights. Shares whatever it does not change."""
        if self.lora is None:
            return self
        with torch.device("meta"):
            plain = Decoder(dataclasses.replace(self.config, lora=0))
        tensors = {name: value for name, value in self.state_dict().items() if not name.startswith(LORA)}
        names = {id(module): name for name, module in self.named_modules()}
        for linear, adapter in self.lora.pairs(self.layers):
            tensors[f"{names[id(linear)]}.weight"] = linear.weight + adapter.product()
        plain.load_state_dict(tensors, assign=True)
        return plain.requires_grad_(False).train(self.training)

    def _grafted(self, state: State, call: Extension | None) -> GraftCall:
        return GraftCall(self.graft, pick(state, GRAFT), call)

    def logits(self, x: Tensor) -> Tensor:
        """The head over normed hidden states `[B, T, dim]`: `[B, T, vocab_size]`, at least fp32."""
        out: Tensor = x @ self.embedding.T if self.head is None else self.head(x)
        return out if out.dtype == torch.float64 else out.float()

    def _layers(self) -> list[DecoderLayer]:
        return [layer for layer in self.layers if isinstance(layer, DecoderLayer)]
