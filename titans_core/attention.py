"""Attention over a bounded past: a sliding window, or the segment of a memory-as-context block.

Keys carry no absolute position. A key is rotated once, by its place inside its own chunk; a window is whole chunks of
such keys, and a query is turned once for each of them, by its distance to that chunk's start. So angles stay bounded
however long the stream is, and a step reads the window as it lies. Persistent memory is kept as learned keys and values
(what the persistent tokens of §3.3 become after their projections); it has no place in time and is not rotated.
Queries and keys are normalised, which keeps the logits bounded at high learning rates.

Knows nothing about the memory; returns the heads side by side, before any output projection.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from titans_core.config import TitansConfig
from titans_core.layers import (
    Linear,
    as_rows,
    from_rows,
    merge_heads,
    normalised_heads,
    rms_normalise,
    rotary_table,
    rotate,
    split_heads,
)
from titans_core.state import State, StateSpec

Source = tuple[Tensor, Tensor]  # scores [..., T, n] and values [..., n, d]


class _Attention(nn.Module):
    """What both kinds share: persistent keys and values, the rotary table, the softmax over several sources."""

    def __init__(self, config: TitansConfig, positions: int) -> None:
        super().__init__()
        self.heads, self.width, self.chunk = config.heads, config.dim // config.heads, config.chunk
        count = config.persistent_tokens
        self.persistent_key = self.persistent_value = None
        if count:
            self.persistent_key = nn.Parameter(torch.randn(self.heads, count, self.width))
            self.persistent_value = nn.Parameter(torch.randn(self.heads, count, self.width) * 0.02)
        # Behind the places of keys are those of queries, scaled so that products with keys are logits.
        self.positions, self.scale = positions, self.width**-0.5
        table = rotary_table(positions, self.width, config.rope_base)
        table = torch.cat([table, table * self.scale], dim=1).float()
        self.register_buffer("cosine", table[0], persistent=False)
        self.register_buffer("sine", table[1], persistent=False)

    cosine: Tensor  # [2 * positions, d]
    sine: Tensor  # the same

    def normalised(self, x: Tensor) -> Tensor:
        """Projected queries or keys `[B, T, n * d]` as `[B, n, T, d]`, with a root mean square of 1."""
        return normalised_heads(x, self.width, rms_normalise)

    def rotate_from(self, x: Tensor, first: int) -> Tensor:
        """`x` `[..., n, d]` rotated by the places `first ... first + n - 1`."""
        last = first + x.shape[-2]
        return rotate(x, self.cosine[first:last].to(x.dtype), self.sine[first:last].to(x.dtype))

    def rotate_at(self, x: Tensor, places: Tensor) -> Tensor:
        """`x` `[B, H, ..., T, d]` rotated by the places `[B, ..., T]`."""
        return rotate(x, self.cosine[places][:, None].to(x.dtype), self.sine[places][:, None].to(x.dtype))

    def attend(self, plain: Tensor, sources: Sequence[Source]) -> Tensor:
        """Softmax over persistent memory and `sources` together, without concatenating the cached values.

        Args:
            plain: the queries `[..., T, d]`, neither rotated nor scaled.
            sources: scores `[..., T, n]` and values `[..., n, d]`.

        Returns:
            `[..., T, d]`.
        """
        sources = list(sources)
        if self.persistent_key is not None and self.persistent_value is not None:
            score = plain @ rms_normalise(self.persistent_key, scale=self.scale).transpose(-1, -2)
            sources.insert(0, (score, self.persistent_value))
        weights = torch.softmax(torch.cat([score for score, _ in sources], dim=-1), dim=-1)
        parts = torch.split(weights, [value.shape[-2] for _, value in sources], dim=-1)
        out: Tensor = parts[0] @ sources[0][1]
        for part, (_, value) in zip(parts[1:], sources[1:], strict=True):
            out = out + part @ value
        return out


def scored(query: Tensor, key: Tensor, visible: Tensor | None) -> Tensor:
    """Scores of rotated queries `[..., T, d]` and keys `[..., n, d]`, `[..., T, n]`.

    `visible` says which pairs may see each other, a bool that broadcasts to the scores; None is all of them.
    """
    score = query @ key.transpose(-1, -2)
    return score if visible is None else masked(score, visible)


def masked(score: Tensor, visible: Tensor) -> Tensor:
    """Scores, lowered out of sight where `visible`, a bool that broadcasts to them, is false.

    An addition, as layers share what is added. Half of the lowest number, so that no sum overflows.
    """
    hidden = torch.full((), torch.finfo(score.dtype).min / 2, dtype=score.dtype, device=score.device)
    return score + torch.where(visible, torch.zeros_like(hidden), hidden)


class SlidingWindowAttention(_Attention):
    """Causal attention over the last `window` tokens, the query's own included.

    The cache holds whole chunks, as many as the window reaches into; what of the oldest lies outside is never seen.
    """

    def __init__(self, config: TitansConfig) -> None:
        self.window, self.past = config.window, -(-config.window // config.chunk)  # in tokens, in chunks
        super().__init__(config, (self.past + 2) * config.chunk)  # padding reaches into the next chunk
        self.to_qkv = Linear(config.dim, 3 * config.dim)

    def state_specs(self) -> list[StateSpec]:
        """The chunks before this one as they stood at the last commit, and the chunk's own keys and values."""
        past, rows = (self.heads, self.past * self.chunk, self.width), (self.chunk, self.heads, self.width)
        return [
            StateSpec("key", "carried", past, 0.0, "activation"),
            StateSpec("value", "carried", past, 0.0, "activation"),
            StateSpec("chunk_key", "rows", rows, 0.0, "activation"),
            StateSpec("chunk_value", "rows", rows, 0.0, "activation"),
        ]

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dim = self.heads * self.width
        queries_keys, v = torch.split(self.to_qkv(x), [2 * dim, dim], dim=-1)
        q, k = self.normalised(queries_keys).chunk(2, dim=1)
        return q, k, split_heads(v, self.heads)

    def _turned(self, q: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """Queries turned by their distance to the start of each chunk before theirs, and of their own.

        Args:
            q: `[B, H, T, d]`.
            place: `[B or 1, T]` places of the queries in their chunk.

        Returns:
            `[B, H, past, T, d]`, the oldest chunk first, and `[B, H, T, d]`.
        """
        ages = self.chunk * torch.arange(self.past, -1, -1, device=q.device)  # from a chunk's start to this one's
        turns = self.positions + place[:, None] + ages[:, None]  # [B, past + 1, T]
        past, own = torch.split(self.rotate_at(q[:, :, None], turns), [self.past, 1], dim=2)
        return past, own.squeeze(2)

    def _past_scores(self, turned: Tensor, key: Tensor, visible: Tensor) -> Tensor:
        """Scores with the chunks before this one.

        Args:
            turned: `[B, H, past, T, d]`, queries as `_turned`.
            key: `[B, H, past * C, d]`, the oldest chunk first.
            visible: bool `[B or 1, T, past * C]`.

        Returns:
            `[B, H, T, past * C]`.
        """
        batch, heads, past, tokens, width = turned.shape
        chunks = key.reshape(batch, heads, past, self.chunk, width)
        score = (turned @ chunks.transpose(-1, -2)).transpose(2, 3).reshape(batch, heads, tokens, -1)
        return masked(score, visible[:, None])

    def chunks(self, x: Tensor, state: State, position: Tensor) -> tuple[Tensor, State]:
        """Whole chunks from a chunk boundary.

        Args:
            x: `[B, n * C, dim]`.
            state: the chunks before, `key` and `value`.
            position: `[B]` tokens of each stream before this call.

        Returns:
            `[B, n * C, dim]`, and the next `key` and `value`.
        """
        chunk, span = self.chunk, self.past * self.chunk
        batch, count = x.shape[0], x.shape[1] // chunk
        q, k, v = (self._by_chunk(part) for part in self._project(x))  # [B * n, H, C, d], chunks beside streams
        k = self.rotate_from(k, 0)
        keys = torch.cat([state["key"], self._by_stream(k, batch)], dim=2)
        values = torch.cat([state["value"], self._by_stream(v, batch)], dim=2)
        firsts = [slice(c * chunk, c * chunk + span) for c in range(count)]
        past_keys, past_values = (
            torch.stack([stream[:, :, first] for first in firsts], dim=1).flatten(0, 1) for stream in (keys, values)
        )
        place = torch.arange(chunk, device=x.device)
        starts = (position[:, None] + chunk * torch.arange(count, device=x.device)).reshape(-1, 1)
        in_past = self._in_past(place[None], starts)
        ahead = place[:, None] - place
        among = (ahead >= 0) & (ahead < self.window)
        turned, own = self._turned(q, place[None])
        past = self._past_scores(turned, past_keys, in_past)
        out = self.attend(q, [(past, past_values), (scored(own, k, among), v)])
        return merge_heads(out).reshape(x.shape), {"key": keys[:, :, -span:], "value": values[:, :, -span:]}

    def extend(self, x: Tensor, state: State, position: Tensor, place: Tensor) -> tuple[Tensor, State]:
        """Some tokens inside a chunk.

        Args:
            x: `[B, T, dim]`, right-padded.
            state: the chunks before and the chunk's rows.
            position: `[B]` tokens of each stream before this call.
            place: `[B, T]` chunk positions of the tokens.

        Returns:
            `[B, T, dim]`, and the new rows `[T, B, H, d]`.
        """
        q, k, v = self._project(x)
        k, (turned, at_own) = self.rotate_at(k, place), self._turned(q, place)
        started = (position - place[:, 0])[:, None]
        own = place[:, :, None]
        rows = torch.arange(self.chunk, device=x.device)
        in_rows = (rows < own[:, :1]) & (own - rows < self.window)
        among = None  # a token sees itself
        if x.shape[1] > 1:
            ahead = own - own.transpose(1, 2)
            among = ((ahead >= 0) & (ahead < self.window))[:, None]
        out = self.attend(
            q,
            [
                (self._past_scores(turned, state["key"], self._in_past(place, started)), state["value"]),
                (scored(at_own, from_rows(state["chunk_key"]), in_rows[:, None]), from_rows(state["chunk_value"])),
                (scored(at_own, k, among), v),
            ],
        )
        return merge_heads(out), {"chunk_key": as_rows(k), "chunk_value": as_rows(v)}

    def commit(self, state: State) -> State:
        """Drop the oldest chunk for a full chunk of rows."""
        return {
            name: torch.cat([state[name][:, :, self.chunk :], from_rows(state[f"chunk_{name}"])], dim=2)
            for name in ("key", "value")
        }

    def _in_past(self, place: Tensor, started: Tensor) -> Tensor:
        """Which slots of the chunks before a query sees.

        Args:
            place: `[B or 1, T]` of the queries in their chunk.
            started: `[B, 1]` tokens of the stream before that chunk.

        Returns:
            bool `[B, T, past * C]`.
        """
        back = torch.arange(self.past * self.chunk, 0, -1, device=place.device)  # from a slot to this chunk's start
        return (place[:, :, None] + back < self.window) & (back <= started[:, :, None])

    def _by_chunk(self, x: Tensor) -> Tensor:
        """`[B, H, n * C, d] -> [B * n, H, C, d]`."""
        return split_heads(merge_heads(x).reshape(-1, self.chunk, self.heads * self.width), self.heads)

    def _by_stream(self, x: Tensor, batch: int) -> Tensor:
        """`[B * n, H, C, d] -> [B, H, n * C, d]`."""
        return split_heads(merge_heads(x).reshape(batch, -1, self.heads * self.width), self.heads)


class SegmentAttention(_Attention):
    """Attention over `[persistent | h | x]` inside one segment, causal in both h and x.

    As printed in the paper a query would see all of h, which is read with queries of later tokens; h_j is therefore
    visible only to tokens from j on. Places inside a segment are fixed, so keys are stored rotated. A layer without
    a memory has no h.
    """

    def __init__(self, config: TitansConfig, reads: bool) -> None:
        super().__init__(config, 2 * config.chunk)
        self.kinds = ("read", "chunk") if reads else ("chunk",)
        self.to_query = Linear(config.dim, config.dim)
        self.to_key_value = Linear(config.dim, 2 * config.dim)
        with torch.no_grad():  # a token starts by attending to itself: what the memory is written with knows what it is
            self.to_key_value.weight[:, : config.dim] = self.to_query.weight

    def state_specs(self) -> list[StateSpec]:
        """Keys and values of the segment so far: of its tokens (`chunk_*`) and of the memory's answers (`read_*`)."""
        rows = (self.chunk, self.heads, self.width)
        names = [f"{kind}_{part}" for kind in self.kinds for part in ("key", "value")]
        return [StateSpec(name, "rows", rows, 0.0, "activation") for name in names]

    def _project(self, x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of x, and keys and values of both: `[B, T, dim]`, and twice `[B, kinds * T, dim]`, h before x.

        h and x share one matmul, so a step reads its weight once.
        """
        inputs = x if h is None else torch.cat([h, x], dim=1)
        k, v = self.to_key_value(inputs).chunk(2, dim=-1)
        return self.to_query(x), k, v

    def segment(self, x: Tensor, h: Tensor | None) -> Tensor:
        """One whole segment: `[B, C, dim]` tokens and answers, result `[B, C, dim]`."""
        queries, keys, values = self._project(x, h)
        q, keys, values = self.normalised(queries), self.normalised(keys), split_heads(values, self.heads)
        place = torch.arange(self.chunk, device=x.device)
        visible = place <= place[:, None]
        kinds = len(self.kinds)
        pairs = zip(keys.chunk(kinds, dim=2), values.chunk(kinds, dim=2), strict=True)
        turned = self.rotate_from(q, self.positions)
        sources = [(scored(turned, self.rotate_from(key, 0), visible), value) for key, value in pairs]
        return merge_heads(self.attend(q, sources))

    def extend(
        self, x: Tensor, h: Tensor | None, state: State, position: Tensor, place: Tensor
    ) -> tuple[Tensor, State]:
        """Some tokens inside a segment.

        Args:
            x, h: the new tokens and the memory's answers to them, `[B, T, dim]`, right-padded.
            state: the segment's rows.
            position: `[B]` tokens of each stream before this call; places say it all here.
            place: `[B, T]` places of the tokens in the segment.

        Returns:
            `[B, T, dim]`, and the new rows `[T, B, H, d]`.
        """
        queries, keys, values = self._project(x, h)
        values = split_heads(values, self.heads)
        kinds, tokens = len(self.kinds), x.shape[1]
        plain = self.normalised(torch.cat([keys, queries], dim=1))  # keys and queries: fewer and larger operators
        turned = self.rotate_at(plain, torch.cat([place] * kinds + [self.positions + place], dim=1))
        keys, turned = torch.split(turned, [kinds * tokens, tokens], dim=2)
        earlier = (torch.arange(self.chunk, device=x.device) < place[:, :1, None])[:, None]
        among_new = None  # a token sees itself, and the answer to it
        if x.shape[1] > 1:
            among_new = (place[:, None, :] <= place[:, :, None])[:, None]
            among_new = torch.cat([among_new] * kinds, dim=-1)
        sources: list[Source] = [(scored(turned, keys, among_new), values)]
        rows: State = {}
        parts = zip(self.kinds, keys.chunk(kinds, dim=2), values.chunk(kinds, dim=2), strict=True)
        for kind, key, value in parts:
            sources.append(
                (scored(turned, from_rows(state[f"{kind}_key"]), earlier), from_rows(state[f"{kind}_value"]))
            )
            rows |= {f"{kind}_key": as_rows(key), f"{kind}_value": as_rows(value)}
        return merge_heads(self.attend(plain[:, :, kinds * tokens :], sources)), rows
