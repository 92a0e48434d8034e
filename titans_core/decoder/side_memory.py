"""A memory beside a decoder: it reads what lower layers know, and answers behind the last norm.

    x = [h_a W_a ; h_b W_b ; ...]               read layers, RMS-normed and whitened
    u = (x P) * 2 sigmoid(x w + b)              one number per token says how much it matters
    q = unit(a_q * b_q),  k = unit(a_k * b_k)   halves a | b of two causal convolutions of u; k starts a token earlier
    q = unit(q R_1 * q R_2),  k likewise        random rotations R of fixed weights: likeness is about squared
    v = unit(E(token) A)                        the token itself, by its whitened embedding
    y = M(q);  M(k) <- v                        the memory of `titans_core.memory`
    p = sigmoid(s + c |y|^2)                    how far the answer takes the place of the decoder's
    n <- n + scale * p * (y W_o - n / SCALE)    n behind the last norm

Where the memory is sure, the decoder's own opinion fades: two opinions that are only added up spoil the right one.
The step size of a write, and how sure an answer is (s), are linear in x of the last three tokens.

A key is what stood in the last tokens, and a value the token that came next. The product of two halves makes a key that
shares half of its words with another one far less similar to it than half. The rotations make it less similar again: a
linear memory adds up all that is alike, so what is a little alike has to be nearly nothing. No gradient goes through
the decoder, so what is read can be computed once and kept.

Knows its inputs and its answer. Does not know the decoder (`model`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

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

GATE_TAPS = 3  # tokens that say whether one is written or answered; "is" before a word says more than the word
TAP_DECAY = 0.8  # weight of a token in the key before training, relative to the token after it
SCALE = 30.0  # logits that a value gains where the memory is sure, before training
SURE_FROM, SURE_STEEPNESS = 0.3, 12.0  # square of the answer's length around which it counts, before training
MOST_POWER = 4  # beyond, keys of the same thing in other words are no longer alike
RIDGE = 0.1  # added to every second moment before it is inverted, in units of their mean

# Queries, keys, values, gate logits, how sure an answer is, convolution state.
Projected = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class SideConfig:
    """What the memory reads and what it is.

    read: layers whose inputs are read; 0 is the embedding.
    dim: channels of keys and of values, over all heads.
    power: the likeness of two keys is raised to about this power, by as many rotations.
    memory: the memory; `conv_kernel` is one more than the tokens that a key is made of.
    """

    read: tuple[int, ...] = (0, 4)
    dim: int = 576
    power: int = 2
    memory: MemoryConfig = field(
        default_factory=lambda: MemoryConfig(
            heads=1,
            depth=1,
            momentum=False,
            forget=False,
            max_step_size=0.5,  # 2 * 0.5: the value that was there is replaced
            initial_step_size=0.01,  # what is worth writing is found before much else has been written
            step_floor=0.3,  # of a hundred thousand tokens that teach nothing, nothing is left
            surprise_bound=None,
            conv_kernel=17,  # a question, and the marks of a chat template behind it
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
        if not 1 <= self.power <= MOST_POWER:
            raise ConfigError(f"the memory's power is {self.power}", f"use a whole number from 1 to {MOST_POWER}")
        if self.memory.conv_kernel < 2:
            raise ConfigError(
                f"memory.conv_kernel is {self.memory.conv_kernel}, and a key is made of the tokens before its value",
                "use at least 2",
            )
        if self.memory.retention != "l2":
            raise ConfigError(
                f'memory.retention is "{self.memory.retention}", and a memory beside a decoder starts from zeros,'
                " of which only l2 makes a memory that says nothing",
                'use "l2", or memories in the stream (--memory-layers)',
            )


class SideMemory(AssociativeMemory):
    """Features of T tokens in, answers `[B, T, dim]` out; driven as any memory layer."""

    def __init__(self, config: SideConfig, dim: int, chunk: int) -> None:
        """Args: `dim` channels of the decoder; `chunk` tokens between two commits."""
        inner = TitansConfig(
            variant="lmm", persistent_tokens=0, layers=1, dim=config.dim, chunk=chunk, memory=config.memory
        )
        super().__init__(inner, conv_channels=2 * config.dim)
        self.config, self.key_channels = config, 2 * config.dim
        features, taps = len(config.read) * dim, config.memory.conv_kernel
        self.whiten = nn.Parameter(torch.eye(dim).repeat(len(config.read), 1, 1), requires_grad=False)
        self.to_key = Linear(features, self.key_channels)
        # How much a token matters, then for every tap how sure the answer is, then for every tap and head the gates.
        widths = [1, *[self.heads] * len(self.gate_names)]
        self.gate_taps = gate_taps(config.memory)
        self.to_gates = Linear(features, 1 + self.gate_taps * sum(widths), std=0.0)
        self.tap_weight = nn.Parameter(_taps(widths, self.gate_taps, taps), requires_grad=False)
        self.conv_channels += self.gate_taps * sum(widths)
        self.gate_start = nn.Parameter(torch.tensor([0.0, -SURE_FROM * SURE_STEEPNESS]))
        self.sure = nn.Parameter(torch.tensor(SURE_STEEPNESS))
        self.query_conv = CausalConv(self.key_channels, taps)
        self.key_conv = CausalConv(self.key_channels, taps)
        if config.power > 1:
            rotations = torch.zeros(config.power, self.width, self.width)
            self.rotations = nn.Parameter(rotations, requires_grad=False)
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
            for power in range(config.power if config.power > 1 else 0):
                self.rotations[power] = _orthogonal(self.width, self.width) * math.sqrt(self.width)

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
            `q, k, v` `[B, H, T, d]`, logits `[B, H, T, gates]`, how sure an answer is `[B, T, 1]`, the next `past`.
        """
        dtype = self._dtype(x)
        gates = self.to_gates(x).to(dtype)
        matters = 2 * torch.sigmoid(gates[..., :1] + self.gate_start[0])
        stream, words = self.to_key(x).to(dtype) * matters, self.key_channels
        queries, following = self.query_conv(stream, past[..., :words], self.query_conv.weight, length)
        keys, _ = self.key_conv(stream, past[..., :words], self.key_conv.weight, length)
        taps, follow = self.query_conv(gates[..., 1:], past[..., words:], self.tap_weight.to(dtype), length)
        sure = taps[..., : self.gate_taps].sum(-1, keepdim=True) + self.gate_start[1]
        each = taps[..., self.gate_taps :].reshape(*x.shape[:2], len(self.gate_names), self.gate_taps, self.heads)
        values = l2_normalise(l2_normalise(tokens.to(dtype)) @ self.to_value.to(dtype))
        logits, following = each.sum(3).permute(0, 3, 1, 2), torch.cat([following, follow], dim=-1)
        return self._product(queries), self._product(keys), split_heads(values, self.heads), logits, sure, following

    def _product(self, halves: Tensor) -> Tensor:
        """`[B, T, 2 * dim] -> [B, H, T, d]`: the halves times each other, of unit length."""
        first, second = rms_normalise(halves).chunk(2, dim=-1)
        unit = normalised_heads(first * second, self.width, l2_normalise)
        return self._sharpened(unit) if self.config.power > 1 else unit

    def _sharpened(self, unit: Tensor) -> Tensor:
        """`[B, H, T, d]` of unit length: products of rotations, whose likeness is about a power of what it was."""
        rotations = self.rotations.to(unit.dtype)
        product = unit @ rotations[0]
        for power in range(1, self.config.power):
            product = product * (unit @ rotations[power])
        return l2_normalise(product)

    def answer(self, answers: Tensor, sure: Tensor, normed: Tensor | None = None) -> Tensor:
        """What is added behind the decoder's last norm.

        Args:
            answers: the memory's, `[B, H, T, d]`.
            sure: how sure an answer is, from `project`.
            normed: what stands behind the last norm, `[B, T, dim]`; None for the memory's answer alone.

        Returns:
            `[B, T, dim]`.
        """
        share = self.scale * torch.sigmoid(self.confidence(answers, sure))
        answer = self.out(merge_heads(answers))
        whole: Tensor = share * (answer if normed is None else answer - normed / SCALE)
        return whole

    def confidence(self, answers: Tensor, sure: Tensor) -> Tensor:
        """The logit of how far an answer counts, `[B, T, 1]`; arguments as for `answer`."""
        y = merge_heads(answers)
        return sure + self.sure * (y * y).sum(-1, keepdim=True)

    # ---------------------------------------------------------------- forms

    def run_chunks(self, x: Tensor, tokens: Tensor, normed: Tensor, state: State) -> tuple[Tensor, State, Tensor]:
        """Read and write whole chunks `[B, n * C, ...]`.

        Args:
            x, tokens: as `project` takes them.
            normed: what stands behind the decoder's last norm.
            state: the carried entries.

        Returns:
            What is added to `normed`, the entries that change, and the surprise `[B, n * C]`.
        """
        projected = self.project(x, tokens, state["conv_state"])
        answers, changed, surprise = self.run_projected(projected, state)
        return self.answer(answers, projected[4], normed), changed, surprise

    def run_projected(self, projected: Projected, state: State) -> tuple[Tensor, State, Tensor]:
        """The same from what `project` returned, with the answers as the memory gives them, `[B, H, T, d]`."""
        q, k, v, logits, _, past = projected
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

    def run_piece(
        self, x: Tensor, tokens: Tensor, normed: Tensor, state: State, call: Extension
    ) -> tuple[Tensor, State, Tensor]:
        """The same for tokens inside a chunk."""
        q, k, v, logits, sure, past = self.project(x, tokens, state["conv_state"], call.length)
        held, changed = self.held_inside_chunk(logits, state, call.one_hot)
        inputs = MemoryInputs(q, k, v, self.gates(held))
        answers, new, surprise = self.extend(inputs, state, call.one_hot, call.length)
        return self.answer(answers, sure, normed), changed | new | {"conv_state": past}, surprise.mean(1)

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


def gate_taps(memory: MemoryConfig) -> int:
    """Tokens that a gate is made of."""
    return min(GATE_TAPS, memory.conv_kernel)


def _taps(widths: list[int], gate_taps: int, taps: int) -> Tensor:
    """Which tap of a convolution every column of `to_gates` goes through: ones and zeros `[taps, columns]`."""
    weight = torch.zeros(taps, gate_taps * sum(widths))
    column = 0
    for width in widths:
        for tap in range(gate_taps):
            weight[-1 - tap, column : column + width] = 1.0
            column += width
    return weight


def _orthogonal_blocks(weight: Tensor, count: int) -> None:
    """Every read layer's part of `weight` in place, so that all of them together keep lengths."""
    for block in weight.chunk(count):
        half = weight.shape[1] // 2
        block.copy_(torch.cat([_orthogonal(len(block), half), _orthogonal(len(block), half)], 1) / math.sqrt(count))
