"""Parts of a model as single operators, for runtimes that have kernels for them.

The portable graphs spell everything out in standard operators, and every elementwise one is a pass over tensors of its
own on a CPU. While `fused` is active, memories, a token's attention and gated feed-forwards that the kernels know call
one function instead, recorded as one call that `lower` turns into one node of the domain `ai.titans`. What
these nodes compute is the modules' own methods, for which they stand in; `titans_runtime/native` has the kernels.

Knows what qualifies and the order of an operator's inputs and outputs, which `native/operators.cpp` shares. Does not
know ONNX, nor how anything is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

from titans_core.attention import SegmentAttention, SlidingWindowAttention
from titans_core.blocks import Extension, MemoryReader
from titans_core.decoder.attention import WindowAttention
from titans_core.layers import MLP, RMSNorm, rms_normalise
from titans_core.memory import NeuralMemory
from titans_core.state import State

DOMAIN = "ai.titans"
VERSION = 1
MOST_MATRICES = 4  # kMaxDepth of native/memory.h
ROWS = ("memory_inputs", "memory_errors")

Sizes = tuple[int, ...]


def fused_operator(
    operator: str, attributes: dict[str, Any], inputs: list[Tensor], outputs: list[Sizes]
) -> list[Tensor]:
    """A call of a fused operator, to be recorded; computed, it is zeros of the right shapes."""
    if has_torch_function(tuple(inputs)):
        result: list[Tensor] = handle_torch_function(
            fused_operator, tuple(inputs), operator, attributes, inputs, outputs
        )
        return result
    return [torch.zeros(size) for size in outputs]


def qualifies(module: nn.Module) -> bool:
    """Whether the kernels know a module's options, one of a kind in `_STAND_INS`. Its weights have to be float32."""
    if any(parameter.dtype != torch.float32 for parameter in module.parameters()):
        return False
    if isinstance(module, MemoryReader | NeuralMemory):
        options = (module.memory if isinstance(module, MemoryReader) else module).options
        return (
            options.objective == "l2"
            and options.retention == "l2"
            and not options.residual_norm
            and options.gate_scope == "token"
            and options.conv_kernel > 1
            and options.step_size == "token"
            and options.step_floor == 0
            and options.depth <= MOST_MATRICES
        )
    if isinstance(module, SegmentAttention | SlidingWindowAttention):
        return module.width % 2 == 0
    return isinstance(module, RMSNorm | WindowAttention) or (isinstance(module, MLP) and module.gated)


@contextmanager
def fused(module: nn.Module) -> Iterator[None]:
    """While active, what qualifies in `module` is single operators."""
    replaced: list[tuple[nn.Module, str]] = []
    for each in module.modules():
        kind = _STAND_INS.get(type(each))
        if kind is None or not qualifies(each):
            continue
        stand_in = kind(each)
        for name in stand_in.methods:
            object.__setattr__(each, name, getattr(stand_in, name))
            replaced.append((each, name))
    try:
        yield
    finally:
        for each, name in replaced:
            object.__delattr__(each, name)


