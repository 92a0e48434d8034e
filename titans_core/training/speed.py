"""Faster training steps, and smaller ones: the memory's chunks compiled, and computed again in the backward pass.

Both work on one chunk at a time, the piece that repeats: a whole slice unrolled would take minutes to compile.
Neither changes what is computed. Does not know the loop.
"""

from __future__ import annotations

import torch
from torch.utils.checkpoint import checkpoint

from titans_core.blocks import ChunkForm, MemoryReader
from titans_core.memory import Chunk
from titans_core.model import TitansModel


def prepare(model: TitansModel, *, compiled: bool = False, recompute: bool = False) -> None:
    """Set how `model` runs its chunks from now on.

    Args:
        model: in place; its parameters and what it computes stay as they are.
        compiled: with `torch.compile`, which needs a C++ compiler on a CPU and some seconds at the first step.
        recompute: keep a chunk's inputs only and compute the rest again when gradients are taken: activation memory of
            one chunk instead of all, for about a third more time.
    """
    for reader in model.modules():
        if isinstance(reader, MemoryReader):
            form: ChunkForm = reader.memory.read_and_write_chunk
            if compiled:
                form = torch.compile(form, dynamic=False)
            reader.chunk_form = _recomputed(form) if recompute else form


def _recomputed(form: ChunkForm) -> ChunkForm:
    """`form` with activation checkpointing, where gradients are recorded."""

    def run(chunk: Chunk, state: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
        if not torch.is_grad_enabled():
            return form(chunk, state)
        found: tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor] = checkpoint(
            form, chunk, state, use_reentrant=False, preserve_rng_state=False
        )
        return found

    return run
