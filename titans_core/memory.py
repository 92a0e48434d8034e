"""The neural memory layer: projections, gates, and the memory's life over a stream of tokens.

Three forms of one recurrence (arXiv 2501.00663 equations [12]-[18]; the dual form is `dual`):

    chunk   whole chunks from a chunk boundary; the memory is written at the end of each
    extend  some tokens at any place inside a chunk (one token is the step); appends rows, writes no big tensor
    commit  folds a full chunk's rows into the memory

Between commits the memory a token reads is `b W + (1 - b) W_start + f S - sum g_i a_i^T delta_i` over the chunk's rows
`i`; a memory that forgets towards zero has no term with its start. What is read so is what a memory has accumulated;
its weights are that, or a function of it (`retentions`), and its errors are those of its objective (`objectives`).
Knows nothing about what is done with the answer (`blocks`) nor where the state is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from titans_core.config import TitansConfig
from titans_core.dual import (
    SOFTPLUS_LINEAR,
    Coefficients,
    Gates,
    MomentumCoefficients,
    at_last_token,
    coefficients,
    coefficients_of_each,
    continued,
    each_chunk,
    placed,
)
from titans_core.layers import (
    CausalConv,
    Linear,
    as_rows,
    from_rows,
    l2_normalise,
    normalised_heads,
    split_heads,
)
from titans_core.memory_network import MemoryNetwork, Writes
from titans_core.objectives import InnerObjective
from titans_core.retentions import RetentionLink
from titans_core.state import State, StateSpec
from titans_core.unrolled import Base, Weights, effective, fold, linked

LAST_MATRIX_STD = 0.02  # a fresh memory answers almost nothing, whatever it is asked
LEAST_THRESHOLD = 1e-6  # a threshold is divided by


@dataclass(frozen=True)
class MemoryInputs:
    """What T tokens bring to the memory, per head; `H` heads of width `d`."""

    queries: Tensor  # [B, H, T, d]
    keys: Tensor  # [B, H, T, d]
    values: Tensor  # [B, H, T, d]
    gates: Gates  # [B, H, T] each


@dataclass(frozen=True)
class Chunk:
    """One chunk of C tokens, with all that can be worked out before the memory it meets is known.

    Attributes:
        keys, values: `[B, H, C, d]`.
        queries: `[B, H, C, d]`.
        coefs: of its tokens.
        first: `b q | f q | -G * (q k^T)`, `[B, H, C, 2 d + C]` (`d + C` without momentum): times the first matrix, its
            momentum and its errors one above the other, it is the first layer of every token's own memory.
        start: `(1 - b) q W_start`, `[B, H, C, w]`, which is added to that; None where forgetting goes towards zero.
        threshold: of the objective, `[B, H, C]`; None for one without.
        last: the coefficients of its last token, by which the chunk is folded into the memory.
    """

    keys: Tensor
    values: Tensor
    queries: Tensor
    coefs: Coefficients
    first: Tensor
    start: Tensor | None
    threshold: Tensor | None
    last: Coefficients


class AssociativeMemory(nn.Module):
    """A memory of keys and values, however they are made: `dim` channels in `heads` independent networks.

    Attributes:
        on_gates: hears of the gates of whole chunks, as they are made; training sets it (`training.write_cost`).
    """

    on_gates: Callable[[Gates], None] | None = None

    def __init__(self, config: TitansConfig, conv_channels: int) -> None:
        """Args: `conv_channels` go through the convolution that makes keys and queries."""
        super().__init__()
        memory = config.memory
        self.conv_channels = conv_channels
        self.heads, self.width, self.dim, self.chunk = memory.heads, config.memory_dim, config.dim, config.chunk
        self.options = memory
        self.widths = config.memory_widths
        self.objective, self.link = InnerObjective.of(memory), RetentionLink.of(memory)
        self.network = MemoryNetwork(memory.depth, memory.activation, memory.residual_norm, self.objective)
        self.gate_names = [  # the step size is the last, wherever it is one
            name
            for name, on in (
                ("forget", memory.forget),
                ("momentum", memory.momentum),
                ("threshold", self.objective.has_threshold),
                ("step_size", memory.step_size == "token"),
            )
            if on
        ]
        starts = {
            "forget": _logit(memory.initial_forget),
            "momentum": _logit(memory.initial_momentum),
            "threshold": math.log(math.expm1(memory.initial_threshold)),
            "step_size": _logit(memory.initial_step_size / memory.max_step_size),
        }
        bias_names = self.gate_names + (["step_size"] if memory.step_size == "constant" else [])
        self.gate_bias = nn.ParameterDict(
            {name: nn.Parameter(torch.full((self.heads,), starts[name])) for name in bias_names}
        )

    def _draw_start(self) -> None:
        """The memory of a stream that has read nothing; drawn last, after a subclass's projections."""
        self.initial = nn.ParameterList()
        for layer, (inputs, outputs) in enumerate(pairwise(self.widths)):
            std = (
                1.0 if self.link.kind == "kl" else inputs**-0.5
            )  # of logarithms: with small ones all channels are alike
            std = LAST_MATRIX_STD if layer == self.options.depth - 1 else std
            self.initial.append(nn.Parameter(torch.randn(self.heads, inputs, outputs) * std))
        if self.options.residual_norm:
            self.initial_gain = nn.Parameter(torch.full((self.heads, self.width), self.options.initial_gain))

    @property
    def forgets_to_start(self) -> bool:
        """Whether forgetting leaves the learned start; else it leaves zero, or there is no forgetting."""
        return self.options.forget and self.options.forget_to == "start"

    # ---------------------------------------------------------------- state

    def state_specs(self) -> list[StateSpec]:
        """The layer's part of the state table."""
        heads, chunk, widths = self.heads, self.chunk, self.widths
        momentum, gain = self.options.momentum, self.options.residual_norm
        specs: list[StateSpec] = []

        def add(name: str, *shape: int, initial: float | str = 0.0) -> None:
            specs.append(StateSpec(name, "carried", shape, initial))

        for layer, (inputs, outputs) in enumerate(pairwise(widths)):
            add(f"memory_{layer}", heads, inputs, outputs, initial=f"initial.{layer}")
            if momentum:
                add(f"momentum_{layer}", heads, inputs, outputs)
        if gain:
            add("memory_gain", heads, self.width, initial="initial_gain")
            if momentum:
                add("momentum_gain", heads, self.width)
        if self.options.conv_kernel > 1:
            past = (self.options.conv_kernel - 1, self.conv_channels)
            specs.append(StateSpec("conv_state", "carried", past, 0.0, "activation"))
        add("memory_scale", heads, initial=1.0)
        add("write_weights", heads, chunk)
        if momentum:
            add("momentum_scale", heads)
            add("momentum_decay", heads, initial=1.0)
            add("momentum_write_weights", heads, chunk)
        if self.options.gate_scope == "chunk" and self.gate_names:
            add("gate_logits", heads, len(self.gate_names))
        for layer, (inputs, outputs) in enumerate(pairwise(widths)):
            specs.append(StateSpec(f"memory_inputs_{layer}", "rows", (chunk, heads, inputs)))
            specs.append(StateSpec(f"memory_errors_{layer}", "rows", (chunk, heads, outputs)))
        if gain:
            specs.append(StateSpec("memory_gain_errors", "rows", (chunk, heads, self.width)))
        return specs

    def _weights(self, state: State) -> Weights:
        return Weights(
            [state[f"memory_{layer}"] for layer in range(self.network.depth)],
            state["memory_gain"] if self.options.residual_norm else None,
        )

    def _momentum(self, state: State) -> Weights | None:
        if not self.options.momentum:
            return None
        return Weights(
            [state[f"momentum_{layer}"] for layer in range(self.network.depth)],
            state["momentum_gain"] if self.options.residual_norm else None,
        )

    def _base(self, state: State) -> Base:
        memory = self._weights(state)
        start = self._start(memory.matrices[0].dtype)
        return Base(memory, linked(memory, self.link), self._momentum(state), start)

    def _start(self, dtype: torch.dtype) -> Weights | None:
        """What the memory forgets towards, if that is not zero."""
        if not self.forgets_to_start:
            return None
        gain = self.initial_gain.to(dtype) if self.options.residual_norm else None
        return Weights([matrix.to(dtype) for matrix in self.initial], gain)

    def fresh_chunk(self, state: State) -> State:
        """The coefficient entries of a stream at a chunk boundary: nothing written since the last commit."""
        memory = state["memory_0"]
        batch = memory.shape[0]
        ones = torch.ones(batch, self.heads, dtype=memory.dtype, device=memory.device)
        rows = torch.zeros(batch, self.heads, self.chunk, dtype=memory.dtype, device=memory.device)
        fresh = {"memory_scale": ones, "write_weights": rows}
        if self.options.momentum:
            fresh |= {
                "momentum_scale": torch.zeros_like(ones),
                "momentum_decay": ones.clone(),
                "momentum_write_weights": rows.clone(),
            }
        if "gate_logits" in state:
            fresh["gate_logits"] = torch.zeros_like(state["gate_logits"])
        return fresh

    # ---------------------------------------------------------------- gates

    def _unit_heads(self, x: Tensor) -> Tensor:
        """`[B, T, n * d] -> [B, n, T, d]` of unit length."""
        return normalised_heads(x, self.width, l2_normalise)

    @staticmethod
    def _dtype(x: Tensor) -> torch.dtype:
        """Memory arithmetic is fp32 under half precision weights, fp64 in an fp64 model."""
        return x.dtype if x.dtype == torch.float64 else torch.float32

    def gates(self, logits: Tensor) -> Gates:
        """Gates from logits `[..., H, T, gates]`, biases added."""
        biased = {
            name: logits[..., index] + self.gate_bias[name][:, None].to(logits.dtype)
            for index, name in enumerate(self.gate_names)
        }
        if "step_size" in biased:
            step_size = self._step_size(biased["step_size"])
        elif self.options.step_size == "constant":
            value = self._step_size(self.gate_bias["step_size"].to(logits.dtype))
            step_size = value[:, None].expand(logits.shape[:-1])
        else:
            step_size = torch.zeros(logits.shape[:-1], dtype=logits.dtype, device=logits.device)
        threshold = None
        if "threshold" in biased:
            threshold = F.softplus(biased["threshold"], threshold=SOFTPLUS_LINEAR).clamp(min=LEAST_THRESHOLD)
        return Gates(biased.get("forget"), biased.get("momentum"), step_size, threshold)

    def _step_size(self, logits: Tensor) -> Tensor:
        """theta, between 0 and `max_step_size`; exactly 0 below the floor."""
        share, floor = torch.sigmoid(logits), self.options.step_floor
        if floor:
            share = torch.relu(share - floor) / (1 - floor)
        return self.options.max_step_size * share

    def _cut(self, x: Tensor) -> Tensor:
        """`[B, H, n * C, ...] -> [B, H, n, C, ...]`."""
        return x.reshape(*x.shape[:2], x.shape[2] // self.chunk, self.chunk, *x.shape[3:])

    def _held_for_chunks(self, logits: Tensor) -> Tensor:
        """Gate logits `[B, H, n * C, gates]` of whole chunks: its first token's for a whole chunk, if so configured."""
        if self.options.gate_scope == "token":
            return logits
        cut = self._cut(logits)
        return cut[:, :, :, :1].expand(cut.shape).reshape(logits.shape)

    def held_inside_chunk(self, logits: Tensor, state: State, place: Tensor) -> tuple[Tensor, State]:
        """The same inside a chunk, where the first token may be gone: its logits are state.

        Args:
            logits: `[B, H, T, gates]`.
            state: the layer's state.
            place: `[B, T, C]` one-hot chunk positions.
        """
        if "gate_logits" not in state:
            return logits, {}
        opens = place[:, None, :1, 0] > 0  # [B, 1, 1]: the first of these tokens opens the chunk
        held = torch.where(opens, logits[:, :, 0], state["gate_logits"])
        return held[:, :, None].expand(logits.shape), {"gate_logits": held}

    # ---------------------------------------------------------------- reading and writing

    def read_base(self, queries: Tensor, state: State) -> Tensor:
        """Answers `[B, H, T, d]` of the memory as it stood at the last commit."""
        weights = linked(self._weights(state), self.link)
        gain = None if weights.gain is None else weights.gain[..., None, :]
        return self.network.read(queries, lambda layer, x: x @ weights.matrices[layer], gain)

    def chunks(self, q: Tensor, k: Tensor, v: Tensor, logits: Tensor) -> list[Chunk]:
        """Whole chunks, ready to be read and written in order: what does not need the memory is done for all at once.

        Args:
            q, k, v: `[B, H, n * C, d]`, from `project`.
            logits: of the gates, `[B, H, n * C, gates]`.
        """
        gates = self.gates(self._held_for_chunks(logits))
        if self.on_gates is not None:
            self.on_gates(gates)
        forget, momentum = (None if x is None else self._cut(x) for x in (gates.forget, gates.momentum))
        coefs = coefficients(Gates(forget, momentum, self._cut(gates.step_size)))
        thresholds: Sequence[Tensor | None] = [None] * (q.shape[2] // self.chunk)
        if gates.threshold is not None:
            thresholds = each_chunk(self._cut(gates.threshold))
        whole, goal = q.shape, self._start(q.dtype)
        q, k, v = (self._cut(x) for x in (q, k, v))
        parts = [coefs.scale[..., None] * q]
        if coefs.momentum is not None:
            parts.append(coefs.momentum.scale[..., None] * q)
        first = torch.cat([*parts, -coefs.writes * (q @ k.transpose(-1, -2))], dim=-1)
        starts: Sequence[Tensor | None] = [None] * q.shape[2]
        if goal is not None:
            faded = (1 - coefs.scale)[..., None] * q
            starts = each_chunk(self._cut(faded.reshape(whole) @ goal.matrices[0]))
        own = coefficients_of_each(coefs)
        lasts = [at_last_token(each, None) for each in own]
        ready = (each_chunk(k), each_chunk(v), each_chunk(q), own, each_chunk(first))
        return [Chunk(*column) for column in zip(*ready, starts, thresholds, lasts, strict=True)]

    def read_and_write_chunk(self, chunk: Chunk, state: State) -> tuple[Tensor, State, Tensor]:
        """Read and write exactly one chunk from a chunk boundary, commit included.

        Args:
            chunk: C tokens.
            state: the layer's memory and momentum entries.

        Returns:
            Answers `[B, H, C, d]`, the new memory and momentum entries, and the surprise `[B, H, C]`.
        """
        base = self._base(state)
        weights, momentum = base.weights, base.momentum
        writes = self.network.write(weights.matrices, weights.gain, chunk.keys, chunk.values, chunk.threshold)
        matrix, gain = effective(base, chunk.coefs, [(chunk.coefs.writes, writes)], self.link)
        if not self.link.is_identity:
            return self.network.read(chunk.queries, matrix, gain), fold(base, chunk.last, writes), writes.surprise
        pasts = [weights.matrices[0], *([] if momentum is None else momentum.matrices[:1]), writes.errors[0]]
        first = chunk.first @ torch.cat(pasts, dim=-2)
        if chunk.start is not None:
            first = first + chunk.start
        answers = self.network.read(chunk.queries, lambda layer, x: matrix(layer, x) if layer else first, gain)
        return answers, fold(base, chunk.last, writes), writes.surprise

    def extend(
        self, inputs: MemoryInputs, state: State, place: Tensor, length: Tensor | None
    ) -> tuple[Tensor, State, Tensor]:
        """Read and append T tokens inside a chunk; one token is the step form.

        Args:
            inputs: T right-padded tokens.
            state: the layer's state, its rows included.
            place: `[B, T, C]` one-hot chunk position of every token.
            length: `[B]` real tokens, or None for all.

        Returns:
            Answers `[B, H, T, d]`, the entries that change (coefficients, and T new rows per rows entry),
            and the surprise `[B, H, T]`.
        """
        base, old = self._base(state), self._stored(state)
        threshold = inputs.gates.threshold
        new = self.network.write(base.weights.matrices, base.weights.gain, inputs.keys, inputs.values, threshold)
        among = coefficients(inputs.gates)  # of the new tokens among themselves
        since = continued(among, self._stored_coefficients(state))  # of everything since the last commit
        matrix, gain = effective(base, since, [(among.writes, new), (since.writes, old)], self.link)
        answers = self.network.read(inputs.queries, matrix, gain)

        changed = self._coefficient_entries(at_last_token(placed(since, among, place), length))
        for layer in range(self.network.depth):
            changed[f"memory_inputs_{layer}"] = as_rows(new.inputs[layer])
            changed[f"memory_errors_{layer}"] = as_rows(new.errors[layer])
        if new.gain_errors is not None:
            changed["memory_gain_errors"] = as_rows(new.gain_errors)
        return answers, changed, new.surprise

    def commit(self, state: State) -> State:
        """Fold a full chunk's rows into the memory; returns the entries that change."""
        new = fold(self._base(state), self._stored_coefficients(state), self._stored(state))
        return new | self.fresh_chunk(state)

    def _stored_coefficients(self, state: State) -> Coefficients:
        """Coefficients of the last token of the stream over the chunk's rows: `[B, H]` and `[B, H, C]`."""
        momentum = None
        if self.options.momentum:
            momentum = MomentumCoefficients(
                state["momentum_scale"], state["momentum_decay"], state["momentum_write_weights"]
            )
        return Coefficients(state["memory_scale"], state["write_weights"], momentum)

    @staticmethod
    def _coefficient_entries(coefs: Coefficients) -> State:
        """The inverse of `_stored_coefficients`."""
        entries = {"memory_scale": coefs.scale, "write_weights": coefs.writes}
        if coefs.momentum is not None:
            entries |= {
                "momentum_scale": coefs.momentum.scale,
                "momentum_decay": coefs.momentum.decay,
                "momentum_write_weights": coefs.momentum.writes,
            }
        return entries

    def _stored(self, state: State) -> Writes:
        rows = {
            name: from_rows(state[name])
            for name in state
            if name.startswith(("memory_inputs_", "memory_errors_", "memory_gain_errors"))
        }
        depth = range(self.network.depth)
        return Writes(
            [rows[f"memory_inputs_{layer}"] for layer in depth],
            [rows[f"memory_errors_{layer}"] for layer in depth],
            rows.get("memory_gain_errors"),
            surprise=state["memory_scale"],  # not kept for stored rows, and not read
        )


class NeuralMemory(AssociativeMemory):
    """One layer's memory: queries, keys, values and gates are projections of the layer's input (§3.1, §4.4)."""

    def __init__(self, config: TitansConfig) -> None:
        super().__init__(config, conv_channels=3 * config.dim)  # query, key and value channels
        self.to_query = Linear(self.dim, self.dim)
        self.to_write = Linear(self.dim, 2 * self.dim + len(self.gate_names) * self.heads)
        self.conv = CausalConv(self.conv_channels, self.options.conv_kernel)
        self._draw_start()
        with torch.no_grad():
            self.to_write.weight[:, 2 * self.dim :] = 0.0  # gates start independent of the token
            if self.options.conv_kernel > 1:
                # Keys start from the token before: a write then binds what came before to what came next, which is
                # what there is to learn. From the token itself, recall takes many times as long to be found.
                key = slice(self.dim, 2 * self.dim)
                self.conv.weight[-1, key] -= 1.0
                self.conv.weight[-2, key] += 1.0
            # And from the queries' projection, so that what is asked for is found where it was written.
            self.to_write.weight[:, : self.dim] = self.to_query.weight

    def query(self, x: Tensor, past: Tensor | None, length: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Queries of a stream of inputs that only reads (the segment read of mac).

        Args:
            x: `[B, T, dim]`.
            past: convolution state `[B, taps - 1, dim]`; None without a convolution.
            length: `[B]` real tokens of right-padded `x`, or None for all.

        Returns:
            Queries `[B, H, T, d]` in the memory's dtype, and the next `past`.
        """
        projected = self.to_query(x)
        if past is not None:
            projected, past = self.conv(projected, past, self.conv.weight[:, : self.dim], length)
        return self._unit_heads(F.silu(projected).to(self._dtype(x))), past

    def project(
        self, x: Tensor, past: Tensor | None, length: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """Queries, keys, values and raw gate logits.

        Args:
            x: `[B, T, dim]`.
            past: convolution state `[B, taps - 1, 3 * dim]`; None without a convolution.
            length: `[B]` real tokens of right-padded `x`, or None for all.

        Returns:
            `q, k, v` `[B, H, T, d]` and gate logits `[B, H, T, gates]` in the memory's dtype, and the next `past`.
        """
        writes = self.to_write(x)
        stream = torch.cat([self.to_query(x), writes[..., : 2 * self.dim]], dim=-1)
        if past is not None:
            stream, past = self.conv(stream, past, self.conv.weight, length)
        dtype = self._dtype(x)
        queries_keys, values = torch.split(F.silu(stream).to(dtype), [2 * self.dim, self.dim], dim=-1)
        q, k = self._unit_heads(queries_keys).chunk(2, dim=1)
        batch, tokens = x.shape[:2]
        logits = writes[..., 2 * self.dim :].to(dtype).reshape(batch, tokens, len(self.gate_names), self.heads)
        return q, k, split_heads(values, self.heads), logits.permute(0, 3, 1, 2), past


def _logit(share: float) -> float:
    """The inverse of the sigmoid."""
    return math.log(share / (1 - share))
