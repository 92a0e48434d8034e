"""titans-pytorch models to import: every parameter moved off its start, and the table of options."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import titans_runtime
from titans_export.bundle.writer import write_bundle
from titans_export.titans_pytorch import installed as library
from titans_export.titans_pytorch.parity import LONGEST_PIECE, POLICIES
from titans_export.titans_pytorch.steppable import TitansPytorchModel
from titans_export.verification.pieces import random_pieces, random_stream
from titans_export.verification.torch_stream import TorchStream
from titans_runtime.arrays import Array
from titans_runtime.stream.driver import Driver

Config = dict[str, Any]

TOKENS = 600
CLOSE = 2e-4  # fp32, outputs
SLACK = 5.0  # or so many times the library's own distance between fp32 and fp64
SIGMA = 0.05

# At its default of 1, the largest step sends a model with perturbed parameters to NaN, in titans-pytorch as well.
STABLE = {"default_step_transform_max_lr": 0.1}

TRANSFORMER: Config = {
    "num_tokens": 32,
    "dim": 16,
    "depth": 2,
    "segment_len": 8,
    "dim_head": 8,
    "heads": 2,
    "neural_memory_kwargs": STABLE,
}
MEMORY: Config = {"dim": 16, "chunk_size": 4, **STABLE}

# What its train_mac.py trains, in fewer and narrower layers.
TRAIN_MAC: Config = {
    **TRANSFORMER,
    "num_tokens": 256,
    "depth": 4,
    "segment_len": 16,
    "num_persist_mem_tokens": 4,
    "num_longterm_mem_tokens": 4,
    "neural_memory_layers": [2, 3, 4],
    "neural_memory_segment_len": 4,
    "neural_memory_batch_size": 128,
    "neural_mem_gate_attn_output": False,
    "neural_mem_weight_residual": True,
    "neural_memory_qkv_receives_diff_views": True,
    "use_flex_attn": True,
    "sliding_window_attn": True,
    "neural_memory_model": {"class": "MemoryMLP", "args": {"dim": 8, "depth": 2}},
    "neural_memory_kwargs": {
        "dim_head": 8,
        "heads": 2,
        "attn_pool_chunks": True,
        "qk_rmsnorm": True,
        "momentum": True,
        "momentum_order": 1,
        "default_step_transform_max_lr": 0.1,
        "use_accelerated_scan": True,
        "per_parameter_lr_modulation": True,
        "spectral_norm_surprises": True,
    },
}

# One option each, for a memory, alone or inside a transformer.
MEMORY_OPTIONS: dict[str, Config] = {
    "heads": {"heads": 2},
    "head-dimension": {"heads": 2, "dim_head": 12},
    "deep": {"default_model_kwargs": {"depth": 3, "expansion_factor": 2.0}},
    "linear": {"default_model_kwargs": {"depth": 1}},
    "narrow": {"default_model_kwargs": {"depth": 2, "expansion_factor": 0.7}},
    "no-momentum": {"momentum": False},
    "second-order-momentum": {"momentum_order": 2},
    "combined-momenta": {"momentum_order": 2, "learned_momentum_combine": True},
    "combined-with-zeroth": {
        "heads": 2,
        "momentum_order": 2,
        "learned_momentum_combine": True,
        "learned_combine_include_zeroth": True,
    },
    "initial-decay": {"init_decay_bias": 1.0, "init_momentum_bias": -1.0, "init_adaptive_step_bias": -2.0},
    "qk-norm": {"qk_rmsnorm": True, "heads": 2},
    "no-pre-norm": {"pre_rmsnorm": False},
    "post-norm": {"post_rmsnorm": True, "heads": 2},
    "attention-pooling": {"attn_pool_chunks": True},
    "learning-rate-modulation": {"per_parameter_lr_modulation": True, "max_mem_layer_modulation": 3.0},
    "clamped-gradients": {"max_grad_norm": 1.0},
    "spectral-norm": {"spectral_norm_surprises": True},
    "two-pairs-per-token": {"num_kv_per_token": 2, "heads": 2},
    "shared-heads": {"per_head_learned_parameters": False, "heads": 2},
    "no-residual-norm": {"mem_model_norm_add_residual": False},
    "lookahead": {"store_with_lookahead_value": True},
    "activation": {"activation": {"class": "SiLU"}},
}

NETWORKS: dict[str, Config] = {
    "mlp": {"class": "MemoryMLP", "args": {"dim": 8, "depth": 3}},
    "factorized": {"class": "FactorizedMemoryMLP", "args": {"dim": 8, "depth": 2, "k": 3}},
    "gated-residual": {"class": "GatedResidualMemoryMLP", "args": {"dim": 8, "depth": 2, "expansion_factor": 2.0}},
    "swiglu": {"class": "MemorySwiGluMLP", "args": {"dim": 8, "depth": 2, "expansion_factor": 2.0}},
}

MEMORY_ALONE: dict[str, Config] = {
    "defaults-chunk-4": {},
    "chunk-1": {"chunk_size": 1},
    "chunk-7": {"chunk_size": 7},
    "chunk-24": {"chunk_size": 24},
    "two-chunk-sizes": {"chunk_size": [66, 64]},
    "batch-of-a-chunk": {"batch_size": 4},
    "batch-of-chunks": {"chunk_size": 8, "batch_size": 32},
    "different-views": {"qkv_receives_diff_views": True},
    **{f"network-{name}": {"heads": 2, "dim_head": 8, "model": value} for name, value in NETWORKS.items()},
    **MEMORY_OPTIONS,
}

TRANSFORMERS: dict[str, Config] = {
    "defaults": {},
    "train-mac": TRAIN_MAC,
    "sliding-window": {"sliding_window_attn": True},
    "persistent": {"num_persist_mem_tokens": 3},
    "longterm": {"num_longterm_mem_tokens": 3},
    "small-chunks": {"neural_memory_segment_len": 2},
    "single-tokens": {"neural_memory_segment_len": 1, "num_longterm_mem_tokens": 2},
    "chunks-across-segments": {"neural_memory_segment_len": 5, "num_longterm_mem_tokens": 3},
    "chunks-longer-than-segments": {"neural_memory_segment_len": 12, "sliding_window_attn": True},
    "batch": {"neural_memory_segment_len": 8, "neural_memory_batch_size": 64},
    "weight-residual": {"neural_mem_weight_residual": True, "depth": 3, "neural_memory_segment_len": 4},
    "different-views": {"neural_memory_qkv_receives_diff_views": True, "neural_memory_segment_len": 4},
    "gated-output": {"neural_mem_gate_attn_output": True},
    "one-stream": {"num_residual_streams": 1},
    "two-streams": {"num_residual_streams": 2},
    "some-layers": {"neural_memory_layers": [2], "depth": 3},
    "no-memory": {"neural_memory_layers": []},
    "heads-and-width": {"heads": 3, "dim_head": 4, "ff_mult": 2},
    "value-residual-flag": {"neural_memory_add_value_residual": True},
}


def transformer(changes: Config, memory: Config | None = None) -> Config:
    """The configuration of a transformer with some changes, and some to its memories."""
    kwargs = {**changes.get("neural_memory_kwargs", STABLE), **(memory or {})}
    args = {**TRANSFORMER, **changes, "neural_memory_kwargs": kwargs}
    return {"class": "MemoryAsContextTransformer", "args": args}


def memory(changes: Config) -> Config:
    """The configuration of a memory alone."""
    return {"class": "NeuralMemory", "args": {**MEMORY, **changes}}


def blank(config: Config) -> nn.Module:
    """The library's model as it starts."""
    return library.blank(config).eval().requires_grad_(False)


