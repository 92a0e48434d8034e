"""Fewer Sinkhorn iterations than the library's 20, where they give the same matrix to the last place."""

from __future__ import annotations

import torch
from hyper_connections.manifold_constrained_hyper_connections import sinkhorn_knopps
from hypothesis import given, settings
from hypothesis import strategies as st

from titans_export.titans_pytorch.connections import SINKHORN_ITERATIONS, enough_iterations, sinkhorn


@settings(max_examples=60, deadline=None, derandomize=True)
@given(streams=st.integers(2, 5), spread=st.floats(0.01, 6.0), swing=st.floats(0.0, 1.0), seed=st.integers(0, 9))
def test_matrices_are_those_of_the_library(streams: int, spread: float, swing: float, seed: int) -> None:
    torch.manual_seed(seed)
    static = torch.randn(streams, streams, dtype=torch.float64) * spread
    columns = torch.rand(streams, dtype=torch.float64) * swing
    added = (2 * torch.rand(50, streams, streams, dtype=torch.float64) - 1).sign() * columns  # as far as it goes
    found = sinkhorn(static + added, enough_iterations(static, columns))
    # The library computes this in fp32 whatever it is given: as the reference the same steps in fp64.
    want = sinkhorn(static + added, SINKHORN_ITERATIONS)
    assert (found - want).abs().max() <= 1.2e-7
    torch.testing.assert_close(want.float(), sinkhorn_knopps((static + added).float()), rtol=1e-4, atol=1e-5)


def test_default_parameters_need_fewer_and_wide_ones_all() -> None:
    eye, still = torch.eye(4), torch.zeros(4)
    assert enough_iterations(eye, still) == 13
    assert enough_iterations(20 * eye, still) == SINKHORN_ITERATIONS
    assert enough_iterations(eye, still + 5.0) == SINKHORN_ITERATIONS
