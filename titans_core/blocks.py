"""The four ways to put a memory into a layer: LMM, MAL, MAG and MAC (arXiv 2501.00663 §4, §5).

Every mixer offers the same three forms over one state, so the model need not know which variant it is:

    chunks(x, state, position)            whole chunks from a chunk boundary, written back (training and prefill)
    extend(x, state, call)                some tokens inside a chunk; one token is the step
    commit(state)                         fold a full chunk's rows

Knows how memory, attention, norms and gates combine. Does not know their insides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from titans_core.attention import SegmentAttention, SlidingWindowAttention
from titans_core.config import TitansConfig
from titans_core.layers import MLP, Linear, RMSNorm, merge_heads
from titans_core.memory import Chunk, MemoryInputs, NeuralMemory
from titans_core.state import State, StateSpec

# A memory that knows nothing answers next to nothing. Normalised with the usual 1e-6 that nothing becomes noise of full
# size, and in mac, where answers are read, attended to and written again, rounding then grows tenfold every few
# hundred tokens. Below a root mean square of 0.1 an answer fades instead.
ANSWER_EPS = 1e-2

Mixed = tuple[Tensor, State, Tensor | None]  # [B, T, dim], changed entries, surprise [B, T] or None
ChunkForm = Callable[[Chunk, State], tuple[Tensor, State, Tensor]]  # as NeuralMemory.read_and_write_chunk


@dataclass(frozen=True)
class Extension:
    """Where in their chunks the tokens of one `extend` call lie."""

    position: Tensor  # [B], tokens of each stream before this call
    place: Tensor  # [B, T], chunk position of every token
    one_hot: Tensor  # [B, T, C], the same, in the memory's dtype
    length: Tensor | None  # [B], real tokens of right-padded inputs; None means all


def extension(position: Tensor, tokens: int, chunk: int, length: Tensor | None, dtype: torch.dtype) -> Extension:
    """The call of `tokens` tokens at `position` `[B]`."""
    place = (position % chunk)[:, None] + torch.arange(tokens, device=position.device)
    one_hot = (place[..., None] == torch.arange(chunk, device=position.device)).to(dtype)
    return Extension(position, place, one_hot, length)


class MemoryReader(nn.Module):
    """A neural memory with its heads merged and normed: tokens in, answers out, both `[B, T, dim]`.

    Attributes:
        chunk_form: what runs a chunk in place of the memory's own method; training sets it (`training.speed`).
    """

    chunk_form: ChunkForm | None = None

    def __init__(self, config: TitansConfig) -> None:
        super().__init__()
        self.memory = NeuralMemory(config)
        self.norm = RMSNorm(config.dim, ANSWER_EPS)

    def state_specs(self) -> list[StateSpec]:
        """The memory's."""
        return self.memory.state_specs()

    def _answer(self, answers: Tensor, like: Tensor) -> Tensor:
        normed: Tensor = self.norm(merge_heads(answers))  # in the memory's dtype: in fp16 small answers would be lost
        return normed.to(like.dtype)

    def chunks(self, x: Tensor, state: State) -> tuple[Tensor, State, Tensor]:
        """Read and write whole chunks `[B, n * C, dim]`; surprise `[B, n * C]` is the mean over heads."""
        memory = self.memory
        q, k, v, logits, past = memory.project(x, state.get("conv_state"))
        read_and_write = self.chunk_form or memory.read_and_write_chunk
        answers, surprise = [], []
        changed: State = {}
        for chunk in memory.chunks(q, k, v, logits):
            answer, new, surprised = read_and_write(chunk, state)
            state = state | new  # another dict: a chunk that is computed again needs the one it had
            changed |= new
            answers.append(answer)
            surprise.append(surprised)
        if past is not None:
            changed["conv_state"] = past
        changed |= memory.fresh_chunk(state)
        return self._answer(torch.cat(answers, dim=2), x), changed, torch.cat(surprise, dim=2).mean(1)

    def extend(self, x: Tensor, state: State, call: Extension) -> tuple[Tensor, State, Tensor]:
        """The same for tokens inside a chunk `[B, T, dim]`."""
        memory = self.memory
        q, k, v, logits, past = memory.project(x, state.get("conv_state"), call.length)
        held, changed = memory.held_inside_chunk(logits, state, call.one_hot)
        inputs = MemoryInputs(q, k, v, memory.gates(held))
        answers, new, surprise = memory.extend(inputs, state, call.one_hot, call.length)
        changed |= new
        if past is not None:
            changed["conv_state"] = past
        return self._answer(answers, x), changed, surprise.mean(1)

    def read(self, x: Tensor, state: State, length: Tensor | None = None) -> tuple[Tensor, State]:
        """Answers of the memory as it stood at the last commit; nothing is written but the convolution's past."""
        queries, past = self.memory.query(x, state.get("query_conv_state"), length)
        changed = {} if past is None else {"query_conv_state": past}
        return self._answer(self.memory.read_base(queries, state), x), changed