def perturbed(config: Config, seed: int = 0) -> tuple[nn.Module, dict[str, Tensor]]:
    """The library's model with every parameter moved, and its state dict."""
    torch.manual_seed(seed)
    model = blank(config)
    for parameter in model.parameters():
        parameter.data = parameter.data + torch.randn_like(parameter) * SIGMA
    return model, {name: value.clone() for name, value in model.state_dict().items()}


@dataclass(frozen=True)
class Imported:
    """A bundle and what it came from."""

    path: Path
    config: Config
    theirs: nn.Module
    ours: TitansPytorchModel


def imported(config: Config, folder: Path, seed: int = 0) -> Imported:
    """A bundle of a perturbed model, not verified."""
    theirs, tensors = perturbed(config, seed)
    ours = TitansPytorchModel(config, tensors)
    path = Path(tempfile.mkdtemp(dir=folder, suffix=".titans"))
    write_bundle(ours, path, dtype="fp32", provenance={})
    return Imported(path, config, theirs, ours)


def driver_of(case: Imported) -> Driver:
    """A single stream of the bundle."""
    return titans_runtime.load(case.path, provider="cpu", threads=1).driver(1)


def distance(a: Array | Tensor, b: Array | Tensor) -> float:
    """The largest absolute difference; a NaN is one."""
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max(initial=0.0))


def agreement(case: Imported, tokens: int = TOKENS, seed: int = 0) -> tuple[float, float, Driver]:
    """How far the bundle, fed in random pieces, is from the library's full forward; what is allowed; the driver.

    Some models amplify rounding until the library disagrees with itself, fp32 against fp64, by as much as the answer is
    large. Up to there, where the library is still close to itself, the bundle has to be close to it.
    """
    driver = driver_of(case)
    tokens = library.longest_answered(case.config, tokens)
    stream = random_stream(driver.manifest.inputs, tokens, seed)
    inputs = torch.from_numpy(stream)
    want = library.answers(case.theirs, inputs, case.config)
    exact = copy.deepcopy(case.theirs).double()
    exactly = library.answers(exact, inputs.double() if inputs.is_floating_point() else inputs, case.config)
    pieces = random_pieces(stream, LONGEST_PIECE, POLICIES, seed)
    fed = [driver.feed(piece.inputs, all_outputs=True, policy=piece.policy).outputs for piece in pieces]
    got = np.concatenate(fed, axis=1)
    assert got.shape == tuple(want.shape)
    own = (want - exactly).abs().amax((0, 2)).numpy()
    close = int(np.argmax(own > CLOSE / SLACK)) if (own > CLOSE / SLACK).any() else tokens
    assert close > 0
    assert distance(got[:, :close], want[:, :close]) <= CLOSE
    return distance(got, want), max(CLOSE, SLACK * float(own.max())), driver


def stepped(case: Imported, stream: Array) -> TorchStream:
    """Our own PyTorch form after a stream, token by token."""
    eager = TorchStream(case.ours, stream.shape[0])
    for place in range(stream.shape[1]):
        eager.feed(torch.from_numpy(stream[:, place : place + 1]))
    return eager
