"""What a default memory writes still counts after a long stream, whatever its variant and depth."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from titans_core.config import VARIANTS, ForgetTo, MemoryConfig, TitansConfig, Variant
from titans_core.controls import writes_off
from titans_core.model import TitansModel
from titans_core.state import State

CHUNK, TOKENS, BEGINNING = 64, 32_768, 1024
VOCABULARY = 64


def model(variant: Variant, depth: int, forget_to: ForgetTo = "start") -> TitansModel:
    """A fresh model: every option of the memory but the depth is the default."""
    torch.manual_seed(depth)
    memory = MemoryConfig(heads=1, depth=depth, forget_to=forget_to)
    shape = TitansConfig(
        variant=variant, dim=16, layers=1, heads=2, ffn_hidden=16, chunk=CHUNK, window=CHUNK, memory=memory,
        persistent_tokens=0 if variant == "lmm" else 2, vocab_size=VOCABULARY,
    )  # fmt: skip
    return TitansModel(shape).eval().requires_grad_(False)


def never_written(net: TitansModel) -> TitansModel:
    config, tensors = writes_off(net.config, net.state_dict())
    twin = TitansModel(config).eval().requires_grad_(False)
    twin.load_state_dict(tensors)
    return twin


def last_logits(net: TitansModel, ids: Tensor) -> Tensor:
    """Of the last chunk of a stream."""
    state: State | None = None
    for piece in ids.split(4096, dim=1):
        logits, state = net(piece, state)
    return logits[:, -CHUNK:]


def worth(net: TitansModel, ids: Tensor, seen_by_twin: int) -> float:
    """How far the writes of a whole stream move the last logits; the twin without writes reads its end only."""
    return float((last_logits(net, ids) - last_logits(never_written(net), ids[:, -seen_by_twin:])).abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_writes_count_after_a_long_stream_as_much_as_at_its_beginning(variant: Variant, depth: int) -> None:
    net = model(variant, depth)
    ids = torch.randint(VOCABULARY, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    # One layer that is never written knows no more than its window, its segment and its convolution.
    early = worth(net, ids[:, :BEGINNING], BEGINNING)
    late = worth(net, ids, BEGINNING)
    assert early > 1e-3
    assert late > 0.5 * early


@pytest.mark.slow
def test_writes_that_fade_towards_zero_end_up_counting_for_nothing() -> None:
    net = model("lmm", 2, forget_to="zero")
    ids = torch.randint(VOCABULARY, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    assert worth(net, ids[:, :BEGINNING], BEGINNING) > 1e-4
    assert worth(net, ids, TOKENS) < 1e-6