class LMM(nn.Module):
    """The memory alone: its answer, gated by the token, through an output projection (§4.4)."""

    def __init__(self, config: TitansConfig) -> None:
        super().__init__()
        self.reader = MemoryReader(config)
        self.to_gate = Linear(config.dim, config.dim)
        self.out = Linear(config.dim, config.dim)

    def state_specs(self) -> list[StateSpec]:
        """The memory's."""
        return self.reader.state_specs()

    def chunks(self, x: Tensor, state: State, position: Tensor) -> Mixed:
        """`[B, n * C, dim]`; `position` is not needed, a memory has no places."""
        answers, changed, surprise = self.reader.chunks(x, state)
        return self.out(answers * F.silu(self.to_gate(x))), changed, surprise

    def extend(self, x: Tensor, state: State, call: Extension) -> Mixed:
        """`[B, T, dim]`."""
        answers, changed, surprise = self.reader.extend(x, state, call)
        return self.out(answers * F.silu(self.to_gate(x))), changed, surprise

    def commit(self, state: State) -> State:
        """The memory's."""
        return self.reader.memory.commit(state)


class WindowMixer(nn.Module):
    """Sliding-window attention alone: a layer of mal or mag without a memory."""

    def __init__(self, config: TitansConfig) -> None:
        super().__init__()
        self.attention = SlidingWindowAttention(config)
        self.out = Linear(config.dim, config.dim)

    def state_specs(self) -> list[StateSpec]:
        """The window's."""
        return self.attention.state_specs()

    def chunks(self, x: Tensor, state: State, position: Tensor) -> Mixed:
        """`[B, n * C, dim]`."""
        heads, changed = self.attention.chunks(x, state, position)
        return self.out(heads), changed, None

    def extend(self, x: Tensor, state: State, call: Extension) -> Mixed:
        """`[B, T, dim]`."""
        heads, changed = self.attention.extend(x, state, call.position, call.place)
        return self.out(heads), changed, None

    def commit(self, state: State) -> State:
        """The window's."""
        return self.attention.commit(state)


class MAL(nn.Module):
    """Memory as a layer: `y = M(x)`, then attention over y, each with its residual (§4.3)."""

    def __init__(self, config: TitansConfig) -> None:
        super().__init__()
        self.memory = LMM(config)
        self.norm = RMSNorm(config.dim)
        self.window = WindowMixer(config)

    def state_specs(self) -> list[StateSpec]:
        """Both parts'."""
        return self.memory.state_specs() + self.window.state_specs()

    def chunks(self, x: Tensor, state: State, position: Tensor) -> Mixed:
        """`[B, n * C, dim]`."""
        y, changed, surprise = self.memory.chunks(x, state, position)
        o, window, _ = self.window.chunks(self.norm(x + y), state, position)
        return y + o, changed | window, surprise

    def extend(self, x: Tensor, state: State, call: Extension) -> Mixed:
        """`[B, T, dim]`."""
        y, changed, surprise = self.memory.extend(x, state, call)
        o, window, _ = self.window.extend(self.norm(x + y), state, call)
        return y + o, changed | window, surprise

    def commit(self, state: State) -> State:
        """Both parts'."""
        return self.memory.commit(state) | self.window.commit(state)


class MAG(nn.Module):
    """Memory as a gate: `o = norm(SWA(x)) * sigmoid(norm(M(x)))` [26]-[28], both branches in parallel (§4.2)."""

    def __init__(self, config: TitansConfig) -> None:
        super().__init__()
        self.attention = SlidingWindowAttention(config)
        self.norm = RMSNorm(config.dim)
        self.reader = MemoryReader(config)
        self.out = Linear(config.dim, config.dim)

    def state_specs(self) -> list[StateSpec]:
        """Both branches'."""
        return self.reader.state_specs() + self.attention.state_specs()

    def _combine(self, heads: Tensor, answers: Tensor) -> Tensor:
        gated: Tensor = self.out(self.norm(heads) * torch.sigmoid(answers))
        return gated

    def chunks(self, x: Tensor, state: State, position: Tensor) -> Mixed:
        """`[B, n * C, dim]`."""
        heads, window = self.attention.chunks(x, state, position)
        answers, changed, surprise = self.reader.chunks(x, state)
        return self._combine(heads, answers), changed | window, surprise

    def extend(self, x: Tensor, state: State, call: Extension) -> Mixed:
        """`[B, T, dim]`."""
        heads, window = self.attention.extend(x, state, call.position, call.place)
        answers, changed, surprise = self.reader.extend(x, state, call)
        return self._combine(heads, answers), changed | window, surprise

    def commit(self, state: State) -> State:
        """Both branches'."""
        return self.reader.memory.commit(state) | self.attention.commit(state)


