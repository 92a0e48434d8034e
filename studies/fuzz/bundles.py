"""The bundles that are damaged: the smallest that have every kind of graph, state and fused operator.

One is of a model of ours, two are of pretrained decoders with a memory grafted on: in the stream, with weights in
blocks, and beside it. Knows how they are made. Does not know what is done to them.
"""

from __future__ import annotations

from pathlib import Path

import torch

from titans_core.config import MemoryConfig, TitansConfig
from titans_core.decoder import Decoder, DecoderConfig, SideConfig, StreamConfig
from titans_core.model import TitansModel
from titans_core.training.checkpoint import Checkpoint, TrainingProgress, prepare_directory, save_checkpoint
from titans_export.export import export_checkpoint, export_model

VOCABULARY = 16
LINEAR = MemoryConfig(depth=1, momentum=False, forget=False, max_step_size=0.5, surprise_bound=None, conv_kernel=4)
DECODER = DecoderConfig(
    architecture="llama",
    vocab_size=VOCABULARY,
    dim=32,
    layers=1,
    heads=4,
    kv_heads=2,
    head_width=8,
    ffn_hidden=32,
    norm_eps=1e-5,
    rotary_frequencies=tuple(100.0 ** (-place / 4) for place in range(4)),
    window=9,
    sinks=2,
    chunk=4,
    prefill=8,
)
# Weights in blocks round every row, so that two splits of a stream differ by more than fp32 does; those are asked of
# the other alone (`targets`).
GRAFTS: dict[str, tuple[SideConfig | StreamConfig, str]] = {
    "stream": (StreamConfig(layers=(0,), dim=32, place="before", memory=MemoryConfig(heads=1)), "int8"),
    "side": (SideConfig(read=(0,), dim=8, memory=LINEAR), "fp32"),
}


def make_bundles(folder: Path) -> dict[str, Path]:
    """Every bundle, by its name."""
    return {"tiny": tiny_bundle(folder), **{name: decoder_bundle(name, folder) for name in GRAFTS}}


def tiny_bundle(folder: Path) -> Path:
    """A bundle of the smallest model of ours."""
    torch.manual_seed(0)
    config = TitansConfig(
        variant="mag",
        dim=8,
        layers=1,
        heads=1,
        ffn_hidden=8,
        chunk=4,
        window=4,
        persistent_tokens=1,
        vocab_size=VOCABULARY,
        memory=MemoryConfig(heads=1),
    )
    prepare_directory(folder / "checkpoint")
    model = TitansModel(config)
    save_checkpoint(folder / "checkpoint", Checkpoint(config, model.state_dict(), None, {}), TrainingProgress(0, {}))
    export_checkpoint(folder / "checkpoint", folder / "tiny.titans", verify_tokens=0)
    return folder / "tiny.titans"


def decoder_bundle(name: str, folder: Path) -> Path:
    """A bundle of a pretrained decoder with a memory that has left its start."""
    torch.manual_seed(0)
    graft, dtype = GRAFTS[name]
    decoder = Decoder(DECODER)
    decoder.attach(graft, 2)
    with torch.no_grad():
        for path, parameter in decoder.named_parameters():
            if path.startswith(("graft.", "lora.")) and "gate" not in path:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    export_model(decoder, folder / f"{name}.titans", dtype=dtype, verify_tokens=0)
    return folder / f"{name}.titans"
