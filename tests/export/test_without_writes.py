"""A bundle whose writes are switched off when it is loaded computes what the same weights without writes compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import titans_runtime
from tests.export.conftest import Exported, moved
from titans_core.config import TitansConfig
from titans_core.controls import decoder_writes_off, writes_off
from titans_core.decoder import Decoder
from titans_core.model import TitansModel
from titans_export.export import export_model


def control(model: TitansModel | Decoder) -> TitansModel | Decoder:
    if isinstance(model, Decoder):
        return decoder_writes_off(model).eval()
    config, tensors = writes_off(model.config, model.state_dict())
    twin = TitansModel(config)
    twin.load_state_dict(tensors)
    return twin.eval().requires_grad_(False)


def stream(model: TitansModel | Decoder, tokens: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if model.config.vocab_size is None:
        return torch.randn(1, tokens, model.config.features or 0, generator=generator)
    return torch.randint(model.config.vocab_size, (1, tokens), generator=generator)


def test_writes_are_switched_off_in_every_graph(exported: Exported) -> None:
    inputs = stream(exported.model, 80)
    want, _ = control(exported.model)(inputs)
    off = titans_runtime.load(exported.path, provider="cpu", threads=1).without_writes()
    driver = off.driver()
    pieces = [driver.feed(part.numpy(), all_outputs=True).outputs for part in inputs.split([1, 30, 9, 16, 24], dim=1)]
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), want.numpy(), atol=2e-5)


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "int8"])
def test_writes_are_switched_off_at_every_precision(dtype: str, tmp_path: Path) -> None:
    shape = {"dim": 32, "heads": 2, "chunk": 8, "ffn_hidden": 48, "memory": {"heads": 2}}
    model = moved(TitansModel(TitansConfig.from_dict(shape)))
    export_model(model, tmp_path / "m.titans", dtype=dtype, verify_tokens=0)
    export_model(control(model), tmp_path / "control.titans", dtype=dtype, verify_tokens=0)
    ids = stream(model, 60).numpy()
    told = []
    for loaded in (
        titans_runtime.load(tmp_path / "m.titans", provider="cpu", threads=1).without_writes(),
        titans_runtime.load(tmp_path / "control.titans", provider="cpu", threads=1),
    ):
        told.append(loaded.driver().feed(ids, all_outputs=True).outputs)
    # int8 rounds activations: what is equal to a last bit may fall on two sides of a step.
    np.testing.assert_allclose(told[0], told[1], atol=0.05 if dtype == "int8" else 2e-5)


def test_a_model_that_never_writes_has_no_switch(exported: Exported, tmp_path: Path) -> None:
    export_model(control(exported.model), tmp_path / "control.titans", verify_tokens=0)
    with pytest.raises(titans_runtime.InputError, match="no step sizes that could be switched off"):
        titans_runtime.load(tmp_path / "control.titans", provider="cpu").without_writes()
