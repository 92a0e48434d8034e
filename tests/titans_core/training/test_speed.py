"""Chunks that are compiled or computed again in the backward pass are the same chunks."""

from __future__ import annotations

import pytest
import torch

from titans_core.config import MemoryConfig, TitansConfig
from titans_core.model import TitansModel
from titans_core.training.speed import prepare


def _gradients(
    variant: str, *, layers: int = 2, compiled: bool = False, recompute: bool = False
) -> tuple[float, list[torch.Tensor]]:
    torch.manual_seed(0)
    memory = MemoryConfig(heads=2, residual_norm=variant == "lmm", depth=1 if variant == "mag" else 2)
    persistent = 0 if variant == "lmm" else 2
    config = TitansConfig(
        variant=variant,  # type: ignore[arg-type]
        dim=16,
        layers=layers,
        heads=2,
        ffn_hidden=16,
        chunk=8,
        window=8,
        vocab_size=11,
        persistent_tokens=persistent,
        memory=memory,
    )
    model = TitansModel(config).double()
    prepare(model, compiled=compiled, recompute=recompute)
    logits, state = model(torch.arange(2 * 24).reshape(2, 24) % 11)
    loss = logits.square().mean() + sum(state[name].square().sum() for name in state if ".memory_" in name)
    loss.backward()
    return loss.item(), [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]


@pytest.mark.parametrize("variant", ["lmm", "mal", "mag", "mac"])
def test_chunks_computed_again_give_the_same_gradients(variant: str) -> None:
    loss, gradients = _gradients(variant)
    again, recomputed = _gradients(variant, recompute=True)
    assert loss == again
    assert all(torch.equal(a, b) for a, b in zip(gradients, recomputed, strict=True))


@pytest.mark.slow
def test_compiled_chunks_give_the_same_gradients() -> None:
    loss, gradients = _gradients("mag", layers=1)
    again, compiled = _gradients("mag", layers=1, compiled=True, recompute=True)
    assert loss == pytest.approx(again, rel=1e-12)
    for a, b in zip(gradients, compiled, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_recomputing_keeps_activations_of_one_chunk() -> None:
    kept, deep = {}, MemoryConfig(heads=1, depth=4)
    for recompute in (False, True):
        torch.manual_seed(0)
        model = TitansModel(
            TitansConfig(variant="lmm", dim=16, ffn_hidden=16, chunk=8, vocab_size=11, persistent_tokens=0, memory=deep)
        )
        prepare(model, recompute=recompute)
        sizes: dict[int, int] = {}

        def keep(x: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            outputs, _ = model(torch.zeros(1, 128, dtype=torch.int64))
        kept[recompute] = sum(sizes.values())
        del outputs
    assert kept[True] < 0.6 * kept[False]
