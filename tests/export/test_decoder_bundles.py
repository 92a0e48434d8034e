"""Bundles of pretrained decoders: the runtime computes what transformers computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import titans_runtime as titans
from tests.titans_core.decoder.families import banded, ids, make, with_sinks
from titans_core.pretrained import decoder_of, open_pretrained
from titans_export.export import export_model
from titans_runtime.arrays import Array

SAME = 2e-4  # fp32
NAMES = ("llama", "llama-tied", "llama-llama3", "mistral", "qwen2", "qwen3")


def exported(name: str, folder: Path, window: int = 24, sinks: int = 0, **options: Any) -> tuple[Any, Path]:
    """A random model of transformers, and the bundle that was made of it."""
    model = make(name, folder / "model")
    pretrained = open_pretrained(folder / "model").streaming(window=window, sinks=sinks, chunk=8, prefill=32)
    export_model(decoder_of(pretrained), folder / "bundle", **{"verify_tokens": 0} | options)
    return model, folder / "bundle"


def logits(bundle: Path, tokens: torch.Tensor) -> Array:
    driver = titans.load(bundle, provider="cpu", threads=1).driver(tokens.shape[0])
    return driver.feed(tokens.numpy(), all_outputs=True).outputs[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_without_sinks_is_the_model_under_a_band(name: str, tmp_path: Path) -> None:
    model, bundle = exported(name, tmp_path)
    tokens = ids(1500)
    want = banded(model, tokens, 24)[0].numpy()
    assert np.abs(logits(bundle, tokens) - want).max() <= SAME


@pytest.mark.parametrize("name", ["llama-tied", "qwen3"])
def test_a_bundle_with_sinks_is_the_model_and_past_its_window_the_literal_writing(name: str, tmp_path: Path) -> None:
    model, bundle = exported(name, tmp_path, window=13, sinks=3)
    tokens = ids(1500 if name == "qwen3" else 100)
    got = logits(bundle, tokens)
    with torch.no_grad():
        inside = model(tokens[:, :16], use_cache=False).logits[0].numpy()
    assert np.abs(got[:16] - inside).max() <= SAME
    assert np.abs(got - with_sinks(model, tokens, window=13, sinks=3)[0].numpy()).max() <= SAME


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
def test_verification_agrees_in_every_precision(dtype: str, tmp_path: Path) -> None:
    _, bundle = exported("qwen3", tmp_path, window=13, sinks=3, dtype=dtype, verify_tokens=300)
    report = titans.load(bundle, provider="cpu").manifest.verification
    assert report is not None
    assert report["ok"]
