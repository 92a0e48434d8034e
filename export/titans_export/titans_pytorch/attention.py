"""titans-pytorch's segmented attention: inside a segment, or over a window that slides, with persistent keys.

A segment is `segment_len` tokens and the long-term memory tokens behind them; a token's place in it is its slot. Keys
are rotated by their slot when they are stored, and turned back by one segment when they become the past, so that
angles stay within two segments however long a stream is; only differences of positions enter. Persistent keys are not
rotated at all while queries are, by their place in the whole stream, so that part of attention depends on that place.

Knows one layer's attention and its state. Does not know where in a stream a segment is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from titans_core.state import State, StateSpec
from titans_export.titans_pytorch.memory import rms_norm, split_last
from titans_export.titans_pytorch.options import TransformerOptions
from titans_export.titans_pytorch.parameters import Reader

Part = tuple[Tensor, Tensor, Tensor | None]  # keys and values [B, H, n, d], and which may be seen

MASKED = -1e9  # far below any score, and finite


@dataclass(frozen=True)
class Slots:
    """Where the tokens of a call are.

    Attributes:
        index: `[B]` of the token in the stream, long-term memory tokens counted; of a segment, its first token's.
        slot: `[B]` slot of the one token of a step.
        started: `[B]` bool, whether there is a segment before this one.
        longterm: whether the token is a long-term memory token.
    """

    index: Tensor
    slot: Tensor
    started: Tensor
    longterm: bool = False


class Attention(nn.Module):
    """One layer's attention. State: keys and values of the segment so far, and of the one before if it slides."""

    def __init__(self, options: TransformerOptions, first: bool, read: Reader) -> None:
        super().__init__()
        self.options = o = options
        inner = o.heads * o.dim_head
        self.norm = read.parameter("norm.weight", (o.dim,))
        self.to_qkv = read.matrix("to_qkv.weight", o.dim, 3 * inner)
        self.to_out = read.matrix("to_out.weight", inner, o.dim)
        self.mix = None if first else read.matrix("to_learned_v_mix.0.weight", o.dim, o.heads)
        self.mix_bias = None if first else read.parameter("to_learned_v_mix.0.bias", (o.heads,))
        shape = (2, o.heads, o.num_persist_mem_tokens, o.dim_head)
        persistent = read.tensor("persistent_memory", shape)
        self.persistent_key = nn.Parameter(persistent[0].clone(), requires_grad=False)
        self.persistent_value = nn.Parameter(persistent[1].clone(), requires_grad=False)
        frequencies = read.tensor("rotary_emb.freqs", (o.dim_head // 2,)).repeat_interleave(2)
        swap = torch.zeros(
            o.dim_head, o.dim_head
        )  # (a, b) to (-b, a) for every pair of channels: exact, and one operator
        pairs = torch.arange(0, o.dim_head, 2)
        swap[pairs + 1, pairs], swap[pairs, pairs + 1] = -1.0, 1.0
        self.pair_swap = nn.Parameter(swap, requires_grad=False)
        self.frequencies = nn.Parameter(frequencies, requires_grad=False)
        angles = torch.arange(o.window + 1, dtype=torch.float32)[:, None] * frequencies
        self.cos = nn.Parameter(angles.cos(), requires_grad=False)  # [window + 1, d]
        self.sin = nn.Parameter(angles.sin(), requires_grad=False)

    def state_specs(self) -> list[StateSpec]:
        """Of this layer."""
        o = self.options
        row = (o.segment_len, o.heads, o.dim_head)
        specs = [StateSpec("chunk_key", "rows", row), StateSpec("chunk_value", "rows", row)]
        for there, name, length in (
            (o.num_longterm_mem_tokens > 0, "longterm", o.num_longterm_mem_tokens),
            (o.sliding_window_attn, "past", o.window),
        ):
            shape = (o.heads, length, o.dim_head)
            specs += [StateSpec(f"{name}_{part}", "carried", shape) for part in ("key", "value") if there]
        return specs

    def _split(self, x: Tensor) -> Tensor:
        return split_last(x, self.options.heads, self.options.dim_head).transpose(1, 2)

    def project(self, x: Tensor, value_residual: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys, values `[B, H, n, d]`, and the values before the first layer's were mixed in."""
        x = rms_norm(x, self.norm)
        q, k, own = (self._split(part) for part in (x @ self.to_qkv).chunk(3, dim=-1))
        if self.mix is None or self.mix_bias is None or value_residual is None:
            return q, k, own, own
        mix = torch.sigmoid(x @ self.mix + self.mix_bias).transpose(1, 2).unsqueeze(-1)
        return q, k, own + mix * (value_residual - own), own

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Turn pairs of channels; `cos` and `sin` broadcast to x."""
        return x * cos + x @ self.pair_swap * sin

    def _attend(self, q: Tensor, index: Tensor, cos: Tensor, sin: Tensor, parts: list[Part]) -> Tensor:
        """Attention over persistent keys and values, and others in parts; `[B, n, dim]`.

        Args:
            q: not yet rotated.
            index: `[B, n]` places in the stream.
            cos, sin: the queries' rotation by their slots.
            parts: keys, values, and the mask of what may be seen.
        """
        q = q * self.options.dim_head**-0.5
        turned = self.rotate(q, cos, sin)
        scores: list[Tensor] = []
        values: list[Tensor] = []
        if self.options.num_persist_mem_tokens:
            angles = (index.to(q.dtype).unsqueeze(-1) * self.frequencies).unsqueeze(1)
            scores.append(self.rotate(q, angles.cos(), angles.sin()) @ self.persistent_key.transpose(-1, -2))
            values.append(self.persistent_value)
        for key, value, seen in parts:
            score = turned @ key.transpose(-1, -2)
            scores.append(score if seen is None else score.masked_fill(~seen, MASKED))
            values.append(value)
        shares = torch.softmax(torch.cat(scores, dim=-1), dim=-1)
        own = torch.split(shares, [value.shape[-2] for value in values], dim=-1)
        out = own[0] @ values[0]
        for share, value in zip(own[1:], values[1:], strict=True):
            out = out + share @ value
        return out.transpose(1, 2).flatten(2) @ self.to_out

    def step(self, x: Tensor, at: Slots, state: State, value_residual: Tensor | None) -> tuple[Tensor, Tensor, State]:
        """One token.

        Args:
            x: `[B, 1, dim]`.
            at: its slot.
            state: this layer's.
            value_residual: the first layer's values, `[B, H, 1, d]`.

        Returns:
            `[B, 1, dim]`, this layer's values before mixing, and the states that change: rows, or for a long-term
            memory token the carried table of those.
        """
        o = self.options
        q, k, v, own = self.project(x, value_residual)
        cos, sin = (table[at.slot][:, None, None] for table in (self.cos, self.sin))
        k = self.rotate(k, cos, sin)
        slot = at.slot[:, None, None, None]
        parts: list[Part] = []
        if o.sliding_window_attn:
            seen = (torch.arange(o.window) >= slot) & at.started[:, None, None, None]
            parts.append((state["past_key"], state["past_value"], seen))
        seen = torch.arange(o.segment_len) < slot
        keys, values = (state[f"chunk_{name}"].permute(1, 2, 0, 3) for name in ("key", "value"))
        parts.append((keys, values, None if at.longterm else seen))
        changed = {"chunk_key": k.permute(2, 0, 1, 3), "chunk_value": v.permute(2, 0, 1, 3)}
        if at.longterm:
            place = torch.arange(o.segment_len, o.window)
            parts.append((state["longterm_key"], state["longterm_value"], place < slot))
            here = (place == at.slot[:, None])[:, None, :, None]
            changed = {
                f"longterm_{name}": torch.where(here, new, state[f"longterm_{name}"])
                for name, new in (("key", k), ("value", v))
            }
        parts.append((k, v, None))
        return self._attend(q, at.index[:, None], cos, sin, parts), own, changed

    def segment(
        self, x: Tensor, at: Slots, state: State, value_residual: Tensor | None
    ) -> tuple[Tensor, Tensor, State]:
        """A whole segment, long-term memory tokens included: as `step` for every token, `[B, window, dim]`."""
        o = self.options
        q, k, v, own = self.project(x, value_residual)
        cos, sin = self.cos[: o.window], self.sin[: o.window]
        k = self.rotate(k, cos, sin)
        place = torch.arange(o.window)
        parts: list[Part] = []
        if o.sliding_window_attn:
            seen = (place >= place[:, None]) & at.started[:, None, None, None]
            parts.append((state["past_key"], state["past_value"], seen))
        parts.append((k, v, place <= place[:, None]))
        changed: State = {}
        if o.num_longterm_mem_tokens:
            changed = {f"longterm_{n}": t[:, :, o.segment_len :] for n, t in (("key", k), ("value", v))}
        if o.sliding_window_attn:
            changed |= {"past_key": self._turned_back(k), "past_value": v}
        return self._attend(q, at.index[:, None] + place, cos, sin, parts), own, changed

    def end_segment(self, state: State) -> State:
        """The segment that just ended becomes the past."""
        past: State = {}
        if self.options.sliding_window_attn:
            for name in ("key", "value"):
                own = state[f"chunk_{name}"].permute(1, 2, 0, 3)
                longterm = state.get(f"longterm_{name}")
                past[f"past_{name}"] = own if longterm is None else torch.cat([own, longterm], dim=2)
            past["past_key"] = self._turned_back(past["past_key"])
        return past

    def _turned_back(self, keys: Tensor) -> Tensor:
        """Keys whose slots are counted from the segment after theirs."""
        return self.rotate(keys, self.cos[-1], -self.sin[-1])
