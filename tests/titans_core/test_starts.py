"""Where training starts from: a fresh model already asks for what it wrote, and a token of mac knows itself."""

from __future__ import annotations

import torch

from titans_core.attention import SegmentAttention
from titans_core.config import MemoryConfig, TitansConfig
from titans_core.memory import NeuralMemory

CONFIG = TitansConfig(dim=64, heads=2, chunk=16, memory=MemoryConfig(heads=1))


def test_a_fresh_memory_is_asked_for_a_token_with_the_key_of_what_followed_it() -> None:
    torch.manual_seed(0)
    memory = NeuralMemory(CONFIG)
    x, past = torch.randn(1, 40, 64), torch.zeros(1, 3, 192)
    queries, keys, *_ = memory.project(x, past)
    alike = (queries[0, 0, 3:-1] @ keys[0, 0, 4:].T).detach()  # cosines
    assert alike.diagonal().mean() > 0.6
    assert (alike.argmax(1) == torch.arange(len(alike))).float().mean() > 0.95


def test_a_fresh_segment_attends_to_the_token_itself() -> None:
    torch.manual_seed(0)
    attention = SegmentAttention(CONFIG, reads=False)
    x = torch.randn(1, 16, 64)
    with torch.no_grad():
        q, k = (attention.normalised(each) for each in attention._project(x, None)[:2])
        queries, keys = attention.rotate_from(q, attention.positions), attention.rotate_from(k, 0)
        weights = torch.softmax(queries @ keys.transpose(-1, -2), -1)
    assert weights.diagonal(dim1=-2, dim2=-1).mean() > 0.5
