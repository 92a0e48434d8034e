"""Grouped-query attention over a window of the last tokens and the first tokens of the stream, its sinks.

The first tokens draw attention whatever they are, and a window without them falls apart (arXiv 2309.17453). A query at
place `i` of the stream sees

    its window    the tokens from i - W + 1 to i, each at its true distance
    its sinks     those of the first S tokens that have left the window; sink s at distance min(i, S + W - 1) - s,
                  so that they stand right before a full window and are never further away than in training

Without sinks that is a band of W tokens at any length. A stream of up to S + W tokens is attended to in full.

Keys are rotated once, by their place inside their chunk of C tokens. A query is turned once for every chunk that it
looks at, by its distance to that chunk's start, so that angles stay bounded and a step reads the window as it lies.
Heads of queries that share a head of keys stand beside the tokens, so keys are never repeated.

Knows nothing about what surrounds attention in a layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from titans_core.attention import masked
from titans_core.decoder.config import DecoderConfig
from titans_core.layers import Linear, RMSNorm, as_rows, from_rows, rotate
from titans_core.state import State, StateSpec

Source = tuple[Tensor, Tensor]  # scores [B, K, G * T, n] and values [B, K, n, d]


class WindowAttention(nn.Module):
    """`H` heads of queries over `K` heads of keys and values of width `d`, `G = H / K`."""

    def __init__(self, config: DecoderConfig, table: Tensor) -> None:
        """`table` is `rotary_table` of the configuration, shared by all layers that turn alike."""
        super().__init__()
        self.heads, self.kv_heads, self.group = config.heads, config.kv_heads, config.group
        self.width, self.chunk = config.head_width, config.chunk
        self.window, self.sinks, self.past = config.window, config.sinks, config.past_chunks
        queries, keys = self.heads * self.width, self.kv_heads * self.width
        self.to_qkv = Linear(config.dim, queries + 2 * keys)
        self.qkv_bias = nn.Parameter(torch.zeros(queries + 2 * keys)) if config.qkv_bias else None
        self.query_norm = RMSNorm(self.width, config.norm_eps) if config.qk_norm else None
        self.key_norm = RMSNorm(self.width, config.norm_eps) if config.qk_norm else None
        self.out = Linear(queries, config.dim)
        self.out_bias = nn.Parameter(torch.zeros(config.dim)) if config.out_bias else None
        self.positions = table.shape[1] // 2
        self.register_buffer("cosine", table[0], persistent=False)
        self.register_buffer("sine", table[1], persistent=False)

    cosine: Tensor  # [2 * positions, d]
    sine: Tensor  # the same

    def state_specs(self) -> list[StateSpec]:
        """The chunks before this one as they stood at the last commit, the sinks, and the chunk's own rows."""
        past, sinks = (self.kv_heads, self.past * self.chunk, self.width), (self.kv_heads, self.sinks, self.width)
        rows = (self.chunk, self.kv_heads, self.width)
        specs = [StateSpec(name, "carried", past, 0.0, "activation") for name in ("key", "value")]
        if self.sinks:
            specs += [StateSpec(name, "carried", sinks, 0.0, "activation") for name in ("sink_key", "sink_value")]
        return specs + [StateSpec(name, "rows", rows, 0.0, "activation") for name in ("chunk_key", "chunk_value")]

    # ---------------------------------------------------------------- forms

    def chunks(self, x: Tensor, state: State, position: Tensor) -> tuple[Tensor, State]:
        """Whole chunks from a chunk boundary.

        Args:
            x: `[B, n * C, dim]`.
            state: the chunks before, and the sinks.
            position: `[B]` tokens of each stream before this call, multiples of C.

        Returns:
            `[B, n * C, dim]`, and the next chunks and sinks.
        """
        tokens, span = x.shape[1], self.past * self.chunk
        q, k, v = self._project(x)
        at = torch.arange(tokens, device=x.device)
        stored = rotate(k, *self._table(at % self.chunk, x.dtype))
        keys = torch.cat([self._side_by_side(state["key"]), rotate(k, *self._table(span + at, x.dtype))], dim=2)
        values = torch.cat([state["value"], v], dim=2)
        turned = self._flat(rotate(q, *self._table(self.positions + span + at, x.dtype)))
        visible = self._in_band(at) & self._begun(position, span + tokens, span)[:, None]
        sources = [(self._scored(turned, keys, visible), values)]
        changed = {"key": torch.cat([state["key"], stored], dim=2)[:, :, -span:], "value": values[:, :, -span:]}
        if self.sinks:
            first = (position == 0)[:, None, None, None]
            for name, own in (("sink_key", stored), ("sink_value", v)):
                changed[name] = torch.where(first, own[:, :, : self.sinks], state[name])
            sources.insert(0, self._at_sinks(q, changed, position[:, None] + at))
        return self._attend(sources, tokens), changed

    def extend(self, x: Tensor, state: State, position: Tensor, place: Tensor) -> tuple[Tensor, State]:
        """Some tokens inside a chunk.

        Args:
            x: `[B, T, dim]`, right-padded.
            state: the chunks before, the sinks and the chunk's rows.
            position: `[B]` tokens of each stream before this call.
            place: `[B, T]` chunk positions of the tokens.

        Returns:
            `[B, T, dim]`, and the new rows `[T, B, K, d]`.
        """
        tokens, own = x.shape[1], place[:, :, None]
        q, k, v = self._project(x)
        k = rotate(k, *self._table(place[:, None], x.dtype))
        past, at_own = self._turned(q, place)
        rows = torch.arange(self.chunk, device=x.device)
        in_rows = (rows < own[:, :1]) & (own - rows < self.window)
        among = None  # a token sees itself
        if tokens > 1:
            ahead = own - own.transpose(1, 2)
            among = (ahead >= 0) & (ahead < self.window)
        sources = [
            (self._past_scores(past, state["key"], place, position), state["value"]),
            (self._scored(at_own, from_rows(state["chunk_key"]), in_rows), from_rows(state["chunk_value"])),
            (self._scored(at_own, k, among), v),
        ]
        if self.sinks:
            at = position[:, None] + torch.arange(tokens, device=x.device)
            sources.insert(0, self._at_sinks(q, state, at))
        return self._attend(sources, tokens), {"chunk_key": as_rows(k), "chunk_value": as_rows(v)}

    def commit(self, state: State, position: Tensor) -> State:
        """Drop the oldest chunk for a full chunk of rows; the first rows of the stream become its sinks.

        Args:
            state: all entries.
            position: `[B]` tokens of each stream, a multiple of C.
        """
        changed: State = {}
        first = (position == self.chunk)[:, None, None, None]
        for name in ("key", "value"):
            rows = from_rows(state[f"chunk_{name}"])
            changed[name] = torch.cat([state[name][:, :, self.chunk :], rows], dim=2)
            if self.sinks:
                changed[f"sink_{name}"] = torch.where(first, rows[:, :, : self.sinks], state[f"sink_{name}"])
        return changed

    # ---------------------------------------------------------------- parts

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries `[B, K, G, T, d]`, keys and values `[B, K, T, d]`, none of them rotated."""
        batch, tokens, _ = x.shape
        projected = self.to_qkv(x)
        if self.qkv_bias is not None:
            projected = projected + self.qkv_bias
        split = projected.reshape(batch, tokens, self.heads + 2 * self.kv_heads, self.width)
        q, k, v = torch.split(split, [self.heads, self.kv_heads, self.kv_heads], dim=2)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        q = q.transpose(1, 2).reshape(batch, self.kv_heads, self.group, tokens, self.width)
        return q, k.transpose(1, 2), v.transpose(1, 2)

    def _table(self, places: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines `[..., d]` of the places."""
        return self.cosine.to(dtype)[places], self.sine.to(dtype)[places]

    def _turned(self, q: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """Queries turned by their distance to the start of each chunk before theirs, and of their own.

        Args:
            q: `[B, K, G, T, d]`.
            place: `[B, T]` places of the queries in their chunk.

        Returns:
            `[B, K, past, G * T, d]`, the oldest chunk first, and `[B, K, G * T, d]`.
        """
        ages = self.chunk * torch.arange(self.past, -1, -1, device=q.device)  # from a chunk's start to this one's
        places = self.positions + place[:, None] + ages[:, None]  # [B, past + 1, T]
        turned = rotate(q[:, :, None], *self._table(places[:, None, :, None], q.dtype))
        past, own = torch.split(turned.flatten(3, 4), [self.past, 1], dim=2)
        return past, own.squeeze(2)

    def _past_scores(self, turned: Tensor, key: Tensor, place: Tensor, position: Tensor) -> Tensor:
        """Scores `[B, K, G * T, past * C]` of queries `[B, K, past, G * T, d]` with the chunks before this one."""
        batch, heads, past, rows, width = turned.shape
        by_chunk = key.reshape(batch, heads, past, self.chunk, width)
        score = (turned @ by_chunk.transpose(-1, -2)).transpose(2, 3).reshape(batch, heads, rows, -1)
        span = self.past * self.chunk
        back = torch.arange(span, 0, -1, device=key.device)  # from a slot to this chunk's start
        begun = self._begun(position - place[:, 0], span, span)
        return self._masked(score, (place[:, :, None] + back < self.window) & begun[:, None])

    def _side_by_side(self, key: Tensor) -> Tensor:
        """Keys `[B, K, past * C, d]`, rotated inside their chunks, turned on to their places in one row of chunks."""
        batch, heads, _, width = key.shape
        starts = self.chunk * torch.arange(self.past, device=key.device)
        by_chunk = key.reshape(batch, heads, self.past, self.chunk, width)
        return rotate(by_chunk, *self._table(starts[:, None], key.dtype)).reshape(key.shape)

    def _at_sinks(self, q: Tensor, state: State, at: Tensor) -> Source:
        """The sinks as a source for queries `[B, K, G, T, d]` at the stream's places `at` `[B, T]`."""
        places = torch.clamp(at, max=self.sinks + self.window - 1)
        turned = self._flat(rotate(q, *self._table(self.positions + places[:, None, None], q.dtype)))
        behind = torch.arange(self.sinks, device=at.device) + self.window <= at[:, :, None]
        return self._scored(turned, state["sink_key"], behind), state["sink_value"]

    def _in_band(self, at: Tensor) -> Tensor:
        """Which of `past * C + T` keys the T queries of whole chunks see: bool `[T, past * C + T]`."""
        span = self.past * self.chunk
        back = span + at[:, None] - torch.arange(span + at.shape[0], device=at.device)
        return (back >= 0) & (back < self.window)

    @staticmethod
    def _begun(started: Tensor, slots: int, span: int) -> Tensor:
        """Which of the slots hold a token: bool `[B, slots]`, the first `span` of them before place `started` `[B]`."""
        return torch.arange(slots, device=started.device) + started[:, None] >= span

    @staticmethod
    def _flat(q: Tensor) -> Tensor:
        """`[B, K, G, T, d] -> [B, K, G * T, d]`."""
        return q.flatten(2, 3)

    def _scored(self, turned: Tensor, key: Tensor, visible: Tensor | None) -> Tensor:
        """Scores `[B, K, G * T, n]`; `visible` is bool `[B or 1, T, n]`, None is everything."""
        score = turned @ key.transpose(-1, -2)
        return score if visible is None else self._masked(score, visible)

    def _masked(self, score: Tensor, visible: Tensor) -> Tensor:
        batch, heads, rows, slots = score.shape
        apart = score.reshape(batch, heads, self.group, rows // self.group, slots)
        return masked(apart, visible[:, None, None]).flatten(2, 3)

    def _attend(self, sources: list[Source], tokens: int) -> Tensor:
        """Softmax over all sources together, heads side by side, and the output projection: `[B, T, dim]`."""
        weights = torch.softmax(torch.cat([score for score, _ in sources], dim=-1), dim=-1)
        parts = torch.split(weights, [value.shape[-2] for _, value in sources], dim=-1)
        heads = parts[0] @ sources[0][1]
        for part, (_, value) in zip(parts[1:], sources[1:], strict=True):
            heads = heads + part @ value
        batch = heads.shape[0]
        apart = heads.reshape(batch, self.heads, tokens, self.width)
        out: Tensor = self.out(apart.transpose(1, 2).reshape(batch, tokens, -1))
        return out if self.out_bias is None else out + self.out_bias


def rotary_table(config: DecoderConfig, rotated: bool = True) -> Tensor:
    """Cosines and sines of all places that the forms turn by: fp64 `[2, 2 * positions, d]`.

    Behind the places of keys are those of queries, scaled so that products with keys are logits. It is made on the CPU,
    where a model without memory (on PyTorch's `meta` device) has real tables too.
    """
    positions = max(config.past_chunks * config.chunk + config.prefill, config.sinks + config.window)
    positions = max(positions, (config.past_chunks + 2) * config.chunk)  # padding reaches into the next chunk
    frequencies = torch.tensor(config.rotary_frequencies, dtype=torch.float64, device="cpu")
    scale = config.head_width**-0.5
    if rotated:
        scale *= config.rotary_magnitude**2
    else:
        frequencies = torch.zeros_like(frequencies)  # every place is place 0
    angle = torch.arange(positions, dtype=torch.float64, device="cpu")[:, None] * frequencies
    angle = torch.cat([angle, angle], dim=-1)
    table = torch.stack([angle.cos(), angle.sin()])
    return torch.cat([table, table * scale], dim=1)
