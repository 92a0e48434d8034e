"""A small decoder with random weights, and grafts that say something."""

from __future__ import annotations

import torch

from titans_core.config import MemoryConfig
from titans_core.decoder import Decoder, DecoderConfig, SideConfig, StreamConfig

ROTARY = tuple(100.0 ** (-place / 4) for place in range(4))
SMALL = DecoderConfig(
    architecture="llama",
    vocab_size=50,
    dim=32,
    layers=3,
    heads=4,
    kv_heads=2,
    head_width=8,
    ffn_hidden=48,
    norm_eps=1e-5,
    rotary_frequencies=ROTARY,
    window=13,
    sinks=3,
    chunk=8,
    prefill=24,
)
LINEAR = MemoryConfig(
    heads=2, depth=1, momentum=False, forget=False, max_step_size=0.5, surprise_bound=None, conv_kernel=4
)
GRAFTS: dict[str, SideConfig | StreamConfig] = {
    "side": SideConfig(read=(0, 1, 2), dim=24, memory=LINEAR),
    "before": StreamConfig(layers=(0, 2), dim=32, place="before", memory=MemoryConfig(heads=2)),
    "beside": StreamConfig(layers=(1,), dim=16, place="beside", memory=MemoryConfig(heads=2, depth=1)),
}


def decoder(seed: int = 0) -> Decoder:
    """Without a graft."""
    torch.manual_seed(seed)
    return Decoder(SMALL)


def grafted(name: str, lora: int = 0) -> Decoder:
    """With one that has left its start."""
    made = decoder()
    made.attach(GRAFTS[name], lora)
    with torch.no_grad():
        for path, parameter in made.named_parameters():
            if path.startswith(("graft.", "lora.")) and "gate" not in path:
                parameter.add_(torch.randn_like(parameter) * 0.05 + (3.0 if path == "graft.scale" else 0.0))
    return made
