"""Joints equal the library's: plain ones, and constrained ones with fewer Sinkhorn iterations than its 20."""

from __future__ import annotations

import pytest
import torch
from hyper_connections.hyper_connections import HyperConnections
from hyper_connections.manifold_constrained_hyper_connections import sinkhorn_knopps
from hypothesis import given, settings
from hypothesis import strategies as st

from titans_export.titans_pytorch.connections import (
    SINKHORN_ITERATIONS,
    PlainConnection,
    connection,
    enough_iterations,
    sinkhorn,
)
from titans_export.titans_pytorch.parameters import Reader


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


@pytest.mark.parametrize("streams", [2, 3, 4])
@pytest.mark.parametrize("returns", [True, False])
def test_plain_connections_are_those_of_the_library(streams: int, returns: bool) -> None:
    torch.manual_seed(streams)
    dim = 6
    theirs = HyperConnections(streams, dim=dim, add_branch_out_to_residual=returns).double()
    for parameter in theirs.parameters():
        parameter.data = parameter.data + torch.randn_like(parameter) * 0.5
    ours = connection(streams, dim, returns, Reader(dict(theirs.state_dict()))).double()
    assert isinstance(ours, PlainConnection)
    x = torch.randn(2, 5, streams, dim, dtype=torch.float64)
    rows = x.permute(0, 2, 1, 3).flatten(0, 1)  # the library has the streams beside the batch
    want, want_join = theirs(rows)
    got, join = ours(x)
    out = torch.sin(want)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)  # the reader keeps parameters in fp32
    joined = want_join(out)
    joined = joined.unflatten(0, (2, streams)).permute(0, 2, 1, 3) if returns else joined
    torch.testing.assert_close(join(torch.sin(got)), joined, rtol=0, atol=2e-6)
    back = connection(1, dim, returns, Reader({}))
    assert not isinstance(back, PlainConnection)
