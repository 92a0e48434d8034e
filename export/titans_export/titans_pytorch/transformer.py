"""titans-pytorch's `MemoryAsContextTransformer` over external state: one token, one whole segment, or a segment's end.

Its sequence has `num_longterm_mem_tokens` learned tokens after every segment of real ones; a stream's index counts
them, its position does not. A token that completes a chunk of the memories writes them before it reads them, layer by
layer.

Knows layers and their order. Does not know graphs, schedules or the state table's other half.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titans_core.state import State, StateSpec, pick, prefixed
from titans_export.titans_pytorch.attention import Attention, Slots
from titans_export.titans_pytorch.connections import Join, connection
from titans_export.titans_pytorch.memory import Memory, rms_norm, split_last
from titans_export.titans_pytorch.memory_store import Store, Views
from titans_export.titans_pytorch.options import MemoryOptions, TransformerOptions
from titans_export.titans_pytorch.parameters import Reader

OUTER_POSITION = "outer_position"
LONGTERM_PLACE = "longterm_place"
AXIAL_EXPANSION = 2


class AxialMlp(nn.Module):
    """A position's number to a vector."""

    def __init__(self, dim: int, read: Reader) -> None:
        super().__init__()
        sizes = [1, AXIAL_EXPANSION * dim, AXIAL_EXPANSION * dim, dim]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for place, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
            self.weights.append(read.matrix(f"{2 * place}.weight", inputs, outputs))
            self.biases.append(read.parameter(f"{2 * place}.bias", (outputs,)))

    def forward(self, number: Tensor) -> Tensor:
        """`[..., 1]` to `[..., dim]`."""
        for place, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            number = (F.silu(number) if place else number) @ weight + bias
        return number


