"""One model of one version of titans-pytorch: its state dict, its configuration, and its own answers to a stream.

Works with the version that is imported as `titans_pytorch`. Arguments that its constructors have not are left out, and
defaults of its own are written down, so that the configuration says what was built.
"""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from studies.family.titans_pytorch_names import MEMORY_NAMES, TRANSFORMER_NAMES

SIGMA = 0.05  # by which every parameter is moved
STABLE = {"default_step_transform_max_lr": 0.1}
DEFAULTS: dict[str, Any] = {
    "num_tokens": 32,
    "dim": 16,
    "depth": 2,
    "segment_len": 8,
    "dim_head": 8,
    "heads": 2,
    "neural_memory_kwargs": STABLE,
}
# What its train_mac.py trains, in fewer and narrower layers.
TRAIN_MAC: dict[str, Any] = {
    **DEFAULTS,
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
        "per_parameter_lr_modulation": True,
        "spectral_norm_surprises": True,
    },
}
CASES = {
    "defaults": DEFAULTS,
    "train_mac": TRAIN_MAC,
    "two-streams": {**DEFAULTS, "num_residual_streams": 2},
    "one-stream": {**DEFAULTS, "num_residual_streams": 1},
}
_FASTER = {"use_flex_attn": False}
_FASTER_MEMORY = {"use_accelerated_scan": False}


def known(function: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    """The arguments that a constructor has."""
    names = inspect.signature(function).parameters
    return {name: value for name, value in wanted.items() if name in names}


def with_defaults(function: Any, given: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """`given`, and the constructor's own defaults for those of `names` that are plain values."""
    found = {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if name in names and isinstance(parameter.default, (bool, int, float))
    }
    return {**found, **given}


def write(case: str, tokens: int, out: Path) -> None:
    """Write `config.json`, `model.safetensors` and `answers.pt` into `out`."""
    package = importlib.import_module("titans_pytorch")
    transformer, memory = package.MemoryAsContextTransformer, package.NeuralMemory
    arguments = known(transformer.__init__, dict(CASES[case]))
    kwargs = known(memory.__init__, arguments.pop("neural_memory_kwargs"))
    built = {**arguments, "neural_memory_kwargs": {**kwargs, **known(memory.__init__, _FASTER_MEMORY)}}
    if "neural_memory_layers" in built:
        built["neural_memory_layers"] = tuple(built["neural_memory_layers"])
    if "neural_memory_model" in built:
        built["neural_memory_model"] = package.MemoryMLP(**built["neural_memory_model"]["args"])
    torch.manual_seed(0)
    model: nn.Module = transformer(**built, **known(transformer.__init__, _FASTER)).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data + torch.randn_like(parameter) * SIGMA
    ids = torch.randint(arguments["num_tokens"], (1, tokens), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want = _logits(model, ids)
        exactly = _logits(model.double(), ids)
    model.float()
    args = with_defaults(transformer.__init__, arguments, TRANSFORMER_NAMES)
    args["neural_memory_kwargs"] = with_defaults(memory.__init__, kwargs, MEMORY_NAMES)
    out.mkdir(parents=True, exist_ok=True)
    config = {"class": "MemoryAsContextTransformer", "args": args}
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    save_file({name: value.clone() for name, value in model.state_dict().items()}, out / "model.safetensors")
    torch.save({"ids": ids, "logits": want, "exact": exactly}, out / "answers.pt")


def _logits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    found = model(ids)
    logits: torch.Tensor = found[0] if isinstance(found, tuple) else found
    return logits
