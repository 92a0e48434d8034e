"""Random combinations of all options, transformers and memories alone, against the library's full forward."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from tests.export.titans_pytorch import cases
from titans_export.titans_pytorch import installed as library
from titans_export.titans_pytorch.steppable import TitansPytorchModel
from titans_export.verification.pieces import random_stream

Draw = st.DrawFn


@st.composite
def memory_options(draw: Draw, chunk: int, dim: int) -> cases.Config:
    """Arguments that both constructors take for a memory."""
    heads, width = draw(st.sampled_from([(1, dim), (2, 4), (3, 8)]))
    args: cases.Config = {
        "default_step_transform_max_lr": 0.1,
        "heads": heads,
        "dim_head": width,
        "momentum": draw(st.booleans()),
        "momentum_order": draw(st.integers(1, 3)),
        "qk_rmsnorm": draw(st.booleans()),
        "pre_rmsnorm": draw(st.booleans()),
        "post_rmsnorm": draw(st.booleans()),
        "attn_pool_chunks": chunk > 1 and draw(st.booleans()),
        "per_parameter_lr_modulation": draw(st.booleans()),
        "max_mem_layer_modulation": draw(st.sampled_from([1.0, 2.0])),
        "per_head_learned_parameters": draw(st.booleans()),
        "max_grad_norm": draw(st.sampled_from([None, 1.0])),
        "spectral_norm_surprises": draw(st.booleans()),
        "num_kv_per_token": draw(st.integers(1, 2)),
        "mem_model_norm_add_residual": draw(st.sampled_from([True, True, False])),
        "store_with_lookahead_value": draw(st.booleans()),
        "activation": draw(st.sampled_from([None, {"class": "SiLU"}])),
    }
    if args["momentum"] and args["momentum_order"] > 1:
        args["learned_momentum_combine"] = draw(st.booleans())
        args["learned_combine_include_zeroth"] = draw(st.booleans())
    return args


@st.composite
def network(draw: Draw, width: int) -> cases.Config | None:
    """A memory network, or the default one."""
    value = draw(st.sampled_from([None, *cases.NETWORKS.values()]))
    return None if value is None else {**value, "args": {**value["args"], "dim": width}}


@st.composite
def configurations(draw: Draw) -> cases.Config:
    """Any configuration that can be carried over."""
    if draw(st.integers(0, 3)) == 0:
        chunk = draw(st.sampled_from([1, 3, 8]))
        args = draw(memory_options(chunk, 8))
        args |= {"dim": 8, "chunk_size": chunk, "batch_size": draw(st.sampled_from([None, chunk, 4 * chunk]))}
        args |= {"qkv_receives_diff_views": draw(st.booleans()), "model": draw(network(args["dim_head"]))}
        return {"class": "NeuralMemory", "args": args}
    chunk = draw(st.sampled_from([None, 2, 3, 4]))
    segment, longterm = 6, draw(st.sampled_from([0, 2]))
    kwargs = draw(memory_options(chunk or segment + longterm, 8))
    args = {
        "num_tokens": 20,
        "dim": 8,
        "depth": draw(st.integers(1, 3)),
        "segment_len": segment,
        "num_longterm_mem_tokens": longterm,
        "num_persist_mem_tokens": draw(st.sampled_from([0, 2])),
        "neural_memory_segment_len": chunk,
        "neural_memory_batch_size": draw(st.sampled_from([None, 8 * (chunk or segment + longterm)])),
        "neural_mem_gate_attn_output": draw(st.booleans()),
        "neural_memory_qkv_receives_diff_views": draw(st.booleans()),
        "neural_mem_weight_residual": draw(st.booleans()),
        "sliding_window_attn": draw(st.booleans()),
        "num_residual_streams": draw(st.sampled_from([1, 1, 2])),
        "dim_head": 4,
        "heads": 2,
        "neural_memory_kwargs": kwargs,
        "neural_memory_model": draw(network(kwargs["dim_head"])),
        "neural_memory_layers": draw(st.sampled_from([None, [1], [1, 3]])),
    }
    return {"class": "MemoryAsContextTransformer", "args": args}


@pytest.mark.slow
@settings(  # not shrunk: an example takes seconds, and the failing one says enough
    max_examples=30,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(config=configurations(), seed=st.integers(0, 3))
def test_any_combination_of_options_answers_as_the_full_forward_does(config: cases.Config, seed: int) -> None:
    theirs, tensors = cases.perturbed(config, seed)
    stream = torch.from_numpy(random_stream(TitansPytorchModel(config, tensors).inputs, cases.TOKENS, seed))
    # The library itself leaves the numbers where a memory without its norm, or with gradients of 0, blows up.
    assume(bool(torch.isfinite(library.answers(theirs, stream, config)).all()))
    with tempfile.TemporaryDirectory() as folder:
        error, allowed, _ = cases.agreement(cases.imported(config, Path(folder), seed), seed=seed)
    assert 0 < error <= allowed
