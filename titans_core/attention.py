"""Attention over a bounded past: a sliding window, or the segment of a memory-as-context block.

Keys carry no absolute position. A window caches them un-rotated and every query rotates them by their place inside
the window, so angles stay bounded however long the stream is. Persistent memory is kept as learned keys and values
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
    rms_normalise,
    rotary_table,
    rotate,
    split_heads,
)
from titans_core.state import State, StateSpec

Source = tuple[Tensor, Tensor, Tensor | None]  # keys, values, which pairs may see each other


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
        table = rotary_table(positions, self.width, config.rope_base)
        self.register_buffer("cosine", table[0].float(), persistent=False)
        self.register_buffer("sine", table[1].float(), persistent=False)

    cosine: Tensor
    sine: Tensor

    def rotate_from(self, x: Tensor, first: int) -> Tensor:
        """`x` `[..., n, d]` rotated by the places `first ... first + n - 1`."""
        last = first + x.shape[-2]
        return rotate(x, self.cosine[first:last].to(x.dtype), self.sine[first:last].to(x.dtype))

    def rotate_at(self, x: Tensor, places: Tensor) -> Tensor:
        """`x` `[B, H, T, d]` rotated by the places `[B, T]`."""
        return rotate(x, self.cosine[places][:, None].to(x.dtype), self.sine[places][:, None].to(x.dtype))

    def normalised_queries(self, q: Tensor) -> Tensor:
        """Queries `[..., d]` normalised, and scaled so that their products with keys are logits."""
        return rms_normalise(q, scale=self.width**-0.5)

    def attend(self, plain: Tensor, rotated: Tensor, sources: Sequence[Source]) -> Tensor:
        """Softmax over persistent memory and `sources` together, without concatenating the cached values.

        Args:
            plain, rotated: the queries `[..., T, d]`, before and after rotation, scaled.
            sources: rotated keys `[..., n, d]`, values `[..., n, d]`, and which pairs may see each other
                (bool, broadcastable to `[..., T, n]`; None is all of them).

        Returns:
            `[..., T, d]`.
        """
        values: list[Tensor] = []
        scores: list[Tensor] = []
        if self.persistent_key is not None and self.persistent_value is not None:
            scores.append(plain @ rms_normalise(self.persistent_key).transpose(-1, -2))
            values.append(self.persistent_value)
        for key, value, visible in sources:
            score = rotated @ key.transpose(-1, -2)
            scores.append(score if visible is None else score.masked_fill(~visible, torch.finfo(score.dtype).min))
            values.append(value)
        weights = torch.softmax(torch.cat(scores, dim=-1), dim=-1)
        parts = torch.split(weights, [value.shape[-2] for value in values], dim=-1)
        out: Tensor = parts[0] @ values[0]
        for part, value in zip(parts[1:], values[1:], strict=True):
            out = out + part @ value
        return out


class SlidingWindowAttention(_Attention):
    """Causal attention over the last `window` tokens, the query's own included."""

    def __init__(self, config: TitansConfig) -> None:
        super().__init__(config, config.window + 2 * config.chunk)
        self.window = config.window
        self.to_qkv = Linear(config.dim, 3 * config.dim)

    def state_specs(self) -> list[StateSpec]:
        """The window as it stood at the last commit, and the chunk's own keys and values."""
        window, rows = (self.heads, self.window, self.width), (self.chunk, self.heads, self.width)
        return [
            StateSpec("key", "carried", window, 0.0, "activation"),
            StateSpec("value", "carried", window, 0.0, "activation"),
            StateSpec("chunk_key", "rows", rows, 0.0, "activation"),
            StateSpec("chunk_value", "rows", rows, 0.0, "activation"),
        ]

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (split_heads(part, self.heads) for part in self.to_qkv(x).chunk(3, dim=-1))
        return self.normalised_queries(q), rms_normalise(k), v

    def chunks(self, x: Tensor, state: State, position: Tensor) -> tuple[Tensor, State]:
        """Whole chunks from a chunk boundary.

        Args:
            x: `[B, n * C, dim]`.
            state: the window, `key` and `value`.
            position: `[B]` tokens of each stream before this call.

        Returns:
            `[B, n * C, dim]`, and the next window.
        """
        chunk, window = self.chunk, self.window
        count = x.shape[1] // chunk
        q, k, v = self._project(x)
        keys = torch.cat([state["key"], k], dim=2)
        values = torch.cat([state["value"], v], dim=2)
        # chunk c sees the w tokens before it and itself: [B, n, H, w + C, d], chunks beside streams from here on
        spans = [slice(c * chunk, c * chunk + window + chunk) for c in range(count)]
        near_keys = torch.stack([keys[:, :, span] for span in spans], dim=1).flatten(0, 1)
        near_values = torch.stack([values[:, :, span] for span in spans], dim=1).flatten(0, 1)
        q = split_heads(merge_heads(q).reshape(-1, chunk, self.heads * self.width), self.heads)
        place = torch.arange(window + chunk, device=x.device)
        own = place[window:, None]
        visible = (place <= own) & (own - place < window)  # [C, w + C]
        starts = position[:, None] + chunk * torch.arange(count, device=x.device)
        exists = place >= window - starts.reshape(-1, 1)  # [B * n, w + C]: the window is not full yet
        sources = [(self.rotate_from(near_keys, 0), near_values, visible & exists[:, None, None])]
        out = merge_heads(self.attend(q, self.rotate_from(q, window), sources)).reshape(x.shape)
        return out, {"key": keys[:, :, -window:], "value": values[:, :, -window:]}

    def extend(self, x: Tensor, state: State, position: Tensor, place: Tensor) -> tuple[Tensor, State]:
        """Some tokens inside a chunk.

        Args:
            x: `[B, T, dim]`, right-padded.
            state: the window and the chunk's rows.
            position: `[B]` tokens of each stream before this call.
            place: `[B, T]` chunk positions of the tokens.

        Returns:
            `[B, T, dim]`, and the new rows `[T, B, H, d]`.
        """
        chunk, window = self.chunk, self.window
        q, k, v = self._project(x)
        own = window + place[:, :, None]  # [B, T, 1], counted from the window's first slot
        started = (position - place[:, 0])[:, None, None]
        slots = torch.arange(window, device=x.device)
        in_window = (own - slots < window) & (slots >= window - started)
        rows = window + torch.arange(chunk, device=x.device)
        in_rows = (rows < own[:, :1]) & (own - rows < window)
        ahead = own - own.transpose(1, 2)
        among_new = (ahead >= 0) & (ahead < window)
        out = self.attend(
            q,
            self.rotate_at(q, window + place),
            [
                (self.rotate_from(state["key"], 0), state["value"], in_window[:, None]),
                (
                    self.rotate_from(from_rows(state["chunk_key"]), window),
                    from_rows(state["chunk_value"]),
                    in_rows[:, None],
                ),
                (self.rotate_at(k, window + place), v, among_new[:, None]),
            ],
        )
        return merge_heads(out), {"chunk_key": as_rows(k), "chunk_value": as_rows(v)}

    def commit(self, state: State) -> State:
        """Slide the window over a full chunk of rows."""
        return {
            name: torch.cat([state[name], from_rows(state[f"chunk_{name}"])], dim=2)[:, :, -self.window :]
            for name in ("key", "value")
        }


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

    def state_specs(self) -> list[StateSpec]:
        """Keys and values of the segment so far: of its tokens (`chunk_*`) and of the memory's answers (`read_*`)."""
        rows = (self.chunk, self.heads, self.width)
        names = [f"{kind}_{part}" for kind in self.kinds for part in ("key", "value")]
        return [StateSpec(name, "rows", rows, 0.0, "activation") for name in names]

    def _project(self, x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of x, and keys and values of both: `[B, H, T, d]`, and twice `[B, H, kinds * T, d]`, h before x.

        h and x share one matmul, so a step reads its weight once.
        """
        inputs = x if h is None else torch.cat([h, x], dim=1)
        k, v = (split_heads(part, self.heads) for part in self.to_key_value(inputs).chunk(2, dim=-1))
        return self.normalised_queries(split_heads(self.to_query(x), self.heads)), rms_normalise(k), v

    def segment(self, x: Tensor, h: Tensor | None) -> Tensor:
        """One whole segment: `[B, C, dim]` tokens and answers, result `[B, C, dim]`."""
        q, keys, values = self._project(x, h)
        place = torch.arange(self.chunk, device=x.device)
        visible = place <= place[:, None]
        kinds = len(self.kinds)
        pairs = zip(keys.chunk(kinds, dim=2), values.chunk(kinds, dim=2), strict=True)
        sources = [(self.rotate_from(key, 0), value, visible) for key, value in pairs]
        return merge_heads(self.attend(q, self.rotate_from(q, 0), sources))

    def extend(self, x: Tensor, h: Tensor | None, state: State, place: Tensor) -> tuple[Tensor, State]:
        """Some tokens inside a segment.

        Args:
            x, h: the new tokens and the memory's answers to them, `[B, T, dim]`, right-padded.
            state: the segment's rows.
            place: `[B, T]` places of the tokens in the segment.

        Returns:
            `[B, T, dim]`, and the new rows `[T, B, H, d]`.
        """
        q, keys, values = self._project(x, h)
        kinds = len(self.kinds)
        keys = self.rotate_at(keys, torch.cat([place] * kinds, dim=1))
        earlier = (torch.arange(self.chunk, device=x.device) < place[:, :1, None])[:, None]
        among_new = None  # a token sees itself, and the answer to it
        if x.shape[1] > 1:
            among_new = (place[:, None, :] <= place[:, :, None])[:, None]
            among_new = torch.cat([among_new] * kinds, dim=-1)
        sources: list[Source] = [(keys, values, among_new)]
        rows: State = {}
        parts = zip(self.kinds, keys.chunk(kinds, dim=2), values.chunk(kinds, dim=2), strict=True)
        for kind, key, value in parts:
            sources.append((from_rows(state[f"{kind}_key"]), from_rows(state[f"{kind}_value"]), earlier))
            rows |= {f"{kind}_key": as_rows(key), f"{kind}_value": as_rows(value)}
        return merge_heads(self.attend(q, self.rotate_at(q, place), sources)), rows