class FeedForward(nn.Module):
    """A norm and a gated linear unit."""

    def __init__(self, dim: int, hidden: int, read: Reader) -> None:
        super().__init__()
        self.norm = read.parameter("0.weight", (dim,))
        self.rise = read.matrix("1.weight", dim, 2 * hidden)
        self.rise_bias = read.parameter("1.bias", (2 * hidden,))
        self.fall = read.matrix("3.weight", hidden, dim)
        self.fall_bias = read.parameter("3.bias", (dim,))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, n, dim]` to the same."""
        value, gate = (rms_norm(x, self.norm) @ self.rise + self.rise_bias).chunk(2, dim=-1)
        return (F.silu(gate) * value) @ self.fall + self.fall_bias


class ViewSelector(nn.Module):
    """For every token, how queries, keys and values are blended from earlier layers' inputs and outputs."""

    def __init__(self, dim: int, choices: int, read: Reader) -> None:
        super().__init__()
        self.choices = choices
        self.norm = read.parameter("0.weight", (dim,))
        self.weight = read.matrix("1.weight", dim, 3 * choices)
        self.bias = read.parameter("1.bias", (3 * choices,))

    def forward(self, x: Tensor, earlier: list[Tensor]) -> Views:
        """x and the earlier ones are `[B, n, dim]`."""
        shares = split_last(rms_norm(x, self.norm) @ self.weight + self.bias, 3, self.choices)
        blended = torch.softmax(shares, dim=-1) @ torch.stack([x, *earlier], dim=2)  # [B, n, 3, dim]
        query, key, value = (blended[:, :, view] for view in range(3))
        return Views(query, key, value)


class Layer(nn.Module):
    """A memory, attention and a feed-forward, each with its joint."""

    def __init__(self, options: TransformerOptions, number: int, read: Reader) -> None:
        super().__init__()
        o, memory = options, options.memories[number]
        streams = o.num_residual_streams
        self.memory_joint = self.selector = self.store = None
        if memory is not None:
            self.memory_joint = connection(streams, o.dim, not o.gate_attn_output, read.below("0"))
            if o.selects_views(number):
                self.selector = ViewSelector(o.dim, number * 4 + 1, read.below("3"))
            two = o.selects_views(number)
            self.store = Store(Memory(memory, read.below("4")), o.segment_len, o.num_longterm_mem_tokens, two)
        self.attention_joint = connection(streams, o.dim, True, read.below("1"))
        self.feed_forward_joint = connection(streams, o.dim, True, read.below("2"))
        self.attention = Attention(o, number == 0, read.below("5"))
        self.feed_forward = FeedForward(o.dim, o.ff_hidden, read.below("6"))

    def state_specs(self) -> list[StateSpec]:
        """Of memory and attention."""
        return [*(self.store.state_specs() if self.store is not None else []), *self.attention.state_specs()]


@dataclass(frozen=True)
class Where:
    """One call's tokens in their streams.

    Attributes:
        slots: where they are.
        closing: whether the token completes a chunk.
    """

    slots: Slots
    closing: bool


class Transformer(nn.Module):
    """The parameters, and the forms of the computation."""

    def __init__(self, options: TransformerOptions, read: Reader) -> None:
        super().__init__()
        self.options = o = options
        self.embedding = read.parameter("token_emb.weight", (o.num_tokens, o.dim))
        self.longterm = read.parameter("longterm_mems", (o.num_longterm_mem_tokens, o.dim))
        self.outer_position = AxialMlp(o.dim, read.below("axial_pos_emb.mlps.0"))
        inner_position = AxialMlp(o.dim, read.below("axial_pos_emb.mlps.1"))
        numbers = torch.arange(o.memory_segment_len, dtype=torch.float32)[:, None]
        self.inner_positions = nn.Parameter(inner_position(numbers).detach(), requires_grad=False)
        self.first_outer_position = nn.Parameter(self.outer_position(torch.zeros(1)).detach(), requires_grad=False)
        stream_shape = (o.num_residual_streams, o.dim)
        alone = o.num_residual_streams == 1
        self.stream_embedding = None if alone else read.parameter("expand_streams.stream_embed", stream_shape)
        layers = read.below("layers")
        self.layers = nn.ModuleList(Layer(o, number, layers.below(str(number))) for number in range(o.depth))
        self.norm = read.parameter("norm.weight", (o.dim,))
        self.to_logits = read.matrix("to_logits.weight", o.dim, o.num_tokens)

    def state_specs(self) -> list[StateSpec]:
        """The whole state."""
        specs = [StateSpec(OUTER_POSITION, "carried", (self.options.dim,), "first_outer_position")]
        if self.options.num_longterm_mem_tokens:
            specs.append(StateSpec(LONGTERM_PLACE, "carried", (1,)))
        for number, layer in enumerate(self._layers()):
            for spec in layer.state_specs():
                name = f"{number}.{spec.name}"
                specs.append(StateSpec(name, spec.kind, spec.shape, spec.initial, spec.dtype))
        return specs

    def initial_tensor(self, name: str) -> Tensor:
        """What a learned state starts from."""
        if name == OUTER_POSITION:
            return self.first_outer_position
        number, own = name.split(".", 1)
        store = self._layers()[int(number)].store
        if store is None:
            raise KeyError(name)
        return store.initial_tensor(own)

    def _layers(self) -> list[Layer]:
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    def memory_options(self) -> list[MemoryOptions]:
        """Of the layers that have a memory."""
        return [memory for memory in self.options.memories if memory is not None]

    def token(self, ids: Tensor, position: Tensor, state: State, closing: bool) -> tuple[Tensor, State]:
        """One real token: ids `[B, 1]`, position `[B]`; logits `[B, 1, V]` and the states that change."""
        o = self.options
        segment = position // o.segment_len
        index = position + segment * o.num_longterm_mem_tokens
        slots = Slots(index, position % o.segment_len, segment > 0)
        x, changed = self._step(F.embedding(ids, self.embedding), Where(slots, closing), state)
        return rms_norm(x, self.norm) @ self.to_logits, changed

    def longterm_token(self, position: Tensor, state: State, closing: bool) -> State:
        """The next long-term memory token after a segment that ended at `position`."""
        o = self.options
        place = state[LONGTERM_PLACE].squeeze(-1)
        number = place.to(torch.int64)
        segment = position // o.segment_len - 1
        index = position + segment * o.num_longterm_mem_tokens + number
        slots = Slots(index, number + o.segment_len, segment > 0, longterm=True)
        embedded = F.embedding(number[:, None], self.longterm)
        _, changed = self._step(embedded, Where(slots, closing), state)
        following = place + 1.0
        following = torch.where(following >= o.num_longterm_mem_tokens, torch.zeros_like(following), following)
        return changed | {LONGTERM_PLACE: following.unsqueeze(-1)}

    def _step(self, embedded: Tensor, where: Where, state: State) -> tuple[Tensor, State]:
        inner = F.embedding((where.slots.index % self.options.memory_segment_len)[:, None], self.inner_positions)
        streams = self._expand(embedded + inner + state[OUTER_POSITION].unsqueeze(1))
        changed: State = {}
        if where.closing:
            following = (where.slots.index + 1) // self.options.memory_segment_len
            changed[OUTER_POSITION] = self.outer_position(following[:, None].to(embedded.dtype))
        earlier: list[Tensor] = []
        value_residual: Tensor | None = None
        before: list[Tensor] | None = None
        for number, layer in enumerate(self._layers()):
            own = pick(state, f"{number}.")
            gate = None
            new: State = {}
            if layer.store is not None and layer.memory_joint is not None:
                x, join = layer.memory_joint(streams)
                views = Views(x, x, x) if layer.selector is None else layer.selector(x, earlier)
                answer, new, before = self._remember(layer.store, views, where, own, before)
                if self.options.gate_attn_output:
                    gate = torch.sigmoid(answer)
                else:
                    streams = join(answer)
            x, join = layer.attention_joint(streams)
            out, values, attended = layer.attention.step(x, where.slots, own, value_residual)
            value_residual = values if value_residual is None else value_residual
            streams = self._finish(layer, join, x, out if gate is None else out * gate, earlier)
            changed |= prefixed(new | attended, f"{number}.")
        return streams.sum(2), changed

    def _remember(
        self, store: Store, views: Views, where: Where, state: State, before: list[Tensor] | None
    ) -> tuple[Tensor, State, list[Tensor]]:
        """A memory's answer to one token, what changes, and its weights before the chunk that may close."""
        at, fast = where.slots, store.fast(state)
        old = fast.update
        changed = store.wait(views, at.slot, at.longterm, state)
        if where.closing:
            key, value = store.closing(views, at.slot, at.longterm, state)
            mixed_in = before if store.memory.options.accept_weight_residual else None
            fast = store.memory.close(key, value, fast, mixed_in, store.boundary(where.slots.index))
            changed |= store.named(fast)
        return store.memory.retrieve(views.query, fast.update), changed, old

    def _finish(self, layer: Layer, join: Join, x: Tensor, out: Tensor, earlier: list[Tensor]) -> Tensor:
        """The rest of a layer after attention; appends what later memories may choose from."""
        inputs, feed_join = layer.feed_forward_joint(join(out))
        fed = layer.feed_forward(inputs)
        earlier += [x, out, inputs, fed]
        streams: Tensor = feed_join(fed)
        return streams

    def _expand(self, x: Tensor) -> Tensor:
        """`[B, n, dim]` to residual streams `[B, n, S, dim]`."""
        x = x.unsqueeze(2)
        if self.stream_embedding is not None:
            x = x + self.stream_embedding
        return x

    def segment(self, ids: Tensor, position: Tensor, state: State) -> tuple[Tensor, State]:
        """A whole segment from its beginning, and the long-term memory tokens after it: logits `[B, n, V]`."""
        o = self.options
        started = position // o.segment_len
        index = started * o.window
        slots = Slots(index, torch.zeros_like(index), started > 0)
        x = F.embedding(ids, self.embedding)
        if o.num_longterm_mem_tokens:
            x = torch.cat([x, self.longterm.expand(x.shape[0], -1, -1)], dim=1)
        count = o.window // o.memory_segment_len
        chunks = started[:, None] * count + torch.arange(count + 1)
        outer = self.outer_position(chunks.unsqueeze(-1).to(x.dtype))  # [B, count + 1, dim]
        positions = outer[:, :count].unsqueeze(2) + self.inner_positions
        streams = self._expand(x + positions.flatten(1, 2))
        changed: State = {OUTER_POSITION: outer[:, count]}
        if o.num_longterm_mem_tokens:
            changed[LONGTERM_PLACE] = torch.zeros_like(state[LONGTERM_PLACE])
        earlier: list[Tensor] = []
        value_residual: Tensor | None = None
        before: list[list[Tensor]] | None = None
        for number, layer in enumerate(self._layers()):
            own = pick(state, f"{number}.")
            gate = None
            new: State = {}
            if layer.store is not None and layer.memory_joint is not None:
                x, join = layer.memory_joint(streams)
                views = Views(x, x, x) if layer.selector is None else layer.selector(x, earlier)
                mixed_in = before if layer.store.memory.options.accept_weight_residual else None
                answer, new, before = layer.store.whole_segment(views, index, own, mixed_in)
                if o.gate_attn_output:
                    gate = torch.sigmoid(answer)
                else:
                    streams = join(answer)
            x, join = layer.attention_joint(streams)
            out, values, attended = layer.attention.segment(x, slots, own, value_residual)
            value_residual = values if value_residual is None else value_residual
            streams = self._finish(layer, join, x, out if gate is None else out * gate, earlier)
            changed |= prefixed(new | attended, f"{number}.")
        x = streams.sum(2)[:, : o.segment_len]
        return rms_norm(x, self.norm) @ self.to_logits, changed

    def end_segment(self, state: State) -> State:
        """What the next segment has to know of the one that just ended."""
        changed: State = {}
        for number, layer in enumerate(self._layers()):
            own = pick(state, f"{number}.")
            new = layer.attention.end_segment(own)
            if layer.store is not None:
                new |= layer.store.end_segment(own)
            changed |= prefixed(new, f"{number}.")
        return changed
