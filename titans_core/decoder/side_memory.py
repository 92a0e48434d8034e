"""A memory beside a decoder: it reads what lower layers know, and its answer is added behind the last norm.

    x = [h_a W_a ; h_b W_b ; ...]               read layers, RMS-normed and whitened
    u = (x P) * 2 sigmoid(x w + b)              one number per token says how much it matters
    q = unit(a_q * b_q),  k = unit(a_k * b_k)   halves a | b of two causal convolutions of u; k starts a token earlier
    v = unit(E(token) A)                        the token itself, by its whitened embedding
    y = M(q);  M(k) <- v                        the memory of `titans_core.memory`
    answer = scale * sigmoid(x r + c |y|^2 + d) * y W_o

A key is what stood in the last tokens, and a value the token that came next. The product of two halves makes a key that
shares half of its words with another one far less similar to it than half. No gradient goes through the decoder, so
what is read can be computed once and kept.

Knows its inputs and its answer. Does not know the decoder (`model`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from titans_core.blocks import Extension
from titans_core.config import MemoryConfig, TitansConfig
from titans_core.errors import ConfigError
from titans_core.layers import (
    CausalConv,
    Linear,
    l2_normalise,
    merge_heads,
    normalised_heads,
    rms_normalise,
    split_heads,
)
from titans_core.memory import AssociativeMemory, MemoryInputs
from titans_core.state import State

TAP_DECAY = 0.8  # weight of a token in the key before training, relative to the token after it
SCALE = 30.0  # logits that a value gains where the memory is sure, before training
SURE_FROM, SURE_STEEPNESS = 0.3, 12.0  # square of the answer's length around which it counts, before training
RIDGE = 0.1  # added to every second moment before it is inverted, in units of their mean

Projected = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # queries, keys, values, gate logits, convolution state


@dataclass(frozen=True, kw_only=True)
class SideConfig:
    """What the memory reads and what it is.

    read: layers whose inputs are read; 0 is the embedding.
    dim: channels of keys and of values, over all heads.
    memory: the memory; `conv_kernel` is one more than the tokens that a key is made of.
    """

    read: tuple[int, ...] = (0, 4)
    dim: int = 576
    memory: MemoryConfig = field(
        default_factory=lambda: MemoryConfig(
            heads=1,
            depth=1,
            momentum=False,
            forget=False,
            max_step_size=0.5,  # 2 * 0.5: the value that was there is replaced
            initial_step_size=0.1,
            surprise_bound=None,
            conv_kernel=13,
        )
    )

    def __post_init__(self) -> None:
        if not self.read or list(self.read) != sorted(set(self.read)) or self.read[0] < 0:
            raise ConfigError(f"read is {list(self.read)}", "name layers from 0 upwards, each once")
        if self.dim < 1 or self.dim % self.memory.heads:
            raise ConfigError(
                f"the memory's dim {self.dim} is not a multiple of memory.heads {self.memory.heads}",
                "change one of them",
            )
        if self.memory.conv_kernel < 2:
            raise ConfigError(
                f"memory.conv_kernel is {self.memory.conv_kernel}, and a key is made of the tokens before its value",
                "use at least 2",
            )


class SideMemory(AssociativeMemory):
    """Features of T tokens in, answers `[B, T, dim]` out; driven as any memory layer."""

    def __init__(self, config: SideConfig, dim: int, chunk: int) -> None:
        """Args: `dim` channels of the decoder; `chunk` tokens between two commits."""
        inner = TitansConfig(
            variant="lmm", persistent_tokens=0, layers=1, dim=config.dim, chunk=chunk, memory=config.memory
        )
        super().__init__(inner, conv_channels=2 * config.dim)
        self.config = config
        features, taps = len(config.read) * dim, config.memory.conv_kernel
        self.whiten = nn.Parameter(torch.eye(dim).repeat(len(config.read), 1, 1), requires_grad=False)
        self.to_key = Linear(features, self.conv_channels)
        self.to_gates = Linear(features, 2 + len(self.gate_names) * self.heads, std=0.0)  # matters | sure | the gates
        self.gate_start = nn.Parameter(torch.tensor([0.0, -SURE_FROM * SURE_STEEPNESS]))
        self.sure = nn.Parameter(torch.tensor(SURE_STEEPNESS))
        self.query_conv = CausalConv(self.conv_channels, taps)
        self.key_conv = CausalConv(self.conv_channels, taps)
        self.to_value = nn.Parameter(torch.zeros(dim, config.dim), requires_grad=False)
        self.out = Linear(config.dim, dim)
        self.scale = nn.Parameter(torch.tensor(SCALE))
        self._draw_start()
        with torch.no_grad():
            decay = TAP_DECAY ** torch.arange(taps - 1.0).flip(0)[:, None]
            self.query_conv.weight.zero_()[1:] += decay
            self.key_conv.weight.zero_()[:-1] += decay
            for start in self.initial:
                start.zero_()
            _orthogonal_blocks(self.to_key.weight, len(config.read))
            self.to_value.copy_(_orthogonal(dim, config.dim))
            self.out.weight.copy_(self.to_value.T)

    # ---------------------------------------------------------------- inputs

    def features(self, hidden: Tensor) -> Tensor:
        """What the memory reads.

        Args:
            hidden: inputs of the read layers side by side, `[B, T, n * dim]`.

        Returns:
            The same, every layer RMS-normed and whitened.
        """
        count = len(self.config.read)
        layers = hidden.reshape(*hidden.shape[:-1], count, hidden.shape[-1] // count)
        normed = rms_normalise(layers)
        parts = [normed[..., layer, :] @ self.whiten[layer].to(hidden.dtype) for layer in range(count)]
        return torch.cat(parts, dim=-1)

    def project(self, x: Tensor, tokens: Tensor, past: Tensor, length: Tensor | None = None) -> Projected:
        """Queries, keys, values and gate logits.

        Args:
            x: `features`, `[B, T, n * dim]`.
            tokens: the tokens' embeddings, `[B, T, dim]`.
            past: convolution state `[B, taps - 1, conv_channels]`.
            length: `[B]` real tokens of right-padded `x`, or None for all.

        Returns:
            `q, k, v` `[B, H, T, d]`, logits `[B, H, T, gates]`, and the next `past`.
        """
        dtype = self._dtype(x)
        gates = self.to_gates(x).to(dtype)
        matters = 2 * torch.sigmoid(gates[..., :1] + self.gate_start[0])
        stream = self.to_key(x).to(dtype) * matters
        queries, following = self.query_conv(stream, past, self.query_conv.weight, length)
        keys, _ = self.key_conv(stream, past, self.key_conv.weight, length)
        values = l2_normalise(l2_normalise(tokens.to(dtype)) @ self.to_value.to(dtype))
        logits = gates[..., 2:].reshape(*x.shape[:2], len(self.gate_names), self.heads).permute(0, 3, 1, 2)
        return self._product(queries), self._product(keys), split_heads(values, self.heads), logits, following

    def _product(self, halves: Tensor) -> Tensor:
        """`[B, T, 2 * dim] -> [B, H, T, d]`: the halves times each other, of unit length."""
        first, second = rms_normalise(halves).chunk(2, dim=-1)
        return normalised_heads(first * second, self.width, l2_normalise)

    def answer(self, answers: Tensor, x: Tensor) -> Tensor:
        """What is added behind the decoder's last norm.

        Args:
            answers: the memory's, `[B, H, T, d]`.
            x: `features`.

        Returns:
            `[B, T, dim]`.
        """
        sure = torch.sigmoid(self.confidence(answers, x))
        answer: Tensor = self.scale * sure * self.out(merge_heads(answers))
        return answer.to(x.dtype)

    def confidence(self, answers: Tensor, x: Tensor) -> Tensor:
        """The logit of how far an answer counts, `[B, T, 1]`; arguments as for `answer`."""
        y = merge_heads(answers)
        length = (y * y).sum(-1, keepdim=True)
        logit: Tensor = self.to_gates(x)[..., 1:2].to(length.dtype) + self.gate_start[1] + self.sure * length
        return logit

    # ---------------------------------------------------------------- forms

    def run_chunks(self, x: Tensor, tokens: Tensor, state: State) -> tuple[Tensor, State, Tensor]:
        """Read and write whole chunks `[B, n * C, ...]`; answers, changed entries, surprise `[B, n * C]`."""
        answers, changed, surprise = self.run_projected(self.project(x, tokens, state["conv_state"]), state)
        return self.answer(answers, x), changed, surprise

    def run_projected(self, projected: Projected, state: State) -> tuple[Tensor, State, Tensor]:
        """The same from what `project` returned, with the answers as the memory gives them, `[B, H, T, d]`."""
        q, k, v, logits, past = projected
        answers, surprise = [], []
        changed: State = {}
        for chunk in self.chunks(q, k, v, logits):
            answer, new, surprised = self.read_and_write_chunk(chunk, state)
            state = state | new
            changed |= new
            answers.append(answer)
            surprise.append(surprised)
        changed |= self.fresh_chunk(state) | {"conv_state": past}
        return torch.cat(answers, dim=2), changed, torch.cat(surprise, dim=2).mean(1)

    def run_piece(self, x: Tensor, tokens: Tensor, state: State, call: Extension) -> tuple[Tensor, State, Tensor]:
        """The same for tokens inside a chunk."""
        q, k, v, logits, past = self.project(x, tokens, state["conv_state"], call.length)
        held, changed = self.held_inside_chunk(logits, state, call.one_hot)
        inputs = MemoryInputs(q, k, v, self.gates(held))
        answers, new, surprise = self.extend(inputs, state, call.one_hot, call.length)
        return self.answer(answers, x), changed | new | {"conv_state": past}, surprise.mean(1)

    def initial_state(self, batch: int) -> State:
        """The carried entries of `batch` streams that have read nothing."""
        state: State = {}
        for spec in self.state_specs():
            if spec.kind == "carried":
                if isinstance(spec.initial, str):
                    start: Tensor = self.get_parameter(spec.initial)
                else:
                    start = self.scale.new_full(spec.shape, spec.initial)
                state[spec.name] = start.expand(spec.batched(batch))
        return state

    # ---------------------------------------------------------------- before training

    @torch.no_grad()
    def start_from(self, hidden: Tensor, embedding: Tensor) -> None:
        """Whiten what is read and what is remembered.

        Args:
            hidden: of some natural text, as `features` takes it, `[N, n * dim]`.
            embedding: the decoder's, `[vocab_size, dim]`.
        """
        count = len(self.config.read)
        layers = rms_normalise(hidden.reshape(len(hidden), count, -1))
        for layer in range(count):
            self.whiten[layer] = whitening(layers[:, layer])
        unit = l2_normalise(embedding.float())
        self.to_value.copy_(whitening(unit) @ _orthogonal(self.to_value.shape[0], self.config.dim))
        values = l2_normalise(unit @ self.to_value)
        self.out.weight.copy_(self.to_value.T)
        # A value that is remembered exactly raises its own logit by `scale`.
        raised = (values @ self.out.weight * embedding).sum(-1).mean()
        self.out.weight.div_(raised)


def whitening(rows: Tensor, ridge: float = RIDGE) -> Tensor:
    """The symmetric matrix `[d, d]` after which the second moments of `rows` `[N, d]` are about one."""
    moments = rows.double().T @ rows.double() / len(rows)
    values, vectors = torch.linalg.eigh(moments)
    rates = (values.clamp(min=0) + ridge * values.mean()).rsqrt()
    found: Tensor = vectors * rates @ vectors.T
    return found.to(rows.dtype)


def _orthogonal(rows: int, columns: int) -> Tensor:
    """A random `[rows, columns]` matrix with orthogonal rows or columns, whichever are fewer."""
    size = max(rows, columns)
    turn: Tensor = torch.linalg.qr(torch.randn(size, size))[0]
    return turn[:rows, :columns]


def _orthogonal_blocks(weight: Tensor, count: int) -> None:
    """Every read layer's part of `weight` in place, so that all of them together keep lengths."""
    for block in weight.chunk(count):
        half = weight.shape[1] // 2
        block.copy_(torch.cat([_orthogonal(len(block), half), _orthogonal(len(block), half)], 1) / math.sqrt(count))


def writes_off(config: SideConfig) -> SideConfig:
    """The configuration with no step size."""
    return replace(config, memory=replace(config.memory, step_size="off"))
