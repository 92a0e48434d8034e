"""Layers that compute one thing in two forms, and masks at the edge of a type's range.

Knows what each form must equal. Does not know which form a model takes when.
"""

from __future__ import annotations

import pytest
import torch

from titans_core.attention import masked
from titans_core.layers import CausalConv


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("taps", [2, 4, 16])
def test_a_convolution_is_the_sum_of_its_taps_with_and_without_gradients(taps: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    conv = CausalConv(6, taps).to(dtype)
    x, past = torch.randn(2, 9, 6, dtype=dtype), torch.randn(2, taps - 1, 6, dtype=dtype)
    stream = torch.cat([past, x], dim=1).double()
    want = torch.zeros(2, 9, 6, dtype=torch.float64)
    for token in range(9):
        for tap in range(taps):
            want[:, token] += stream[:, token + tap] * conv.weight[tap].detach().double()
    trained, _ = conv(x, past, conv.weight, None)
    with torch.no_grad():
        inferred, after = conv(x, past, conv.weight, None)
    tolerance = 64 * torch.finfo(dtype).eps
    torch.testing.assert_close(trained.detach().double(), want, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(inferred.double(), want, rtol=tolerance, atol=tolerance)
    assert torch.equal(after, torch.cat([past, x], dim=1)[:, 9:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_out_of_sight_has_no_weight_and_overflows_nowhere(dtype: torch.dtype) -> None:
    score = torch.tensor([[-30_000.0, 5.0, -7.0]], dtype=dtype)
    hidden = masked(score, torch.tensor([[False, True, False]]))
    assert hidden.isfinite().all()
    assert torch.equal(torch.softmax(hidden, dim=-1), torch.tensor([[0.0, 1.0, 0.0]], dtype=dtype))