class _Memory:
    """What the operators of one memory have in common."""

    def __init__(self, memory: NeuralMemory) -> None:
        self.memory = memory

    def coefficients(self) -> list[str]:
        """The entries of the state that say how a chunk's rows weigh, in order."""
        names = ["memory_scale", "write_weights"]
        if self.memory.options.momentum:
            names += ["momentum_scale", "momentum_decay", "momentum_write_weights"]
        return names

    def matrices(self, *rows: str) -> list[str]:
        """Per matrix the entries of itself, its momentum and the kinds of rows that are named."""
        kinds = ["memory", *(["momentum"] if self.memory.options.momentum else []), *rows]
        return [f"{kind}_{layer}" for layer in range(self.memory.network.depth) for kind in kinds]

    def starts(self) -> list[Tensor]:
        """Per matrix what the memory forgets towards, for all streams; none where that is zero."""
        return list(self.memory.initial) if self.memory.forgets_to_start else []

    def attributes(self, fold: bool = False, padded: bool = False) -> dict[str, Any]:
        """Of every operator alike."""
        memory = self.memory
        gates: Sequence[str] = memory.gate_names
        return {
            "heads": memory.heads,
            "width": memory.width,
            "chunk": memory.chunk,
            "taps": memory.options.conv_kernel,
            "depth": memory.network.depth,
            "silu": int(memory.network.activation == "silu"),
            "bound": float(memory.options.surprise_bound or 0.0),
            "max_step": float(memory.options.max_step_size),
            "gates": len(gates),
            "forget": gates.index("forget") if "forget" in gates else -1,
            "momentum": gates.index("momentum") if "momentum" in gates else -1,
            "step": gates.index("step_size"),
            "fold": int(fold),
            "padded": int(padded),
            "start": int(self.memory.forgets_to_start),
        }


class _FusedMemory:
    """Stands in for `NeuralMemory.commit`."""

    methods = ("commit",)

    def __init__(self, memory: NeuralMemory) -> None:
        self.parts = _Memory(memory)

    def commit(self, state: State) -> State:
        """Fold a full chunk's rows into the memory."""
        coefficients, matrices = self.parts.coefficients(), self.parts.matrices()
        read = [*coefficients, *self.parts.matrices(*ROWS)]
        written = [*coefficients, *matrices]
        sizes: list[Sizes] = [tuple(state[name].shape) for name in written]
        inputs = [*(state[name] for name in read), *self.parts.starts()]
        new = fused_operator("MemoryCommit", self.parts.attributes(fold=True), inputs, sizes)
        return dict(zip(written, new, strict=True))


class _FusedReader:
    """Stands in for the methods of one `MemoryReader`; the same arguments and results."""

    methods = ("chunks", "extend", "read")

    def __init__(self, reader: MemoryReader) -> None:
        self.reader, self.memory, self.parts = reader, reader.memory, _Memory(reader.memory)

    def chunks(self, x: Tensor, state: State) -> tuple[Tensor, State, Tensor]:
        """Whole chunks, each of them one operator."""
        answers, surprises = [], []
        changed: State = {}
        for chunk in torch.split(x, self.memory.chunk, dim=1):
            answer, new, surprise = self._chunk(chunk, state | changed)
            changed |= new
            answers.append(answer)
            surprises.append(surprise)
        return torch.cat(answers, dim=1), changed, torch.cat(surprises, dim=1)

    def _chunk(self, x: Tensor, state: State) -> tuple[Tensor, State, Tensor]:
        matrices = self.parts.matrices()
        inputs = [*self._projections(x, state), *(state[name] for name in matrices), *self.parts.starts()]
        return self._call(x, state, inputs, [*self.parts.coefficients(), *matrices], fold=True)

    def extend(self, x: Tensor, state: State, call: Extension) -> tuple[Tensor, State, Tensor]:
        """Some tokens inside a chunk."""
        coefficients = self.parts.coefficients()
        inputs = self._projections(x, state)
        inputs += [*(state[name] for name in (*coefficients, *self.parts.matrices(*ROWS))), *self.parts.starts()]
        inputs += [call.position] if call.length is None else [call.position, call.length]
        rows = [f"{kind}_{layer}" for layer in range(self.memory.network.depth) for kind in ROWS]
        return self._call(x, state, inputs, [*coefficients, *rows], padded=call.length is not None)

    def read(self, x: Tensor, state: State, length: Tensor | None = None) -> tuple[Tensor, State]:
        """Answers of the memory as it stood at the last commit."""
        memory = self.memory
        past = state["query_conv_state"]
        inputs = [memory.to_query(x), past, memory.conv.weight]
        inputs += [state[f"memory_{layer}"] for layer in range(memory.network.depth)]
        inputs += [] if length is None else [length]
        attributes = self.parts.attributes(padded=length is not None)
        answers, kept = fused_operator("MemoryRead", attributes, inputs, [tuple(x.shape), tuple(past.shape)])
        return self._answer(answers, x), {"query_conv_state": kept}

    def _call(
        self, x: Tensor, state: State, inputs: list[Tensor], names: list[str], fold: bool = False, padded: bool = False
    ) -> tuple[Tensor, State, Tensor]:
        """The operator over `inputs`; `names` are the entries of the state returned besides the convolution's."""
        tokens = x.shape[1]
        shapes: list[Sizes] = [tuple(x.shape), tuple(x.shape[:2])]
        for name in ("conv_state", *names):
            size = tuple(state[name].shape)
            shapes.append((tokens, *size[1:]) if name.startswith(ROWS) else size)
        answers, surprise, *new = fused_operator("Memory", self.parts.attributes(fold, padded), inputs, shapes)
        return self._answer(answers, x), dict(zip(("conv_state", *names), new, strict=True)), surprise

    def _projections(self, x: Tensor, state: State) -> list[Tensor]:
        memory = self.memory
        biases = [memory.gate_bias[name] for name in memory.gate_names]
        return [memory.to_query(x), memory.to_write(x), state["conv_state"], memory.conv.weight, *biases]

    def _answer(self, answers: Tensor, like: Tensor) -> Tensor:
        normed: Tensor = self.reader.norm(answers)
        return normed.to(like.dtype)