class SegmentMixer(nn.Module):
    """Attention inside the segment alone: a layer of mac without a memory."""

    def __init__(self, config: TitansConfig) -> None:
        super().__init__()
        self.attention = SegmentAttention(config, reads=False)
        self.out = Linear(config.dim, config.dim)
        self.chunk = config.chunk

    def state_specs(self) -> list[StateSpec]:
        """The segment's rows."""
        return self.attention.state_specs()

    def chunks(self, x: Tensor, state: State, position: Tensor) -> Mixed:
        """`[B, n * C, dim]`: segments do not see one another."""
        batch, tokens, dim = x.shape
        segments = x.reshape(batch * (tokens // self.chunk), self.chunk, dim)
        return self.out(self.attention.segment(segments, None).reshape(x.shape)), {}, None

    def extend(self, x: Tensor, state: State, call: Extension) -> Mixed:
        """`[B, T, dim]`."""
        heads, rows = self.attention.extend(x, None, state, call.position, call.place)
        return self.out(heads), rows, None

    def commit(self, state: State) -> State:
        """Nothing outlives a segment."""
        return {}


class MAC(nn.Module):
    """Memory as a context: read, attend over what was read, write what was attended to (§4.1).

    Per segment: `h = M_prev(q(x))` from the memory as it stood when the segment began; `y` = attention over
    `[P | h | x]`; the memory is written with y, token by token; `o = norm(y) * sigmoid(norm(M_t(y)))` [25].
    """

    def __init__(self, config: TitansConfig) -> None:
        super().__init__()
        self.reader = MemoryReader(config)
        self.attention = SegmentAttention(config, reads=True)
        self.to_attended = Linear(config.dim, config.dim)
        self.norm = RMSNorm(config.dim)
        self.out = Linear(config.dim, config.dim)
        self.dim, self.taps, self.chunk = config.dim, config.memory.conv_kernel, config.chunk

    def state_specs(self) -> list[StateSpec]:
        """The memory's, the segment's rows, and the past of the convolution that reads x (writes read y)."""
        specs = self.reader.state_specs() + self.attention.state_specs()
        if self.taps > 1:
            specs.append(StateSpec("query_conv_state", "carried", (self.taps - 1, self.dim), 0.0, "activation"))
        return specs

    def chunks(self, x: Tensor, state: State, position: Tensor) -> Mixed:
        """`[B, n * C, dim]`, one segment after the other."""
        outputs, surprise = [], []
        changed: State = {}
        for segment in torch.split(x, self.chunk, dim=1):
            h, read = self.reader.read(segment, state)
            y = self.norm(self.to_attended(self.attention.segment(segment, h)))
            answers, new, surprised = self.reader.chunks(y, state)
            changed |= read | new
            state = state | changed
            outputs.append(y * torch.sigmoid(answers))
            surprise.append(surprised)
        return self.out(torch.cat(outputs, dim=1)), changed, torch.cat(surprise, dim=1)

    def extend(self, x: Tensor, state: State, call: Extension) -> Mixed:
        """`[B, T, dim]`."""
        h, changed = self.reader.read(x, state, call.length)
        heads, rows = self.attention.extend(x, h, state, call.position, call.place)
        y = self.norm(self.to_attended(heads))
        answers, new, surprise = self.reader.extend(y, state, call)
        return self.out(y * torch.sigmoid(answers)), changed | rows | new, surprise

    def commit(self, state: State) -> State:
        """The memory's; the segment's keys and values are simply forgotten."""
        return self.reader.memory.commit(state)


Mixer = LMM | MAL | MAG | MAC | WindowMixer | SegmentMixer


def mixer(config: TitansConfig, layer: int) -> Mixer:
    """The mixer of layer `layer`."""
    if not config.has_memory(layer):
        return SegmentMixer(config) if config.variant == "mac" else WindowMixer(config)
    if config.variant == "lmm":
        return LMM(config)
    if config.variant == "mal":
        return MAL(config)
    if config.variant == "mag":
        return MAG(config)
    return MAC(config)


class Block(nn.Module):
    """One layer: `x + mixer(norm(x))`, then `x + feed_forward(norm(x))`."""

    def __init__(self, config: TitansConfig, layer: int) -> None:
        super().__init__()
        self.mixer_norm = RMSNorm(config.dim)
        self.mixer = mixer(config, layer)
        self.mlp_norm = RMSNorm(config.dim)
        self.mlp = MLP(config.dim, config.ffn_hidden, config.ffn)

    def chunks(self, x: Tensor, state: State, position: Tensor) -> Mixed:
        """`[B, n * C, dim]`."""
        mixed, changed, surprise = self.mixer.chunks(self.mixer_norm(x), state, position)
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), changed, surprise

    def extend(self, x: Tensor, state: State, call: Extension) -> Mixed:
        """`[B, T, dim]`."""
        mixed, changed, surprise = self.mixer.extend(self.mixer_norm(x), state, call)
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), changed, surprise
