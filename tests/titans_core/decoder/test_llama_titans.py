"""The architecture of llama-titans as a configuration: a memory before every layer, a window as long as a chunk.

Its memory is one head of the full width with two matrices, four times as wide inside, with a residual norm, momentum
and steps of up to 1. It adds its answer to the stream before attention. Here the whole model is written out token by
token: the memory by `reference_memory` with autograd, attention as one softmax per query, without the decoder's code.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.titans_core.decoder.grafts import ROTARY, SMALL
from titans_core.config import MemoryConfig
from titans_core.decoder import Decoder, StreamConfig
from titans_core.decoder.graft import StreamGraft
from titans_core.decoder.model import DecoderLayer
from titans_core.decoder.stream_memory import Place, StreamMemory
from titans_core.reference import reference_memory

SEGMENT, TOKENS, SAME = 8, 32, 2e-6  # the table of angles is fp32, all else fp64
MEMORY = MemoryConfig(
    heads=1, depth=2, expansion=4.0, residual_norm=True, momentum=True, max_step_size=1.0, conv_kernel=1
)


def model(place: Place) -> Decoder:
    torch.manual_seed(3)
    shape = dataclasses.replace(SMALL, window=SEGMENT, sinks=0, chunk=SEGMENT, prefill=2 * SEGMENT)
    made = Decoder(shape)
    made.attach(StreamConfig(layers=(0, 1, 2), dim=shape.dim, place=place, memory=MEMORY))
    with torch.no_grad():
        for path, parameter in made.named_parameters():
            if path.startswith("graft."):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return made.double()


def norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * gain


def turned(row: Tensor, place: int) -> Tensor:
    """One head's vector, rotated by its place in the stream."""
    angles = place * torch.tensor([*ROTARY, *ROTARY]).double()
    swapped = torch.cat([-row[4:], row[:4]])
    return row * angles.cos() + swapped * angles.sin()


def attention(layer: DecoderLayer, x: Tensor) -> Tensor:
    """`[T, dim]`: every query over its window; two heads of queries share one of keys."""
    q, k, v = torch.split(x @ layer.attention.to_qkv.weight, [32, 16, 16], dim=-1)
    rows = []
    for t in range(len(x)):
        seen, heads = range(max(0, t - SEGMENT + 1), t + 1), []
        for head in range(4):
            own, shared = slice(8 * head, 8 * head + 8), slice(8 * (head // 2), 8 * (head // 2) + 8)
            keys = torch.stack([turned(k[s, shared], s) for s in seen])
            weights = torch.softmax(keys @ turned(q[t, own], t) / 8**0.5, dim=0)
            heads.append(weights @ v[seen.start : seen.stop, shared])
        rows.append(torch.cat(heads))
    return torch.stack(rows) @ layer.attention.out.weight


def remembered(memory: StreamMemory, x: Tensor) -> Tensor:
    """What the memory adds to `[T, dim]`."""
    read = reference_memory(memory.reader.memory, norm(x, memory.norm.gain, 1e-5)[None]).answers[0]
    return norm(read, memory.reader.norm.gain, memory.reader.norm.eps) @ memory.out.weight


def literal(made: Decoder, ids: Tensor, place: Place) -> Tensor:
    assert isinstance(made.graft, StreamGraft)
    x = made.embedding[ids]
    for number, layer in enumerate(made.layers):
        assert isinstance(layer, DecoderLayer)
        memory = made.graft.memories()[str(number)]
        added = remembered(memory, x)
        x = x + added if place == "before" else x
        attended = attention(layer, norm(x, layer.attention_norm.gain, 1e-5))
        x = x + attended if place == "before" else x + attended + added
        gate, up = (norm(x, layer.mlp_norm.gain, 1e-5) @ layer.mlp.up.weight).chunk(2, dim=-1)
        x = x + (F.silu(gate) * up) @ layer.mlp.down.weight
    assert made.head is not None
    return norm(x, made.norm.gain, 1e-5) @ made.head.weight


@pytest.mark.parametrize("place", ["before", "beside"])
@torch.no_grad()
def test_logits_are_those_of_the_model_written_out_token_by_token(place: Place) -> None:
    made = model(place)
    ids = torch.randint(0, SMALL.vocab_size, (1, TOKENS), generator=torch.Generator().manual_seed(5))
    got = made(ids)[0][0]
    torch.testing.assert_close(got, literal(made, ids[0], place), rtol=0, atol=SAME)
    plain = Decoder(dataclasses.replace(made.config, graft=None)).double()
    plain.load_state_dict(made.state_dict(), strict=False)
    assert (got - plain(ids)[0][0]).abs().max() > 0.1  # the memories say something