class _FusedSegment:
    """Stands in for `SegmentAttention`, for a single token."""

    methods = ("extend",)

    def __init__(self, attention: SegmentAttention) -> None:
        self.attention = attention

    def extend(
        self, x: Tensor, h: Tensor | None, state: State, position: Tensor, place: Tensor
    ) -> tuple[Tensor, State]:
        """One token is one operator; more are as before."""
        attention = self.attention
        if x.shape[1] > 1:
            return SegmentAttention.extend(attention, x, h, state, position, place)
        keys_values = attention.to_key_value(x if h is None else torch.cat([h, x], dim=1))
        rows = [f"{kind}_{part}" for kind in attention.kinds for part in ("key", "value")]
        inputs = [attention.to_query(x), keys_values, *_persistent(attention), attention.cosine, attention.sine]
        inputs += [*(state[name] for name in rows), position]
        return _attended(attention, x, inputs, rows, state, past=0, window=0)


class _FusedWindow:
    """Stands in for `SlidingWindowAttention`, for a single token."""

    methods = ("extend",)

    def __init__(self, attention: SlidingWindowAttention) -> None:
        self.attention = attention

    def extend(self, x: Tensor, state: State, position: Tensor, place: Tensor) -> tuple[Tensor, State]:
        """One token is one operator; more are as before."""
        attention = self.attention
        if x.shape[1] > 1:
            return SlidingWindowAttention.extend(attention, x, state, position, place)
        rows = ["chunk_key", "chunk_value"]
        inputs = [attention.to_qkv(x), *_persistent(attention), attention.cosine, attention.sine]
        inputs += [*(state[name] for name in ("key", "value", *rows)), position]
        return _attended(attention, x, inputs, rows, state, past=attention.past, window=attention.window)


def _persistent(attention: SegmentAttention | SlidingWindowAttention) -> list[Tensor]:
    if attention.persistent_key is None or attention.persistent_value is None:
        return []
    return [rms_normalise(attention.persistent_key, scale=attention.scale), attention.persistent_value]


def _attended(
    attention: SegmentAttention | SlidingWindowAttention,
    x: Tensor,
    inputs: list[Tensor],
    rows: list[str],
    state: State,
    past: int,
    window: int,
) -> tuple[Tensor, State]:
    key = attention.persistent_key
    attributes = {
        "heads": attention.heads,
        "chunk": attention.chunk,
        "past": past,
        "window": window,
        "persistent": 0 if key is None else key.shape[1],
    }
    shapes: list[Sizes] = [tuple(x.shape), *((1, *state[name].shape[1:]) for name in rows)]
    out, *new = fused_operator("TokenAttention", attributes, inputs, shapes)
    return out, dict(zip(rows, new, strict=True))


