"""Memory networks with written-out gradients, against the library's modules and autograd."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from titans_pytorch.memory_models import (
    FactorizedMemoryMLP,
    GatedResidualMemoryMLP,
    MemoryMLP,
    MemorySwiGluMLP,
    ResidualNorm,
)
from torch import nn

from titans_export.titans_pytorch import networks

KINDS = ("mlp", "factorized", "gated", "swiglu")


def pair(kind: str, dim: int, depth: int) -> tuple[nn.Module, networks.Network]:
    """The library's module and our network."""
    match kind:
        case "mlp":
            return MemoryMLP(dim, depth, 1.5), networks.Mlp(dim, depth, int(dim * 1.5))
        case "factorized":
            return FactorizedMemoryMLP(dim, depth, k=3), networks.FactorizedMlp(dim, depth, 3)
        case "gated":
            return GatedResidualMemoryMLP(dim, depth, 2.0), networks.GatedResidualMlp(dim, depth, 2 * dim)
    return MemorySwiGluMLP(dim, depth, 2.0), networks.SwiGluMlp(dim, depth, int(dim * 2.0 * 2 / 3))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(dim=st.integers(2, 9), depth=st.integers(1, 3), tokens=st.integers(1, 5), normed=st.booleans())
def test_outputs_and_gradients_are_those_of_autograd(
    kind: str, dim: int, depth: int, tokens: int, normed: bool
) -> None:
    torch.manual_seed(dim + 10 * depth + 100 * tokens)
    module, network = pair(kind, dim, depth)
    if normed:
        module, network = ResidualNorm(dim, module), networks.ResidualNorm(dim, network)
    module = module.double()
    for parameter in module.parameters():
        parameter.data = parameter.data + 0.1 * torch.randn_like(parameter)
    assert [tuple(p.shape) for p in module.parameters()] == [tuple(shape) for shape in network.shapes()]
    x = torch.randn(2, 3, tokens, dim, dtype=torch.float64, requires_grad=True)
    target, weight = torch.randn(x.shape, dtype=torch.float64), torch.rand(2, 3, tokens, 1, dtype=torch.float64)
    weights = [p.detach().expand(2, 3, *p.shape).clone().requires_grad_() for p in module.parameters()]
    plain = [
        [torch.func.functional_call(module, _named(module, weights, (a, b)), x[a, b]) for b in range(3)]
        for a in range(2)
    ]
    out = torch.stack([torch.stack(row) for row in plain])
    loss = ((out - target).pow(2) * weight).sum()
    *wanted, of_x = torch.autograd.grad(loss, [*weights, x])
    with torch.no_grad():
        torch.testing.assert_close(network.forward(weights, x), out)
        grads, back = network.gradient(weights, x, lambda y: 2 * weight * (y - target))
    torch.testing.assert_close(back, of_x)
    for grad, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad, want)


def _named(module: nn.Module, weights: list[torch.Tensor], at: tuple[int, int]) -> dict[str, torch.Tensor]:
    names = [name for name, _ in module.named_parameters()]
    return {name: weight[at] for name, weight in zip(names, weights, strict=True)}