class _FusedDecoderAttention:
    """Stands in for a pretrained decoder's `WindowAttention`."""

    methods = ("chunks", "extend")

    def __init__(self, attention: WindowAttention) -> None:
        self.attention = attention

    def chunks(self, x: Tensor, state: State, position: Tensor) -> tuple[Tensor, State]:
        """Whole chunks, from a chunk boundary."""
        names = ["key", "value", *(["sink_key", "sink_value"] if self.attention.sinks else [])]
        return self._call("WindowPrefill", x, state, [position], {name: tuple(state[name].shape) for name in names})

    def extend(self, x: Tensor, state: State, position: Tensor, place: Tensor) -> tuple[Tensor, State]:
        """Some tokens inside a chunk."""
        names = ("chunk_key", "chunk_value")
        new: dict[str, Sizes] = {name: (x.shape[1], *state[name].shape[1:]) for name in names}
        return self._call("WindowAttention", x, state, [*(state[name] for name in names), position], new)

    def _call(
        self, operator: str, x: Tensor, state: State, last: list[Tensor], new: dict[str, Sizes]
    ) -> tuple[Tensor, State]:
        """The operator; `last` are the inputs behind those of both, `new` the entries of the state that it returns."""
        attention = self.attention
        projected = attention.to_qkv(x)
        if attention.qkv_bias is not None:
            projected = projected + attention.qkv_bias
        attributes: dict[str, Any] = {
            "heads": attention.heads,
            "kv_heads": attention.kv_heads,
            "chunk": attention.chunk,
            "past": attention.past,
            "window": attention.window,
            "sinks": attention.sinks,
            "normed": int(attention.query_norm is not None),
        }
        inputs = [projected]
        if attention.query_norm is not None and attention.key_norm is not None:
            attributes["epsilon"] = attention.query_norm.eps
            inputs += [attention.query_norm.gain, attention.key_norm.gain]
        names = ["key", "value", *(["sink_key", "sink_value"] if attention.sinks else [])]
        tables = [table.to(x.dtype) for table in (attention.cosine, attention.sine)]
        inputs += [*tables, *(state[name] for name in names), *last]
        shapes: list[Sizes] = [(*x.shape[:2], attention.heads * attention.width), *new.values()]
        heads, *changed = fused_operator(operator, attributes, inputs, shapes)
        out: Tensor = attention.out(heads)
        out = out if attention.out_bias is None else out + attention.out_bias
        return out, dict(zip(new, changed, strict=True))


class _FusedMLP:
    """Stands in for a gated feed-forward."""

    methods = ("forward",)

    def __init__(self, mlp: MLP) -> None:
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        """`[B, T, dim]`."""
        hidden = self.mlp.up(x)
        (gated,) = fused_operator("GatedUnit", {}, [hidden], [(*hidden.shape[:-1], hidden.shape[-1] // 2)])
        out: Tensor = self.mlp.down(gated)
        return out


class _FusedNorm:
    """Stands in for `RMSNorm`."""

    methods = ("forward",)

    def __init__(self, norm: RMSNorm) -> None:
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """`[..., dim]`."""
        (out,) = fused_operator("RMSNorm", {"epsilon": self.norm.eps}, [x, self.norm.gain], [tuple(x.shape)])
        return out


_STAND_INS: dict[type[nn.Module], Any] = {
    RMSNorm: _FusedNorm,
    MemoryReader: _FusedReader,
    NeuralMemory: _FusedMemory,
    SegmentAttention: _FusedSegment,
    SlidingWindowAttention: _FusedWindow,
    WindowAttention: _FusedDecoderAttention,
    MLP: _FusedMLP,
}
